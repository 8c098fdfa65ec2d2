"""How small can a network become at a loss of accuracy: what the winners of a front say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abcsearch.errors import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

LOSS = 1.0  # points that may be lost, unless somebody says how many
_NORMAL = 1.96  # standard errors on both sides of 95 % of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How accurate one network is.

    Attributes:
        name: of its budget.
        macs: multiply-accumulates.
        accuracy: a share of images, in [0, 1].
    """

    name: str
    macs: int
    accuracy: float


def interval(first: float, second: float, images: int) -> float:
    """Returns half of a 95 % interval of the difference of two accuracies, in their unit.

    It is that of two samples that have nothing to do with each other; networks that are asked about the same images
    differ by less, so that it is too wide rather than too narrow.
    """
    return _NORMAL * math.sqrt(
        sum(share * (1 - share) for share in (first, second)) / max(images, 1)
    )


def smallest_within(full: float, winners: Sequence[Standing], loss: float) -> Standing | None:
    """Returns the smallest winner that loses at most so many points against the full network; None if none does."""
    within = [winner for winner in winners if 100 * (full - winner.accuracy) <= loss + 1e-9]
    return min(within, key=lambda winner: (winner.macs, winner.name), default=None)


def answer(
    full: float, winners: Sequence[Standing], *, loss: float, images: int, split: str
) -> str:
    """Returns how small it can be at a loss, in words.

    Args:
        full: accuracy of the full network.
        winners: of the budgets.
        loss: points of accuracy that may be lost.
        images: on which accuracy was measured.
        split: which those are, and of which networks: "test images, after fine-tuning".
    """
    asked = f"at a loss of at most {loss:g} {'point' if loss == 1 else 'points'}"
    where = f"{plural(images, 'image')} ({split})"
    smallest = smallest_within(full, winners, loss)
    if smallest is None:
        best = max(winners, key=lambda winner: winner.accuracy)
        change = _change(full, best, images)
        return f"{asked}: no winner; the nearest is {best.name}, {change}, on {where}"
    change, half = 100 * (full - smallest.accuracy), 100 * interval(full, smallest.accuracy, images)
    doubt = "; on so few images it may be more" if change + half > loss else ""
    return f"{asked}: {smallest.name} with {smallest.macs:,} MACs, {_change(full, smallest, images)}, on {where}{doubt}"


def _change(full: float, winner: Standing, images: int) -> str:
    """Returns the accuracy of a winner against that of the full network, with an interval."""
    change, half = 100 * (winner.accuracy - full), 100 * interval(full, winner.accuracy, images)
    return f"{100 * winner.accuracy:.2f} % against {100 * full:.2f} % of the full network ({change:+.2f} ± {half:.2f})"
