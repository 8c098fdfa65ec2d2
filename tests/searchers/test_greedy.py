import itertools

import numpy as np
import pytest

from abcsearch.budget import Budget
from abcsearch.errors import SearcherError
from abcsearch.searchers import greedy
from abcsearch.searchers.greedy import Greedy, GreedyOptions
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import ToyCosts, toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SMALL = SearchSpace(tuple(Dimension(f"w{i}", "width", (1, 2, 3, 4, 5), 5) for i in range(4)))
WEIGHTS = np.array([1.0, 2.0, 3.1, 4.3])


def concave(candidate):
    """Separable with falling returns: one step at a time finds the best structure of every size."""
    return float((WEIGHTS * np.log(np.array(candidate))).sum())


def optimum(high):
    """Returns the best fitness among all structures with at most so many channels."""
    return max(concave(c) for c in itertools.product(range(1, 6), repeat=4) if sum(c) <= high)


def play(searcher, n, fitness, until=lambda searcher: False):
    trials = []
    while len(trials) < n and not until(searcher):
        start = len(trials)
        for i, candidate in enumerate(searcher.ask(1000)):
            value = fitness(candidate)
            failure = "made to fail" if value is None else None
            trials.append(Trial(start + i, candidate, Evaluation(fitness=value, failure=failure)))
        if len(trials) == start:
            break
        searcher.tell(trials[start:])
    return trials


def slim_is_over(searcher):
    return not searcher._slimming


@pytest.mark.parametrize("seed", range(3))
def test_one_pass_without_budget_gives_the_best_structure_of_every_size(seed):
    searcher = Greedy(SMALL, seed=seed, options=GreedyOptions(taken=0))
    trials = play(searcher, 1000, concave, until=slim_is_over)
    assert len(trials) <= 1 + 16 * 4 + searcher.options.batch
    assert trials[0].candidate == (5, 5, 5, 5)
    assert searcher._here.tolist() == [0, 0, 0, 0]
    for size in range(4, 21):
        found = max(trial.fitness for trial in trials if sum(trial.candidate) == size)
        assert found == pytest.approx(optimum(size))


@pytest.mark.parametrize("marks", [1, 2, 7, 50])
@pytest.mark.parametrize(
    "budget", [Budget(macs=0.3), Budget(macs=0.7), Budget(params=0.4, macs=0.5)]
)
def test_a_long_way_into_the_budget_ends_where_a_short_one_does(monkeypatch, budget, marks):
    """It is looked at in one stretch only; costs fall all the way, so that is where the first one inside is."""
    space = toy_space()
    whole = Greedy(space, budget.bind(space, ToyCosts()))
    stretches = Greedy(space, budget.bind(space, ToyCosts()))
    expected = play(whole, 60, lambda c: toy_fitness(space, c))
    monkeypatch.setattr(greedy, "_LONG", 0)
    monkeypatch.setattr(greedy, "_MARKS", marks)
    assert play(stretches, 60, lambda c: toy_fitness(space, c)) == expected


@pytest.mark.parametrize("bound", [1.0, 10**30])
def test_a_budget_that_excludes_nothing_is_none(bound):
    free, bounded = Greedy(SMALL), Greedy(SMALL, Budget(macs=bound).bind(SMALL, ToyCosts()))
    assert play(free, 60, concave) == play(bounded, 60, concave)
    assert bounded._here.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("high", [8, 10, 13, 16])
@pytest.mark.parametrize("seed", range(3))
def test_under_a_budget_the_known_optimum_is_found(high, seed):
    constraint = Budget(params=high).bind(SMALL, ToyCosts())
    searcher = Greedy(SMALL, constraint, seed=seed, options=GreedyOptions(taken=0))
    trials = play(searcher, 1000, concave, until=slim_is_over)
    last = SMALL.at(searcher._here)
    assert sum(last) == high
    assert concave(last) >= optimum(high) - 0.2  # slimming alone is near
    trials += play(searcher, 48, concave)
    assert max(trial.fitness for trial in trials) == pytest.approx(optimum(high))


def test_stand_ins_shrink_all_widths_by_the_same_share_and_keep_blocks():
    space = toy_space()
    constraint = Budget(macs=0.5).bind(space, ToyCosts())
    searcher = Greedy(space, constraint)
    searcher.ask(1000)
    assert searcher._steps == np.flatnonzero(space.last_indices).tolist()
    here = searcher._here
    widths = [i for i, d in enumerate(space.dimensions) if d.kind == "width" and here[i]]
    for step, stand_in in zip([None, *searcher._steps], searcher._stand_ins, strict=True):
        before = here.copy()
        if step is not None:
            before[step] -= 1
        after = space.indices(stand_in)
        assert constraint.allows(stand_in)
        shares = np.linspace(0, 1, 1001)[:, None]
        assert (np.abs(shares * before[widths] - after[widths]).max(axis=1)).min() <= 1
        assert (after[-2:] == before[-2:]).all()
    costs = ToyCosts().macs(searcher._stand_ins) / constraint.limits[0].high
    assert costs.min() > 0.9  # compared at alike cost


def test_equal_siblings_are_shrunk_alike():
    space = toy_space()
    searcher = Greedy(space, Budget(macs=0.5).bind(space, ToyCosts()))
    offsets = np.random.default_rng(0).random(len(space))
    assert len({searcher._shrunk(space.last_indices, offsets) for _ in range(5)}) == 1


