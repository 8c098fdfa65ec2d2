"""Losses are those of the probes, cleaned and interpolated; rules make of them what enumeration finds."""

import itertools

import numpy as np
import pytest

from abcsearch.budget import Budget, Constraint
from abcsearch.searchers.sensitivity_map import (
    SensitivityMap,
    by_price,
    by_threshold,
    even_map,
    filled,
    linear_costs,
    probes,
    sensitivity_map,
    solved,
)
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import ToyCosts, toy_space
from abcsearch.trial import Evaluation, Trial


class Weighted:
    """Costs that are a sum over dimensions, so that linear costs are exact."""

    def __init__(self, prices):
        self.prices = np.array(prices)

    def macs(self, candidates):
        return np.asarray(candidates, dtype=np.int64) @ self.prices


def space_of(*choices):
    return SearchSpace(tuple(Dimension(f"d{i}", "width", own) for i, own in enumerate(choices)))


def trial(candidate, fitness):
    return Trial(
        0,
        candidate,
        Evaluation(fitness=fitness, failure="made to fail" if fitness is None else None),
    )


FOUR = space_of((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8))


def random_map(rng, space=FOUR, convex=False):
    """A map whose losses never fall as a layer gets narrower."""
    steps = rng.exponential(size=(len(space), int(space.last_indices.max()) + 1))
    if convex:
        steps = -np.sort(-steps, axis=1) * np.exp(-np.arange(steps.shape[1]))
    steps = np.where(np.arange(steps.shape[1]) < space.last_indices[:, None], steps, 0.0)
    loss = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
    return SensitivityMap(
        space=space, largest=1.0, loss=loss, probed=np.ones(loss.shape, dtype=bool)
    )


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 100])
def test_probes_differ_from_the_largest_structure_in_one_dimension_each(levels):
    space = toy_space()
    largest, *others = probes(space, levels)
    assert largest == space.at(space.last_indices)
    below = [space.last_indices - space.indices(c) for c in others]
    assert all((row > 0).sum() == 1 for row in below)
    assert len(set(others)) == len(others)
    for index, last in enumerate(space.last_indices.tolist()):
        tried = sorted(last - int(row[index]) for row in below if row[index])
        assert len(tried) == min(levels, last)
        assert not tried or tried[0] == 0  # the smallest choice bounds all that is interpolated


def test_a_map_of_every_choice_without_noise_is_exact():
    space, rng = toy_space(4, 5), np.random.default_rng(0)
    known = random_map(rng, space)

    def fitness(candidate):
        return 3.0 - known.loss[np.arange(len(space)), space.indices(candidate)].sum()

    made = sensitivity_map(space, [trial(c, fitness(c)) for c in probes(space, 100)])
    np.testing.assert_allclose(made.loss, known.loss, atol=1e-12)
    assert made.largest == pytest.approx(3.0)
    choices = np.arange(made.loss.shape[1])
    assert (made.probed == (choices < space.last_indices[:, None])).all()


def test_scale_and_sign_of_fitness_and_the_order_of_trials_do_not_matter():
    space, rng = toy_space(4, 5), np.random.default_rng(1)
    structures = probes(space, 3)
    fitness = rng.normal(size=len(structures))
    plain = sensitivity_map(space, [trial(c, f) for c, f in zip(structures, fitness, strict=True)])
    order = rng.permutation(len(structures))
    other = sensitivity_map(space, [trial(structures[i], 8.0 * fitness[i] - 40.0) for i in order])
    np.testing.assert_allclose(other.loss, 8 * plain.loss, atol=1e-12)


def test_a_narrower_layer_is_never_better_and_nothing_is_better_than_the_largest():
    space, rng = toy_space(), np.random.default_rng(2)
    made = sensitivity_map(space, [trial(c, rng.normal()) for c in probes(space, 4)])
    for row, last in zip(made.loss, space.last_indices, strict=True):
        assert (np.diff(row[: last + 1]) <= 0).all()
        assert row[last] == 0
        assert (row[last:] == 0).all()


def test_noise_is_cleaned_up_by_the_nearest_losses_that_never_rise():
    space = space_of((1, 2, 3, 4, 5))
    trials = [
        trial((5,), 1.0),
        trial((4,), 1.2),
        trial((3,), 0.6),
        trial((2,), 0.8),
        trial((1,), 0.1),
    ]
    made = sensitivity_map(space, trials)
    assert made.loss[0].tolist() == pytest.approx([0.9, 0.3, 0.3, 0.0, 0.0])


def test_what_was_not_tried_lies_between_what_was():
    space = space_of((1, 2, 3, 4, 5, 6, 7, 8))
    made = sensitivity_map(space, [trial((8,), 1.0), trial((3,), 0.5), trial((1,), 0.1)])
    (loss,) = made.loss
    assert loss[[0, 2, 7]].tolist() == pytest.approx([0.9, 0.5, 0.0])
    assert (np.diff(loss) < 0).all()
    # Linear over log(width + 1), also below the smallest that was tried.
    expected = 0.5 * (np.log(9) - np.log(6)) / (np.log(9) - np.log(4))
    assert loss[4] == pytest.approx(expected)
    (below,) = sensitivity_map(space, [trial((8,), 1.0), trial((3,), 0.5)]).loss
    assert below[0] == pytest.approx(0.5 + 0.5 * (np.log(4) - np.log(2)) / (np.log(9) - np.log(4)))


