"""Sensitivity maps: what fitness is lost where one dimension alone is made narrower, and structures made from that."""

# pyright: basic
# Fancy indexing of numpy arrays has no complete types.

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy  # whose submodules are imported when they are first used

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.trial import Trial

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]

# Powers of losses of which structures are made (`solved`), the most useful first
RULES = (0.0, 1.0, 2.0)
_PRICES = 400  # of a unit of cost that are tried at once


def probes(space: SearchSpace, levels: int) -> list[Candidate]:
    """Returns the structures of a map: the largest one, and it with one dimension alone at some of its choices.

    Args:
        space: the structures.
        levels: how many choices below the largest are tried of a dimension, spread evenly, the smallest among them; all
            where there are no more.
    """
    largest = space.largest_indices
    rows = [largest]
    # A criterion, 0 here, says nothing where all channels are kept
    for dimension, last in enumerate(largest.tolist()):
        positions = np.arange(last)
        if last > levels:
            positions = np.unique(np.round(np.arange(levels) * (last / levels)).astype(np.int64))
        for position in positions.tolist():
            row = largest.copy()
            row[dimension] = position
            rows.append(row)
    return [space.at(row) for row in rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class SensitivityMap:
    """What fitness is lost where one dimension alone is at one of its choices, everything else as large as can be.

    Attributes:
        space: the structures.
        largest: the fitness of the largest structure.
        loss: (n_dims, most choices), 0 at the largest choice, and never falling as a dimension gets narrower. Where it
            has fewer choices, the rest is 0; so are all of a criterion.
        probed: (n_dims, most choices), whether a trial stands behind a loss; others are interpolated.
    """

    space: SearchSpace
    largest: float
    loss: Floats
    probed: Flags

    @property
    def relative(self) -> Floats:
        """The losses, (n_dims, most choices), by the greatest one: powers of them neither overflow nor vanish."""
        return self.loss / (np.abs(self.loss).max() or 1.0)


def sensitivity_map(space: SearchSpace, trials: Iterable[Trial]) -> SensitivityMap | None:
    """Returns the map of the trials among many that belong to one; None without any of a single dimension.

    Losses are means over trials of the same structure. A failed trial counts as the greatest loss of the map. Noise is
    cleaned up: a narrower layer is never better (isotonic regression), and nothing is better than the largest
    structure. What was not tried is interpolated over the logarithm of the width; below the smallest that was tried,
    the last slope goes on. A dimension of which nothing is known loses the mean of the map at its smallest choice.

    Args:
        space: the structures.
        trials: any; those with more than one dimension below its largest choice are left out.
    """
    by_choice: dict[tuple[int, int], list[float]] = defaultdict(list)
    largest: list[float] = []
    for trial in trials:
        below = space.largest_indices - space.indices(space.canonical(trial.candidate))
        narrow = np.flatnonzero(below)
        if len(narrow) == 1:
            by_choice[int(narrow[0]), int(below[narrow[0]])].append(trial.fitness)
        elif not len(narrow) and math.isfinite(trial.fitness):
            largest.append(trial.fitness)
    known = {choice: _mean(values) for choice, values in by_choice.items()}
    succeeded = [value for value in known.values() if math.isfinite(value)]
    if not succeeded:
        return None
    full = _mean(largest) if largest else max(succeeded)
    worst = max(0.0, full - min(succeeded))
    shape = (len(space), int(space.last_indices.max()) + 1)
    loss, probed = np.zeros(shape), np.zeros(shape, dtype=bool)
    mean = math.fsum(min(full - value, worst) for value in known.values()) / len(known)
    for index, dimension in enumerate(space.dimensions):
        last = int(space.last_indices[index])
        seen = np.array([last - below for d, below in known if d == index], dtype=np.int64)
        values = np.array([full - value for (d, _), value in known.items() if d == index])
        order = np.argsort(seen)
        seen, values = seen[order], np.minimum(values[order], worst)
        probed[index, seen] = True
        if space.ordered[index]:
            loss[index, : last + 1] = _ordered_loss(
                np.array(dimension.choices, dtype=np.float64), seen, values, mean
            )
    return SensitivityMap(space=space, largest=full, loss=loss, probed=probed)


def _mean(values: list[float]) -> float:
    """Returns the mean of those that succeeded; minus infinity without any."""
    good = [value for value in values if math.isfinite(value)]
    scale = len(good)
    return math.fsum(value / scale for value in good) if good else -math.inf


def _ordered_loss(choices: Floats, seen: Ints, values: Floats, mean: float) -> Floats:
    """Returns the loss of every choice of a dimension that was tried at some, never falling as it gets narrower.

    Args:
        choices: ascending values.
        seen: the positions that were tried, ascending; none means that nothing is known: a mean loss at the smallest.
        values: their losses.
        mean: the mean loss of the map.
    """
    if not len(seen):
        seen, values = (
            np.zeros(min(1, len(choices) - 1), dtype=np.int64),
            np.full(min(1, len(choices) - 1), mean),
        )
    scale = np.log(choices + 1.0)
    falling = (
        scipy.optimize.isotonic_regression(values, increasing=False).x if len(values) else values
    )
    known = np.append(np.maximum(falling, 0.0), 0.0)
    places = np.append(scale[seen], scale[-1])
    loss = np.interp(scale, places, known)
    below = scale < places[0]
    if below.any():
        slope = (known[0] - known[1]) / (places[1] - places[0])
        loss[below] = known[0] + slope * (places[0] - scale[below])
    return loss


def even_map(space: SearchSpace) -> SensitivityMap:
    """Returns the map where nothing is known: every layer loses what share of its width it loses."""
    loss = np.zeros((len(space), int(space.last_indices.max()) + 1))
    for index, dimension in enumerate(space.dimensions):
        if space.ordered[index]:
            loss[index, : len(dimension.choices)] = 1 - np.array(dimension.choices) / max(
                dimension.choices[-1], 1
            )
    return SensitivityMap(
        space=space, largest=0.0, loss=loss, probed=np.zeros(loss.shape, dtype=bool)
    )


def linear_costs(constraint: Constraint, row: Ints) -> Floats:
    """Returns what every choice costs beside others of its dimension, (n_dims, most choices), 1 being the budget.

    Linear between the first and the last choice, everything else as in a structure; the sum over all bounds.

    Args:
        constraint: the budget.
        row: choice positions of the structure, (n_dims,).
    """
    space, n = constraint.space, len(row)
    each = np.arange(n)
    rows = np.tile(row, (2 * n, 1))
    rows[each, each] = 0
    rows[n + each, each] = space.last_indices
    cost = np.zeros(2 * n)
    for limit in constraint.limits:
        cost += limit.cost(space.values(rows)) / (limit.high or 1)
    values = space.values(
        np.minimum(np.arange(int(space.last_indices.max()) + 1)[:, None], space.last_indices)
    ).T
    span = np.maximum(values[:, -1] - values[:, 0], 1)
    return (cost[n:] - cost[:n])[:, None] / span[:, None] * (values - values[:, :1])


def solved(
    constraint: Constraint, loss: Floats, costs: Floats, power: float, rng: np.random.Generator
) -> Candidate:
    """Returns the structure inside the budget that a rule makes of losses.

    Args:
        constraint: the budget.
        loss: (n_dims, most choices), at most about 1.
        costs: of every choice, as `linear_costs` returns them.
        power: 0 is one threshold for all layers (`by_threshold`); others are the least sum of losses to this power
            (`by_price`), which for high ones is the same.
        rng: of the repair, where the rule leads to nothing inside.
    """
    loss = np.sign(loss) * np.abs(loss) ** (power or 1.0)
    row = by_price(constraint, loss, costs) if power else by_threshold(constraint, loss)
    space = constraint.space
    inside = space.indices(constraint.repair(space.at(row), rng))
    return space.at(filled(constraint, inside, loss, costs))


def by_threshold(constraint: Constraint, loss: Floats) -> Ints:
    """Returns the structure that one threshold of harm makes: every layer as narrow as its loss stays at most that.

    The threshold is the lowest at which the budget is met; what is left of it is filled by `filled`.

    Args:
        constraint: the budget.
        loss: (n_dims, most choices), as in `SensitivityMap`.

    Returns:
        choice positions, (n_dims,); outside the budget only where even the narrowest structure of this kind is.
    """
    last = constraint.space.last_indices
    exists = np.arange(loss.shape[1]) <= last[:, None]
    harms = np.unique(loss[exists])
    rows = np.argmax((loss <= harms[:, None, None]) & exists, axis=2)
    return _first_inside(constraint, rows)


def by_price(constraint: Constraint, loss: Floats, costs: Floats) -> Ints:
    """Returns the structure that loses least in sum where a unit of cost has a price, the lowest that meets the budget.

    Args:
        constraint: the budget.
        loss: (n_dims, most choices), as in `SensitivityMap`.
        costs: of every choice, as `linear_costs` returns them.

    Returns:
        choice positions, (n_dims,); see `by_threshold`.
    """
    exists = np.arange(loss.shape[1]) <= constraint.space.last_indices[:, None]
    saved = costs.max(axis=1, keepdims=True) - costs
    ratios = loss[exists & (saved > 0) & (loss > 0)] / saved[exists & (saved > 0) & (loss > 0)]
    prices = np.zeros(1)
    if len(ratios):
        ends = np.log(ratios.min() / 2), np.log(ratios.max() * 2)
        prices = np.append(prices, np.exp(np.linspace(*ends, _PRICES)))
    total = np.where(exists, loss + prices[:, None, None] * costs, np.inf)
    return _first_inside(constraint, np.argmin(total, axis=2))


def _first_inside(constraint: Constraint, rows: Ints) -> Ints:
    """Returns the first of some structures that is inside the budget; the one least outside where there is none."""
    rows = rows.astype(np.int64)
    return rows[int(np.argmin(constraint.violation(constraint.space.values(rows))))]


def filled(constraint: Constraint, row: Ints, loss: Floats, costs: Floats) -> Ints:
    """Returns a structure grown inside the budget: step after step, the one that takes away most loss per cost.

    A step leads to any larger choice of one dimension. Nothing grows where nothing is gained.

    Args:
        constraint: the budget.
        row: choice positions, (n_dims,).
        loss: (n_dims, most choices).
        costs: likewise, as `linear_costs` returns them.
    """
    here, n = row.copy(), len(row)
    position = np.arange(loss.shape[1])
    larger = position <= constraint.space.last_indices[:, None]
    refused = np.zeros(loss.shape, dtype=bool)
    while True:
        each = np.arange(n)
        gain = loss[each, here][:, None] - loss
        cost = np.maximum(costs - costs[each, here][:, None], 1e-12)
        worth = np.where(
            larger & (position > here[:, None]) & (gain > 0) & ~refused, gain / cost, -np.inf
        )
        best = np.unravel_index(int(np.argmax(worth)), worth.shape)
        if not np.isfinite(worth[best]):
            return here
        step = here.copy()
        step[best[0]] = best[1]
        if constraint.violation(constraint.space.values(step)[None])[0] == 0:
            here = step
        else:
            refused[best[0], best[1] :] = True
