"""Closed-form costs equal what torch counts, grow with every channel, and refuse what is no candidate."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels import cost
from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.errors import CandidateError
from tests.channels.networks import programs
from tests.channels.oracle import counted, few, images, random_candidate


def full_costs(model, example):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        graph = trace_channels(model, example)
    full = [[group.channels for group in graph.prunable]]
    return (
        int(graph.costs.macs(full)[0]),
        int(graph.costs.flops(full)[0]),
        int(graph.costs.params(full)[0]),
    )


def test_one_convolution():
    """3 -> 4 channels, 3x3, on 8x8: 64 * 3 * 9 * 4 multiply-accumulates."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    assert full_costs(plain, torch.zeros(1, 3, 8, 8)) == (6912, 2 * 6912, 108)
    biased = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    assert full_costs(biased, torch.zeros(1, 3, 8, 8)) == (6912, 2 * 6912 + 64 * 4, 112)


def test_conv_groups_divide():
    model = nn.Sequential(nn.Conv2d(6, 4, 3, groups=2))
    assert full_costs(model, torch.zeros(1, 6, 5, 5)) == (
        9 * 3 * 9 * 4,
        2 * 9 * 3 * 9 * 4 + 9 * 4,
        4 * 27 + 4,
    )


class Around(nn.Module):
    """A network of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4))
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(6, 5)
        self.up = nn.ConvTranspose2d(3, 4, 3, stride=2)

    def forward(self, x):
        return self.function(self, x)


CALLS = {
    "function": lambda m, x: F.conv2d(x, m.weight, m.bias),
    "keywords": lambda m, x: F.conv2d(weight=m.weight, bias=m.bias, input=x),
    "computed": lambda m, x: F.conv2d(x, m.weight * 2, m.bias + 1),
    "twice": lambda m, x: m.conv(x) + m.conv(x * 2),
    "batch": lambda m, x: m.conv(torch.cat([x, x, x], 0)),
    "unbatched": lambda m, x: m.conv(x[0]),
    "unbatched function": lambda m, x: F.conv2d(x[0], m.weight),
    "transposed": lambda m, x: m.up(x),
    "transposed function": lambda m, x: F.conv_transpose2d(x, m.weight.transpose(0, 1), stride=2),
    "rows": lambda m, x: m.linear(x),
    "linear": lambda m, x: F.linear(x, m.linear.weight, m.linear.bias),
    "vector": lambda m, x: m.linear(x[0, 0, 0]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_use_of_a_weight_is_counted(name, batch):
    model = Around(CALLS[name]).double()
    example = images(batch=batch, size=6)
    one = images(batch=1, size=6)
    macs, flops, params = full_costs(model, example)
    assert (macs, params) == counted(model, one)
    shaped = {
        "function": 4 * 16,
        "keywords": 4 * 16,
        "computed": 4 * 16,
        "twice": 8 * 16,
        "batch": 12 * 16,
    }
    shaped |= {
        "unbatched": 4 * 16,
        "unbatched function": 0,
        "transposed": 4 * 169,
        "transposed function": 0,
    }
    shaped |= {"rows": 5 * 18, "linear": 5 * 18, "vector": 5}
    assert flops == 2 * macs + shaped[name]


@few(25)
@given(programs(), st.integers(0, 2**16))
def test_costs_grow_with_every_channel(program, seed):
    graph = trace_channels(program.build(seed), images(batch=1))
    candidate = np.array(random_candidate(graph, np.random.default_rng(seed)))
    more = candidate + np.eye(len(candidate), dtype=int)
    more = more[(more <= [group.channels for group in graph.prunable]).all(axis=1)]
    for costs in (graph.costs.macs, graph.costs.flops, graph.costs.params):
        assert (costs(more) >= costs([candidate])).all()
        found = costs(np.concatenate([[candidate], more]))
        assert found.dtype == np.int64
        assert found.tolist() == [int(costs([row])[0]) for row in [candidate, *more]]


def simple():
    return trace_channels(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)),
        torch.zeros(1, 3, 4, 4),
    )


def test_many_candidates_are_counted_in_blocks(monkeypatch):
    costs = simple().costs
    candidates = np.random.default_rng(0).integers(1, 6, size=(1000, 2))
    expected = costs.macs(candidates)
    monkeypatch.setattr(cost, "_ROWS", 7)
    assert (costs.macs(candidates) == expected).all()
    a, b = candidates.T
    assert (expected == 4 * (27 * a + a * b + 2 * b)).all()
    assert costs.macs(np.zeros((0, 2), int)).shape == (0,)


def test_numbers_are_exact_beyond_float32():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(50_000, 50_000), nn.Linear(50_000, 1))
    graph = trace_channels(model, torch.zeros(1, 50_000, device="meta"))
    assert graph.costs.macs([[49_999]])[0] == 50_001 * 49_999


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([6, 5], "candidates have shape (n, 2), found (2,)"),
        ([[6, 5, 1]], "candidates have shape (n, 2), found (1, 3)"),
        ([[6, 4.5]], "candidates are whole numbers of channels, found fractions"),
        ([[6, 5], [6, 0]], "dimension 1 of candidate 1 is 0; allowed are 1 to 5"),
        ([[7, 5]], "dimension 0 of candidate 0 is 7; allowed are 1 to 6"),
        ([[float("nan"), 5]], "candidates are whole numbers of channels"),
    ],
)
def test_what_is_no_candidate_is_refused(candidates, message):
    graph = simple()
    for costs in (graph.costs.macs, graph.costs.flops, graph.costs.params):
        with pytest.raises(CandidateError, match=re.escape(message)):
            costs(candidates)
