"""A new, smaller module; the original is never touched."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.ranking import Ranking


def slice_model(model: nn.Module, graph: ChannelGraph, candidate: Sequence[int], ranking: Ranking) -> nn.Module:
    """Returns the network that keeps the best `candidate[i]` channels of every prunable group.

    In place of a block that is dropped there is an `nn.Identity`; apart from that, the result
    has the same class, module paths and parameter names; parameters and buffers are new tensors, and those along a sliced
    axis are shorter. What is kept stays in its order, so keeping everything gives an identical network.

    Args:
        model: the network that `graph` was traced on; not changed.
        graph: its channel groups.
        candidate: kept channels per prunable group, each 1 ... channels; then, or not at all, 1 or 0 per block.
        ranking: which channels are best.

    Raises:
        CandidateError: if the candidate does not fit the graph.
        TraceError: if the graph was traced on a network with other parameters.
        RankingError: if the ranking belongs to another graph.
    """
    widths, dropped = graph.structure(candidate)
    tensors = graph.tensors(model)
    ranking.check(graph)
    removed: dict[str, dict[int, list[NDArray[np.int64]]]] = {}
    kept = [np.zeros(group.channels, dtype=bool) for group in graph.prunable]
    for index, (group, width, keep) in enumerate(zip(graph.prunable, widths, kept, strict=True)):
        keep[ranking.kept(index, width)] = True
        if width == group.channels:
            continue
        for m in group.members:
            removed.setdefault(m.parameter, {}).setdefault(m.axis, []).append(m.entries[~keep[m.channels]])
    # deepcopy looks tensors up in the memo first, so the full weights are never copied and tied ones stay tied.
    memo: dict[int, Any] = {id(tensors[name]): _sliced(tensors[name], axes) for name, axes in removed.items()}
    shorter = {id(tensor) for tensor in memo.values()}
    for block in dropped:
        module = model.get_submodule(block.name)
        memo[id(module)] = nn.Identity().train(module.training)
    smaller = copy.deepcopy(model, memo)
    gone = tuple(f"{block.name}." for block in dropped)
    for setting in graph.settings:
        if not setting.path.startswith(gone):
            setting.apply(smaller, kept)
    for module in smaller.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(id(tensor) in shorter for tensor in own):
            fit_attributes(module)
    return smaller


def _sliced(tensor: torch.Tensor, removed: dict[int, list[NDArray[np.int64]]]) -> torch.Tensor:
    """Returns a copy of a tensor without the given entries of each axis, a parameter where it was one."""
    result = tensor.detach()
    for axis, parts in removed.items():
        left = np.delete(np.arange(tensor.shape[axis]), np.concatenate(parts))
        result = result.index_select(axis, torch.from_numpy(left).to(tensor.device))
    return nn.Parameter(result, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else result


def fit_attributes(module: nn.Module) -> None:
    """Sets the size attributes of a layer (`trace.SIZE_ATTRIBUTES`) to what its tensors now are."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            module.out_channels = module.weight.shape[0]
            module.in_channels = module.weight.shape[1] * module.groups
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            module.in_channels = module.weight.shape[0]
            module.out_channels = module.weight.shape[1] * module.groups
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case _:
            pass
