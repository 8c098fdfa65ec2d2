"""Structures that preparations propose, and what they ask of a space."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from abcsearch.bounds import amount
from abcsearch.channels.threshold import largest_within, threshold_path
from abcsearch.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.preparation.base import Pruning
    from abcsearch.space import Candidate, SearchSpace

INSIDE = "its structure is inside the budget"  # a fact; a run warns where it is not so
EXPECTED = ("macs", "flops", "params")  # costs that have an expectation


class Cut(NamedTuple):
    """What one threshold on the scores of all channels leaves.

    Attributes:
        structure: of the space.
        threshold: the largest score that goes; -infinity where none does.
    """

    structure: Candidate
    threshold: float

    def facts(self, constraint: Constraint) -> dict[str, float | bool | None]:
        """Returns what a report says of it: plain values, the threshold None where nothing goes."""
        threshold = self.threshold if np.isfinite(self.threshold) else None
        return {"threshold": threshold, INSIDE: constraint.allows(self.structure)}


def threshold_cut(
    scores: Sequence[NDArray[np.float64]], constraint: Constraint, dropped: Collection[str] = ()
) -> Cut:
    """Returns the largest structure that a threshold on the scores leaves inside the budget.

    Where none is inside, the one that misses the budget least.

    Args:
        scores: per width of the space, (channels,): higher is more worth keeping; they are compared between layers.
        constraint: the budget bound to the space.
        dropped: names of blocks that go in any case, if the space has them.
    """
    space = constraint.space
    path = threshold_path(scores, space)
    for column, dimension in enumerate(space.dimensions):
        if dimension.kind == "block" and dimension.name in dropped and 0 in dimension.choices:
            path[:, column] = 0
    structure = largest_within(path, constraint)
    widths = [
        value for value, d in zip(structure, space.dimensions, strict=True) if d.kind == "width"
    ]
    gone = [
        np.sort(score)[: len(score) - width] for score, width in zip(scores, widths, strict=True)
    ]
    return Cut(structure, float(np.concatenate([*gone, [-np.inf]]).max()))


def missed_bounds(structure: Candidate, constraint: Constraint) -> str:
    """Returns what a structure costs where a bound is not met: "macs 1,234, not at most 1,000"; "" inside the budget.

    Args:
        structure: of the space.
        constraint: the budget bound to the space.
    """
    words: list[str] = []
    for limit in constraint.limits:
        cost = float(limit.cost([structure])[0])
        if limit.low <= cost <= limit.high:
            continue
        ends = (limit.low, limit.high) if limit.low else (limit.high,)
        wanted = f"not {'' if limit.low else 'at most '}{amount(limit.name, *ends)}"
        words.append(f"{limit.name} {amount(limit.name, cost)}, {wanted}")
    return "; ".join(words)


def largest_uniform(space: SearchSpace, constraint: Constraint) -> Candidate:
    """Returns the largest structure inside the budget that has one position among the choices of every width.

    Where none is inside, the one that misses the budget least. Blocks stay, criteria are the first.

    Args:
        space: the structures.
        constraint: the budget.
    """
    longest = int(space.last_indices.max())
    shares = np.arange(longest, -1, -1)[:, None] / max(longest, 1)
    widths = np.array([dimension.kind == "width" for dimension in space.dimensions])
    at = np.where(widths, np.floor(shares * space.last_indices + 1e-9), space.largest_indices)
    rows = space.values(at.astype(np.int64))
    return tuple(rows[int(constraint.violation(rows).argmin())].tolist())


def check_criterion(name: str, task: Pruning, by: str) -> None:
    """Raises PreparationError if the search is to choose among criteria, which the preparation settles.

    Args:
        name: of the preparation.
        task: the space.
        by: what it ranks channels by.
    """
    if not task.space.ordered.all():
        msg = f"{name} ranks channels by {by}, so criteria cannot be chosen from: set one name"
        raise PreparationError(msg)


def targets(name: str, constraint: Constraint) -> dict[str, float]:
    """Returns the costs that a budget bounds, and what they should be: the upper bound; of a band, its middle.

    Args:
        name: of the preparation that follows the expectation.
        constraint: the budget.

    Raises:
        PreparationError: if a bounded cost has no expectation, or nothing is bounded.
    """
    bounds = {
        limit.name: (limit.low + limit.high) / 2 if limit.low else float(limit.high)
        for limit in constraint.limits
    }
    others = [name for name in bounds if name not in EXPECTED]
    if others or not bounds:
        msg = (
            f"{name} needs a budget whose expectation it can follow: {', '.join(EXPECTED)}; found "
            f"{', '.join(bounds) or 'none'}; change the budget, or take another preparation"
        )
        raise PreparationError(msg)
    return bounds


def check_norms(name: str, task: Pruning) -> None:
    """Raises PreparationError if norms of the network are over channels that a preparation silences.

    A silenced channel still counts in such a norm, one that is cut out does not: the slice would be another network.

    Args:
        name: of the preparation.
        task: the network's graph.
    """
    if task.graph.norms:
        groups = [group.name for group in task.graph.prunable if group.renormalises]
        msg = f"{name} silences channels, and norms of this network are over channels, of {', '.join(groups[:3])}"
        msg += f"{' ...' if len(groups) > 3 else ''}: set renormalise = false in [space], or take slimmable, "
        msg += "dmcp, tas or lfpc"
        raise PreparationError(msg)
