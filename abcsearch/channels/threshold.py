"""One threshold for all layers: structures from scores alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abcsearch.errors import RankingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.space import Candidate, SearchSpace

_ROWS = 1024  # whose costs are counted at a time


def threshold_path(scores: Sequence[NDArray[np.float64]], space: SearchSpace) -> NDArray[np.int64]:
    """Returns the structures that a rising threshold on the scores of channels leaves, the largest of the space first.

    A channel goes when the threshold reaches its score. A layer has the smallest width of the space that is enough for
    what is left of it, so at least the smallest one that there is, and at most the largest. Channels of equal score go
    one after the other: in the order of the layers, and within one all that make the same step. Blocks stay, and so do
    criteria: the first of each layer.

    Args:
        scores: per width of the space, in its order, (channels,): higher is more worth keeping; they are compared
            between layers. Infinite ones go last.
        space: the structures.

    Returns:
        (n, n_dims) int64; from row to row one layer loses a step, so each structure is inside the one before.

    Raises:
        RankingError: if there is not one score for every channel of every width, or a score is NaN.
    """
    widths = [dimension for dimension in space.dimensions if dimension.kind == "width"]
    counts, expected = [len(score) for score in scores], [dimension.full for dimension in widths]
    if counts != expected or any(np.isnan(score).any() for score in scores):
        msg = f"a threshold needs a number for every channel: scores of {counts} channels, the space has {expected}"
        raise RankingError(msg)
    steps: list[
        tuple[float, int, int]
    ] = []  # the score at which it is made, the dimension, minus the width after it
    every = iter(scores)
    for index, dimension in enumerate(space.dimensions):
        if dimension.kind == "width":
            ascending = np.sort(next(every))
            # A width is enough once as many channels are gone as it lacks.
            steps += [
                (float(ascending[dimension.full - c - 1]), index, -c)
                for c in dimension.choices[:-1]
            ]
    path = np.tile(space.values(space.largest_indices), (len(steps) + 1, 1))
    for row, (_, index, negative) in enumerate(sorted(steps), start=1):
        path[row:, index] = -negative
    return path


def largest_within(path: NDArray[np.int64], constraint: Constraint) -> Candidate:
    """Returns the first structure of a path that is inside the budget; where none is, the first that misses it least.

    Args:
        path: (n, n_dims), as `threshold_path` returns it.
        constraint: the budget.
    """
    misses = [constraint.violation(path[row : row + _ROWS]) for row in range(0, len(path), _ROWS)]
    return tuple(path[int(np.concatenate(misses).argmin())].tolist())
