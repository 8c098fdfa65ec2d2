"""The first structure for a budget is that of one threshold; weights are learned from there."""

import numpy as np
import pytest

from abcsearch.budget import Budget
from abcsearch.errors import SearcherError
from abcsearch.searchers.sensitivity import Sensitivity, SensitivityOptions
from abcsearch.searchers.sensitivity_map import (
    by_threshold,
    even_map,
    filled,
    linear_costs,
    sensitivity_map,
)
from abcsearch.testing import ToyCosts, toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SPACE = toy_space()


def evaluated(candidate, number=0):
    return Trial(number, candidate, Evaluation(fitness=toy_fitness(SPACE, candidate)))


def searcher_of(share, known=True, **options):
    constraint = Budget(macs=share).bind(SPACE, ToyCosts())
    searcher = Sensitivity(SPACE, constraint, options=SensitivityOptions(**options))
    if known:
        searcher.know([evaluated(candidate) for candidate in searcher.probes()])
    return searcher


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_first_proposal_is_that_of_the_lowest_threshold_filled_up(share):
    searcher = searcher_of(share)
    loss = sensitivity_map(SPACE, searcher.knowledge).relative
    row = by_threshold(searcher.constraint, loss)
    costs = linear_costs(searcher.constraint, SPACE.last_indices)
    assert searcher.ask(1) == [SPACE.at(filled(searcher.constraint, row, loss, costs))]
    assert len(set(searcher.ask(7))) == 7


def test_one_map_serves_all_budgets():
    tight, loose = searcher_of(0.3, known=False), searcher_of(0.8)
    tight.know(loose.knowledge)
    assert tight.ask(8) == searcher_of(0.3).ask(8)


def test_without_a_map_layers_count_alike():
    searcher = searcher_of(0.5, known=False)
    row = by_threshold(searcher.constraint, even_map(SPACE).loss)
    (first,) = searcher.ask(1)
    assert (SPACE.indices(first) >= row).all()


def test_a_map_that_comes_later_is_used_from_the_next_batch_on():
    searcher = searcher_of(0.5, known=False)
    searcher.tell([evaluated(candidate) for candidate in searcher.ask(8)])
    before = searcher.map().loss
    searcher.know([evaluated(candidate) for candidate in searcher.probes()])
    assert not np.array_equal(searcher.map().loss, before)


def test_weights_are_learned():
    """The best structures stand out where the map is wrong: nothing is lost by two layers that it warns of."""
    constraint = Budget(macs=0.5).bind(SPACE, ToyCosts())

    def fitness(candidate):
        point = SPACE.encode(candidate)
        return float(point[:6].sum() - 3 * (point[0] + point[3]))

    late, early = [], []
    for seed in range(2):
        searcher = Sensitivity(SPACE, constraint, seed=seed)
        found = []
        while len(found) < 64:
            batch = [
                Trial(len(found) + i, c, Evaluation(fitness=fitness(c)))
                for i, c in enumerate(searcher.ask(8))
            ]
            searcher.tell(batch)
            found += batch
        early += [t.fitness for t in found[:16]]
        late += [t.fitness for t in found[-16:]]
    assert np.mean(late) > np.mean(early) + 2 * np.std(early) / len(early) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "sensitivity: levels is from 1 to 1000, found 0"),
        ({"batch": 0}, "sensitivity: batch is from 1 to 1000, found 0"),
        ({"levels": 2.5}, "sensitivity: levels is a whole number, found 2.5"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SearcherError, match=message):
        SensitivityOptions(**options)
