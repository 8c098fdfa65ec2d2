"""What the forward time of a network follows from: how much every kind of layer computes, reads and writes.

Processors compute channels in blocks: with 17 a layer often takes as long as with 24. And runtimes have faster code for
widths that are multiples of something, so that 16 channels may take less than 15. So work is counted of widths as they
are and rounded up, apart for every multiple that they are of; which of it takes the time, measuring tells.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.uses import Call

# Widths that are multiples of these are computed by other code: 8 and 16 are the float32 registers of AVX2 and AVX-512,
# and ONNX Runtime lays out convolutions of multiples of 4 otherwise.
MULTIPLES = (1, 4, 8, 16)
_ROUNDED = (8, 16)


class LayerWork:
    """The work of every kind of layer of a network, for many structures at once.

    Layers that differ in nothing but their channels are of one kind: the same kernel, stride and number of outputs per
    channel.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        """Looks at the layers of a network."""
        self.costs = graph.costs
        rows = {name: index for index, name in enumerate(graph.costs.layers)}
        calls = [call for call in graph.calls if isinstance(call.weight, str)]
        self._rows = np.array([rows[str(call.weight)] for call in calls], dtype=np.int64)
        self._apart = np.array([_is_apart(call, graph.sizes) for call in calls], dtype=bool)
        kernels = [math.prod(graph.sizes[str(call.weight)][2:]) for call in calls]
        self._outputs = np.array([call.times for call in calls])
        self._products = self._outputs * np.array(kernels)
        self._inputs = np.array([float(call.height * call.width) for call in calls])
        kinds = [
            f"{'channels apart' if apart else 'layer'} {kernel} /{call.stride} at {call.times:g}"
            for call, kernel, apart in zip(calls, kernels, self._apart, strict=True)
        ]
        ends = self.costs.layer_axes([[1] * len(graph.prunable), graph.costs.channels])
        same = (ends[0] == ends[1])[self._rows]
        self._fixed = (same[:, 0], np.where(self._apart, same[:, 0], same[:, 1]))
        self._kinds = list(dict.fromkeys(kinds))
        self._of_kind = np.zeros((len(calls), len(self._kinds)))
        for index, kind in enumerate(kinds):
            self._of_kind[index, self._kinds.index(kind)] = 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the amounts are of: the first is what there is in any case."""
        amounts = ["calls", "products", "written", "read"]
        amounts += [f"{name} in multiples of {multiple}" for multiple in MULTIPLES
                    for name in ("products", "written", "read")]  # fmt: skip
        amounts += [f"products, {what} rounded to {multiple}" for multiple in _ROUNDED
                    for what in ("both", "outputs")]  # fmt: skip
        return ("pass", *(f"{kind}: {name}" for name in amounts for kind in self._kinds))

    def __call__(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns the work of structures: (n, n_dims) candidates to (n, len(names)) float64, 0 or more.

        Raises:
            CandidateError: if the candidates do not fit the network.
        """
        axes = self.costs.layer_axes(candidates)[:, self._rows]
        outputs = axes[:, :, 0]
        inputs = axes[:, :, 1] if axes.shape[2] > 1 else np.ones_like(outputs)
        deep = np.where(self._apart, outputs, inputs)
        written, read = self._outputs * outputs, self._inputs * deep
        products = self._products * outputs * inputs
        makes, reads = (self._multiples(widths, fixed) for widths, fixed in (
            (outputs, self._fixed[0]), (deep, self._fixed[1])
        ))  # fmt: skip
        both = np.minimum(makes, reads)
        amounts = [(outputs > 0).astype(np.float64), products, written, read]
        for multiple in MULTIPLES:
            amounts += [products * (both == multiple), written * (makes == multiple),
                        read * (reads == multiple)]  # fmt: skip
        for multiple in _ROUNDED:
            wide = self._products * np.ceil(outputs / multiple) * multiple
            # Channels that are computed apart have one input each
            rounded = np.ceil(inputs / multiple) * multiple
            amounts += [wide * np.where(self._apart, inputs, rounded), wide * inputs]
        sums = [amount @ self._of_kind for amount in amounts]
        return np.concatenate([np.ones((len(outputs), 1)), *sums], axis=1)

    @staticmethod
    def _multiples(widths: NDArray[np.float64], fixed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Returns the largest of some numbers that widths are multiples of; of those that never vary the largest."""
        largest = np.ones(widths.shape, dtype=np.int64)
        for multiple in MULTIPLES:
            largest[(widths % multiple == 0) | fixed] = multiple
        return largest


def _is_apart(call: Call, sizes: dict[str, tuple[int, ...]]) -> bool:
    """Returns whether a layer computes every channel from one other."""
    size = sizes[str(call.weight)]
    return len(size) > 2 and size[1] == 1 and call.in_channels > 1
