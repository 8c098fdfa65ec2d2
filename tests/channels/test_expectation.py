"""Expected costs are sums over all structures weighted by their probability; certain widths cost what macs says."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels.cost import CostModel
from abcsearch.channels.groups import trace_channels
from abcsearch.errors import CandidateError
from abcsearch.models.resnet import SmallResNet
from tests.channels.networks import programs
from tests.channels.oracle import few, images, random_candidate

COSTS = ("macs", "flops", "params")


class Squared(nn.Module):
    """Three groups in a chain; the first stands on both ends of a layer."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second, self.rows = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.hidden, self.last = nn.Linear(3 * 4, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = self.rows(F.relu(self.second(x + self.norm(self.inner(x)))))
        return self.last(F.relu(self.hidden(F.adaptive_avg_pool2d(x, 2).flatten(1))))


@pytest.fixture(scope="module")
def squared():
    graph = trace_channels(Squared(), torch.zeros(1, 3, 6, 6))
    assert [group.channels for group in graph.prunable] == [4, 3, 5]
    assert {m.axis for m in graph.prunable[0].members if m.parameter == "inner.weight"} == {0, 1}
    return graph


def enumerated(graph, choices, probabilities, cost):
    """The sum over all structures of cost times probability."""
    structures = list(itertools.product(*choices))
    weights = [math.prod(row) for row in itertools.product(*probabilities)]
    return float(np.dot(getattr(graph.costs, cost)(structures), weights))


def distribution(rng, n):
    """Probabilities of n choices."""
    return torch.from_numpy(rng.dirichlet(np.ones(n)))


@pytest.mark.parametrize("cost", COSTS)
def test_distributions_over_widths_are_enumerated(squared, cost):
    rng = np.random.default_rng(0)
    choices = [(1, 2, 4), (1, 3), (2, 3, 4, 5)]
    given = [(options, distribution(rng, len(options))) for options in choices]
    actual = float(squared.costs.expected(given, cost))
    assert actual == pytest.approx(
        enumerated(squared, choices, [p.tolist() for _, p in given], cost), rel=1e-13
    )
    means = [float(torch.tensor(options, dtype=torch.double) @ p) for options, p in given]
    assert actual > float(squared.costs.expected(means, cost)) * 1.01  # E[w^2] is not E[w]^2


@pytest.mark.parametrize("cost", COSTS)
def test_keep_probabilities_of_channels_are_enumerated(squared, cost):
    rng = np.random.default_rng(1)
    kept = [torch.from_numpy(rng.uniform(0.2, 0.9, group.channels)) for group in squared.prunable]
    every = [list(itertools.product((0, 1), repeat=len(p))) for p in kept]
    widths = [[sum(flags) for flags in options] for options in every]
    weights = [
        [
            math.prod(q if on else 1 - q for q, on in zip(p.tolist(), flags, strict=True))
            for flags in options
        ]
        for p, options in zip(kept, every, strict=True)
    ]
    expected = 0.0
    for structure, weight in zip(
        itertools.product(*widths), itertools.product(*weights), strict=True
    ):
        expected += math.prod(weight) * polynomial(cost, *structure)
    assert float(squared.costs.expected(kept, cost)) == pytest.approx(expected, rel=1e-13)


def polynomial(cost, a, b, c):
    """The costs of `Squared` by hand, also with no channel at all."""
    macs = 36 * (27 * a + 9 * a * a + a * b + 9 * b) + 4 * b * c + 2 * c
    if cost == "macs":
        return macs
    if cost == "flops":
        return 2 * macs + 36 * (a + a + b + b) + c + 2
    return (
        (27 * a + a)
        + (9 * a * a + a)
        + 2 * a
        + (a * b + b)
        + (9 * b + b)
        + (4 * b * c + c)
        + (2 * c + 2)
    )


@few(15)
@given(programs(), st.integers(0, 2**16))
def test_random_networks(program, seed):
    graph, rng = trace_channels(program.build(seed), images(batch=1)), np.random.default_rng(seed)
    candidates = [random_candidate(graph, rng) for _ in range(2)]
    for cost in COSTS:
        exact = [int(value) for value in getattr(graph.costs, cost)(candidates)]
        for candidate, value in zip(candidates, exact, strict=True):
            assert int(graph.costs.expected([float(w) for w in candidate], cost)) == value
            certain = [((w,), torch.ones(1)) for w in candidate]
            assert float(graph.costs.expected(certain, cost)) == value
        choices = [tuple(sorted(set(pair))) for pair in zip(*candidates, strict=True)][:8]
        rest = list(candidates[0][8:])
        drawn = [distribution(rng, len(options)) for options in choices]
        actual = graph.costs.expected([*zip(choices, drawn, strict=True), *map(float, rest)], cost)
        every = [*choices, *((w,) for w in rest)]
        weights = [*(p.tolist() for p in drawn), *([1.0] for _ in rest)]
        assert float(actual) == pytest.approx(enumerated(graph, every, weights, cost), rel=1e-12)


