"""What metrics are worth that were measured on so many images: intervals, and those of differences, at 95 %.

Of shares of images as below; of all other metrics by what they are of the same images drawn with replacement, see
`abcsearch.training.resampling`: from the 2.5th to the 97.5th of 100 draws.

Sources: Wilson, JASA 22, 1927 (one share); Newcombe, Statistics in Medicine 17, 1998, method 10 (two shares of images
that have nothing to do with each other); Agresti and Min, Statistics in Medicine 24, 2005 (two networks on the same
images: only those that one of them alone gets right count); Efron, Annals of Statistics 7, 1979 (the bootstrap).
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.training.named import change_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_NORMAL = 1.959964  # standard errors on both sides of 95 % of a normal distribution
SHARES = ("top1", "top5")  # metrics that are shares of images
_ENDS = (0.025, 0.975)
_FEWEST = 10  # images: draws of fewer are too much alike
_MOST_DRAWS = 100_000  # that are read out of a file


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better one network is than another, by one metric.

    Attributes:
        first: name of the one.
        second: name of the other.
        change: the metric of the first minus that of the second; of accuracies in [-1, 1].
        low: lower end of the interval.
        high: upper end.
        paired: whether the answers to the same images were compared, one by one.
    """

    first: str
    second: str
    change: float
    low: float
    high: float
    paired: bool

    @property
    def told_apart(self) -> bool:
        """Whether the interval says which of the two is better."""
        return self.low > 0 or self.high < 0

    @property
    def half(self) -> float:
        """The longer side of the interval, for "+-"."""
        return max(self.high - self.change, self.change - self.low)


