"""Budgets are stated exactly, refused where they cannot be met, and met by every repair."""

import itertools
import re
import tracemalloc
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch import MODELS
from abcsearch.budget import Budget, Constraint
from abcsearch.channels.groups import trace_channels
from abcsearch.errors import BudgetError
from abcsearch.space import Dimension, SearchSpace


@dataclass(frozen=True)
class Products:
    """Costs of a chain of layers: each layer's is (its width + 1) * (the next one's + 1), times a factor."""

    factors: tuple[int, ...]

    def macs(self, candidates):
        widths = np.asarray(candidates, dtype=np.int64) + 1
        return (widths * np.roll(widths, 1, axis=1) * np.array(self.factors)).sum(axis=1)

    def params(self, candidates):
        return (np.asarray(candidates, dtype=np.int64) * np.array(self.factors[::-1])).sum(
            axis=1
        ) + 1

    def flops(self, candidates):
        return 2 * self.macs(candidates)


class Steps(Products):
    """Costs with plateaus: they grow in jumps."""

    def macs(self, candidates):
        return super().macs(candidates) // 50 + 1


@st.composite
def spaces(draw):
    dimensions = []
    for index in range(draw(st.integers(1, 5))):
        if draw(st.integers(0, 4)):
            choices = tuple(sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=8))))
            dimensions.append(Dimension(f"d{index}", "width", choices, draw(st.integers(0, 45))))
        else:
            dimensions.append(
                Dimension(f"d{index}", "block", draw(st.sampled_from([(0, 1), (1,)])))
            )
    return SearchSpace(tuple(dimensions))


@st.composite
def problems(draw):
    """A space, costs that grow with every dimension, and a random number generator."""
    space = draw(spaces())
    kind = draw(st.sampled_from([Products, Steps]))
    factors = tuple(draw(st.lists(st.integers(1, 9), min_size=len(space), max_size=len(space))))
    return space, kind(factors), np.random.default_rng(draw(st.integers(0, 2**16)))


def reachable(space, costs, name):
    ends = [space.at(np.zeros(len(space), int)), space.at(space.last_indices)]
    return [int(value) for value in getattr(costs, name)(ends)]


@settings(deadline=None, max_examples=150, derandomize=True)
@given(problems(), st.floats(0, 1), st.sampled_from(["macs", "params", "both"]))
def test_repair_meets_every_upper_bound(problem, share, names):
    space, costs, rng = problem
    bounds = {}
    for name in ("macs", "params") if names == "both" else (names,):
        low, high = reachable(space, costs, name)
        bounds[name] = low + int(share * (high - low))
    constraint = Budget(**bounds).bind(space, costs)
    for _ in range(3):
        candidate = space.sample(rng)
        seed = int(rng.integers(1000))
        repaired = constraint.repair(candidate, np.random.default_rng(seed))
        space.check(repaired)
        assert constraint.allows(repaired)
        assert all(getattr(costs, name)([repaired])[0] <= bound for name, bound in bounds.items())
        assert repaired == constraint.repair(candidate, np.random.default_rng(seed))
        if constraint.violation([candidate])[0] == 0:
            assert repaired == candidate


@settings(deadline=None, max_examples=150, derandomize=True)
@given(problems(), st.floats(0, 1), st.floats(0, 1))
def test_repair_meets_a_band_or_says_that_it_cannot(problem, at, width):
    space, costs, rng = problem
    smallest, largest = reachable(space, costs, "macs")
    low = smallest + int(at * (largest - smallest))
    high = low + int(width * (largest - low))
    budget = Budget(macs=(low, high), params=(1, 10**6))
    every = list(itertools.islice(itertools.product(*(d.choices for d in space.dimensions)), 2**16))
    if ((costs.macs(every) >= low) & (costs.macs(every) <= high)).any():
        constraint = budget.bind(space, costs)
        for _ in range(3):
            assert low <= costs.macs([constraint.repair(space.sample(rng), rng)])[0] <= high
    else:
        with pytest.raises(
            BudgetError, match=f"macs {low:,} to {high:,}; the nearest had .*widen the band"
        ):
            budget.bind(space, costs)


def with_criteria(space, rng):
    """The space with a criterion of three for some of its widths."""
    own = [d for d in space.dimensions if d.kind == "width" and rng.random() < 0.7]
    more = [
        Dimension(f"of {d.name}", "criterion", (0, 1, 2), of=d.name, labels=("a", "b", "c"))
        for d in own
    ]
    return SearchSpace((*space.dimensions, *more))


