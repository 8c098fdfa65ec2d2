"""What layers make of their MACs: a network whose loss is known for any share of silent channels."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, ModelError
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.short_training import ShortTraining, ShortTrainingOptions
from abcsearch.evaluation.utilisation import rates, utilisation
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded
from abcsearch.runs.disk.lines import decode_line, encode_line, trial_of
from abcsearch.trial import Evaluation, Trial


class Branches(nn.Module):
    """Branches side by side, each of which says its `says` by the mean of its channels: what is right is their sum."""

    def __init__(self, widths, says):
        super().__init__()
        self.make = nn.ModuleList(nn.Conv2d(1, width, 1, bias=False) for width in widths)
        self.read = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        for make, read, width, word in zip(self.make, self.read, widths, says, strict=True):
            nn.init.ones_(make.weight)
            nn.init.constant_(read.weight, word / width)

    def forward(self, x):
        return sum(read(make(x)) for make, read in zip(self.make, self.read, strict=True)).mean(
            dim=(2, 3)
        )


WIDTHS, SAYS = (8, 16, 8, 32), (1.0, 1.5, 3.0, 2.0)


@pytest.fixture(scope="module")
def branches():
    """The branches, their graph, and images of ones, of which all labels are right."""
    model = Branches(WIDTHS, SAYS).eval()
    images, labels = torch.ones(200, 1, 2, 2), torch.full((200, 1), sum(SAYS))
    data = Data.from_tensors(
        (images, labels), (images[:8], labels[:8]), validation=128, objective="regression"
    )
    return model, trace_channels(model, data.example, check=False), data


def of_branches(branches, structure, passes, seed=0):
    model, graph, data = branches
    source = Sliced(model, graph, rank_channels(model, graph))
    network = source.network(structure)
    for read, width, word in zip(network.read, structure, SAYS, strict=True):
        nn.init.constant_(read.weight, word / width)
    return utilisation(
        network.eval(), graph, structure, data, data.validation, base=0.05, passes=passes, seed=seed
    )


@pytest.mark.parametrize("structure", [WIDTHS, (4, 16, 8, 12)])
def test_the_loss_rises_as_it_must(branches, structure):
    """A layer that says a by the mean of w channels loses a^2 / w * rate / (1 - rate): the variance of what it says."""
    wanted = rates(branches[1], structure, 0.05)
    found = of_branches(branches, structure, 100)
    known = {}
    for name, width, word in zip(wanted, structure, SAYS, strict=True):
        rate = wanted[name]
        known[name] = word**2 / width * rate / (1 - rate)
        assert found[name] == pytest.approx(known[name], rel=0.4)
    assert sorted(found, key=found.get) == sorted(known, key=known.get)
    assert of_branches(branches, structure, 1) == of_branches(branches, structure, 1)
    assert of_branches(branches, structure, 1) != of_branches(branches, structure, 1, seed=1)


def test_rates_are_of_equal_macs(branches):
    graph = branches[1]
    equal = rates(graph, (8, 8, 8, 8), 0.05)
    assert list(equal.values()) == pytest.approx([0.05] * 4)
    found = rates(graph, WIDTHS, 0.05)
    # Every layer here costs as much per channel as the others.
    assert [
        rate * width for rate, width in zip(found.values(), WIDTHS, strict=True)
    ] == pytest.approx([0.8] * 4)
    assert rates(graph, (1, 32, 32, 32), 0.05)[graph.prunable[0].name] == 0.5


@pytest.fixture(scope="module")
def blocky():
    """A residual network with blocks, and data for it."""
    with torch_seeded(0, "init"):
        model = SmallResNet(in_channels=1, classes=2, widths=(4, 6), depths=(2, 2)).eval()
        images = torch.randn(160, 1, 6, 6)
    labels = torch.arange(160) % 2
    data = Data.from_tensors(
        (images[:120], labels[:120]), (images[120:], labels[120:]), validation=0.25
    )
    graph = trace_channels(model, data.example)
    return Sliced(model, graph, rank_channels(model, graph)), data


def test_an_evaluation_says_it_of_all_that_is_there(blocky):
    """Of widths alone where candidates have no blocks; not of a block that is dropped, nor of channels inside it."""
    source, data = blocky
    evaluator = AdaptiveBN(source, data, AdaptiveBNOptions(batch_size=32, utilisation=1))
    graph, space = source.graph, source.graph.space(1.0, levels=("filter", "stage", "block"))
    groups, blocks = [g.name for g in graph.prunable], [b.name for b in graph.blocks]
    structure = space.uniform(0.5)
    assert list(evaluate(evaluator, structure[: len(groups)], 0).diagnostics) == groups
    assert set(evaluate(evaluator, structure, 0).diagnostics) == {*groups, *blocks}
    dropped = (*structure[:-1], 0)
    found = evaluate(evaluator, dropped, 0).diagnostics
    gone = {name for name in groups if name.startswith(blocks[-1])}
    assert gone
    assert set(found) == {*groups, *blocks[:-1]} - gone
    plain = AdaptiveBN(source, data, AdaptiveBNOptions(batch_size=32))
    told, silent = evaluate(evaluator, structure, 0), evaluate(plain, structure, 0)
    assert (silent.diagnostics, silent.metrics) == ({}, told.metrics)


def test_weights_of_the_beginning_know_nothing_of_those_that_were_trained(blocky):
    source, data = blocky
    options = ShortTrainingOptions(
        steps=1, batch_size=32, lr=1e-9, fresh_weights=True, repair="none"
    )
    evaluator = ShortTraining(source, data, options)
    structure = source.graph.space(1.0).full
    one, other = evaluator.build(structure, 1), evaluator.build(structure, 2)
    assert torch.equal(one.conv.weight, evaluator.build(structure, 1).conv.weight)
    for network in (one, other):
        assert (network.conv.weight - source.model.conv.weight).abs().max() > 0.01
    assert (one.conv.weight - other.conv.weight).abs().max() > 0.01

    class Lacking(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 1, 1))
            self.net = SmallResNet(in_channels=1, classes=2, widths=(4, 6), depths=(1, 1))

        def forward(self, x):
            return self.net(x * self.weight)

    model = Lacking().eval()
    graph = trace_channels(model, data.example)
    lacking = Sliced(model, graph, rank_channels(model, graph))
    with pytest.raises(
        ModelError, match="the network itself has parameters and no method reset_parameters"
    ):
        ShortTraining(lacking, data, options)


def test_diagnostics_are_kept_and_only_where_there_are_some():
    evaluation = Evaluation(
        fitness=0.5, metrics={"top1": 0.5}, diagnostics={"a": 0.25, "b": float("nan")}
    )
    trial = Trial(3, (1, 2), evaluation)
    again = trial_of(decode_line(encode_line(trial.to_plain())))
    assert again.evaluation.diagnostics["a"] == 0.25
    assert np.isnan(again.evaluation.diagnostics["b"])
    silent = dataclasses.replace(evaluation, diagnostics={})
    assert "diagnostics" not in silent.to_plain()
    assert (
        trial_of(decode_line(encode_line(Trial(0, (1,), silent).to_plain()))).evaluation == silent
    )
    spoiled = {
        **trial.to_plain(),
        "evaluation": {**evaluation.to_plain(), "diagnostics": {"a": "x"}},
    }
    with pytest.raises(ValueError, match="diagnostics are numbers by name"):
        trial_of(spoiled)


@pytest.mark.parametrize(
    "options", [{"utilisation": -1}, {"utilisation": 1.5}, {"noise": 0.0}, {"noise": 0.6}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        AdaptiveBNOptions(**options)
