"""Metrics of a whole data set: collected over batches, then finished."""

import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from abcsearch import (
    METRICS,
    AdaptiveBN,
    Metrics,
    Objective,
    Sliced,
    rank_channels,
    score,
    trace_channels,
)
from abcsearch.data.split import Split
from abcsearch.errors import ConfigError
from abcsearch.evaluation.adaptive_bn import AdaptiveBNOptions
from abcsearch.evaluation.cascade import Cascade, CascadeOptions
from abcsearch.evaluation.sliced import with_metric
from abcsearch.training.objectives import CLASSIFICATION
from abcsearch.training.scoring import Tally


class F1(Metrics):
    """F1 of class 1, which is no mean over images."""

    def __init__(self):
        self.said, self.there, self.batches = [], [], 0

    def add(self, outputs, labels):
        self.said.append(outputs.argmax(dim=1).cpu())
        self.there.append(labels.cpu())
        self.batches += 1

    def finish(self):
        said, there = torch.cat(self.said), torch.cat(self.there)
        return {
            "f1": 2 * float((said & there).sum()) / float(said.sum() + there.sum()),
            "batches": self.batches,
        }


class Alone(F1):
    def finish(self):
        return super().finish()["f1"]


class Broken(F1):
    def finish(self):
        raise ValueError("none")


class Wordy(F1):
    def finish(self):
        return {"precision": 1.0, "recall": 1.0}


def logits(count=30):
    draws = torch.Generator().manual_seed(0)
    return Split(
        torch.randn(count, 2, 1, 1, generator=draws), torch.randint(0, 2, (count,), generator=draws)
    )


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_it_is_of_all_images_whatever_the_batch_size(batch_size):
    split = logits()
    goal = Objective(
        loss=nn.functional.cross_entropy,
        metrics=CLASSIFICATION.metrics,
        whole={"f1": F1, "batches": F1},
    )
    found = score(nn.Flatten(), split, objective=goal, batch_size=batch_size)
    wanted = f1_score(split.labels.numpy(), split.images.flatten(1).argmax(dim=1).numpy())
    assert found["f1"] == pytest.approx(wanted)
    assert found["batches"] == -(-30 // batch_size)  # one object had all of them
    assert found["top1"] == score(nn.Flatten(), split)["top1"]
    assert goal.headline == "f1"
    assert goal.names[:2] == ["f1", "batches"]


def test_it_is_collected_over_calls_and_images_have_no_values():
    split = logits()
    goal = Objective(loss=nn.functional.cross_entropy, metrics={}, whole={"f1": F1})
    tally = Tally(goal, kept="f1")
    for positions in torch.arange(30).split(11):
        tally.add(nn.Flatten(), split.part(positions))
        partly = tally.means()
    assert partly == score(nn.Flatten(), split, objective=goal)
    assert tally.values() is None
    assert tally.count == 30


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Broken, "'f1' of the whole data set failed: ValueError"),
        (Wordy, "found .*precision.*recall"),
    ],
)
def test_what_is_no_number_is_refused_with_the_name_of_the_metric(kind, said):
    goal = Objective(loss=nn.functional.cross_entropy, metrics={}, whole={"f1": kind})
    with pytest.raises(ConfigError, match=said):
        score(nn.Flatten(), logits(), objective=goal)


def sliced(model, data):
    graph = trace_channels(model, data.example)
    return Sliced(model, graph, rank_channels(model, graph))


@pytest.fixture
def named():
    """A metric by name."""
    METRICS["f1"] = F1
    yield "f1"
    del METRICS["f1"]


@pytest.mark.parametrize("how", ["name", "import path"])
def test_one_of_your_own_is_a_fitness_by_name_and_by_import_path(tiny_model, tiny_data, how, named):
    name = named if how == "name" else f"{__name__}:Alone"
    options = AdaptiveBNOptions(
        metric=name, calibration_images=16, batch_size=16, validation_images=30
    )
    source = sliced(tiny_model, tiny_data)
    evaluator = AdaptiveBN(source, tiny_data, options)
    candidate = source.graph.space().uniform(0.5)
    found, network = evaluator(candidate, 0), evaluator.build(candidate)
    goal = with_metric(CLASSIFICATION, name)
    assert found.fitness == score(network, evaluator._validation, objective=goal)[name]
    assert found.metrics["top1"] == pytest.approx(score(network, evaluator._validation)["top1"])
    in_full = evaluator.in_full(candidate, 0)
    assert in_full.metrics["images"] == len(tiny_data.validation)
    assert "standard_error" not in in_full.metrics


def test_racing_is_refused_in_all_evaluators(tiny_model, tiny_data):
    name, source = f"{__name__}:Alone", sliced(tiny_model, tiny_data)
    said = 'scoring = "racing" compares candidates image by image, and .*Alone is one number of all images.*"full"'
    with pytest.raises(ConfigError, match=said):
        AdaptiveBN(
            source, tiny_data, AdaptiveBNOptions(metric=name, scoring="racing", batch_size=8)
        )
    with pytest.raises(ConfigError, match=said):
        Cascade(source, tiny_data, CascadeOptions(metric=name, scoring="racing"))