def wilson(share: float, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share of so many images; it is never empty, not even at 0 and 1.

    Args:
        share: in [0, 1].
        images: at least 1.
    """
    squared = _NORMAL**2
    middle = (share + squared / (2 * images)) / (1 + squared / images)
    half = (
        _NORMAL
        * math.sqrt(share * (1 - share) / images + squared / (4 * images**2))
        / (1 + squared / images)
    )
    return min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share)


def unpaired(first: float, second: float, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of first - second, each a share of so many images.

    Networks that are asked about the same images differ by less, so that it is too wide rather than too narrow.
    """
    (low, high), (lower, higher) = wilson(first, images), wilson(second, images)
    change = first - second
    return change - math.hypot(first - low, higher - second), change + math.hypot(
        high - first, second - lower
    )


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of first - mean of second, answers to the same images.

    Args:
        first: (n,), whether an answer of the one network is right.
        second: likewise of the other.
    """
    images = len(first) + 2
    better, worse = int((first & ~second).sum()) + 0.5, int((second & ~first).sum()) + 0.5
    middle = (better - worse) / images
    half = _NORMAL * math.sqrt(max(better + worse - (better - worse) ** 2 / images, 0.0)) / images
    change = float(first.mean() - second.mean())
    return max(min(middle - half, change), -1.0), min(max(middle + half, change), 1.0)


def packed(hits: NDArray[np.bool_]) -> list[Any]:
    """Returns right and wrong answers, (n,), as plain JSON: how many, and eight to a byte in hexadecimal."""
    return [len(hits), np.packbits(hits).tobytes().hex()]


def unpacked(plain: Any) -> NDArray[np.bool_] | None:  # noqa: ANN401 - whatever a file holds
    """Returns what `packed` was given, (n,) bool; None where there is nothing, or nothing of that kind."""
    try:
        count, text = plain
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))
    except (TypeError, ValueError):
        return None
    sound = isinstance(count, int) and 0 < count <= len(bits) < count + 8
    return bits[:count].astype(bool) if sound else None


def packed_draws(draws: NDArray[np.float64], images: int) -> list[Any]:
    """Returns what a metric is in draws of so many images as plain JSON: how many images, and float32 in base64."""
    return [images, base64.b64encode(draws.astype("<f4").tobytes()).decode()]


def unpacked_draws(plain: Any, images: int) -> NDArray[np.float64] | None:  # noqa: ANN401 - whatever a file holds
    """Returns what `packed_draws` was given, (draws,), as it is of so many images.

    None where there is nothing, nothing of that kind, or of other images; also where these are too few to tell.
    """
    try:
        count, text = plain
        draws = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(float)
    except (TypeError, ValueError, binascii.Error):
        return None
    sound = 0 < len(draws) <= _MOST_DRAWS and bool(np.isfinite(draws).all())
    return draws if sound and count == images >= _FEWEST else None


def ends_of(
    metric: str,
    value: float | None,
    images: int,
    resampled: Any,  # noqa: ANN401 - whatever a file holds
) -> tuple[float, float] | None:
    """Returns the 95 % interval of a metric of so many images; None where it is not known.

    Args:
        metric: its name.
        value: what it is.
        images: on which it was measured.
        resampled: what metrics are in draws of these, by name, as `packed_draws`; asked of metrics that are no shares
            of images.
    """
    if value is None or not math.isfinite(value) or images < 1:
        return None
    if metric in SHARES:
        return wilson(value, images) if 0 <= value <= 1 else None
    draws = unpacked_draws(_draws_in(resampled, metric), images)
    return None if draws is None else _around(value, draws)


def _draws_in(resampled: Any, metric: str) -> Any:  # noqa: ANN401 - whatever a file holds
    """Returns what is kept of the draws of a metric, or None."""
    return resampled.get(metric) if isinstance(resampled, dict) else None


def _around(value: float, draws: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the interval that most draws are in, and the value."""
    low, high = (float(end) for end in np.quantile(draws, _ENDS))
    return min(low, value), max(high, value)


def difference_text(metric: str, one: Difference) -> str:
    """Returns a difference with its interval: "+0.50 points, -1.70 to +2.70"."""
    ends = " to ".join(
        change_text(metric, end).removesuffix(" points") for end in (one.low, one.high)
    )
    return f"{change_text(metric, one.change)}, {ends}".replace("-", "\u2212")


def method_of(metric: str) -> str:
    """Returns how intervals of a metric are made, in brackets of a sentence; up to the colon in a table."""
    drawn = "bootstrap: the test images drawn 1,000 times with replacement"
    return "Wilson" if metric in SHARES else drawn


def difference(
    metric: str,
    first: tuple[str, float, Mapping[str, Any]],
    second: tuple[str, float, Mapping[str, Any]],
    images: int,
) -> Difference | None:
    """Returns how two networks differ by a metric; None where nothing is known of what that is worth.

    Shares of images are compared image by image where the answers of both are known, other metrics draw by draw.

    Args:
        metric: its name.
        first: name, metric, and what fine-tuning has left: `hits` as `packed`, `resampled` as `packed_draws`.
        second: likewise.
        images: on which both were measured.
    """
    (name, value, ours), (other, reference, theirs) = first, second
    if metric in SHARES:
        hits = (ours.get("hits"), theirs.get("hits"))
        low, high, both = _of_shares((value, reference), hits, images)
    else:
        each = [
            unpacked_draws(_draws_in(one.get("resampled"), metric), images)
            for one in (ours, theirs)
        ]
        draws = [one for one in each if one is not None]
        if len(draws) < 2 or len(draws[0]) != len(draws[1]):
            return None
        both, (low, high) = True, _around(value - reference, draws[0] - draws[1])
    return Difference(
        first=name, second=other, change=value - reference, low=low, high=high, paired=both
    )


def _of_shares(
    shares: tuple[float, float], hits: tuple[Any, Any], images: int
) -> tuple[float, float, bool]:
    """Returns the ends of the interval of a difference of shares, and whether answers were compared one by one."""
    answers = [unpacked(plain) for plain in hits]
    known = [one for one in answers if one is not None and len(one) == images]
    both = len(known) == 2 and all(
        math.isclose(one.mean(), value, abs_tol=1e-6)
        for one, value in zip(known, shares, strict=True)
    )
    low, high = paired(known[0], known[1]) if both else unpaired(*shares, images)
    return low, high, both
