"""A new, smaller module; the original is never touched.

What to remove from each tensor is known per graph up to which channels are kept (`_Plan`); per candidate that leaves a few
array operations, the slices of the live tensors, and a copy of the modules around them.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from abcsearch.channels.cloning import clone

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.groups import ChannelGraph
    from abcsearch.channels.ranking import Ranking

_PIECE = 1 << 17  # entries of an intermediate result that stay in a processor's cache


def slice_model(model: nn.Module, graph: ChannelGraph, candidate: Sequence[int], ranking: Ranking) -> nn.Module:
    """Returns the network that keeps the best `candidate[i]` channels of every prunable group.

    The result has the same class, module paths and parameter names; parameters and buffers are new tensors, and those
    along a sliced axis are shorter. What is kept stays in its order, so keeping everything gives an identical network.

    Args:
        model: the network that `graph` was traced on; not changed.
        graph: its channel groups.
        candidate: kept channels per prunable group, each 1 ... channels.
        ranking: which channels are best.

    Raises:
        CandidateError: if the candidate does not fit the graph.
        TraceError: if the graph was traced on a network with other parameters.
        RankingError: if the ranking belongs to another graph.
    """
    widths = graph.widths(candidate)
    tensors = _tensors(model, graph)
    ranking.check(graph)
    plan = _plan(graph)
    kept = plan.kept(widths, ranking)
    shorter = {id(tensors[name]): _sliced(tensors[name], cuts) for name, cuts in plan.cuts(kept)}
    smaller = clone(model, shorter)
    _fit(smaller, {id(tensor) for tensor in shorter.values()})
    return smaller


@dataclass(frozen=True)
class _Pattern:
    """How axes run over channels.

    Attributes:
        places: (n,) int64, by block of entries: its channel, counted over all prunable groups; -1 for none of them.
        block: entries per block: more than 1 where channels have been flattened.
    """

    places: NDArray[np.int64]
    block: int


@dataclass(frozen=True)
class _Cut:
    """What is kept of an axis: (k,) int64 indices of blocks, in ascending order."""

    axis: int
    block: int
    kept: torch.Tensor


@dataclass(frozen=True)
class _Plan:
    """What a graph says about slicing, whatever the candidate.

    Attributes:
        channels: channels of each prunable group.
        patterns: the different ways in which axes run over prunable channels; most axes share theirs with others.
        axes: by the name of a tensor, its sliced axes and the index of the pattern of each.
    """

    channels: tuple[int, ...]
    patterns: tuple[_Pattern, ...]
    axes: dict[str, tuple[tuple[int, int], ...]]

    def kept(self, widths: Sequence[int], ranking: Ranking) -> list[torch.Tensor | None]:
        """Returns the blocks that each pattern keeps, (k,) int64 in ascending order; None: all."""
        flags = np.ones(sum(self.channels) + 1, dtype=bool)  # the last one is for entries of no group
        start = 0
        for index, (channels, width) in enumerate(zip(self.channels, widths, strict=True)):
            if width != channels:
                flags[start : start + channels] = False
                flags[start + ranking.kept(index, width)] = True
            start += channels
        found = [flags[pattern.places].nonzero()[0] for pattern in self.patterns]
        return [
            None if len(left) == len(pattern.places) else torch.from_numpy(left)
            for left, pattern in zip(found, self.patterns, strict=True)
        ]

    def cuts(self, kept: list[torch.Tensor | None]) -> Iterator[tuple[str, list[_Cut]]]:
        """Yields the tensors that become shorter, and how."""
        for name, axes in self.axes.items():
            cuts = [
                _Cut(axis, self.patterns[index].block, left)
                for axis, index in axes
                if (left := kept[index]) is not None
            ]
            if cuts:
                yield name, cuts


_PLANS: dict[int, _Plan] = {}  # by the id of the graph, which forgets its plan when it goes


def _plan(graph: ChannelGraph) -> _Plan:
    """Returns the plan of a graph, made once."""
    if id(graph) not in _PLANS:
        _PLANS[id(graph)] = _make_plan(graph)
        weakref.finalize(graph, _PLANS.pop, id(graph), None)
    return _PLANS[id(graph)]


def _make_plan(graph: ChannelGraph) -> _Plan:
    """Returns the plan of a graph."""
    places: dict[str, dict[int, NDArray[np.int64]]] = {}
    start = 0
    for group in graph.prunable:
        for m in group.members:
            size = graph.sizes[m.parameter][m.axis]
            axes = places.setdefault(m.parameter, {})
            axes.setdefault(m.axis, np.full(size, -1, dtype=np.int64))[m.entries] = start + m.channels
        start += group.channels
    indices: dict[bytes, int] = {}
    patterns: list[_Pattern] = []
    for axes in places.values():
        for own in axes.values():
            if indices.setdefault(own.tobytes(), len(patterns)) == len(patterns):
                ends = np.append(np.flatnonzero(np.diff(own)) + 1, len(own))
                block = int(np.gcd.reduce(ends))
                patterns.append(_Pattern(own[::block].copy(), block))
    return _Plan(
        channels=tuple(group.channels for group in graph.prunable),
        patterns=tuple(patterns),
        axes={
            name: tuple((axis, indices[own.tobytes()]) for axis, own in sorted(axes.items()))
            for name, axes in places.items()
        },
    )


def _tensors(model: nn.Module, graph: ChannelGraph) -> dict[str, torch.Tensor]:
    """Returns `graph.tensors(model)`, and asks it only if something is wrong or unusual."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[prefix + name] = tensor
    right = all(name in found and found[name].shape == size for name, size in graph.sizes.items())
    return found if right else graph.tensors(model)


def _sliced(tensor: torch.Tensor, cuts: list[_Cut]) -> torch.Tensor:
    """Returns a copy of what the cuts leave of a tensor, a parameter where it was one."""
    result = tensor.detach()
    for cut in cuts:
        result = _select(result, cut)
    return nn.Parameter(result, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else result


def _select(tensor: torch.Tensor, cut: _Cut) -> torch.Tensor:
    kept = cut.kept if tensor.device.type == "cpu" else cut.kept.to(tensor.device)
    if cut.block == 1:
        return tensor.index_select(cut.axis, kept)
    blocks = tensor.unflatten(cut.axis, (-1, cut.block)).index_select(cut.axis, kept)
    return blocks.flatten(cut.axis, cut.axis + 1)


def _fit(model: nn.Module, sliced: set[int]) -> None:
    """Fits the attributes of the modules that own sliced tensors, given by id."""
    for module in model.modules():
        own = (*module._parameters.values(), *module._buffers.values())
        if not sliced.isdisjoint(map(id, own)):
            fit_attributes(module)


def fit_attributes(module: nn.Module) -> None:
    """Sets the size attributes of a layer (`trace.SIZE_ATTRIBUTES`) to what its tensors now are."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            per_group = module.out_channels // module.groups
            module.out_channels = module.weight.shape[0]
            if module.groups > 1:  # depthwise: as many conv_groups as there are channels left
                module.groups = module.out_channels // per_group
            module.in_channels = module.weight.shape[1] * module.groups
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            shaped = module.weight if module.weight is not None else module.running_mean
            module.num_features = module.num_features if shaped is None else shaped.shape[0]
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case _:
            pass