def test_blocks_are_kept_with_a_probability():
    graph = trace_channels(SmallResNet(3, 5, (4, 6), (2, 2)), torch.zeros(1, 3, 8, 8))
    n_blocks = len(graph.blocks)
    assert n_blocks >= 2
    rng = np.random.default_rng(2)
    widths = [int(w) for w in random_candidate(graph, rng)]
    chances = rng.uniform(0.1, 0.9, n_blocks).tolist()
    for cost in COSTS:
        weights = [*([1.0] for _ in widths), *([1 - q, q] for q in chances)]
        expected = enumerated(graph, [*((w,) for w in widths), *[(0, 1)] * n_blocks], weights, cost)
        scalars = [torch.tensor(q, dtype=torch.double) for q in chances]
        pairs = [((0, 1), torch.stack([1 - q, q])) for q in scalars]
        for blocks in (scalars, pairs, [q[None] for q in scalars]):
            assert float(graph.costs.expected([*widths, *blocks], cost)) == pytest.approx(
                expected, rel=1e-13
            )
        full = float(graph.costs.expected(widths, cost))
        assert full == getattr(graph.costs, cost)([[*widths, *[1] * n_blocks]])[0]


@pytest.mark.parametrize("cost", COSTS)
def test_gradients_are_those_of_the_formula(squared, cost):
    rng = np.random.default_rng(3)
    width = torch.tensor(2.3, dtype=torch.double, requires_grad=True)
    odds = distribution(rng, 3).requires_grad_()
    kept = torch.from_numpy(rng.uniform(0.2, 0.9, 5)).requires_grad_()
    gates = torch.from_numpy(rng.uniform(0.2, 0.9, 4)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w, p, k: squared.costs.expected([w, ((1, 2, 3), p), k], cost), (width, odds, kept)
    )
    assert torch.autograd.gradcheck(
        lambda g, k: squared.costs.expected([g, 2, k], cost), (gates, kept)
    )
    squared.costs.expected([width.float(), ((1, 2, 3), odds), kept], cost).backward()
    assert all(float(t.grad.abs().min()) > 0 for t in (width, odds, kept))


def test_one_group_on_three_axes_needs_the_third_moment():
    axes = [("cube", axis, 0, 1) for axis in range(3)] + [("cube", 2, 1, 2)]
    costs = CostModel(
        channels=[3, 2], axes=axes, sizes={"cube": (3, 4, 8)}, trainable=["cube"], calls=()
    )
    odds = [torch.tensor(p, dtype=torch.double) for p in ([0.5, 0.2, 0.3], [0.6, 0.4])]
    expected = sum(
        odds[0][a - 1] * odds[1][b - 1] * a * (a + 1) * (8 - 3 - 4 + a + 2 * b)
        for a in (1, 2, 3)
        for b in (1, 2)
    )
    actual = costs.expected([((1, 2, 3), odds[0]), ((1, 2), odds[1])], "params")
    assert float(actual) == pytest.approx(float(expected), rel=1e-13)


WRONG = {
    "cost": (lambda d: (d, "mac"), "unknown cost 'mac'; did you mean 'macs'?"),
    "number": (lambda d: (d[:2], "macs"), "distributions are one per prunable group, 3, found 2"),
    "shape": (
        lambda d: ([torch.ones(3), *d[1:]], "macs"),
        "dimension 0 is a width (a floating-point tensor ()), the k",
    ),
    "whole": (
        lambda d: ([d[0], torch.tensor(2), d[2]], "macs"),
        "found a tensor () of torch.int64",
    ),
    "flag": (lambda d: ([True, *d[1:]], "macs"), "found bool True"),
    "text": (lambda d: (["4", *d[1:]], "macs"), "dimension 0 is a width"),
    "lengths": (
        lambda d: ([((1, 2), torch.ones(3) / 3), *d[1:]], "macs"),
        "a pair (widths (n,), probabilities (n,))",
    ),
    "names": (
        lambda d: ([(("a", "b"), torch.ones(2) / 2), *d[1:]], "macs"),
        "a pair (widths (n,), probabilities",
    ),
    "choice": (
        lambda d: ([((1, 9), torch.ones(2) / 2), *d[1:]], "macs"),
        "widths of dimension 0 are 0 to 4, found 9",
    ),
    "sum": (
        lambda d: ([((1, 2), torch.ones(2)), *d[1:]], "macs"),
        "dimension 0 add up to 1, found 2; use a softmax",
    ),
    "range": (
        lambda d: ([torch.full((4,), 1.5), *d[1:]], "macs"),
        "dimension 0 are in [0, 1], found 1.5; use a sigm",
    ),
    "nan": (
        lambda d: ([torch.full((4,), math.nan), *d[1:]], "macs"),
        "dimension 0 are in [0, 1], found nan",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_distribution_is_refused(squared, name):
    change, message = WRONG[name]
    distributions, cost = change([torch.tensor(2.0), torch.tensor(2.0), torch.tensor(2.0)])
    with pytest.raises(CandidateError, match=re.escape(message)):
        squared.costs.expected(distributions, cost)
