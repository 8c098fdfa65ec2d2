"""The guided colony: what it is drawn to, what it remembers, and that without a guide it is what it was before."""

import zlib

import numpy as np
import pytest

from abcsearch.budget import Budget
from abcsearch.errors import SearcherError
from abcsearch.searchers.bee_colony import BeeColony, BeeColonyOptions
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import SearcherContract, ToyCosts, toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SPACE = toy_space()
BOUND = Budget(macs=0.5).bind(SPACE, ToyCosts())
FAITHFUL = {"guide": 0, "rate": 0, "scale": 1, "decay": 0}
WIDE = SearchSpace(tuple(Dimension(f"w{i}", "width", tuple(range(1, 42))) for i in range(8)))


def colony(space=SPACE, constraint=BOUND, seed=0, initial=(), **options):
    return BeeColony(
        space, constraint, seed=seed, initial=initial, options=BeeColonyOptions(**options)
    )


def played(searcher, n, fitness=toy_fitness, fails=lambda number: False, ahead=False):
    """Plays in sevens; returns the trials."""
    trials = []
    while len(trials) < n:
        asked = searcher.ask(min(7, n - len(trials)), ahead=ahead)
        batch = []
        for number, candidate in enumerate(asked, start=len(trials)):
            failed = fails(number)
            score = None if failed else fitness(searcher.space, candidate)
            batch.append(
                Trial(
                    number,
                    candidate,
                    Evaluation(fitness=score, failure="made to fail" if failed else None),
                )
            )
        searcher.tell(batch)
        trials += batch
    return trials


def structures(*args, **options):
    return [trial.candidate for trial in played(*args, **options)]


def sources(fitness, space=SPACE, **options):
    """A colony with these sources, all different; None: failed."""
    searcher = colony(space, None, n_sources=len(fitness), **options)
    batch = []
    for number, candidate in enumerate(searcher.ask(len(fitness))):
        failure = "made to fail" if fitness[number] is None else None
        batch.append(Trial(number, candidate, Evaluation(fitness=fitness[number], failure=failure)))
    searcher.tell(batch)
    return searcher, np.array([space.indices(trial.candidate) for trial in batch])


class TestFaithful(SearcherContract):
    rounds, trials = 40, 80

    def make(self, space, constraint, seed):
        return colony(space, constraint, seed, **FAITHFUL)


class TestMixture(SearcherContract):
    """Few dimensions move, the guide is one source, and all luck is forgotten at once."""

    rounds, trials = 40, 80

    def make(self, space, constraint, seed):
        return colony(space, constraint, seed, n_sources=5, rate=0.3, scale=1, elite=0.01, decay=1)


def test_without_a_guide_it_proposes_what_it_did_before_it_had_one():
    # Checksums of what the version before proposed, with every seventh trial failed: fitness above 0, below, and ahead.
    found = [
        zlib.crc32(
            np.array(
                structures(colony(seed=3, **FAITHFUL, **options), 200, **how), dtype=np.int64
            ).tobytes()
        )
        for options, how in (
            ({}, {"fails": lambda number: number % 7 == 6}),
            ({"n_sources": 4}, {"fitness": lambda *asked: -toy_fitness(*asked)}),
            ({"n_sources": 6, "initial": [0.4]}, {"ahead": True}),
        )
    ]
    assert found == [3213428263, 4051911946, 1912326391]


def test_the_guide_is_the_weighted_mean_of_the_better_half():
    searcher, rows = sources([0.1, 0.9, 0.5, 0.3, 0.7, 0.2])
    weights = np.log(4) - np.log([1, 2, 3])
    expected = (weights[:, None] * rows[[1, 4, 2]]).sum(axis=0) / weights.sum()
    assert searcher._better(rows).mean == pytest.approx(expected)
    searcher, rows = sources([0.1, 0.9, 0.5], elite=0.01)
    assert searcher._better(rows).mean == pytest.approx(rows[1])


def test_failed_trials_never_guide():
    searcher, rows = sources([None, 0.9, None, None, None, 0.7])
    weights = np.log(3) - np.log([1, 2])
    assert searcher._better(rows).mean == pytest.approx(
        (weights[:, None] * rows[[1, 5]]).sum(axis=0) / weights.sum()
    )
    searcher, rows = sources([None] * 6)
    assert searcher._better(rows) is None
    assert len(searcher.ask(6)) == 6


def test_neighbours_are_drawn_to_the_guide():
    searcher, rows = sources([0.1, 0.9, 0.8, 0.2, 0.3], WIDE)
    guide = searcher._better(rows)
    moved = np.array([WIDE.indices(searcher._neighbour(0, rows, guide)) for _ in range(2000)])
    # On average by half of `guide`, 0.75, of the distance; towards and away from others cancels out, and no dimension
    # leaves the space on the way.
    inside = np.abs(rows - rows[0]).max(axis=0) / 2 + 1.5 * np.abs(
        guide.mean - rows[0]
    ) < np.minimum(rows[0], 40 - rows[0])
    expected = rows[0] + 0.75 * (guide.mean - rows[0])
    assert np.abs(moved.mean(axis=0) - expected)[inside].max() < 1
    assert inside.any()


@pytest.mark.parametrize("genes", [1, 3])
def test_with_rate_0_so_many_dimensions_move(genes):
    searcher, rows = sources([0.1, 0.9, 0.8, 0.2, 0.3], WIDE, rate=0, genes_changed=genes)
    guide = searcher._better(rows)
    changed = [
        (WIDE.indices(searcher._neighbour(0, rows, guide)) != rows[0]).sum() for _ in range(300)
    ]
    assert max(changed) == genes
    assert min(changed) == 1


