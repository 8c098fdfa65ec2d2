"""Which widths are fast where forward time was measured: multiples of what, for all layers of a network.

Where a processor computes 8 channels at once, 17 take as long as 24, and runtimes have faster code for some multiples.
So structures of equal MACs are compared whose widths are multiples of 1, 4, 8 and 16: by the model of forward time, as it
knows many structures of each, where single widths of a single layer change a network's time by less than measuring does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.budget import Budget
from abcsearch.channels.work import MULTIPLES
from abcsearch.errors import BudgetError
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.latency import LatencyModel
    from abcsearch.channels.options import SpaceOptions
    from abcsearch.space import SearchSpace

_MACS = (0.3, 0.5)  # of the full network's, of structures that are compared
_COUNT = 30  # structures for each of these
_ALIKE = 1.02  # so many times the least time is as good: smaller multiples offer more widths


def fast_widths(
    model: LatencyModel, graph: ChannelGraph, options: SpaceOptions
) -> dict[str, tuple[int, ...]]:
    """Returns the widths that a space offers, ascending, by prunable group.

    Args:
        model: of forward time, as measured.
        graph: channel groups of the network.
        options: keep ratios, and the divisor that widths are multiples of in any case.
    """
    divisors = sorted({math.lcm(multiple, options.divisor) for multiple in MULTIPLES})
    spaces = {
        divisor: graph.space(options.alpha, options.step, options.levels, divisor, options.lowest)
        for divisor in divisors
    }
    # Of structures with fewer MACs another share of the time is what a pass takes in any case
    macs = [macs for macs in _MACS if _reach(model, spaces[divisors[0]]) >= macs]
    times = {divisor: mean_time(model, space, macs) for divisor, space in spaces.items()}
    limit = _ALIKE * min(times.values())
    # Nothing can be compared where no space has structures of such MACs
    best = next((d for d in divisors if times[d] <= limit < math.inf), options.divisor)
    widths = spaces[best].dimensions[: len(graph.prunable)]
    return {dimension.name: dimension.choices for dimension in widths}


def _reach(model: LatencyModel, space: SearchSpace) -> float:
    """Returns the MACs of the largest structure of a space, as a share of the full network's."""
    macs = model.costs.macs([space.at(space.last_indices), space.full])
    return float(macs[0] / macs[1])


def mean_time(model: LatencyModel, space: SearchSpace, shares: Sequence[float] = _MACS) -> float:
    """Returns the expected time of random structures of a space at some MACs, in ms; infinity if it has none.

    Args:
        model: of forward time.
        space: whose structures are compared.
        shares: of the full network's MACs.
    """
    times: list[float] = []
    for macs in shares:
        draws = numpy_stream(0, "structures that are compared")
        try:
            constraint = Budget(macs=macs).bind(space, model.costs)
        except BudgetError:
            return math.inf
        rows = [constraint.repair(space.sample(draws), draws) for _ in range(_COUNT)]
        rows = [constraint.fill(row, draws, power=1000) for row in rows]
        reached = model.costs.macs(rows) / model.costs.macs([space.full])
        # What little of the MACs is left over differs
        times.append(float(np.mean(model.latency_ms(rows) * macs / reached)))
    return float(np.mean(times)) if times else math.inf
