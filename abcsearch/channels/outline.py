"""What a candidate keeps of every tensor of a network: most of it a graph says once for all candidates (`Plan`)."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx
from torch.nn.utils.parametrize import is_parametrized

from abcsearch.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.fast.cutting import Cuts
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking


@dataclass(frozen=True)
class Outline:
    """What a candidate keeps of a network.

    Attributes:
        modules: of the network by path.
        tensors: its parameters and buffers by qualified name, tied ones once, those of dropped blocks left out.
        dropped: paths of the blocks that are dropped.
        flags: which channels are kept, as `Plan.flags` returns them.
        cuts: the tensors that become shorter, each with the entries that stay on every axis that does.
        starts: the number of each prunable group's first channel.
    """

    modules: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]
    dropped: tuple[str, ...]
    flags: NDArray[np.bool_]
    cuts: list[tuple[Target, Cuts]]
    starts: list[int]


def outlined(
    model: nn.Module, graph: ChannelGraph, candidate: Sequence[int], ranking: Ranking
) -> Outline:
    """Returns what a candidate keeps of a network, after checking that all of them belong together.

    Args:
        model: as in `slice_model`, and the others likewise.
        graph: its channel groups.
        candidate: what is kept.
        ranking: which channels are best.

    Raises:
        CandidateError: as `slice_model`, and the others likewise.
        TraceError: if the graph was traced on a network with other parameters.
        RankingError: if the ranking belongs to another graph.
    """
    widths, dropped = graph.structure(candidate)
    modules, tensors = parts_of(model, graph)
    ranking.check(graph)
    plan = plan_of(graph)
    flags = plan.flags(widths, ranking.chosen(graph.criteria(candidate)))
    targets = plan.targets
    if dropped:
        gone = tuple(f"{block.name}." for block in dropped)
        targets = [target for target in targets if not target.name.startswith(gone)]
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}
    kept = plan.kept(flags)
    cuts: list[tuple[Target, Cuts]] = []
    for target in targets:
        axes = [
            (axis, left) for axis, pattern in target.axes if (left := kept[pattern]) is not None
        ]
        if axes:
            cuts.append((target, axes))
    return Outline(
        modules=modules,
        tensors=tensors,
        dropped=tuple(block.name for block in dropped),
        flags=flags,
        cuts=cuts,
        starts=plan.starts,
    )


@dataclass(frozen=True)
class Target:
    """A tensor with channels that can be removed.

    Attributes:
        name: its name.
        axes: its sliced axes in ascending order, and the index of the pattern of each.
        split: its shape where channels have been flattened: their axes are split into channels and entries of each,
            and `axes` counts the axes of this shape; empty for all other tensors.
        flat: the axes of `split` that are to be merged with their next ones.
        sums: those of `axes` along which an operation reads the channels and sums over them.
    """

    name: str
    axes: tuple[tuple[int, int], ...]
    split: tuple[int, ...] = ()
    flat: tuple[int, ...] = ()
    sums: tuple[tuple[int, int], ...] = ()

    def divided(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor with the axes that `axes` counts."""
        return tensor.reshape(self.split) if self.split else tensor

    def merged(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a divided tensor, or what is left of one, with its own axes again."""
        for axis in reversed(self.flat):
            tensor = tensor.flatten(axis, axis + 1)
        return tensor


@dataclass(frozen=True)
class Plan:
    """What a graph says about slicing, whatever the candidate.

    Attributes:
        channels: channels of each prunable group.
        patterns: the different ways in which axes run over channels, each (n,) int64: the channel of every entry,
            counted over all prunable groups; -1 for entries of none. Most axes share theirs with others.
        targets: the tensors to slice.
    """

    channels: tuple[int, ...]
    patterns: tuple[NDArray[np.int64], ...]
    targets: tuple[Target, ...]

    @cached_property
    def starts(self) -> list[int]:
        """The number that each group's first channel has, counted over all prunable groups."""
        return np.cumsum((0, *self.channels)).tolist()

    def flags(self, widths: Sequence[int], ranking: Ranking) -> NDArray[np.bool_]:
        """Returns which channels of all prunable groups are kept, (channels + 1,) bool; the last, True, is of no group."""
        flags, orders = np.ones(self.starts[-1] + 1, dtype=bool), ranking.orders
        for index, (channels, width, start) in enumerate(
            zip(self.channels, widths, self.starts, strict=False)
        ):
            if width != channels:
                flags[start : start + channels] = False
                flags[orders[index][:width] + start] = True  # ranking.kept, without its order
        return flags

    def kept(self, flags: NDArray[np.bool_]) -> list[torch.Tensor | None]:
        """Returns the entries that each pattern keeps, (k,) int64 in ascending order; None for all."""
        stays = [flags[pattern].nonzero()[0] for pattern in self.patterns]
        return [
            None if len(left) == len(pattern) else torch.from_numpy(left)
            for left, pattern in zip(stays, self.patterns, strict=True)
        ]


_PLANS: dict[int, Plan] = {}  # by the id of the graph; the plan goes when its graph does


def plan_of(graph: ChannelGraph) -> Plan:
    """Returns the plan of a graph, made once."""
    if id(graph) not in _PLANS:
        _PLANS[id(graph)] = _make_plan(graph)
        weakref.finalize(graph, _PLANS.pop, id(graph), None)
    return _PLANS[id(graph)]


def _make_plan(graph: ChannelGraph) -> Plan:
    """Returns the plan of a graph."""
    channels = tuple(group.channels for group in graph.prunable)
    runs: dict[str, dict[int, NDArray[np.int64]]] = {}
    sums: set[tuple[str, int]] = set()
    for group, start in zip(graph.prunable, np.cumsum((0, *channels)).tolist(), strict=False):
        for m in group.members:
            axes = runs.setdefault(m.parameter, {})
            run = axes.setdefault(
                m.axis, np.full(graph.sizes[m.parameter][m.axis], -1, dtype=np.int64)
            )
            run[m.entries] = m.channels + start
            if m.sums:
                sums.add((m.parameter, m.axis))
    patterns: dict[bytes, int] = {}
    targets = [
        _target(
            name, graph.sizes[name], axes, {axis for axis in axes if (name, axis) in sums}, patterns
        )
        for name, axes in runs.items()
    ]
    return Plan(
        channels=channels,
        patterns=tuple(np.frombuffer(pattern, dtype=np.int64).copy() for pattern in patterns),
        targets=tuple(targets),
    )


def _target(
    name: str,
    size: tuple[int, ...],
    runs: dict[int, NDArray[np.int64]],
    summed: set[int],
    patterns: dict[bytes, int],
) -> Target:
    """Returns how a tensor is sliced; adds to the patterns, which are numbered."""
    axes: list[tuple[int, int]] = []
    split: list[int] = []
    flat: list[int] = []
    sums: list[tuple[int, int]] = []
    for axis, length in enumerate(size):
        block = 1
        if axis in runs:
            run = runs[axis]
            # Entries side by side that come and go together: a flattened channel.
            block = int(np.gcd.reduce(np.append(np.flatnonzero(np.diff(run)) + 1, length)))
            pattern = patterns.setdefault(run[::block].tobytes(), len(patterns))
            axes.append((len(split), pattern))
            if axis in summed:
                sums.append(axes[-1])
        if block > 1:
            flat.append(len(split))
        split += [length // block, block] if block > 1 else [length]
    return Target(name, tuple(axes), tuple(split) if flat else (), tuple(flat), tuple(sums))


def parts_of(
    model: nn.Module, graph: ChannelGraph
) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
    """Returns a network's modules by path, and its parameters and buffers by qualified name, tied ones once.

    That is what `named_modules`, `named_parameters` and `named_buffers` say, in less time.

    Args:
        model: the network.
        graph: what was found out about it.

    Raises:
        TraceError: if the graph was traced on a network with other modules, parameters or buffers, or with others tied.
    """
    modules = _modules(model)
    _check_kinds(modules, graph)
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        for named in (module._parameters, module._buffers):
            for name, tensor in named.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    tensors[prefix + name] = tensor
    if any(
        name not in tensors or tensors[name].shape != size for name, size in graph.sizes.items()
    ):
        tensors = graph.tensors(model)
    if len(tensors) > len(graph.sizes):
        _check_extra(tensors, graph)
    return modules, tensors


def _check_extra(tensors: dict[str, torch.Tensor], graph: ChannelGraph) -> None:
    """Raises TraceError for a parameter that the graph does not know; buffers may be added by whatever looks on."""
    for name, tensor in tensors.items():
        if name not in graph.sizes and isinstance(tensor, torch.nn.Parameter):
            msg = f"the graph was traced on another network: {name} is no parameter of its own there; trace again"
            raise TraceError(msg)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns what `dict(model.named_modules())` does, in less time."""
    modules: dict[str, nn.Module] = {}
    seen: set[int] = set()
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        if id(module) not in seen:
            seen.add(id(module))
            modules[path] = module
            prefix = f"{path}." if path else ""
            stack += [
                (prefix + name, m) for name, m in reversed(module._modules.items()) if m is not None
            ]
    return modules


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Returns the class of a module; of torch.fx's and parametrised ones, of which each has its own, what all are."""
    if isinstance(module, fx.GraphModule):
        return fx.GraphModule
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def _check_kinds(modules: dict[str, nn.Module], graph: ChannelGraph) -> None:
    """Raises TraceError if the network has other modules than the one that was traced."""
    kinds = {path: kind_of(module) for path, module in modules.items()}
    if kinds != graph.kinds:
        path = next(
            path
            for path in {**kinds, **graph.kinds}
            if kinds.get(path) is not graph.kinds.get(path)
        )
        before, now = (getattr(kind.get(path), "__name__", None) for kind in (graph.kinds, kinds))
        where = f"{path or 'the network'} is {before} there and {now} here"
        msg = f"the graph was traced on another network: {where}; trace again"
        raise TraceError(msg)
