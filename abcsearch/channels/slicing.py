"""A new, smaller module; the original is never touched.

Three steps: what is kept of each tensor, most of which a graph says once for all candidates (`outline`); a copy of the
modules around slices of the live tensors; attributes that fit.
"""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abcsearch.channels.fast.cloning import clone
from abcsearch.channels.fast.cutting import Cuts, cut, cut_into, is_large, left_shape
from abcsearch.channels.fast.memory import Memory, room
from abcsearch.channels.outline import Outline, Target, outlined

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking


def slice_model(
    model: nn.Module, graph: ChannelGraph, candidate: Sequence[int], ranking: Ranking
) -> nn.Module:
    """Returns the network that keeps the best `candidate[i]` channels of every prunable group.

    In place of a block that is dropped there is an `nn.Identity`; apart from that, the result has the same class,
    module paths and parameter names. Parameters and buffers are new tensors, and those along a sliced axis are shorter.
    What is kept stays in its order, so keeping everything gives an identical network.
    Large tensors on the CPU lie in one block of memory, which serves the next network once all of them are gone.

    Args:
        model: the network that `graph` was traced on; not changed.
        graph: its channel groups.
        candidate: kept channels per prunable group, each 1 ... channels; then, or not at all, 1 or 0 per block; then,
            or not at all, the number of a criterion of the ranking per prunable group.
        ranking: which channels are best.

    Raises:
        CandidateError: if the candidate does not fit the graph.
        TraceError: if the graph was traced on a network with other parameters.
        RankingError: if the ranking belongs to another graph.
    """
    with no_collection():
        outline = outlined(model, graph, candidate, ranking)
        return assembled(model, graph, outline, _slices(outline))


@torch.no_grad()
def fill(network: nn.Module, outline: Outline, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts what a candidate keeps of other tensors in the place of its own, in place.

    Args:
        network: of the candidate, as `slice_model` returns it.
        outline: what is left of the full network.
        tensors: full-size ones by the names of the full network's; those of dropped blocks are left out.
    """
    cuts = {target.name: (target, kept) for target, kept in outline.cuts}
    left = dict([*network.named_parameters(), *network.named_buffers()])
    for name, tensor in tensors.items():
        if name in cuts:
            target, kept = cuts[name]
            tensor = target.merged(cut(target.divided(tensor), kept))
        if name in left:
            left[name].copy_(tensor)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keeps the collector of reference cycles from looking, again and again, at what is just being built."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def assembled(
    model: nn.Module, graph: ChannelGraph, outline: Outline, tensors: Mapping[int, torch.Tensor]
) -> nn.Module:
    """Returns a copy of the modules that are left, around other tensors, with attributes that fit.

    Args:
        model: the network; not changed.
        graph: its channel groups.
        outline: what is left of it.
        tensors: what stands there in the place of a tensor, by the id of that; the others are copied.
    """
    memo: dict[Any, Any] = dict(tensors)
    for path in outline.dropped:
        module = outline.modules[path]
        memo[id(module)] = nn.Identity().train(module.training)
    copied = clone(model, memo)
    gone = tuple(f"{path}." for path in outline.dropped)
    for attribute in graph.settings:  # conv_groups among them, which shapes alone do not tell
        if not gone or not f"{attribute.path}.".startswith(gone):
            attribute.apply(
                memo[id(outline.modules[attribute.path])], outline.flags, outline.starts
            )
    shorter = {id(outline.tensors[target.name]) for target, _ in outline.cuts}
    for module in outline.modules.values():
        held = (*module._parameters.values(), *module._buffers.values())
        if held and not shorter.isdisjoint(map(id, held)):
            fit_attributes(memo[id(module)])
    return copied


def _slices(outline: Outline) -> dict[int, torch.Tensor]:
    """Returns what is left of every tensor that becomes shorter, by the id of that tensor."""
    shorter: dict[int, torch.Tensor] = {}
    large: list[tuple[Target, torch.Tensor, Cuts]] = []
    with torch.no_grad():
        for target, cuts in outline.cuts:
            tensor = outline.tensors[target.name]
            whole = target.divided(tensor)
            if is_large(whole):
                large.append((target, whole, cuts))
            else:
                shorter[id(tensor)] = _like(tensor, target, cut(whole, cuts))
        memory = Memory(sum(room(left_shape(whole, cuts), whole.dtype) for _, whole, cuts in large))
        for target, whole, cuts in large:
            left = memory.empty(left_shape(whole, cuts), whole.dtype)
            cut_into(left, whole, cuts)
            tensor = outline.tensors[target.name]
            shorter[id(tensor)] = _like(tensor, target, left)
    return shorter


def _like(tensor: torch.Tensor, target: Target, left: torch.Tensor) -> torch.Tensor:
    """Returns what is left of a tensor in its form: flattened as it was, a parameter where it was one."""
    left = target.merged(left)
    if type(tensor) is torch.Tensor or not isinstance(tensor, nn.Parameter):  # the first is quicker
        return left.detach() if left._is_view() else left
    return parameter_of(left, tensor.requires_grad)


def parameter_of(tensor: torch.Tensor, requires_grad: bool) -> torch.Tensor:  # noqa: FBT001 - as torch has it
    """Returns what `nn.Parameter(tensor, requires_grad)` does, without asking what it is given."""
    return torch.Tensor._make_subclass(nn.Parameter, tensor, requires_grad)


# Nn.Module's own asks first whether a number is a parameter, a buffer or a module
_set = object.__setattr__


def fit_attributes(module: nn.Module) -> None:
    """Sets the size attributes of a layer (`trace.SIZE_ATTRIBUTES`) to what its tensors now are."""
    match module:
        case nn.Conv2d() | nn.Conv1d() | nn.Conv3d():
            outputs, inputs = module.weight.shape[:2]
            _set(module, "out_channels", outputs)
            _set(module, "in_channels", inputs * module.groups)
        case nn.ConvTranspose2d() | nn.ConvTranspose1d() | nn.ConvTranspose3d():
            inputs, outputs = module.weight.shape[:2]
            _set(module, "in_channels", inputs)
            _set(module, "out_channels", outputs * module.groups)
        case nn.BatchNorm2d() | nn.BatchNorm1d() | nn.BatchNorm3d() | nn.SyncBatchNorm():
            shaped = module.weight
            shaped = module.running_mean if shaped is None else shaped
            if shaped is not None:
                _set(module, "num_features", shaped.shape[0])
        case nn.Linear():
            outputs, inputs = module.weight.shape
            _set(module, "out_features", outputs)
            _set(module, "in_features", inputs)
        case nn.Embedding() | nn.EmbeddingBag():
            _set(module, "embedding_dim", module.weight.shape[1])
        case nn.PReLU():
            _set(module, "num_parameters", module.weight.shape[0])
        case _:
            pass
