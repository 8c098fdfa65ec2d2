"""Searchers that learn find the right criterion of each layer, where which one it is decides."""

import numpy as np
import pytest

from abcsearch.budget import Budget
from abcsearch.searchers.registry import make_searcher
from abcsearch.searchers.variation import redrawn_criteria
from abcsearch.testing.criteria import ShapeCosts, criteria_fitness, criteria_space, right_criteria
from abcsearch.trial import Evaluation, Trial, best_trial

TRIALS = 120
SMALL = {  # several generations within so few
    "evolution": {"population": 15, "mutations": 7, "crossovers": 6},
    "regularized_evolution": {"population": 15, "sample_size": 6},
}


def winner(name, seed):
    """The space, and the best structure that a search has found."""
    space = criteria_space(widths=12)
    searcher = make_searcher(
        name,
        space,
        Budget(macs=0.4).bind(space, ShapeCosts(space)),
        seed=seed,
        **SMALL.get(name, {}),
    )
    trials = []
    while len(trials) < TRIALS:
        asked = searcher.ask(5)
        batch = [
            Trial(len(trials) + i, c, Evaluation(fitness=criteria_fitness(space, c)))
            for i, c in enumerate(asked)
        ]
        searcher.tell(batch)
        trials += batch
    return space, best_trial(trials)


def hits(name):
    """How many of the twelve layers of a winner have the right criterion, the mean of three searches."""
    counts = []
    for seed in range(3):
        space, best = winner(name, seed)
        right, chosen = right_criteria(space), space.criteria(best.candidate)
        counts.append(
            sum(right[layer] == label for layer, label in chosen.items() if layer != "fixed")
        )
    return np.mean(counts)


@pytest.fixture(scope="module")
def by_chance():
    """What the best of as many random structures has: more than the four of twelve that any one of them has."""
    return hits("random")


@pytest.mark.parametrize("name", ["response_surface", "evolution", "regularized_evolution"])
def test_the_right_criteria_are_found_where_they_decide(name, by_chance):
    assert 6 < by_chance < 9
    learnt = hits(name)
    assert learnt >= by_chance + 1.5
    assert name != "response_surface" or learnt == 12


def test_a_move_of_a_criterion_leads_anywhere_else_and_a_move_of_a_width_where_it_led():
    space, rng = criteria_space(), np.random.default_rng(0)
    here = space.indices(space.uniform(0.5))
    moved = here.copy()
    moved[[0, 6, 7]] += 1  # a width, and the criteria of two
    ends = np.array([redrawn_criteria(space, here, moved, rng) for _ in range(200)])
    assert (ends[:, [0]] == moved[0]).all()
    for place in (6, 7):
        assert sorted(set(ends[:, place].tolist())) == [1, 2]
        assert 70 < (ends[:, place] == 1).sum() < 130
    still = np.delete(np.arange(len(space)), [0, 6, 7])
    assert (ends[:, still] == here[still]).all()
    state = rng.bit_generator.state
    only = here.copy()
    only[0] += 1
    assert redrawn_criteria(space, here, only, rng) is only
    assert rng.bit_generator.state == state