def test_with_a_rate_that_share_of_the_dimensions_moves():
    searcher, _ = sources([0.1, 0.9, 0.8], WIDE, rate=0.25)
    counts = [len(searcher._genes()) for _ in range(2000)]
    assert min(counts) == 1  # 10 % of the draws had none
    assert np.mean(counts) == pytest.approx(8 * 0.25 + 0.75**8, abs=0.15)


def test_any_monotone_fitness_gives_the_same_search():
    def ranked(transform):
        return structures(
            colony(decay=0), 100, lambda *asked: float(transform(toy_fitness(*asked)))
        )

    straight = ranked(lambda f: f)
    for transform in (lambda f: f - 5, lambda f: 1e300 * f, lambda f: -np.exp(-f), lambda f: f**9):
        assert ranked(transform) == straight


def test_any_scale_gives_the_same_search_also_where_luck_is_forgotten():
    fails = lambda number: number % 5 == 1  # noqa: E731 - one of a few words
    straight = structures(colony(), 100, fails=fails)
    for factor in (2.0**-40, 2.0**1000):
        assert (
            structures(colony(), 100, lambda *asked, by=factor: by * toy_fitness(*asked), fails)
            == straight
        )


def test_the_largest_numbers_do_not_overflow():
    largest = np.finfo(float).max
    fitness = lambda space, c: largest * (2 * toy_fitness(space, c) - 1)  # noqa: E731 - one of a few words
    searcher = colony()
    played(searcher, 120, fitness)
    assert np.isfinite(searcher._fitness).all()


def test_a_source_forgets_a_share_of_its_luck_whenever_it_wins():
    searcher, _ = sources([10.0, 8.0], decay=0.25)
    first, second = searcher.ask(2)
    searcher.tell(
        [
            Trial(2, first, Evaluation(fitness=2.0)),
            Trial(3, second, Evaluation(fitness=None, failure="no")),
        ]
    )
    assert searcher._fitness == [8.0, 8.0]  # a failure says nothing of the source
    assert searcher._stagnation == [1, 1]


def test_a_budget_that_binds_is_begun_with_uniform_width_and_after_warm_starts():
    ratios = np.arange(1, 101) / 100
    widest = [c for c in map(SPACE.uniform, ratios) if BOUND.allows(c)][-1]
    assert colony().ask(1) == [widest]
    warm = [SPACE.uniform(0.3), SPACE.uniform(0.2)]
    assert colony(initial=warm).ask(4)[:3] == [*warm, widest]
    assert colony(initial=[widest]).ask(10).count(widest) == 1
    # Every second one of the others lies around it, nearer than random ones.
    far = np.abs(
        [
            SPACE.indices(c) - SPACE.indices(widest)
            for seed in range(20)
            for c in colony(seed=seed).ask(9)[1:]
        ]
    )
    assert far[0::2].mean() < 0.7 * far[1::2].mean()


def test_without_such_a_budget_it_begins_at_random():
    for constraint in (
        None,
        Budget(macs=1.0).bind(SPACE, ToyCosts()),
        Budget(macs=(0.3, 1.0)).bind(SPACE, ToyCosts()),
    ):
        assert colony(constraint=constraint).ask(10) == colony(
            constraint=constraint, **FAITHFUL
        ).ask(10)


def test_a_known_neighbour_goes_on_to_a_new_one_nearby():
    searcher = colony()
    start = searcher.ask(1)[0]
    reached = {searcher._onward(start) for _ in range(50)}
    assert start not in reached
    assert all(map(BOUND.allows, reached))
    assert len(reached) > 5
    assert max(np.abs(SPACE.indices(c) - SPACE.indices(start)).sum() for c in reached) <= 4
    few = SearchSpace((Dimension("w", "width", (1, 2, 3)),))
    searcher = colony(few, None)
    searcher.ask(10)
    assert searcher._onward((2,)) == (2,)  # all are known: it gives up


@pytest.mark.parametrize("share", [0.5, 0.35])
def test_it_finds_better_structures_than_without_a_guide(share):
    space = toy_space(16)
    bound = Budget(macs=share).bind(space, ToyCosts())
    ends = []
    for options in ({}, FAITHFUL):
        runs = [played(colony(space, bound, seed, **options), 120) for seed in range(2)]
        ends.append(np.mean([max(trial.fitness for trial in trials) for trials in runs]))
    assert ends[0] > ends[1] + 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": -0.1}, "bee_colony: guide is from 0 to 10, found -0.1"),
        ({"guide": float("nan")}, "bee_colony: guide is from 0 to 10, found nan"),
        ({"rate": 1.5}, "bee_colony: rate is from 0 to 1, found 1.5"),
        ({"scale": "half"}, "bee_colony: scale is a number, found 'half'"),
        ({"elite": 0}, "bee_colony: elite is above 0 and at most 1, found 0"),
        ({"decay": 2}, "bee_colony: decay is from 0 to 1, found 2"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(SearcherError) as caught:
        BeeColonyOptions(**options)
    assert str(caught.value) == message


def test_a_state_of_other_options_is_refused_with_both():
    with pytest.raises(SearcherError, match=r"'guide': 0.*here .*'guide': 1.5"):
        colony().load_state_dict(colony(**FAITHFUL).state_dict())
