"""The variant for comparison has the defects that it documents."""

import numpy as np
import pytest

from abcsearch.errors import SearcherError
from abcsearch.searchers.bee_colony_official import BeeColonyOfficial, BeeColonyOfficialOptions
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import SearcherContract, toy_space
from abcsearch.trial import Evaluation, Trial

SPACE = SearchSpace(tuple(Dimension(f"w{i}", "width", tuple(range(1, 10)), 10) for i in range(12)))


class TestContract(SearcherContract):
    def make(self, space, constraint, seed):
        return BeeColonyOfficial(space, constraint, seed=seed)

    def test_every_dimension_changes_in_time(self):
        """The defect: as scouts never draw the largest choice, block switches end switched off for good."""
        space, constraint = self.problem()
        rows = np.array(
            [trial.candidate for trial in self.play(self.make(space, constraint, 0), 300)]
        )
        varies = {
            d.name: len(np.unique(column)) > 1
            for d, column in zip(space.dimensions, rows[150:].T, strict=True)
        }
        assert not all(varies[d.name] for d in space.dimensions if d.kind == "block")
        assert all(
            varies[d.name] for d in space.dimensions if d.kind == "width" and len(d.choices) > 1
        )
        assert not varies["fixed"]


def started(space=SPACE, seed=0, **options):
    searcher = BeeColonyOfficial(space, seed=seed, options=BeeColonyOfficialOptions(**options))
    learn(searcher, 0)
    return searcher


def learn(searcher, number, fitness=lambda candidate: float(sum(candidate))):
    asked = searcher.ask(1000)
    searcher.tell(
        [Trial(number + i, c, Evaluation(fitness=fitness(c))) for i, c in enumerate(asked)]
    )
    return asked


def test_the_last_dimension_is_never_moved_and_all_others_are():
    for space in (SPACE, toy_space()):
        searcher = started(space)
        moved = np.zeros(len(space), dtype=bool)
        for i in range(3000):
            target = i % 10
            moved |= np.array(searcher._neighbour(target)) != searcher._sources[target]
        assert not moved[-1]
        assert moved[:-1].tolist() == (space.last_indices > 0)[:-1].tolist()


def test_truncation_shrinks_more_than_it_grows_as_measured_in_the_published_code():
    signs = []
    for seed in range(100):
        searcher = started(seed=seed)
        signs += [
            np.sign(sum(searcher._neighbour(i)) - sum(searcher._sources[i]))
            for i in range(10)
            for _ in range(5)
        ]
    shrunk, grown = np.mean(np.array(signs) < 0), np.mean(np.array(signs) > 0)
    assert shrunk == pytest.approx(0.51, abs=0.04)
    assert grown == pytest.approx(0.26, abs=0.04)


def test_many_moves_change_nothing():
    same = []
    for seed in range(100):
        searcher = started(seed=seed)
        same += [searcher._neighbour(i) == searcher._sources[i] for i in range(10)]
    assert 0.13 < np.mean(same) < 0.21


def test_scouts_favour_the_smallest_choice_and_never_draw_the_largest():
    searcher = started()
    rows = np.array([SPACE.indices(searcher._scout(0)) for _ in range(2000)])
    shares = np.bincount(rows.ravel(), minlength=9) / rows.size
    assert shares[8] == 0
    assert shares[0] == pytest.approx(2 / 9, abs=0.01)
    assert np.abs(shares[1:8] - 1 / 9).max() < 0.01


@pytest.mark.parametrize("cycles", [10, 50])
def test_evaluations_and_repeats_are_those_of_the_published_code(cycles):
    """217 to 219 in 10 cycles and 1,057 to 1,059 in 50: 10 at first, 20 per cycle, and at most one scout per cycle."""
    searcher = started()
    evaluations, number = 10, 10
    phases = []
    plan = searcher._plan

    def counted():
        nonlocal evaluations
        phases.append(searcher._phase)
        batch = plan()
        evaluations += len(searcher._moved)
        return batch

    searcher._plan = counted
    while phases.count("scout") < cycles:
        number += len(learn(searcher, number))
    if phases[-1] != "scout":  # the last scout phase had nothing new
        evaluations -= len(searcher._moved)
    assert 10 + 20 * cycles < evaluations <= 10 + 21 * cycles
    assert searcher.repeats > 0.1 * 20 * cycles
    assert evaluations == pytest.approx(number + searcher.repeats, abs=len(searcher._moved))


def test_repeats_are_counted_and_survive_a_save():
    searcher = started()
    for number in range(10, 300, 10):
        learn(searcher, number)
    assert searcher.repeats > 20
    again = BeeColonyOfficial(SPACE, options=BeeColonyOfficialOptions())
    again.load_state_dict(searcher.state_dict())
    assert again.repeats == searcher.repeats


def test_onlookers_prefer_fit_sources():
    searcher = started()
    searcher._scores = {source: 10.0**i for i, source in enumerate(searcher._sources)}
    searcher._phase = "onlooker"
    counts = np.bincount(np.concatenate([searcher._chosen() for _ in range(500)]), minlength=10)
    assert counts[9] > 2 * counts[:8].max()
    assert counts.min() > 0
    searcher._scores = dict.fromkeys(searcher._sources, -np.inf)
    assert len(searcher._chosen()) == 10


def test_a_space_of_one_dimension_is_exhausted():
    space = SearchSpace((Dimension("w", "width", tuple(range(1, 40)), 40),))
    searcher = BeeColonyOfficial(space)
    seen = []
    while asked := learn(searcher, len(seen)):
        seen += asked
    assert sorted(seen) == [(w,) for w in range(1, 40)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_sources": 1}, "bee_colony_official: n_sources is from 2 to 10000, found 1"),
        ({"abandonment_limit": 0}, "bee_colony_official: abandonment_limit is at least 1, found 0"),
        ({"genes_changed": 1.5}, "bee_colony_official: genes_changed is a whole number, found 1.5"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SearcherError) as error:
        BeeColonyOfficialOptions(**options)
    assert str(error.value) == message
