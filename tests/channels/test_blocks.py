"""Residual blocks: which can be dropped, and that the network without them is the original with nothing added."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import CandidateError
from abcsearch.models.registry import MODELS
from tests.channels.oracle import (
    assert_close,
    counted,
    few,
    images,
    random_candidate,
    scrambled,
    zeroed,
)


class Block(nn.Module):
    """One of many ways to add something to the input."""

    def __init__(self, kind, c):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.relu, self.drop = nn.ReLU(), nn.Dropout(0.1)

    def forward(self, x):
        return KINDS[self.kind](self, x, lambda y: self.norm(self.conv(y)))


KINDS = {
    "plain": lambda m, x, f: x + f(x),
    "swapped": lambda m, x, f: torch.add(f(x), x),
    "in_place": lambda m, x, f: f(x).add_(x),
    "twice": lambda m, x, f: (x + f(x)) + torch.relu(f(x)),
    "chained": lambda m, x, f: (y := x + f(x)) + f(y),
    "dropped": lambda m, x, f: m.drop(x + f(x)),
    "after": lambda m, x, f: m.relu(x + f(x)),
    "before": lambda m, x, f: torch.relu(x) + f(x),
    # None of these is its input plus something.
    "scaled": lambda m, x, f: torch.add(x, f(x), alpha=2),
    "halved": lambda m, x, f: (x + f(x)) * 0.5,
    "double": lambda m, x, f: x + x + f(x),
    "activated": lambda m, x, f: torch.sigmoid(x + f(x)),
    "minus": lambda m, x, f: x - f(x),
    "nothing": lambda m, x, f: m.drop(x),
    "branch": lambda m, x, f: f(x),
    "other": lambda m, x, f: torch.tanh(x) + f(x),
}
AFTER_RELU = ("after", "before")
DROPPABLE = ("plain", "swapped", "in_place", "twice", "chained", "dropped")


class Net(nn.Module):
    """A stem, blocks, a linear layer."""

    def __init__(self, kinds, c=6, act=True):
        super().__init__()
        self.act = act
        self.stem = nn.Conv2d(3, c, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(kind, c) for kind in kinds))
        self.fc = nn.Linear(c, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.blocks(torch.relu(x) if self.act else x).mean((2, 3)))


def build(*arguments, **keywords):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scrambled(Net(*arguments, **keywords))


def without(model, graph, kept):
    """The original with the forward of dropped blocks replaced: the oracle of dropping."""
    twin = copy.deepcopy(model)
    for block, keep in zip(graph.blocks, kept, strict=True):
        if not keep:
            twin.get_submodule(block.name).forward = lambda x: x
    return twin


def check(model, graph, rng, x):
    """Drops blocks and channels at random and compares outputs, macs and params; returns the sliced network."""
    ranking = rank_channels(model, graph, "random", seed=int(rng.integers(99)))
    widths = random_candidate(graph, rng)
    kept = tuple(int(value) for value in rng.integers(0, 2, len(graph.blocks)))
    sliced = slice_model(model, graph, widths + kept, ranking)
    with torch.no_grad():
        assert_close(sliced(x), without(zeroed(model, graph, widths, ranking), graph, kept)(x))
    costs = graph.costs.macs([widths + kept])[0], graph.costs.params([widths + kept])[0]
    assert costs == counted(sliced, x[:1])
    for block, keep in zip(graph.blocks, kept, strict=True):
        assert isinstance(sliced.get_submodule(block.name), nn.Identity) != bool(keep)
    return sliced


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_a_block(kind):
    graph = trace_channels(build([kind]), images(1))
    assert [block.name for block in graph.blocks] == (
        ["blocks.0"] if kind in (*DROPPABLE, *AFTER_RELU) else []
    )
    negative = trace_channels(build([kind], act=False), images(1))  # relu(x) is not x there
    assert bool(negative.blocks) == (kind in DROPPABLE)


@few(25)
@given(st.lists(st.sampled_from([*KINDS]), min_size=1, max_size=4), st.integers(0, 99))
def test_dropping_equals_adding_nothing(kinds, seed):
    model = build(kinds)
    graph = trace_channels(model, images(1))
    check(model, graph, np.random.default_rng(seed), images())


def test_relu_after_the_addition_needs_an_input_without_negative_entries():
    graph = trace_channels(build(["after", "plain", "after"]), images(1))
    assert [block.name for block in graph.blocks] == ["blocks.0", "blocks.1"]


def test_blocks_that_share_parameters_or_carry_hooks_stay():
    model = build(["plain", "plain", "plain"])
    model.blocks[1].conv.weight = model.blocks[0].conv.weight
    model.blocks[2].norm.register_forward_hook(lambda module, inputs, output: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        assert not trace_channels(model, images(1)).blocks


def test_a_block_that_is_called_twice():
    model = build(["plain"])
    model.blocks = nn.Sequential(model.blocks[0], nn.Sigmoid(), model.blocks[0])
    graph = trace_channels(model, images(1))
    assert not graph.blocks  # what comes between its two calls is no part of it


# Name, and how many blocks there are: all but the first of a stage that changes sizes.
ZOO = [
    ("resnet18", 5),
    ("resnet50", 12),
    ("mobilenet_v2", 10),
    ("mnasnet0_5", 10),
    ("efficientnet_b0", 9),
    ("densenet121", 0),
    ("resnet20", 7),
    ("resnet56", 25),
    ("small_resnet", 4),
]


@pytest.mark.parametrize(("name", "blocks"), ZOO)
def test_blocks_of_known_networks(name, blocks):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = {"in_channels": 3} if name == "small_resnet" else {}
        model = (
            MODELS[name](**own)
            if name in MODELS
            else torchvision.models.get_model(name, weights=None)
        )
        model = scrambled(model)
    graph = trace_channels(model, images(1, 32))
    assert len(graph.blocks) == blocks
    sliced = check(model, graph, np.random.default_rng(3), images(2, 32))
    assert all(p.requires_grad for p in sliced.parameters())


def test_a_dropped_block_takes_its_modules_along():
    model = build(["plain", "plain"]).train()
    graph = trace_channels(model, images(1))
    full = tuple(group.channels for group in graph.prunable)
    ranking = rank_channels(model, graph)
    sliced = slice_model(model, graph, (*full, 0, 1), ranking)
    assert isinstance(sliced.blocks[0], nn.Identity)
    assert sliced.blocks[0].training
    assert not any(name.startswith("blocks.0.") for name in sliced.state_dict())
    assert isinstance(model.blocks[0], Block)
    same = slice_model(model, graph, (*full, 1, 1), ranking)
    assert same.state_dict().keys() == model.state_dict().keys()
    again = trace_channels(sliced, images(1))
    assert [block.name for block in again.blocks] == ["blocks.1"]


def test_spaces_of_every_choice_of_levels():
    graph = trace_channels(build(["plain", "plain"]), images(1))
    widths = len(graph.prunable)
    for levels, kinds in {
        ("block",): {"block"},
        ("stage",): {"width"},
        ("filter", "stage", "block"): {"width", "block"},
    }.items():
        space = graph.space(levels=levels)
        assert len(space) == widths + 2 * ("block" in levels)
        assert {d.kind for d in space.dimensions if len(d.choices) > 1} == kinds
        for seed in range(5):
            candidate = space.sample(np.random.default_rng(seed))
            assert graph.costs.macs([candidate])[0] <= graph.costs.macs([space.full])[0]
    assert graph.space(levels=("block",)).size == 4


def test_candidates_with_and_without_block_values():
    model = build(["plain"])
    graph = trace_channels(model, images(1))
    ranking = rank_channels(model, graph)
    full = tuple(group.channels for group in graph.prunable)
    for cost in (
        graph.costs.macs,
        graph.costs.flops,
        graph.costs.params,
        graph.costs.peak_activation,
    ):
        assert cost([full])[0] == cost([(*full, 1)])[0] > cost([(*full, 0)])[0]
    n = len(full)
    with pytest.raises(
        CandidateError, match=rf"has {n} values? \(or {n + 1} with its blocks\), found {n + 3}"
    ):
        slice_model(model, graph, (*full, 1, 1, 1), ranking)
    with pytest.raises(
        CandidateError, match=r"block 'blocks\.0' has value 2; 1 keeps it, 0 drops it"
    ):
        slice_model(model, graph, (*full, 2), ranking)
    with pytest.raises(
        CandidateError, match=rf"dimension {n} of candidate 0 is 2; allowed are 0 to 1"
    ):
        graph.costs.macs([(*full, 2)])
    with pytest.raises(
        CandidateError, match=rf"shape \(n, {n}\), or \(n, {n + 1}\) with its blocks"
    ):
        graph.costs.macs([(*full, 1, 1, 1)])
