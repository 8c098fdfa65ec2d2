import numpy as np
import pytest

from abcsearch.budget import Budget, Constraint
from abcsearch.errors import SearcherError
from abcsearch.searchers.nsga2 import NSGA2, NSGA2Options, crowding, fronts
from abcsearch.searchers.random_search import RandomSearch
from abcsearch.testing import ToyCosts, toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SPACE = toy_space()
COSTS = ToyCosts()
BOUND = Budget(macs=0.5).bind(SPACE, COSTS)


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(
        x < y for x, y in zip(a, b, strict=True)
    )


def naive_fronts(points):
    ranks, left, rank = [None] * len(points), set(range(len(points))), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in front:
            ranks[i] = rank
        left -= front
        rank += 1
    return ranks


def naive_crowding(points):
    """By the gaps between values, which is what the paper means where all values of an objective differ."""
    total = [0.0] * len(points)
    for objective in range(len(points[0])):
        values = sorted(point[objective] for point in points)
        for i, point in enumerate(points):
            place = values.index(point[objective])
            if place in (0, len(values) - 1):
                total[i] = np.inf
            else:
                total[i] += (values[place + 1] - values[place - 1]) / (values[-1] - values[0])
    return total


def told(searcher, n, fitness=lambda candidate: toy_fitness(SPACE, candidate)):
    trials = []
    while len(trials) < n:
        start = len(trials)
        for i, candidate in enumerate(searcher.ask(n - start)):
            value = fitness(candidate)
            failure = "made to fail" if value is None else None
            macs, params = int(COSTS.macs([candidate])[0]), int(COSTS.params([candidate])[0])
            found = Evaluation(fitness=value, failure=failure, macs=macs, params=params)
            trials.append(Trial(start + i, candidate, found))
        searcher.tell(trials[start:])
    return trials


def hypervolume(trials):
    """Returns the area between the front and fitness 0 at the budget, as a share of the largest possible."""
    high = BOUND.limits[0].high
    points = sorted(
        (COSTS.macs([t.candidate])[0] / high, t.fitness) for t in trials if t.fitness > 0
    )
    area, best, here = 0.0, 0.0, 0.0
    for cost, fitness in [*points, (1.0, 0.0)]:
        area += (cost - here) * best
        best, here = max(best, fitness), cost
    return area


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 37])
@pytest.mark.parametrize("levels", [3, 10**6])  # many ties, and none
def test_fronts_are_those_of_the_naive_sort(objectives, n, levels):
    losses = np.random.default_rng(n).integers(levels, size=(n, objectives)).astype(float)
    assert fronts(losses).tolist() == naive_fronts(losses.tolist())


@pytest.mark.parametrize("n", [1, 2, 3, 30])
def test_crowding_is_that_of_the_naive_definition(n):
    losses = np.random.default_rng(n).random((n, 2))
    assert crowding(losses) == pytest.approx(naive_crowding(losses.tolist()))


def test_crowding_of_equal_points_is_a_number():
    assert not np.isnan(crowding(np.ones((5, 2)))).any()


def test_survivors_are_the_best_fronts_then_the_least_crowded():
    searcher = NSGA2(SPACE, BOUND, options=NSGA2Options(population=20))
    trials = told(searcher, 40)
    losses = np.array([[-t.fitness, COSTS.macs([t.candidate])[0]] for t in trials], dtype=float)
    ranks = np.array(naive_fronts(losses.tolist()))
    members = [[t.candidate for t in trials].index(c) for c in searcher._members]
    last = ranks[members].max()
    assert set(np.flatnonzero(ranks < last)) <= set(members)
    cut = np.flatnonzero(ranks == last)
    gaps = np.array(naive_crowding(losses[cut].tolist()))
    inside = np.isin(cut, members)
    assert gaps[inside].min() >= gaps[~inside].max(initial=0)


def test_tournaments_prefer_the_earlier_front_then_the_wider_gap():
    searcher = NSGA2(SPACE, BOUND)
    searcher._members = [SPACE.uniform(r) for r in (0.3, 0.5, 0.8)]
    searcher._ranks, searcher._gaps = np.array([1, 0, 0]), np.array([9.0, 1.0, 2.0])
    wins = [searcher._members.index(searcher._winner()) for _ in range(3000)]
    assert np.bincount(wins) / 3000 == pytest.approx([1 / 9, 3 / 9, 5 / 9], abs=0.03)


