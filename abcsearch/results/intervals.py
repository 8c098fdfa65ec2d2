"""What shares of images are worth: intervals of accuracies and of their differences, at 95 %.

Sources: Wilson, JASA 22, 1927 (one share); Newcombe, Statistics in Medicine 17, 1998, method 10 (two shares of images
that have nothing to do with each other); Agresti and Min, Statistics in Medicine 24, 2005 (two networks on the same
images: only those that one of them alone gets right count).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NORMAL = 1.959964  # standard errors on both sides of 95 % of a normal distribution
SHARES = ("top1", "top5")  # metrics that are shares of images


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more accurate one network is than another.

    Attributes:
        first: name of the one.
        second: name of the other.
        change: accuracy of the first minus that of the second, in [-1, 1].
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


def difference(
    first: tuple[str, float, Any], second: tuple[str, float, Any], images: int
) -> Difference:
    """Returns the difference of two accuracies, paired where the answers of both are known.

    Args:
        first: name, accuracy in [0, 1], and its answers as `packed` has them, or None.
        second: likewise.
        images: on which both were measured.
    """
    (name, share, own), (other, reference, theirs) = first, second
    answers = [unpacked(plain) for plain in (own, theirs)]
    known = [one for one in answers if one is not None and len(one) == images]
    both = len(known) == 2 and all(
        math.isclose(one.mean(), value, abs_tol=1e-6)
        for one, value in zip(known, (share, reference), strict=True)
    )
    low, high = paired(known[0], known[1]) if both else unpaired(share, reference, images)
    return Difference(
        first=name, second=other, change=share - reference, low=low, high=high, paired=both
    )
