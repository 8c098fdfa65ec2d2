import numpy as np
import pytest

from abcsearch.searchers.variation import cross, mutate, mutate_one
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import toy_space

SPACE = toy_space()
N = 4000


def index_rows(candidates):
    return np.array([SPACE.indices(candidate) for candidate in candidates])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_mutation_changes_each_dimension_with_the_given_probability(rate):
    rng = np.random.default_rng(0)
    parent = SPACE.sample(rng)
    changed = index_rows([mutate(SPACE, parent, rate, rng) for _ in range(N)]) != SPACE.indices(
        parent
    )
    movable = SPACE.last_indices > 0
    assert not changed[:, ~movable].any()
    assert np.abs(changed[:, movable].mean(axis=0) - rate).max() < 4 * np.sqrt(0.25 / N)
    together = np.corrcoef(changed[:, movable].T) if 0 < rate < 1 else np.eye(movable.sum())
    assert np.abs(together - np.eye(movable.sum())).max() < 0.07


def test_mutation_is_uniform_over_the_other_choices():
    rng = np.random.default_rng(1)
    parent = SPACE.at(SPACE.last_indices // 2)
    rows = index_rows([mutate(SPACE, parent, 1.0, rng) for _ in range(N)])
    for column, here, last in zip(rows.T, SPACE.indices(parent), SPACE.last_indices, strict=True):
        counts = np.bincount(column, minlength=last + 1)
        others = np.delete(counts, here) if last else counts
        assert counts[here] == (0 if last else N)
        assert np.abs(others - N / max(last, 1)).max() <= 4 * np.sqrt(N / max(last, 1))


def test_one_mutation_changes_one_movable_dimension_all_alike():
    rng = np.random.default_rng(2)
    parent = SPACE.sample(rng)
    changed = index_rows([mutate_one(SPACE, parent, rng) for _ in range(N)]) != SPACE.indices(
        parent
    )
    movable = SPACE.last_indices > 0
    assert (changed.sum(axis=1) == 1).all()
    assert not changed[:, ~movable].any()
    assert np.abs(changed[:, movable].mean(axis=0) - 1 / movable.sum()).max() < 0.03


def test_where_nothing_can_change_nothing_does():
    space = SearchSpace((Dimension("a", "width", (3,)), Dimension("b", "block", (1,))))
    rng = np.random.default_rng(0)
    assert mutate(space, (3, 1), 1.0, rng) == mutate_one(space, (3, 1), rng) == (3, 1)


def test_crossover_takes_every_value_from_either_parent_equally_often():
    rng = np.random.default_rng(3)
    first, second = SPACE.at(np.zeros_like(SPACE.last_indices)), SPACE.at(SPACE.last_indices)
    children = np.array([cross(first, second, rng) for _ in range(N)])
    assert ((children == first) | (children == second)).all()
    movable = SPACE.last_indices > 0
    assert np.abs((children == first)[:, movable].mean(axis=0) - 0.5).max() < 0.04
    assert all(isinstance(value, int) for value in cross(first, second, rng))