def test_a_generation_is_one_batch():
    searcher = NSGA2(SPACE, BOUND)
    assert len(searcher.ask(1000)) == 50
    assert searcher.ask(1) == []


def test_first_structures_span_the_costs():
    costs = COSTS.macs(NSGA2(SPACE, BOUND).ask(50)) / BOUND.limits[0].high
    assert costs.min() < 0.3
    assert costs.max() > 0.9


def test_the_front_is_better_than_random_search_at_equal_budget():
    own, grown, spread = [], [], []
    for seed in range(5):
        own.append(hypervolume(told(NSGA2(SPACE, BOUND, seed=seed), 300)))
        # All of it close to the budget
        grown.append(hypervolume(told(RandomSearch(SPACE, BOUND, seed=seed), 300)))
        first = NSGA2Options(population=300)  # random structures of all costs
        spread.append(hypervolume(told(NSGA2(SPACE, BOUND, seed=seed, options=first), 300)))
    assert np.median(own) > np.median(grown) + 0.1
    assert np.median(own) > np.median(spread) + 0.02


def test_it_does_better_than_its_first_generation():
    shares = []
    for seed in range(5):
        trials = told(NSGA2(SPACE, BOUND, seed=seed), 500)
        shares.append(hypervolume(trials) - hypervolume(trials[:50]))
    assert np.median(shares) > 0.03


def test_failed_trials_never_enter():
    searcher = NSGA2(SPACE, BOUND)
    told(searcher, 100, fitness=lambda candidate: None)
    assert searcher._members == []
    trials = told(
        NSGA2(SPACE, BOUND), 100, fitness=lambda candidate: None if candidate[0] % 2 else 1.0
    )
    assert len({trial.candidate for trial in trials}) == 100
    searcher = NSGA2(SPACE, BOUND)
    told(searcher, 100, fitness=lambda candidate: None if candidate[0] % 2 else 1.0)
    assert searcher._members
    assert all(candidate[0] % 2 == 0 for candidate in searcher._members)


@pytest.mark.parametrize("against", ["macs", "params"])
def test_without_costs_those_of_the_evaluations_count(against):
    options = NSGA2Options(against=against)
    searcher = NSGA2(SPACE, options=options)
    told(searcher, 100)
    expected = getattr(COSTS, against)(searcher._members)
    assert searcher._losses[:, 1].tolist() == expected.tolist()
    searcher = NSGA2(SPACE, Constraint(SPACE, costs=COSTS), options=options)
    told(searcher, 100, fitness=lambda candidate: toy_fitness(SPACE, candidate))
    assert searcher._losses[:, 1].tolist() == getattr(COSTS, against)(searcher._members).tolist()


def test_warm_starts_come_first_and_enter_the_population():
    searcher = NSGA2(SPACE, BOUND, initial=[0.6, 0.3])
    trials = told(searcher, 50)
    assert [trial.candidate for trial in trials[:2]] == [SPACE.uniform(0.6), SPACE.uniform(0.3)]
    assert {SPACE.uniform(0.6), SPACE.uniform(0.3)} <= set(searcher._members)


def test_a_cost_that_nobody_tells_is_refused():
    with pytest.raises(SearcherError, match=r"against = 'flops' needs a constraint with costs"):
        NSGA2(SPACE, options=NSGA2Options(against="flops"))
    with pytest.raises(
        SearcherError, match=r"these costs \(ToyCosts\) have no latency_ms; .* bounds latency_ms"
    ):
        NSGA2(SPACE, BOUND, options=NSGA2Options(against="latency_ms"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"against": "mac"},
            "nsga2: against is one of macs, params, flops, peak_activation, latency_ms, found 'mac'",
        ),
        ({"population": 1}, "nsga2: population is from 2 to 10000, found 1"),
        ({"crossover_rate": -0.1}, "nsga2: crossover_rate is from 0 to 1, found -0.1"),
        ({"genes_changed": float("nan")}, "nsga2: genes_changed is at least 0, found nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SearcherError) as error:
        NSGA2Options(**options)
    assert str(error.value) == message