class Before:
    """The costs of the structures without their criteria, of which there is no telling whether they were asked for."""

    def __init__(self, costs, count):
        self.macs = lambda candidates: costs.macs(np.asarray(candidates)[:, :count])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(problems(), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_no_criterion_is_changed_to_meet_a_budget_or_to_spend_it(problem, at, width, capped):
    plain, costs, rng = problem
    count = len(plain)
    space, costs = with_criteria(plain, rng), Before(costs, count)
    smallest, largest = reachable(space, costs, "macs")
    low = smallest + int(at * (largest - smallest))
    high = low + int(width * (largest - low))
    budget = Budget(macs=high if capped else (low, high))
    try:
        constraint = budget.bind(space, costs)
    except BudgetError:
        with pytest.raises(BudgetError):
            budget.bind(plain, costs)
        return
    for _ in range(3):
        candidate = space.sample(rng)
        repaired = constraint.repair(candidate, rng)
        filled = constraint.fill(repaired, rng)
        assert repaired[count:] == filled[count:] == candidate[count:]
        assert constraint.allows(repaired)
        assert constraint.allows(filled)


def test_a_band_is_looked_for_among_widths_alone():
    # 4 ** 8 structures of widths can be looked at whole, 12 ** 8 with their criteria could not.
    widths = tuple(Dimension(f"d{i}", "width", (1, 2, 4, 8)) for i in range(8))
    plain, rng = SearchSpace(widths), np.random.default_rng(0)
    space = with_criteria(plain, rng)
    costs = Before(Products((7, 1, 9, 2, 5, 3, 8, 4)), 8)
    every = np.unique(costs.macs(list(itertools.product((1, 2, 4, 8), repeat=8))))
    only = int(every[np.argmax(np.diff(every[len(every) // 2 :])) + len(every) // 2])
    constraint = Budget(macs=(only, only)).bind(space, costs)
    candidate = space.sample(rng)
    repaired = constraint.repair(candidate, rng)
    assert costs.macs([repaired])[0] == only
    assert repaired[8:] == candidate[8:]


def test_repair_finds_narrow_bands():
    space = SearchSpace(tuple(Dimension(f"d{i}", "width", tuple(range(1, 10))) for i in range(6)))
    costs, rng = Products((3, 1, 4, 1, 5, 9)), np.random.default_rng(0)
    constraint = Budget(macs=(0.49, 0.5)).bind(space, costs)
    found = {constraint.repair(space.sample(rng), rng) for _ in range(200)}
    assert len(found) > 100
    assert not constraint.violation(list(found)).any()


def test_a_structure_inside_is_returned_unchanged():
    space = SearchSpace((Dimension("a", "width", tuple(range(1, 101))),))
    constraint = Budget(params=(10, 80)).bind(space, Products((1,)))
    for width in range(9, 80):
        assert constraint.repair((width,), np.random.default_rng(0)) == (width,)
    for width, end in [*((w, 9) for w in range(1, 9)), *((w, 79) for w in range(80, 101))]:
        assert constraint.repair((width,), np.random.default_rng(0)) == (end,)


def inside_after_undoing_one_step(space, constraint, before, after):
    """The structures inside that lie one step back from `after` towards `before`."""
    here, there = space.indices(after), space.indices(before)
    steps = [
        here + np.sign(there - here) * unit
        for unit in np.eye(len(space), dtype=int)
        if (unit * (there - here)).any()
    ]
    return [space.at(step) for step in steps if constraint.allows(space.at(step))]


@settings(deadline=None, max_examples=150, derandomize=True)
@given(problems(), st.floats(0, 1), st.booleans())
def test_no_step_of_a_repair_can_be_taken_back(problem, share, upwards):
    """The fewest changes: undoing any one step of the repair leads out of the budget again."""
    space, costs, rng = problem
    low, high = reachable(space, costs, "macs")
    bound = low + int(share * (high - low))
    constraint = Budget(macs=(bound, high) if upwards else bound).bind(space, costs)
    for _ in range(3):
        candidate = space.sample(rng)
        repaired = constraint.repair(candidate, rng)
        moved = space.indices(repaired) - space.indices(candidate)
        assert (moved >= 0).all() if upwards else (moved <= 0).all()
        assert not inside_after_undoing_one_step(space, constraint, candidate, repaired)


def test_where_one_step_is_enough_one_is_taken():
    space = SearchSpace(tuple(Dimension(f"d{i}", "width", tuple(range(1, 11))) for i in range(12)))
    constraint = Budget(params=12 * 10).bind(space, Products((1,) * 12))
    changed = Counter()
    for seed in range(600):
        repaired = constraint.repair((10,) * 12, np.random.default_rng(seed))
        (index,) = [i for i, width in enumerate(repaired) if width < 10]
        assert repaired[index] == 9
        changed[index] += 1
    assert len(changed) == 12
    assert max(changed.values()) < 2 * min(changed.values())


@settings(deadline=None, max_examples=100, derandomize=True)
@given(problems(), st.floats(0, 1))
def test_filling_stays_inside_and_spends_the_budget(problem, share):
    space, costs, rng = problem
    low, high = reachable(space, costs, "macs")
    bound = low + int(share * (high - low))
    constraint = Budget(macs=bound).bind(space, costs)
    start = constraint.repair(space.sample(rng), rng)
    filled = constraint.fill(start, rng)
    assert constraint.allows(filled)
    assert (np.array(filled) >= np.array(start)).all()
    if bound == high:
        assert filled == start  # nothing is excluded, so there is nothing to come close to


def test_filled_draws_spend_like_the_largest_of_eight_uniform_shares():
    space = SearchSpace(tuple(Dimension(f"d{i}", "width", tuple(range(1, 33))) for i in range(20)))
    costs, rng = Products((1,) * 20), np.random.default_rng(0)
    constraint = Budget(macs=0.5).bind(space, costs)
    (limit,) = constraint.limits
    shares = np.array([constraint.fill((1,) * 20, rng) for _ in range(1000)])
    shares = costs.macs(shares) / limit.high
    assert shares.max() <= 1
    for below in (0.6, 0.7, 0.8, 0.9):  # a single step spends up to 1 % more than the share
        assert (below - 0.012) ** 8 - 0.04 < (shares < below).mean() < below**8 + 0.04


def test_filling_without_room_returns_the_structure():
    space = SearchSpace((Dimension("a", "width", (1, 2, 30)), Dimension("b", "width", (1, 2, 30))))
    constraint = Budget(macs=30).bind(space, Products((1, 1)))
    for seed in range(10):
        assert constraint.fill((2, 2), np.random.default_rng(seed)) == (2, 2)


def test_no_layer_is_favoured():
    space = SearchSpace(tuple(Dimension(f"d{i}", "width", tuple(range(1, 11))) for i in range(4)))
    constraint = Budget(params=0.5).bind(space, Products((1, 1, 1, 1)))
    rng, changed = np.random.default_rng(0), Counter()
    means = {constraint.repair: np.zeros(4), constraint.fill: np.zeros(4)}
    for move, start in ((constraint.repair, (10, 10, 10, 10)), (constraint.fill, (1, 1, 1, 1))):
        for _ in range(300):
            moved = move(start, rng)
            changed.update(
                i
                for i, (before, after) in enumerate(zip(start, moved, strict=True))
                if before != after
            )
            means[move] += np.array(moved) / 300
    assert min(changed.values()) > 500
    assert all(mean.max() - mean.min() < 0.6 for mean in means.values())


def test_plateaus_are_left():
    space = SearchSpace(tuple(Dimension(f"d{i}", "width", (1, 2, 3)) for i in range(3)))

    class Largest(Products):
        def macs(self, candidates):  # of equally wide layers no single step helps
            return np.asarray(candidates).max(axis=1).astype(np.int64)

    constraint = Budget(macs=1).bind(space, Largest((1, 1, 1)))
    assert constraint.repair((3, 3, 3), np.random.default_rng(0)) == (1, 1, 1)

    class Together(Products):
        def macs(self, candidates):  # it falls when two layers have become narrower
            return np.where((np.asarray(candidates) < 3).sum(axis=1) >= 2, 1, 10)

    constraint = Budget(macs=1).bind(space, Together((1, 1, 1)))
    repaired = {constraint.repair((3, 3, 3), np.random.default_rng(seed)) for seed in range(40)}
    assert all(min(candidate[i] for candidate in repaired) < 3 for i in range(3))
    assert len({tuple(width == 3 for width in candidate) for candidate in repaired}) == 3


@pytest.mark.parametrize("percent", range(1, 101))
def test_fractions_are_exact(percent):
    space = SearchSpace((Dimension("a", "width", tuple(range(1, 100))),))
    costs = Products((1,))
    assert costs.params([space.full])[0] == 100
    if percent == 1:
        return
    for bound in (percent / 100, percent):
        (limit,) = Budget(params=bound).bind(space, costs).limits
        assert (limit.low, limit.high) == (0, percent)
    (limit,) = Budget(params=(percent / 100, percent / 100)).bind(space, costs).limits
    assert (limit.low, limit.high) == (percent, percent)


def test_violation_is_the_relative_distance():
    space = SearchSpace((Dimension("a", "width", tuple(range(1, 100))),))
    constraint = Budget(params=(40, 50), macs=(1, 10**9)).bind(space, Products((1,)))
    found = constraint.violation([(19,), (38,), (39,), (49,), (50,), (99,)])
    np.testing.assert_allclose(found, [0.5, 1 / 40, 0, 0, 1 / 50, 1.0])
    assert [constraint.allows((width,)) for width in (38, 39, 49, 50)] == [False, True, True, False]


def test_without_limits_everything_is_allowed():
    space = SearchSpace((Dimension("a", "width", (1, 2)),))
    constraint = Constraint(space)
    assert constraint.allows((2,))
    assert constraint.repair((2,), np.random.default_rng(0)) == (2,)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "a budget needs at least one bound; set one of: macs, params, flops"),
        ({"macs": 0}, "budget macs = 0: a bound is a positive number, found 0"),
        ({"params": -0.5}, "budget params = -0.5: a bound is a positive number"),
        ({"macs": float("nan")}, "budget macs = nan: a bound is a positive number"),
        ({"macs": True}, "budget macs = True: a bound is a positive number"),
        ({"macs": "0.5"}, "budget macs = 0.5: a bound is a positive number, found '0.5'"),
        (
            {"flops": 1.5},
            "budget flops = 1.5: a float is a fraction in (0, 1]; write an int for an absolute number",
        ),
        ({"macs": (0.5, 0.4)}, "budget macs = (0.5, 0.4): the lower end of a band comes first"),
        ({"macs": [5, 4]}, "budget macs = (5, 4): the lower end of a band comes first"),
        (
            {"macs": (0.1, 0.2, 0.3)},
            "budget macs = (0.1, 0.2, 0.3): a band has two ends (low, high)",
        ),
        ({"macs": (0.1, 0)}, "budget macs = (0.1, 0): a bound is a positive number, found 0"),
    ],
)
def test_malformed_budgets(bounds, message):
    with pytest.raises(BudgetError, match=re.escape(message)):
        Budget(**bounds)


def test_budgets_that_cannot_be_met():
    space = SearchSpace((Dimension("a", "width", (9, 19, 49), 99),))
    costs = Products((1,))  # params: 10, 20, 50 of 100
    with pytest.raises(
        BudgetError,
        match=r"params = 0.05 cannot be reached: .* have 10 to 50 \(0.100 to 0.500 of .*100.*step and lowest",
    ):
        Budget(params=0.05).bind(space, costs)
    with pytest.raises(
        BudgetError,
        match=r"params = \(0.6, 0.7\) cannot be reached: it asks for 60 to 70.* or alpha$",
    ):
        Budget(params=(0.6, 0.7)).bind(space, costs)
    for empty in ((0.5, 20), (0.401, 0.402)):
        with pytest.raises(
            BudgetError, match=r"is empty: it asks for at least 5?4?[01] and at most [24]0 of 100"
        ):
            Budget(params=empty).bind(space, costs)
    with pytest.raises(
        BudgetError, match="no structure found with params 25 to 30; the nearest had params"
    ):
        Budget(params=(25, 30)).bind(space, costs)
    with pytest.raises(
        BudgetError,
        match=r"with macs 2,000 to 3,000, params 0 to 20; the nearest had macs \d+, params",
    ) as caught:
        Budget(params=20, macs=(2000, 3000)).bind(space, costs)
    assert "they cannot be met together: loosen one or leave it out" in str(caught.value)
    with pytest.raises(
        BudgetError,
        match=r"latency_ms = 0.5: these costs \(Products\) have no latency_ms; .*measured",
    ) as caught:
        Budget(latency_ms=0.5).bind(space, costs)
    assert "abcsearch.channels.latency.LatencyModel.measure(" in str(caught.value)
    with pytest.raises(
        BudgetError, match="have no peak_activation; give them a method peak_activation"
    ):
        Budget(peak_activation=0.5).bind(space, costs)


@dataclass(frozen=True)
class Opposed:
    """Early layers cost macs, late ones params, as in a network whose images become smaller."""

    def macs(self, candidates):
        rows = np.asarray(candidates, dtype=np.int64)
        return (rows * 4 ** np.linspace(5, 1, rows.shape[1]).round().astype(np.int64)).sum(axis=1)

    def params(self, candidates):
        rows = np.asarray(candidates, dtype=np.int64)
        return (rows * 4 ** np.linspace(1, 5, rows.shape[1]).round().astype(np.int64)).sum(axis=1)

    flops = macs


@pytest.mark.parametrize("dims", [10, 20, 40])
@pytest.mark.parametrize("seed", range(5))
def test_bounds_that_pull_in_opposite_directions_are_met(dims, seed):
    """Whatever bounds a structure that is narrow early and wide late meets, with a little room, repair meets."""
    draws = np.random.default_rng(seed)
    choices = tuple(range(1, 11))
    space = SearchSpace(tuple(Dimension(f"d{i}", "width", choices, 10) for i in range(dims)))
    ramp = np.linspace(1, 10, dims)
    hidden = [int(v) for v in np.clip(np.rint(ramp + draws.normal(scale=1, size=dims)), 1, 10)]
    (macs,), (params,) = Opposed().macs([hidden]), Opposed().params([hidden])
    budget = Budget(macs=int(1.01 * macs), params=(int(0.99 * params), 10**9))
    constraint = budget.bind(space, Opposed())
    for _ in range(5):
        assert constraint.allows(constraint.repair(space.sample(draws), draws))


def test_most_parameters_at_half_the_macs_of_a_resnet():
    """A network that keeps three quarters of its parameters at half of its MACs; random walks end at two thirds."""
    graph = trace_channels(MODELS["resnet20"](10), torch.zeros(1, 3, 32, 32))
    space = graph.space(1.0, 0.1, ["filter", "stage"])
    known = (16, 4, 6, 4, 16, 16, 9, 6, 64, 25, 64, 64)
    constraint = Budget(macs=0.5, params=(0.75, 1.0)).bind(space, graph.costs)
    assert constraint.allows(known)
    draws = np.random.default_rng(0)
    for _ in range(3):
        assert constraint.allows(constraint.repair(space.sample(draws), draws))


class Units(Products):
    def latency_ms(self, candidates):
        return self.params(candidates) / 3

    def peak_activation(self, candidates):
        return 1000 * self.params(candidates)


def test_messages_have_units_and_no_more_digits_than_one_can_use():
    space = SearchSpace((Dimension("a", "width", (9, 19, 49), 99),))
    for bound, words in (
        (
            {"latency_ms": 2.5},
            "it asks for 0 to 2.5 ms, but structures of this space have 3.33 to 16.7 ms (0.100 to",
        ),
        ({"latency_ms": (0.6, 0.7)}, "it asks for 20 to 23.3 ms, but"),
        (
            {"latency_ms": (9.0, 0.25)},
            "is empty: it asks for at least 9 ms and at most 8.33 ms of 33.3 ms",
        ),
        (
            {"latency_ms": (7.5, 8.0)},
            "with latency_ms 7.5 to 8 ms; the nearest had latency_ms 6.67 ms; this space",
        ),
        (
            {"peak_activation": 5},
            "it asks for 0 to 5 bytes, but structures of this space have 10,000 to 50,000 bytes",
        ),
    ):
        with pytest.raises(BudgetError, match=re.escape(words)):
            Budget(**bound).bind(space, Units((1,)))


def test_a_bound_that_excludes_nothing_is_like_the_whole_network():
    space = SearchSpace((Dimension("a", "width", (9, 19, 49), 99),))
    costs = Units((1,))
    for name in ("macs", "params", "peak_activation"):
        assert Budget(**{name: 10**30}).bind(space, costs) == Budget(**{name: 1.0}).bind(
            space, costs
        )
    (limit,) = Budget(latency_ms=1e9).bind(space, costs).limits
    # A time that is measured may be longer than the full network's is expected to be
    assert limit.high == 1e9


def test_bounds_of_numpy_are_plain():
    found = Budget(
        macs=np.int64(1000), params=np.float32(0.5), flops=(np.float64(0.25), np.int8(7))
    )
    assert found == Budget(macs=1000, params=0.5, flops=(0.25, 7))
    assert [type(value) for value in (found.macs, found.params, *found.flops)] == [
        int,
        float,
        float,
        int,
    ]
    assert Budget(macs=np.array([0.25, 0.5])) == Budget(macs=(0.25, 0.5))
    with pytest.raises(BudgetError, match="a bound is a positive number, found True"):
        Budget(macs=np.bool_(True))


def test_every_structure_of_a_small_space_can_be_repaired():
    space = SearchSpace(
        (
            Dimension("a", "width", (1, 2, 3)),
            Dimension("b", "block", (0, 1)),
            Dimension("c", "width", (2, 5)),
        )
    )
    constraint = Budget(macs=0.6).bind(space, Products((1, 2, 3)))
    for candidate in itertools.product(*(d.choices for d in space.dimensions)):
        assert constraint.allows(constraint.repair(candidate, np.random.default_rng(0)))
    assert constraint.allows(constraint.repair(space.full, np.random.default_rng(0)))


def test_filling_stays_inside_where_costs_do_not_grow_along_the_way():
    class Wavy(Products):
        def latency_ms(self, candidates):  # as measured times may be
            rows = np.asarray(candidates)
            return (rows * 10 + (rows % 3 == 0) * 25 + (rows % 5 == 1) * 40).sum(axis=1) / 37.3

    space = SearchSpace(tuple(Dimension(f"d{i}", "width", tuple(range(1, 20))) for i in range(8)))
    constraint, rng = Budget(latency_ms=0.5).bind(space, Wavy((1,) * 8)), np.random.default_rng(0)
    for _ in range(100):
        assert constraint.allows(constraint.fill(constraint.repair(space.sample(rng), rng), rng))


def test_huge_spaces_need_little_memory():
    space = SearchSpace(
        tuple(Dimension(f"d{i}", "width", tuple(range(1, 1001))) for i in range(200))
    )
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        constraint = Budget(params=0.5).bind(space, Products((1,) * 200))
        assert constraint.allows(constraint.fill(constraint.repair((1000,) * 200, rng), rng))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_costs_near_the_end_of_64_bits():
    class Sum:
        def macs(self, candidates):
            return np.asarray(candidates, dtype=np.int64).sum(axis=1)

    space = SearchSpace(tuple(Dimension(f"d{i}", "width", (1, 2**58, 2**60)) for i in range(3)))
    for bound in (0.5, (0.25, 0.5), 2**61, 2**70):
        constraint, rng = Budget(macs=bound).bind(space, Sum()), np.random.default_rng(0)
        assert constraint.allows(constraint.fill(constraint.repair((2**60,) * 3, rng), rng))


def test_repair_is_as_random_as_single_steps():
    """The same distribution as a loop that draws one step at a time, and takes back one step at a time."""
    space = SearchSpace(tuple(Dimension(f"d{i}", "width", tuple(range(1, 6))) for i in range(3)))
    weights, rng = np.array([1, 5, 2]), np.random.default_rng(0)
    constraint = Budget(params=21).bind(space, Products((2, 5, 1)))

    def stepwise():
        here, room = np.full(3, 5), np.zeros(3, int)
        while here @ weights > 20:
            step = rng.choice(np.flatnonzero(here > 1))
            here[step], room[step] = here[step] - 1, room[step] + 1
        while len(back := np.flatnonzero((room > 0) & (here @ weights + weights <= 20))):
            step = rng.choice(back)
            here[step], room[step] = here[step] + 1, room[step] - 1
        return tuple(here.tolist())

    expected = Counter(stepwise() for _ in range(4000))
    found = Counter(constraint.repair((5, 5, 5), rng) for _ in range(4000))
    assert sum(abs(expected[c] - found[c]) for c in {*expected, *found}) / 8000 < 0.03


def test_a_band_without_a_structure_names_what_can_be_reached():
    space = SearchSpace(
        tuple(Dimension(f"d{i}", "width", tuple(range(10, 101, 10))) for i in range(60))
    )

    class Tens:
        def macs(self, candidates):
            return np.asarray(candidates).sum(axis=1)

    with pytest.raises(
        BudgetError,
        match=r"macs 3,001 to 3,009; the nearest .* this space reaches macs 600 to 6,000",
    ):
        Budget(macs=(3001, 3009)).bind(space, Tens())
