"""What an agent sees that sets dimension after dimension, and what it may do: closed-form costs, no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from abcsearch.budget import Constraint, Cost


class Transitions(NamedTuple):
    """Steps of episodes, one row each.

    Attributes:
        states: (..., n_features).
        actions: (..., 1), in [0, 1], as they were taken.
        low: (..., 1), the lowest action that could be taken.
        high: (..., 1), the highest.
        rewards: (..., 1), less the baseline.
        discounts: (..., 1), on the value of the next state; 0 at the last dimension.
        next_states: (..., n_features); without meaning at the last dimension.
        next_low: (..., 1).
        next_high: (..., 1).
    """

    states: Any
    actions: Any
    low: Any
    high: Any
    rewards: Any
    discounts: Any
    next_states: Any
    next_low: Any
    next_high: Any


class Environment:
    """States, actions and their bounds, of any number of episodes at once.

    An episode at dimension i is a row of values of which the first i are set; the others do not matter. An action is a
    keep ratio in [0, 1]; for a block, 1 keeps it and 0 drops it; for a criterion, its number over the last one.

    A state has 12 features: the 11 of AMC and the kind. Fixed ones, each scaled to [0, 1] over the dimensions: index,
    kind (width, block, criterion), and the descriptors of the space, for traced networks the channels in and out,
    height, width, stride, kernel size and MACs of the layer; on a space without descriptors full value and number of
    choices are in their place. Then, as shares of the cost of the unpruned network: what the dimensions before have
    removed, and what this and the following ones still decide on; and the previous action, 1 at the first dimension.
    The cost is that of the budget's first bound, without one the MACs, without costs the sum of all values but
    criteria.

    Attributes:
        n_features: length of a state.
    """

    def __init__(self, constraint: Constraint, fill: float) -> None:
        """Prepares what does not change.

        Args:
            constraint: space, bounds and costs.
            fill: the lowest share of an upper bound that episodes end with.
        """
        self._space, self._limits = constraint.space, constraint.limits
        self._smallest = self._space.values(np.zeros_like(self._space.last_indices))
        self._largest = self._space.values(self._space.last_indices)
        # At least 1: a block that is always dropped has 0. Of a criterion, the last one is action 1.
        full = np.where(self._space.ordered, self._space.full, self._largest)
        self._full: NDArray[np.int64] = np.maximum(full, 1)
        self._targets = [(limit, fill * limit.high) for limit in constraint.caps]
        without = self._sum if constraint.costs is None else constraint.costs.macs
        self._cost: Cost = self._limits[0].cost if self._limits else without
        self._total = max(float(self._cost([self._space.full])[0]), 1.0)
        features = self._space.features
        described = np.delete(features, (2, 3), axis=1) if self._space.descriptors else features
        lowest, spread = described.min(axis=0), np.ptp(described, axis=0)
        self._fixed = (described - lowest) / np.where(spread > 0, spread, 1)
        self.n_features = self._fixed.shape[1] + 3

    def states(self, rows: NDArray[np.int64], i: int) -> NDArray[np.float32]:
        """Returns what the agent sees at dimension i: (n, n_dims) values to (n, n_features) float32."""
        ends = np.stack([rows, rows])
        ends[0, :, i:], ends[1, :, i:] = self._smallest[i:], self._largest[i:]
        least, most = self._cost(ends.reshape(-1, rows.shape[1])).reshape(2, -1) / self._total
        previous = self.actions(rows)[:, i - 1] if i else np.ones(len(rows))
        fixed = np.broadcast_to(self._fixed[i], (len(rows), len(self._fixed[i])))
        return np.column_stack([fixed, 1 - most, most - least, previous]).astype(np.float32)

    def episodes(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns what structures are as episodes.

        Args:
            rows: (n, n_dims) values.

        Returns:
            The states, (n, n_dims, n_features) float32; and (n, n_dims, 3) float32: the action that was taken, the
            lowest and the highest one that could be.
        """
        states = np.stack([self.states(rows, i) for i in range(rows.shape[1])], axis=1)
        taken = np.repeat(self.actions(rows)[..., None], 3, axis=2)
        for i, dimension in enumerate(self._space.dimensions):
            ends = np.array(dimension.choices)[np.stack(self.bounds(rows, i), axis=1)]
            taken[:, i, 1:] = ends / self._full[i]
        return states, taken.astype(np.float32)

    def actions(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the actions that lead to structures: (n, n_dims) values to (n, n_dims) float64 in [0, 1]."""
        return np.divide(rows, self._full, dtype=np.float64)

    def positions(self, actions: NDArray[np.float64], i: int) -> NDArray[np.int64]:
        """Returns the choices of dimension i nearest to actions, the larger of two: (n,) float64 to (n,) int64."""
        choices = np.array(self._space.dimensions[i].choices, dtype=np.float64)
        middles = (choices[:-1] + choices[1:]) / 2
        return (actions[:, None] * self._full[i] >= middles).sum(axis=1, dtype=np.int64)

    def bounds(
        self, rows: NDArray[np.int64], i: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the lowest and the highest choice of dimension i from which the budget can still be met.

        Above the highest, some cost is too high even with all that follows at its smallest choice. Below the lowest,
        some cost misses its lower bound even with all that follows at its largest; of upper bounds alone, the first to
        reach its share counts. Where no choice does for both, in very narrow bands or with bounds that exclude each
        other, the upper bounds win.

        Args:
            rows: (n, n_dims) values, set up to i.
            i: the dimension.

        Returns:
            (n,) int64 and (n,) int64, positions among the choices.
        """
        choices = self._space.dimensions[i].choices
        n, k = len(rows), len(choices)
        if not self._limits or k == 1:
            return np.zeros(n, dtype=np.int64), np.full(n, k - 1)
        least = np.repeat(rows, k, axis=0)
        least[:, i], least[:, i + 1 :] = np.tile(choices, n), self._smallest[i + 1 :]
        most = least.copy()
        most[:, i + 1 :] = self._largest[i + 1 :]
        fits = np.all([limit.cost(least) <= limit.high for limit in self._limits], axis=0)
        enough = np.all(
            [limit.cost(most) >= limit.low for limit in self._limits if limit.low] or [[True]],
            axis=0,
        )
        if self._targets:
            enough = enough & np.any(
                [limit.cost(most) >= target for limit, target in self._targets], axis=0
            )
        # Costs grow with the choices, so counting finds the ends.
        highest = np.maximum(fits.reshape(n, k).sum(axis=1) - 1, 0)
        lowest = k - np.broadcast_to(enough, n * k).reshape(n, k).sum(axis=1)
        return np.minimum(lowest, highest), highest

    def _sum(self, rows: ArrayLike) -> NDArray[np.int64]:
        """Returns the sum of all widths and blocks, the cost where none is known: (n, n_dims) to (n,) int64."""
        return np.asarray(rows, dtype=np.int64)[:, self._space.ordered].sum(axis=1)
