"""What metrics would be of other test images of the same kind: of those at hand, drawn anew with replacement.

Networks are asked about the same images, so that all see the same draws: differences of two are then those of the same
images, draw by draw.

Source: Efron, Bootstrap methods: another look at the jackknife (Annals of Statistics 7, 1979).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DRAWS = 1000
_AT_ONCE = 4_000_000  # counts of images that are held


def draws_of(images: int) -> Iterator[NDArray[np.int64]]:
    """Yields how often each of so many images is drawn, (some draws, images), `DRAWS` in all; always the same ones."""
    stream = numpy_stream(0, "resampling")
    some = max(1, min(DRAWS, _AT_ONCE // images))
    for first in range(0, DRAWS, some):
        rows = [
            np.bincount(stream.integers(images, size=images), minlength=images)
            for _ in range(min(some, DRAWS - first))
        ]
        yield np.stack(rows)


def mean_of(values: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean of values of images in each draw, (draws,).

    Args:
        values: (images,).
        counts: (draws, images).
    """
    return counts @ values / len(values)


def precision_areas(
    scores: NDArray[np.float64], there: NDArray[np.bool_], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the average precision of one label in each draw, (draws,); NaN of draws without an image that has it.

    Args:
        scores: (images,), the higher the surer.
        there: (images,), whether it is there.
        counts: (draws, images).
    """
    order = np.argsort(-scores, kind="stable")
    drawn = counts[:, order]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = (drawn * there[order]).cumsum(axis=1)[:, last].astype(float)
    shown = drawn.cumsum(axis=1)[:, last]
    steps = np.diff(hits, axis=1, prepend=0.0)
    area = (steps * hits / np.maximum(shown, 1)).sum(axis=1)
    whole = hits[:, -1]
    return np.where(whole > 0, area / np.maximum(whole, 1), np.nan)


def mean_known(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean over what is no NaN of (draws, n), (draws,); 0 where all are."""
    known = ~np.isnan(rows)
    return np.where(known, rows, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
