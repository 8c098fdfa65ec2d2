"""What the computing power of each layer is worth: the loss while some of its channels are silent, for equal MACs.

Source: Chen et al., Network Adjustment: Channel Search Guided by FLOPs Utilization Ratio (CVPR 2020).
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import torch

from abcsearch.channels.gates import gated
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.skipping import skipping
from abcsearch.errors import TraceError
from abcsearch.example import run_on
from abcsearch.rng import torch_stream
from abcsearch.training.objectives import find_objective, output_of
from abcsearch.training.scoring import modes_kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.data.split import Split
    from abcsearch.data.splits import Data
    from abcsearch.space import Candidate

MOST = 0.5  # of its channels that a layer loses
BATCH = 64  # images that have the same silent channels


def rates(graph: ChannelGraph, candidate: Candidate, base: float) -> dict[str, float]:
    """Returns what share of each layer's channels is silent, so that as many MACs are for each: by name of dimension.

    Those of layers as costly as the mean of all have the rate `base`; none is above one half. Blocks that are kept have
    one as well, of being skipped.

    Args:
        graph: the network's channel groups.
        candidate: widths; then, or not at all, 1 or 0 per block.
        base: in (0, 0.5].
    """
    count = len(graph.prunable)
    blocks = candidate[count : count + len(graph.blocks)]
    names = [group.name for group in graph.prunable] + [
        block.name for block in graph.blocks[: len(blocks)]
    ]
    values = [
        torch.tensor(float(v), dtype=torch.float64, requires_grad=True)
        for v in (*candidate[:count], *blocks)
    ]
    gradients = torch.autograd.grad(graph.costs.expected(values, "macs"), values, allow_unused=True)
    worth = {
        name: float(value.detach() * gradient)
        for name, value, gradient in zip(names, values, gradients, strict=True)
        if gradient is not None
    }
    worth = {name: macs for name, macs in worth.items() if macs > 0}
    mean = sum(worth.values()) / max(len(worth), 1)
    return {name: min(MOST, base * mean / macs) for name, macs in worth.items()}


def utilisation(  # noqa: PLR0913 - of what, on what, and how
    network: nn.Module,
    graph: ChannelGraph,
    candidate: Candidate,
    data: Data,
    images: Split,
    *,
    base: float,
    passes: int,
    seed: int,
) -> dict[str, float]:
    """Returns how much the loss rises where channels of one layer, worth the same MACs for all, are silent.

    What a silent channel would have added is shared among the others: those are read times 1 / (1 - rate). A higher
    number says that the layer makes more of its MACs. Evaluation mode; the network is as it was afterwards.

    Differences from the paper:
        - The channels of 64 images at a time are silent together; published: of every image others. The mean is the
          same, its scatter larger.
        - Channels are silent for whatever reads them; those that are tied together, together.

    Args:
        network: of the candidate, on the device of the images.
        graph: of the network that it was cut out of.
        candidate: its structure.
        data: its example and objective.
        images: that are shown.
        base: see `rates`.
        passes: over the images, for each layer.
        seed: of the draws.

    Returns:
        By name of dimension; those whose channels cannot be found again in the network are left out.
    """
    try:
        traced = again_traced(network, data)
    except TraceError:
        return {}
    wanted = rates(graph, candidate, base)
    groups = {
        name: index for name, index in _again(graph, traced, candidate).items() if name in wanted
    }
    blocks = {
        block.name: index for index, block in enumerate(traced.blocks) if block.name in wanted
    }
    loss = find_objective(data.objective).loss
    rises = dict.fromkeys([*groups, *blocks], 0.0)
    draws = torch_stream(seed, "utilisation")
    with torch.no_grad(), modes_kept(network):
        network.eval()
        for batch, labels in _batches(images):
            before = float(loss(output_of(network, run_on(network, batch)), labels))
            for name in rises:
                for _ in range(passes):
                    gates, kept = _drawn(
                        traced, groups.get(name), blocks.get(name), wanted[name], draws
                    )
                    with gated(network, traced, gates), skipping(network, traced, kept):
                        after = float(loss(output_of(network, run_on(network, batch)), labels))
                    rises[name] += (after - before) * len(labels) / (passes * len(images))
    return rises


def _batches(images: Split) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns images and labels, a few at a time."""
    chunks = torch.arange(len(images)).split(BATCH)
    loaded = [images.part(chunk).loaded() for chunk in chunks]
    return [(chunk.images, chunk.labels) for chunk in loaded]


def again_traced(network: nn.Module, data: Data) -> ChannelGraph:
    """Returns the channel groups of the network of a candidate; raises TraceError if they cannot be found."""
    # What there is to warn of has been said of the network that it was cut out of
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace_channels(copy.deepcopy(network).cpu().eval(), data.example, check=False)


def _again(graph: ChannelGraph, sliced: ChannelGraph, candidate: Candidate) -> dict[str, int]:
    """Returns by name of the groups of a network their place among those of a slice of it, where they are found.

    A group is recognised by the weights on whose axes its channels lie, of which dropped blocks may have taken some,
    and by its width.
    """
    places = [
        {(member.parameter, member.axis) for member in group.members} for group in graph.prunable
    ]
    again: dict[str, int] = {}
    taken: set[int] = set()
    for index, small in enumerate(sliced.prunable):
        here = {(member.parameter, member.axis) for member in small.members}
        fits = (
            wide
            for wide, there in enumerate(places)
            if wide not in taken and here <= there and candidate[wide] == small.channels
        )
        wide = next(fits, None)
        if wide is not None:
            taken.add(wide)
            again[graph.prunable[wide].name] = index
    return again


def _drawn(
    graph: ChannelGraph, group: int | None, block: int | None, rate: float, draws: torch.Generator
) -> tuple[list[torch.Tensor], Sequence[float]]:
    """Returns gates of all groups and blocks, of which one group has silent channels, or one block may be skipped."""
    gates = [torch.ones(each.channels) for each in graph.prunable]
    if group is not None:
        gates[group] = (torch.rand(len(gates[group]), generator=draws) >= rate).float() / (1 - rate)
        return gates, []
    kept = [1.0] * len(graph.blocks)
    if block is not None:
        kept[block] = float(torch.rand((), generator=draws) >= rate) / (1 - rate)
    return gates, kept