@pytest.mark.parametrize(("taken", "steps"), [(0, 1), (0.25, 2), (1, 8)])
def test_the_least_harmful_steps_are_taken(taken, steps):
    space = toy_space()
    # Everything is allowed: nothing is shrunk
    searcher = Greedy(space, options=GreedyOptions(taken=taken))
    weights = np.array([5, 3, 8, 1, 7, 2, 0, 4, 6]) / 10
    play(searcher, 1, lambda c: float(weights @ space.indices(c)))
    order = [i for i in np.argsort(weights) if space.last_indices[i]]
    expected = space.last_indices.copy()
    expected[order[:steps]] -= 1
    assert searcher._here.tolist() == expected.tolist()


def test_failed_steps_are_the_most_harmful():
    searcher = Greedy(SMALL, options=GreedyOptions(taken=0))
    play(searcher, 1, lambda c: None if c[0] == 4 else -1.0 * c[0] - 0.1 * sum(c[1:3]))
    assert searcher._here.tolist() != [3, 4, 4, 4]
    searcher = Greedy(SMALL)
    assert len(play(searcher, 200, lambda c: None)) >= 200


def test_slimming_goes_on_to_the_lower_end_of_a_band():
    constraint = Budget(params=(8, 14)).bind(SMALL, ToyCosts())
    stops, goes_on = (
        Greedy(SMALL, constraint, options=GreedyOptions(to_bottom=b)) for b in (False, True)
    )
    for searcher, size in ((stops, 14), (goes_on, 8)):
        trials = play(searcher, 1000, concave, until=slim_is_over)
        assert sum(SMALL.at(searcher._here)) == size
        assert all(8 <= sum(trial.candidate) <= 14 for trial in trials)


def test_warm_starts_come_first_and_are_no_steps():
    space = toy_space()
    constraint = Budget(macs=0.5).bind(space, ToyCosts())
    starts = [space.uniform(0.3), space.uniform(0.4), space.uniform(0.3)]
    with_starts, without = Greedy(space, constraint, initial=starts), Greedy(space, constraint)
    asked = with_starts.ask(1000)
    assert asked[:2] == starts[:2]
    assert set(without.ask(1000)) <= set(asked)
    with_starts.tell(
        [Trial(i, c, Evaluation(fitness=toy_fitness(space, c))) for i, c in enumerate(asked)]
    )
    same = [
        Trial(i, c, Evaluation(fitness=toy_fitness(space, c)))
        for i, c in enumerate(without._batches.open)
    ]
    without.tell(same)
    assert with_starts._here.tolist() == without._here.tolist()


def test_local_search_stays_around_the_best_and_improves_it():
    space = toy_space()
    for seed in range(3):
        searcher = Greedy(space, seed=seed)
        searcher._slimming = False
        start = space.at(space.last_indices // 2)
        searcher._scores = {start: 0.5}
        rows = np.array([space.indices(searcher._moved(start, 1)) for _ in range(500)])
        off = np.abs(rows - space.indices(start))
        assert off.max() == 1
        assert off.sum(axis=1).max() == 4
        assert (off.max(axis=0) == (space.last_indices > 0)).all()
        far = np.abs(
            [space.indices(searcher._moved(start, 3)) - space.indices(start) for _ in range(500)]
        )
        assert far.max() == 3
        trials = play(searcher, 200, lambda c: toy_fitness(space, c))
        assert max(t.fitness for t in trials[100:]) > toy_fitness(space, start) + 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taken": 1.5}, "greedy: taken is from 0 to 1, found 1.5"),
        ({"batch": 0}, "greedy: batch is from 1 to 10000, found 0"),
        ({"to_bottom": 1}, "greedy: to_bottom is true or false, found 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SearcherError) as error:
        GreedyOptions(**options)
    assert str(error.value) == message


class Unequal(ToyCosts):
    """A channel of the third layer costs more than the others'."""

    def __init__(self, dear):
        object.__setattr__(self, "dear", dear)

    def macs(self, candidates):
        return np.asarray(candidates, dtype=np.int64) @ np.array([1, 1, self.dear, 1])


def ways(searcher, rounds, fitness):
    """Where the structure that is slimmed is after each round."""
    for number in range(rounds):
        batch = list(dict.fromkeys(searcher.ask(1000)))
        searcher.tell(
            [
                Trial(1000 * number + i, c, Evaluation(fitness=fitness(c)))
                for i, c in enumerate(batch)
            ]
        )
        yield searcher._here.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_of_steps_that_do_equal_harm_the_one_that_saves_most_is_taken(seed):
    """Published code takes the first layer's of these: here all fitness ties, and then every step costs as much."""
    space = SearchSpace(
        tuple(Dimension(f"w{i}", "width", tuple(range(1, 41)), 40) for i in range(4))
    )
    for dear, fitness in ((2, lambda c: 0.5), (100, lambda c: float(sum(c)))):
        constraint = Budget(macs=0.5).bind(space, Unequal(dear))
        searcher = Greedy(space, constraint, seed=seed, options=GreedyOptions(taken=0))
        rows = np.array(list(ways(searcher, 5, fitness)))
        assert (rows[:, [0, 1, 3]] == 39).all()
        assert (
            np.diff(rows[:, 2], prepend=39) < 0
        ).all()  # several at once where a round has nothing new
