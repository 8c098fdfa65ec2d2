"""How far a fitness orders structures as the truth does."""

from __future__ import annotations

import numpy as np
from scipy.stats import kendalltau

from abcsearch.rng import numpy_stream

RESAMPLES = 2000  # for an interval


def recall(values: np.ndarray, truth: np.ndarray, count: int = 5) -> float:
    """Returns the share of the truly best that are among those of highest fitness."""
    count = min(count, len(values))
    return (
        len(
            set(np.argsort(-values, kind="stable")[:count])
            & set(np.argsort(-truth, kind="stable")[:count])
        )
        / count
    )


def compared(values: list[float], truth: list[float]) -> tuple[float, float]:
    """Returns Kendall's tau-b, 0 where all tie, and the top-5 recall."""
    a, b = np.array(values), np.array(truth)
    return float(np.nan_to_num(kendalltau(a, b).statistic)), recall(a, b)


def resampled(values: list[float], truth: list[float]) -> np.ndarray:
    """Returns Kendall's tau-b of the structures drawn with replacement, (RESAMPLES,); 0 where all that are drawn tie.

    The draws are the same each time, so that differences between two fitnesses are of the same structures.
    """
    draws = numpy_stream(0, "resampled structures").integers(
        len(truth), size=(RESAMPLES, len(truth))
    )
    times = np.stack([np.bincount(drawn, minlength=len(truth)) for drawn in draws]).astype(float)
    a, b = (
        np.greater.outer(ranked, ranked) - 1.0 * np.less.outer(ranked, ranked)
        for ranked in (np.array(values), np.array(truth))
    )

    def summed(pairs: np.ndarray) -> np.ndarray:
        return np.einsum("rn,nm,rm->r", times, pairs, times, optimize=True)

    both = np.sqrt(summed(a * a) * summed(b * b))
    return np.divide(summed(a * b), both, out=np.zeros_like(both), where=both > 0)


def interval(values: np.ndarray, sign: str = "") -> str:
    """Returns where 95 % of some values lie, in words; `sign` is that of Python's formats."""
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{low:{sign}.2f} to {high:{sign}.2f}"