def test_failed_and_missing_probes():
    trials = [
        trial((8, 8, 8), 1.0),
        trial((1, 8, 8), None),
        trial((2, 8, 8), 0.8),
        trial((8, 1, 8), 0.4),
    ]
    made = sensitivity_map(FOUR, trials)
    assert made.loss[0].tolist()[:2] == pytest.approx([0.6, 0.2])  # the worst of the map
    assert made.loss[2, 0] == pytest.approx((0.6 + 0.2 + 0.6) / 3)  # nothing known: the mean
    assert made.loss[2, 3] == 0
    assert not made.probed[2].any()
    without_largest = sensitivity_map(FOUR, trials[1:])
    assert without_largest.loss[0, 1] == 0  # the best known stands for it
    assert without_largest.loss[1, 0] == pytest.approx(0.4)


def test_several_trials_of_a_structure_count_once_with_their_mean_and_others_not_at_all():
    trials = [
        trial((8, 8, 8), 1.0),
        trial((1, 8, 8), 0.2),
        trial((1, 8, 8), 0.4),
        trial((1, 1, 8), -9.0),
    ]
    assert sensitivity_map(FOUR, trials).loss[0, 0] == pytest.approx(0.7)


@pytest.mark.parametrize(
    "trials", [[], [trial((8, 8, 8), 1.0)], [trial((1, 8, 8), None)], [trial((1, 1, 8), 0.5)]]
)
def test_without_a_probe_that_succeeded_there_is_no_map(trials):
    assert sensitivity_map(FOUR, trials) is None


def every(space):
    return np.array(list(itertools.product(*(range(last + 1) for last in space.last_indices))))


@pytest.mark.parametrize("seed", range(5))
def test_one_threshold_is_the_lowest_that_meets_the_budget(seed):
    rng = np.random.default_rng(seed)
    known = random_map(rng)
    constraint = Budget(macs=0.45).bind(FOUR, Weighted([3, 1, 5]))
    row = by_threshold(constraint, known.loss)
    assert constraint.violation(FOUR.values(row)[None])[0] == 0
    largest_loss = known.loss[np.arange(3), row].max()
    rows = every(FOUR)
    inside = rows[constraint.violation(FOUR.values(rows)) == 0]
    assert largest_loss == pytest.approx(known.loss[np.arange(3), inside].max(axis=1).min())


@pytest.mark.parametrize("seed", range(5))
def test_the_least_sum_is_that_of_enumeration_but_for_what_one_step_costs(seed):
    """A price finds the best of all structures that cost no more than its own."""
    rng = np.random.default_rng(seed)
    known = random_map(rng, convex=True)
    constraint = Budget(macs=0.5).bind(FOUR, Weighted([3, 1, 5]))
    costs = linear_costs(constraint, FOUR.last_indices)
    row = by_price(constraint, known.loss, costs)
    rows = every(FOUR)
    values = FOUR.values(rows) @ np.array([3, 1, 5])
    cheaper = rows[values <= FOUR.values(row) @ np.array([3, 1, 5])]
    best = known.loss[np.arange(3), cheaper].sum(axis=1).min()
    assert known.loss[np.arange(3), row].sum() == pytest.approx(best)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_solved_is_inside_and_nothing_that_helps_fits_any_more(power):
    space, rng = toy_space(), np.random.default_rng(4)
    constraint = Budget(macs=0.4).bind(space, ToyCosts())
    loss = random_map(rng, space).relative
    made = solved(constraint, loss, linear_costs(constraint, space.last_indices), power, rng)
    assert constraint.allows(made)
    here = space.indices(made)
    for dimension in range(len(space)):
        for choice in range(here[dimension] + 1, space.last_indices[dimension] + 1):
            step = here.copy()
            step[dimension] = choice
            assert loss[dimension, choice] >= loss[
                dimension, here[dimension]
            ] or not constraint.allows(space.at(step))


def test_filled_takes_the_most_per_cost_first():
    constraint = Budget(macs=(1, 12)).bind(space_of((1, 2), (1, 2), (1, 2)), Weighted([4, 2, 1]))
    loss = np.array([[1.0, 0.0], [0.9, 0.0], [0.1, 0.0]])
    row = filled(
        constraint,
        np.zeros(3, dtype=np.int64),
        loss,
        linear_costs(constraint, np.ones(3, dtype=np.int64)),
    )
    assert row.tolist() == [0, 1, 1]  # 0.9 for 2, 1.0 for 4 which no longer fits, 0.1 for 1


def test_without_a_budget_nothing_is_narrowed():
    space = toy_space()
    constraint = Constraint(space)
    loss = random_map(np.random.default_rng(5), space).relative
    costs = linear_costs(constraint, space.last_indices)
    for power in (0.0, 1.0, 2.0):
        made = solved(constraint, loss, costs, power, np.random.default_rng(0))
        assert made == space.at(space.last_indices)


def test_where_nothing_is_known_one_threshold_is_uniform_width():
    space = space_of(*[tuple(range(1, 11))] * 4)
    constraint = Budget(macs=0.5).bind(space, ToyCosts())
    row = by_threshold(constraint, even_map(space).loss)
    assert len(set(space.at(row))) == 1
    assert not constraint.allows(space.at(row + 1))
