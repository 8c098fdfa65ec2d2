"""A new, smaller module; the original is never touched.

Three steps: what is kept of each tensor, most of which a graph says once for all candidates (`_Plan`); a copy of the
modules around slices of the live tensors; attributes that fit.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from abcsearch.channels.cloning import clone
from abcsearch.channels.cutting import Cuts, cut, cut_into, is_large, left_shape
from abcsearch.channels.memory import Memory, room
from abcsearch.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.ranking import Ranking


def slice_model(model: nn.Module, graph: ChannelGraph, candidate: Sequence[int], ranking: Ranking) -> nn.Module:
    """Returns the network that keeps the best `candidate[i]` channels of every prunable group.

    In place of a block that is dropped there is an `nn.Identity`; apart from that, the result has the same class,
    module paths and parameter names. Parameters and buffers are new tensors, and those along a sliced axis are shorter.
    What is kept stays in its order, so keeping everything gives an identical network.
    Large tensors on the CPU lie in one block of memory, which serves the next network once all of them are gone.

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
    with _no_collection():
        return _sliced(model, graph, candidate, ranking)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the collector of reference cycles from looking, again and again, at what is just being built."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _sliced(model: nn.Module, graph: ChannelGraph, candidate: Sequence[int], ranking: Ranking) -> nn.Module:
    """Does what `slice_model` promises."""
    widths, dropped = graph.structure(candidate)
    modules = _modules(model)
    _check_kinds(modules, graph)
    tensors = _tensors(modules, graph, model)
    ranking.check(graph)
    plan = _plan(graph)
    flags = plan.flags(widths, ranking)
    gone = tuple(f"{block.name}." for block in dropped)
    targets = [target for target in plan.targets if not target.name.startswith(gone)] if gone else plan.targets
    shorter = _slices(tensors, targets, plan.kept(flags))
    memo: dict[Any, Any] = dict(shorter)
    for block in dropped:
        module = modules[block.name]
        memo[id(module)] = nn.Identity().train(module.training)
    smaller = clone(model, memo)
    for attribute in graph.settings:  # conv_groups among them, which shapes alone do not tell
        if not gone or not f"{attribute.path}.".startswith(gone):
            attribute.apply(memo[id(modules[attribute.path])], flags, plan.starts)
    for module in modules.values():
        own = (*module._parameters.values(), *module._buffers.values())
        if own and not shorter.keys().isdisjoint(map(id, own)):
            fit_attributes(memo[id(module)])
    return smaller


@dataclass(frozen=True)
class _Target:
    """A tensor with channels that can be removed.

    Attributes:
        name: its name.
        axes: its sliced axes in ascending order, and the index of the pattern of each.
        split: its shape where channels have been flattened: their axes are split into channels and entries of each,
            and `axes` counts the axes of this shape; empty for all other tensors.
        flat: the axes of `split` that are to be merged with their next ones.
    """

    name: str
    axes: tuple[tuple[int, int], ...]
    split: tuple[int, ...] = ()
    flat: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """What a graph says about slicing, whatever the candidate.

    Attributes:
        channels: channels of each prunable group.
        patterns: the different ways in which axes run over channels, each (n,) int64: the channel of every entry,
            counted over all prunable groups; -1 for entries of none. Most axes share theirs with others.
        targets: the tensors to slice.
    """

    channels: tuple[int, ...]
    patterns: tuple[NDArray[np.int64], ...]
    targets: tuple[_Target, ...]

    @cached_property
    def starts(self) -> list[int]:
        """The number that each group's first channel has, counted over all prunable groups."""
        return np.cumsum((0, *self.channels)).tolist()

    def flags(self, widths: Sequence[int], ranking: Ranking) -> NDArray[np.bool_]:
        """Returns which channels are kept, counted over all prunable groups; one more, True, is for entries of none."""
        flags, orders = np.ones(self.starts[-1] + 1, dtype=bool), ranking.orders
        for index, (channels, width, start) in enumerate(zip(self.channels, widths, self.starts, strict=False)):
            if width != channels:
                flags[start : start + channels] = False
                flags[orders[index][:width] + start] = True  # ranking.kept, without its order
        return flags

    def kept(self, flags: NDArray[np.bool_]) -> list[torch.Tensor | None]:
        """Returns the entries that each pattern keeps, (k,) int64 in ascending order; None for all."""
        found = [flags[pattern].nonzero()[0] for pattern in self.patterns]
        return [
            None if len(left) == len(pattern) else torch.from_numpy(left)
            for left, pattern in zip(found, self.patterns, strict=True)
        ]


_PLANS: dict[int, _Plan] = {}  # by the id of the graph; the plan goes when its graph does


def _plan(graph: ChannelGraph) -> _Plan:
    """Returns the plan of a graph, made once."""
    if id(graph) not in _PLANS:
        _PLANS[id(graph)] = _make_plan(graph)
        weakref.finalize(graph, _PLANS.pop, id(graph), None)
    return _PLANS[id(graph)]


