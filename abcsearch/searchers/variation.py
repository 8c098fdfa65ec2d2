"""Mutation and crossover of structures, in choices: a width, a block switch and a criterion are treated alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.space import Candidate, SearchSpace


def mutate(
    space: SearchSpace, parent: Candidate, rate: float, rng: np.random.Generator
) -> Candidate:
    """Returns a structure in which every dimension has changed with probability `rate`, independently.

    Args:
        space: the structures.
        parent: a structure of the space.
        rate: probability in [0, 1]; dimensions with one choice never change.
        rng: decides what changes, and to which of the other choices; all are equally likely.
    """
    return _redrawn(space, parent, rng.random(len(space)) < rate, rng)


def mutate_one(space: SearchSpace, parent: Candidate, rng: np.random.Generator) -> Candidate:
    """Returns a structure in which one dimension has changed to another choice; all are equally likely.

    Where every dimension has one choice, it is the parent.
    """
    movable = np.flatnonzero(space.last_indices > 0)
    chosen = np.zeros(len(space), dtype=np.bool_)
    if len(movable):
        chosen[rng.choice(movable)] = True
    return _redrawn(space, parent, chosen, rng)


def cross(first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
    """Returns a structure with every value from either parent, both equally likely: uniform crossover."""
    return tuple(np.where(rng.random(len(first)) < 0.5, first, second).tolist())


def _redrawn(
    space: SearchSpace, parent: Candidate, chosen: NDArray[np.bool_], rng: np.random.Generator
) -> Candidate:
    """Returns the parent with other choices in the chosen dimensions, (n_dims,) bool, uniformly drawn."""
    here = space.indices(parent)
    return space.at(np.where(chosen & (space.last_indices > 0), _others(space, here, rng), here))


def _others(
    space: SearchSpace, here: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Returns other choice positions than these, (n_dims,), uniformly drawn; no such where there is one choice."""
    others = rng.integers(np.maximum(space.last_indices, 1))
    # The choices other than the present one, numbered without a gap
    return others + (others >= here)


def redrawn_criteria(
    space: SearchSpace, here: NDArray[np.int64], moved: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Returns where a move in choice positions ends that knows of no criteria: these have no order to move along.

    Args:
        space: the structures.
        here: where the move begins, (n_dims,).
        moved: where it ends, (n_dims,), inside the space.
        rng: decides which other choice a criterion has that has moved; all are equally likely.
    """
    chosen = (moved != here) & ~space.ordered
    return np.where(chosen, _others(space, here, rng), moved) if chosen.any() else moved
