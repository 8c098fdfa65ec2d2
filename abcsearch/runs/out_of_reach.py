"""Why no structure is as small as a budget asks for: which layers keep their channels, and what would let them go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.options import SpaceOptions
    from abcsearch.space import SearchSpace

COSTS = ("macs", "flops", "params")  # of which each layer's share is known
_NAMED = 3  # layers that are named
_LITTLE = 0.005  # shares of the full cost that are not worth a word


@dataclass(frozen=True, kw_only=True)
class FixedLayer:
    """A layer of which no output channel is removed in any structure of a space.

    Attributes:
        name: path of the module.
        share: of the full network's cost that it has in the smallest structure, in [0, 1].
        reason: why its channels stay.
        level: that is left out of the search, for which alone they stay; "" where it is something else.
    """

    name: str
    share: float
    reason: str
    level: str = ""


def fixed_layers(
    graph: ChannelGraph, space: SearchSpace, levels: Sequence[str], cost: str
) -> list[FixedLayer]:
    """Returns the layers whose channels all stay, those that cost most first.

    Args:
        graph: of the network.
        space: its structures.
        levels: that are searched.
        cost: "params"; any other is counted in MACs.
    """
    smallest = [space.at(np.zeros_like(space.last_indices))]
    costs, params = graph.costs, cost == "params"
    left = costs.layer_axes(smallest).prod(axis=2) if params else costs.layer_macs(smallest)
    whole = int((costs.params if params else costs.macs)([space.full])[0])
    layers: list[FixedLayer] = []
    for weight, share in zip(costs.layers, (left[0] / max(whole, 1)).tolist(), strict=True):
        makers = [
            group
            for group in graph.groups
            if any(m.parameter == weight and not m.reads for m in group.members)
        ]
        stays = [group for group in makers if group.fixed or group.kind not in levels]
        if stays and len(stays) == len(makers):
            level = "" if stays[0].fixed else stays[0].kind
            layers.append(
                FixedLayer(
                    name=weight.removesuffix(".weight"),
                    share=share,
                    reason=stays[0].fixed or f'level "{level}" is not searched',
                    level=level,
                )
            )
    return sorted(layers, key=lambda layer: -layer.share)


def why_not_smaller(
    graph: ChannelGraph, space: SearchSpace, options: SpaceOptions, cost: str
) -> str:
    """Returns what keeps the smallest structure above a budget, and which options would change that.

    Args:
        graph: of the network.
        space: its structures.
        options: that the space was made by.
        cost: of `COSTS`.
    """
    layers = fixed_layers(graph, space, options.levels, cost)
    total = sum(layer.share for layer in layers)
    advice = list(_advice(graph, space, options, [one for one in layers if one.share >= _LITTLE]))
    todo = f"; to get lower: {'; '.join(advice)}" if advice else ""
    if total < _LITTLE:
        return todo
    unit = "params" if cost == "params" else "macs"
    named = [layer for layer in layers[:_NAMED] if layer.share >= _LITTLE] or layers[:1]
    most = "the largest: " if len(layers) > len(named) else ""
    told = ", ".join(f"{layer.name} {layer.share:.1%} ({layer.reason})" for layer in named)
    return (
        f"; {total:.1%} of the full network's {unit} are in layers whose channels all stay, even in the smallest "
        f"structure, {most}{told}{todo}"
    )


def _advice(
    graph: ChannelGraph,
    space: SearchSpace,
    options: SpaceOptions,
    layers: Sequence[FixedLayer],
) -> Iterator[str]:
    """Yields what would make smaller structures possible, as the options of [space] are called."""
    asked = [
        path
        for path in options.fixed
        if any(f"{layer.name}.".startswith(f"{path}.") for layer in layers)
    ]
    if asked:
        yield f"take {', '.join(asked[:_NAMED])} out of space.fixed"
    left_out = list(dict.fromkeys(layer.level for layer in layers if layer.level))
    if graph.blocks and "block" not in options.levels:
        left_out.append("block")
    if left_out:
        yield f"add {' and '.join(map(repr, left_out))} to space.levels".replace("'", '"')
    if all(
        dimension.choices[0] == 1 for dimension in space.dimensions if len(dimension.choices) > 1
    ):
        return  # they cannot be narrower
    lower = "lower space.step" if options.lowest is None else "lower space.lowest"
    yield f"{lower} (the smallest keep ratio is {options.lowest or options.step:g})"