def _make_plan(graph: ChannelGraph) -> _Plan:
    """Returns the plan of a graph."""
    channels = tuple(group.channels for group in graph.prunable)
    runs: dict[str, dict[int, NDArray[np.int64]]] = {}
    for group, start in zip(graph.prunable, np.cumsum((0, *channels)).tolist(), strict=False):
        for m in group.members:
            axes = runs.setdefault(m.parameter, {})
            run = axes.setdefault(m.axis, np.full(graph.sizes[m.parameter][m.axis], -1, dtype=np.int64))
            run[m.entries] = m.channels + start
    patterns: dict[bytes, int] = {}
    targets = [_target(name, graph.sizes[name], axes, patterns) for name, axes in runs.items()]
    return _Plan(
        channels=channels,
        patterns=tuple(np.frombuffer(pattern, dtype=np.int64) for pattern in patterns),
        targets=tuple(targets),
    )


def _target(
    name: str, size: tuple[int, ...], runs: dict[int, NDArray[np.int64]], patterns: dict[bytes, int]
) -> _Target:
    """Returns how a tensor is sliced; adds to the patterns, which are numbered."""
    axes: list[tuple[int, int]] = []
    split: list[int] = []
    flat: list[int] = []
    for axis, length in enumerate(size):
        block = 1
        if axis in runs:
            run = runs[axis]
            # Entries side by side that come and go together: a flattened channel.
            block = int(np.gcd.reduce(np.append(np.flatnonzero(np.diff(run)) + 1, length)))
            pattern = patterns.setdefault(run[::block].tobytes(), len(patterns))
            axes.append((len(split), pattern))
        if block > 1:
            flat.append(len(split))
        split += [length // block, block] if block > 1 else [length]
    return _Target(name, tuple(axes), tuple(split) if flat else (), tuple(flat))


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns what `dict(model.named_modules())` does, in less time."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found[path] = module
            prefix = f"{path}." if path else ""
            stack += [(prefix + name, m) for name, m in reversed(module._modules.items()) if m is not None]
    return found


def _check_kinds(modules: dict[str, nn.Module], graph: ChannelGraph) -> None:
    """Raises TraceError if the network has other modules than the one that was traced."""
    kinds = {path: type(module) for path, module in modules.items()}
    if kinds != graph.kinds:
        path = next(path for path in {**kinds, **graph.kinds} if kinds.get(path) is not graph.kinds.get(path))
        before, found = (getattr(kind.get(path), "__name__", None) for kind in (graph.kinds, kinds))
        where = f"{path or 'the network'} is {before} there and {found} here"
        msg = f"the graph was traced on another network: {where}; trace again"
        raise TraceError(msg)


def _tensors(modules: dict[str, nn.Module], graph: ChannelGraph, model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns what `graph.tensors(model)` does, which is asked only where something is wrong or unusual."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[prefix + name] = tensor
    right = all(name in found and found[name].shape == size for name, size in graph.sizes.items())
    return found if right else graph.tensors(model)


def _slices(
    tensors: dict[str, torch.Tensor], targets: Sequence[_Target], kept: Sequence[torch.Tensor | None]
) -> dict[int, torch.Tensor]:
    """Returns what is left of every tensor that becomes shorter, by the id of that tensor."""
    shorter: dict[int, torch.Tensor] = {}
    large: list[tuple[_Target, torch.Tensor, Cuts]] = []
    with torch.no_grad():
        for target in targets:
            cuts = [(axis, left) for axis, pattern in target.axes if (left := kept[pattern]) is not None]
            if not cuts:
                continue
            tensor = tensors[target.name]
            whole = tensor.reshape(target.split) if target.split else tensor
            if is_large(whole):
                large.append((target, whole, cuts))
            else:
                shorter[id(tensor)] = _like(tensor, target, cut(whole, cuts))
        memory = Memory(sum(room(left_shape(whole, cuts), whole.dtype) for _, whole, cuts in large))
        for target, whole, cuts in large:
            left = memory.empty(left_shape(whole, cuts), whole.dtype)
            cut_into(left, whole, cuts)
            tensor = tensors[target.name]
            shorter[id(tensor)] = _like(tensor, target, left)
    return shorter


def _like(tensor: torch.Tensor, target: _Target, left: torch.Tensor) -> torch.Tensor:
    """Returns what is left of a tensor in its form: flattened as it was, a parameter where it was one."""
    for axis in reversed(target.flat):
        left = left.flatten(axis, axis + 1)
    if type(tensor) is torch.Tensor or not isinstance(tensor, nn.Parameter):  # the first is quicker
        return left.detach() if left._is_view() else left
    # What nn.Parameter does, without asking what it is given.
    return torch.Tensor._make_subclass(nn.Parameter, left, tensor.requires_grad)


_set = object.__setattr__  # nn.Module's own asks first whether a number is a parameter, a buffer or a module


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
        case nn.PReLU():
            _set(module, "num_parameters", module.weight.shape[0])
        case _:
            pass
