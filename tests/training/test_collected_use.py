"""Metrics of a whole data set where they are used: by scores, candidates, the set-up check and fine-tuning."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.evaluation.base import evaluate
from abcsearch.runs.setup_check import Asked, look_at
from abcsearch.training.collected import Metrics
from abcsearch.training.finetuning import finetune
from abcsearch.training.objectives import OBJECTIVES, Objective, top1
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import Tally, score


class Spread(Metrics):
    """The standard deviation of all outputs: no mean over images."""

    def __init__(self):
        self.outputs = []

    def add(self, outputs, labels):
        assert len(outputs) == len(labels)
        self.outputs.append(outputs.double().cpu())

    def finish(self):
        return {
            "spread": float(torch.cat(self.outputs).std()),
            "outputs": sum(map(len, self.outputs)),
        }


def spread(kind=Spread):
    return Objective(
        loss=F.cross_entropy, metrics={"top1": top1}, whole={"spread": kind, "outputs": kind}
    )


@pytest.fixture
def known(monkeypatch):
    goal = spread()
    monkeypatch.setitem(OBJECTIVES, "spread", goal)
    return goal


@pytest.fixture
def data(tiny_data):
    return Data(
        name="tiny",
        train=tiny_data.train,
        validation=tiny_data.validation,
        test=tiny_data.test,
        objective="spread",
    )


def test_every_scoring_collects_anew_and_no_batch_size_matters():
    draws = torch.Generator().manual_seed(0)
    split = Split(torch.randn(23, 3, 1, 1, generator=draws), torch.arange(23) % 3)
    wanted = float(split.images.flatten(1).double().std())
    for size in (1, 5, 23):
        found = score(nn.Flatten(), split, objective=spread(), batch_size=size)
        assert list(found) == ["spread", "outputs", "top1"]
        assert found["spread"] == pytest.approx(wanted, abs=1e-12)
        assert found["outputs"] == 23
    tally = Tally(spread())
    for _ in range(2):  # asking changes nothing, and more images may follow
        tally.add(nn.Flatten(), split)
        assert tally.means() == tally.means()
    assert tally.means()["outputs"] == tally.count == 46


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({"a": 1.0, "b": 2.0}, r"with 'spread' among them, found \['a', 'b'\]"),
        ("good", "found str"),
        ({"spread": "a", "outputs": 1}, r"found \['outputs', 'spread'\]"),
    ],
)
def test_what_is_returned_in_the_end_is_checked(returned, said):
    class Wrong(Spread):
        def finish(self):
            return returned

    with pytest.raises(ConfigError, match=f"metric 'spread': .*{said}"):
        score(
            nn.Flatten(),
            Split(torch.rand(4, 3, 1, 1), torch.arange(4) % 3),
            objective=spread(Wrong),
        )


def test_a_candidate_is_scored_by_it_and_stages_are_refused(known, data, tiny_model):
    from abcsearch.channels.groups import trace_channels
    from abcsearch.channels.ranking import rank_channels
    from abcsearch.channels.source import Sliced

    graph = trace_channels(tiny_model, data.example)
    source = Sliced(tiny_model, graph, rank_channels(tiny_model, graph))
    options = {"calibration_images": 64, "batch_size": 64}
    evaluator = AdaptiveBN(source, data, AdaptiveBNOptions(**options))
    candidate = graph.space().uniform(0.5)
    found = evaluate(evaluator, candidate, 0)
    wanted = score(evaluator.build(candidate), data.validation, objective=known)
    assert found.fitness == pytest.approx(wanted["spread"], rel=1e-6)
    assert evaluator.in_full(candidate, 0).metrics["images"] == len(data.validation)
    again = AdaptiveBN(
        source, data, AdaptiveBNOptions(metric="spread", validation_images=10, **options)
    )
    assert not again.complete(again.race(candidate, 0, -math.inf))
    with pytest.raises(ConfigError) as info:
        AdaptiveBN(source, data, AdaptiveBNOptions(scoring="racing", **options))
    assert str(info.value) == (
        'evaluator: scoring = "racing" compares candidates image by image, and spread is one number of all images, of '
        'which one image has no share; set scoring = "full"'
    )
    AdaptiveBN(
        source, data, AdaptiveBNOptions(scoring="racing", metric="top1", stage_images=8, **options)
    )


def test_set_up_and_fine_tuning_show_it(known, data, tiny_model):
    found = look_at(tiny_model, data, 1000, Asked(brought=True))
    assert found.metric == "spread"
    assert found.loaded == pytest.approx(
        score(tiny_model, data.validation, objective=known)["spread"], rel=1e-6
    )
    tuned = finetune(tiny_model, data, Recipe(epochs=1, batch_size=64, lr=0.01))
    assert tuned.hits is None
    assert tuned.after == score(tuned.model, data.test, objective=known)
    assert tuned.training.scores == (
        score(tuned.model, data.validation, objective=known)["spread"],
    )


def test_draws_come_with_fine_tuning_for_metrics_that_say_so(known, data, tiny_model, monkeypatch):
    recipe = Recipe(epochs=1, batch_size=64, lr=0.01)
    assert list(finetune(tiny_model, data, recipe).resampled) == ["top1"]

    def resampled(self, counts):
        outputs = torch.cat(self.outputs).numpy()
        return {"spread": [outputs[times > 0].std() for times in counts]}

    monkeypatch.setattr(Spread, "resampled", resampled)
    drawn = finetune(tiny_model, data, recipe).resampled
    assert list(drawn) == ["spread", "top1"]
    assert drawn["spread"].shape == (1000,)
