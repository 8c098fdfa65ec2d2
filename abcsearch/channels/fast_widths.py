"""Which widths are fast where forward time was measured: those that no other gives more channels than for their time.

Where a processor computes 8 channels at once, 17 take as long as 24. The fast widths of a group are those on the lower
hull of its time over its width, but for half a channel's time: with steps of 8, multiples of 8; without steps, all.
"""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.channels.widths import FINEST, widths_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.latency import LatencyModel
    from abcsearch.channels.options import SpaceOptions

_NEAR = 0.5  # of the time that a channel takes on average: so far above the hull a width is still taken for fast


def fast_widths(
    model: LatencyModel, graph: ChannelGraph, options: SpaceOptions
) -> dict[str, tuple[int, ...]]:
    """Returns the widths that a space offers, ascending, by prunable group: at keep ratios the largest fast ones.

    Args:
        model: of forward time, as measured.
        graph: channel groups of the network.
        options: keep ratios, and the divisor that widths are multiples of in any case.
    """
    lowest = options.step if options.lowest is None else options.lowest
    first, apart, last = (
        Fraction(ratio).limit_denominator(FINEST) for ratio in (lowest, options.step, options.alpha)
    )
    ratios = [first + number * apart for number in range(int((last - first) / apart) + 1)]
    offered: dict[str, tuple[int, ...]] = {}
    for index, group in enumerate(graph.prunable):
        c = group.channels
        every = [Fraction(width, c) for width in range(1, c + 1)]
        allowed = widths_of(
            graph.prunable, index, graph.calls, graph.sizes, every, options.divisor
        )
        fast = set(efficient(_times(model, graph, index)))
        widths = [width for width in allowed if width in fast] or allowed
        offered[group.name] = tuple(
            sorted({widths[max(0, bisect_right(widths, int(c * ratio)) - 1)] for ratio in ratios})
        )
    return offered


def _times(model: LatencyModel, graph: ChannelGraph, index: int) -> NDArray[np.float64]:
    """Returns the expected times of one group's widths 1 ... channels, all others full, (channels,)."""
    channels = np.array([group.channels for group in graph.prunable])
    rows = np.tile(channels, (channels[index], 1))
    rows[:, index] = np.arange(1, channels[index] + 1)
    return model.latency_ms(rows)


def efficient(times: NDArray[np.float64]) -> list[int]:
    """Returns the widths on the lower hull of their times, or near it, ascending; the largest is always among them.

    Args:
        times: of the widths 1 ... n, (n,), never falling.
    """
    count = len(times)
    if count < 2 or times[-1] <= times[0]:
        return [count]
    each = (times[-1] - times[0]) / (count - 1)
    # As if the first channels took what channels take on average: else the first width would be on the hull in any case
    points = np.concatenate([[np.min(times - each * np.arange(1, count + 1))], times])
    hull = [0]
    while hull[-1] < count:
        rest = np.arange(hull[-1] + 1, count + 1)
        slopes = (points[rest] - points[hull[-1]]) / (rest - hull[-1])
        hull.append(int(rest[np.flatnonzero(slopes <= slopes.min() + 1e-12)[-1]]))
    lower = np.interp(np.arange(1, count + 1), hull, points[hull])
    return (np.flatnonzero(times <= lower + _NEAR * each) + 1).tolist()
