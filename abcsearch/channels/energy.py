"""How wide layers should be by how much their responses vary: Principal Filter Analysis, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from abcsearch.channels.threshold import largest_within, threshold_path
from abcsearch.errors import RankingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.space import Candidate, SearchSpace

Form = Literal["energy", "kl"]


def pfa_path(
    covariances: Sequence[NDArray[np.float64] | None], space: SearchSpace, form: Form = "energy"
) -> NDArray[np.int64]:
    """Returns the structures that Principal Filter Analysis goes through as its one parameter falls.

    "energy": a layer has as many channels as the largest eigenvalues of its covariance that together are at least tau
    of all; tau is the same for all layers. "kl": a layer has share * channels * (1 - D / log channels), D being the
    divergence of the eigenvalues, of sum 1, from equal ones; the paper's structure is that of share 1.

    Source: Suau et al., Principal Filter Analysis for Guided Network Compression (2018), section 3.

    Differences from the paper:
        - All structures at once, and the widths that the space has; the same share of all layers, with "kl".

    Args:
        covariances: per width of the space, in its order, (channels, channels), of any scale, as
            `response_covariances` returns them. Of a layer of which nothing is known, None: its channels count as
            independent and equally strong.
        space: the structures.
        form: by what a layer's width is chosen.

    Returns:
        (n, n_dims) int64, as `threshold_path` returns it.

    Raises:
        RankingError: if there is not one covariance for every width, or it is not finite.
    """
    full = [dimension.full for dimension in space.dimensions if dimension.kind == "width"]
    shapes = [None if matrix is None else np.shape(matrix) for matrix in covariances]
    if len(shapes) != len(full) or any(
        s not in (None, (c, c)) for s, c in zip(shapes, full, strict=True)
    ):
        msg = f"a covariance of all channels is needed for every width: {shapes}, the space has widths of {full}"
        raise RankingError(msg)
    shares = [
        _spectrum(matrix, channels) for matrix, channels in zip(covariances, full, strict=True)
    ]
    scores = [_energy_scores(share) if form == "energy" else _kl_scores(share) for share in shares]
    return threshold_path(scores, space)


def pfa_widths(
    covariances: Sequence[NDArray[np.float64] | None], constraint: Constraint, form: Form = "energy"
) -> Candidate:
    """Returns the largest structure of `pfa_path` that is inside the budget.

    Args:
        covariances: as in `pfa_path`.
        constraint: the budget, in its space.
        form: as in `pfa_path`.
    """
    return largest_within(pfa_path(covariances, constraint.space, form), constraint)


def _spectrum(covariance: NDArray[np.float64] | None, channels: int) -> NDArray[np.float64]:
    """Returns the eigenvalues, the largest first, as shares of their sum; all of it in one where nothing varies."""
    if covariance is None:
        return np.full(channels, 1 / channels)
    if not np.isfinite(covariance).all():
        msg = f"a covariance of {channels} channels is not finite; check the trained weights and the data"
        raise RankingError(msg)
    values = np.linalg.eigvalsh(covariance)[::-1].clip(min=0)
    return values / values.sum() if values.sum() > 0 else np.eye(1, channels)[0]


def _energy_scores(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (channels,): 1 - tau from which on a width is enough, for every channel that it then lacks."""
    # Rounding may not decide between eigenvalues that are zero.
    left = 1 - np.append(0, np.cumsum(shares)[:-1])
    return np.where(left > 1e-12, left, 0.0)


def _kl_scores(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (channels,): minus the share of the paper's width from which on each channel stays."""
    channels = len(shares)
    divergence = float(np.sum(shares * np.log(np.where(shares > 0, shares * channels, 1.0))))
    width = channels * (1 - divergence / np.log(channels)) if channels > 1 else 1.0
    return -np.arange(channels) / max(width, 1e-9)
