"""How many singular values of a matrix stay."""

from __future__ import annotations

import math

import numpy as np
import scipy  # whose submodules are imported when they are first used
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def by_energy(values: Floats, share: float) -> int:
    """Returns the fewest singular values whose squares hold a share of the sum of all squares; at least 1.

    Args:
        values: all of a matrix, (n,), falling.
        share: in (0, 1].
    """
    squares = np.asarray(values, dtype=np.float64) ** 2
    total = squares.sum()
    if total == 0:
        return 1
    return int(min(np.searchsorted(np.cumsum(squares) / total, share - 1e-12) + 1, len(squares)))


def evbmf(values: Floats, shape: tuple[int, int]) -> int:
    """Returns how many singular values of a matrix are more than noise would make, by empirical variational Bayes.

    The threshold has no parameter: the noise's variance is the one that explains the values best. It may be none.

    Args:
        values: all of them, (min(shape),), falling.
        shape: of the matrix.

    Source: Nakajima et al., Global analytic solution of fully-observed variational Bayesian matrix factorization
    (JMLR 2013), theorem 2 and its corollaries, as Kim et al. (ICLR 2016) use it for ranks of convolutions.
    """
    s2 = np.asarray(values, dtype=np.float64) ** 2
    few, many = min(shape), max(shape)
    if not s2.sum():
        return 0
    alpha = few / many
    tau = 2.5129 * math.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    # Values from here on are noise at any rate
    first = min(math.ceil(few / (1 + alpha)) - 1, few - 1)
    low = max(s2[first] / (many * edge), s2[first:].mean() / many) or s2.sum() * 1e-18 / (
        few * many
    )
    high = max(s2.sum() / (few * many), low * (1 + 1e-9))
    best = scipy.optimize.minimize_scalar(
        lambda log: _free_energy(s2 / (many * math.exp(log)), log, alpha, edge, few),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return int((s2 > many * math.exp(best.x) * edge).sum())


def _free_energy(x: Floats, log_variance: float, alpha: float, edge: float, few: int) -> float:
    """Returns what the noise's variance costs, up to a constant: x are squared values in its units, (few,)."""
    noise, signal = x[x <= edge], x[x > edge]
    rest = signal - (1 + alpha)
    t = (rest + np.sqrt(np.maximum(rest**2 - 4 * alpha, 0))) / 2
    total = (noise - np.log(np.maximum(noise, 1e-300))).sum() + (signal - t).sum()
    total += np.log((t + 1) / signal).sum() + alpha * np.log(t / alpha + 1).sum()
    return float(total + (few - len(x)) * log_variance)
