"""Maximising quadratic forms inside a budget: many forms at once, by exchanges between layers."""

# pyright: basic
# Fancy indexing of numpy arrays has no complete types.

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abcsearch.searchers.sensitivity_map import linear_costs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.searchers.quadratic import Form

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_ROUNDS = 25
_TRIED = 24  # structures tried per form and round
_MOVES = 6  # dimensions that step up at most in one of them, and as many that step down
_STEEP = 2.0  # how much more often the best moves are tried than others: 1 would be alike
_EPSILON = 1e-12


class Climb:
    """Climbs several forms at once, each from a structure of its own; what every round tries is remembered.

    A round looks at all single changes of every structure: what each gains, which is exact, and what it costs, as if
    costs grew linearly. Some that grow layers, by gain per cost, and some that shrink others, by least loss per cost,
    are made at once; of several such tries, the best inside the budget is where the next round begins.
    """

    def __init__(self, forms: list[Form], constraint: Constraint, rng: np.random.Generator) -> None:
        """Takes forms over the constraint's space."""
        self._space, self._constraint, self._rng = constraint.space, constraint, rng
        self._table = np.stack([form.table for form in forms])
        self._scale = np.stack([form.scale for form in forms])
        self._pairs = np.stack([form.pairs for form in forms])
        positions = np.arange(self._table.shape[2])
        self._exists = positions <= self._space.last_indices[:, None]

    def __call__(self, starts: Ints, rounds: int = _ROUNDS) -> tuple[Ints, Floats]:
        """Returns what was tried and is inside the budget, with the forms' values without their constants.

        Args:
            starts: choice positions inside the budget, (n_forms, n_dims).
            rounds: how many.

        Returns:
            choice positions (n_forms, n_tried, n_dims), and (n_forms, n_tried) values, minus infinity outside.
        """
        here, value = starts.copy(), self._values(starts[:, None])[:, 0]
        costs = linear_costs(self._constraint, starts[0])
        tried, values = [here[:, None].copy()], [value[:, None].copy()]
        each = np.arange(len(here))
        for _ in range(rounds):
            near = self._near(here, costs)
            shape = near.shape
            inside = (
                self._constraint.violation(self._space.values(near.reshape(-1, shape[-1]))) == 0
            )
            scores = np.where(inside.reshape(shape[:2]), self._values(near), -np.inf)
            best = scores.argmax(axis=1)
            better = scores[each, best] > value
            here = np.where(better[:, None], near[each, best], here)
            value = np.where(better, scores[each, best], value)
            tried.append(near)
            values.append(scores)
        return np.concatenate(tried, axis=1), np.concatenate(values, axis=1)

    def _values(self, rows: Ints) -> Floats:
        """Returns the value of every form at its own structures: (n_forms, n, n_dims) to (n_forms, n)."""
        index = rows.transpose(0, 2, 1)
        t = np.take_along_axis(self._scale, index, axis=2).transpose(0, 2, 1)
        alone = np.take_along_axis(self._table, index, axis=2).sum(axis=1)
        return alone + ((t @ self._pairs) * t).sum(axis=2)

    def _near(self, here: Ints, costs: Floats) -> Ints:
        """Returns structures to try beside every form's own, (n_forms, _TRIED, n_dims)."""
        gain, cost = self._changes(here, costs)
        position = np.arange(gain.shape[2])
        up = np.where(
            self._exists & (position > here[..., None]), gain / (cost + _EPSILON), -np.inf
        )
        down = np.where(position < here[..., None], gain / (_EPSILON - cost), -np.inf)
        # What a unit of the budget is worth: between the best use for more of it and the cheapest way to save some.
        ordered = self._space.ordered[:, None]  # criteria cost nothing
        use, saving = (np.where(ordered, worth, -np.inf).max(axis=(1, 2)) for worth in (up, down))
        price = self._price(use, saving)
        net = gain - price[:, None, None] * cost
        near = np.repeat(here[:, None], _TRIED, axis=1)
        for worth, step in ((down, -1), (up, 1)):
            best = np.where(np.isfinite(worth), net, -np.inf).argmax(axis=2)
            next_ = np.clip(here + step, 0, self._space.last_indices)
            order = np.argsort(-worth.max(axis=2), axis=1)
            self._move(
                near, np.stack([best, next_]), order, np.isfinite(worth).any(axis=2).sum(axis=1)
            )
        return near

    @staticmethod
    def _price(use: Floats, saving: Floats) -> Floats:
        """Returns the worth of a unit of the budget from the best gain and the least loss (negative) per unit."""
        loss = -np.where(np.isfinite(saving), saving, -use)
        use = np.where(np.isfinite(use), use, loss)
        price = np.maximum((use + loss) / 2, 0.0)
        return np.where(np.isfinite(price), price, 0.0)

    def _changes(self, here: Ints, costs: Floats) -> tuple[Floats, Floats]:
        """Returns what every single change of every form's structure gains and costs, each (n_forms, n_dims, n)."""
        index = here[..., None]
        t = np.take_along_axis(self._scale, index, axis=2)
        slope = 2 * (self._pairs @ t)
        gain = (
            self._table - np.take_along_axis(self._table, index, axis=2) + (self._scale - t) * slope
        )
        return gain, costs - np.take_along_axis(np.broadcast_to(costs, gain.shape), index, axis=2)

    def _move(self, near: Ints, target: Ints, order: Ints, count: Ints) -> None:
        """Moves some dimensions of every structure that is tried to their targets, the first in order most often.

        Args:
            near: what is changed, (n_forms, _TRIED, n_dims).
            target: choice positions, of which each move takes one at random, (n_targets, n_forms, n_dims).
            order: dimensions, the best first, (n_forms, n_dims).
            count: how many of them can move, (n_forms,).
        """
        shape = (*near.shape[:2], _MOVES)
        rank = (self._rng.random(shape) ** _STEEP * count[:, None, None]).astype(np.int64)
        # Few more often than many
        moves = self._rng.integers(_MOVES + 1, size=(*shape[:2], 1)) ** 2 // _MOVES
        forms = np.arange(len(near))[:, None, None]
        dims = order[forms, rank]
        made = (np.arange(_MOVES) < moves) & (count[:, None, None] > 0)
        where = np.nonzero(made)
        which = self._rng.integers(len(target), size=len(where[0]))
        near[where[0], where[1], dims[made]] = target[which, where[0], dims[made]]
