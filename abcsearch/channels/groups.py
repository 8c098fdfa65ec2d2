"""Coupled channel positions -> groups: which channels must be removed together, and which must stay."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from abcsearch.channels.activation import Activations, Step
from abcsearch.channels.blocks import find_blocks
from abcsearch.channels.flow import Classes, Flow
from abcsearch.channels.graph import ChannelGraph
from abcsearch.channels.group import ChannelGroup, ChannelNorm, Member, SizeAttribute
from abcsearch.channels.layout import fit_layout
from abcsearch.channels.norms import Norms
from abcsearch.channels.outline import kind_of
from abcsearch.channels.propagate import propagate, tensor_names
from abcsearch.channels.selfcheck import misfits
from abcsearch.channels.trace import trace_operations
from abcsearch.errors import TraceError, UnsupportedOpError, unknown_name
from abcsearch.example import Example, in_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn
    from torch.fx import Node

    from abcsearch.channels.group import Block
    from abcsearch.channels.operands import Operand
    from abcsearch.channels.trace import OperationGraph
    from abcsearch.channels.uses import Call


class UnsupportedOpWarning(UserWarning):
    """Operations without a rule were met; the channels that they touch are fixed."""


def trace_channels(
    model: nn.Module,
    example_input: torch.Tensor | tuple[Any, ...] | Example,
    *,
    fixed: Sequence[str] = (),
    unknown: Literal["fix", "raise"] = "fix",
    check: bool = True,
    renormalise: bool = True,
) -> ChannelGraph:
    """Finds out which channels of a network must be removed together, and which can be removed at all.

    Args:
        model: any module that runs; it is not changed.
        example_input: one batch as forward takes it (batch 1 is enough), a tuple of positional arguments, a dict of
            keyword arguments, or an `Example` of both.
        fixed: paths of modules whose output channels must all stay.
        unknown: "fix" keeps all channels that an operation without a rule touches and says so in one warning;
            "raise" refuses.
        check: tries at the end whether a random structure, sliced, computes what is left of the original: two more
            forward passes. Groups for which it does not are fixed, with the reason.
        renormalise: lets norms over channels (layer norm, and the like) be computed over the channels that are left,
            which get other values thereby; their groups say so. Otherwise such norms fix their channels.

    Raises:
        TraceError: if the model cannot be traced or run, `fixed` names no module with channels, or the check fails.
        UnsupportedOpError: with `unknown="raise"`, naming every operation without a rule.
    """
    if unknown not in ("fix", "raise"):
        raise TraceError(unknown_name("value of unknown", str(unknown), ("fix", "raise")))
    operations, example, batch = _one_image(model, in_rows(Example.of(example_input)))
    _fit_layout(model, operations, example)
    names = tensor_names(operations)
    flow = Flow(canonical=names[0], sizes=names[1], batch=batch, norms=Norms(allowed=renormalise))
    operands = propagate(flow, operations)
    # Attention: of a reshape into heads and channels of each, the heads are what can go
    if flow.attends:
        flow = Flow(
            canonical=names[0],
            sizes=names[1],
            batch=batch,
            norms=Norms(allowed=renormalise),
            heads=True,
        )
        operands = propagate(flow, operations)
    calls = tuple(flow.calls)
    training = _couple_training(flow, operations, model, example)
    _fix_modules(flow, fixed)
    traced = _Traced(operations, operands, training, calls)
    graph, positions = _assembled(flow, traced)
    wrong = misfits(model, graph, example) if check else {}
    if wrong:
        for index, reason in wrong.items():
            flow.fix(positions[index], reason)
            flow.problem(
                f"{graph.prunable[index].name}: {reason}", [positions[index]], parameters=False
            )
        graph, _ = _assembled(flow, traced)
        wrong = misfits(model, graph, example)
    if wrong:
        names = ", ".join(graph.prunable[index].name for index in wrong)
        msg = f"without channels of {names}, {next(iter(wrong.values()))}; name these modules in `fixed`"
        raise TraceError(msg)
    if graph.unsupported and unknown == "raise":
        msg = "operations without a rule for channels: " + "; ".join(graph.unsupported)
        raise UnsupportedOpError(msg)
    if graph.unsupported:
        lines = "; ".join(summarised(graph.unsupported))
        text = f"channels touched by operations without a rule stay as they are: {lines}"
        warnings.warn(text, UnsupportedOpWarning, stacklevel=2)
    return graph


@dataclass(frozen=True)
class _Traced:
    """What was recorded of a network, and what the rules made of it.

    Attributes:
        operations: in evaluation mode.
        operands: the result of each.
        training: the operations in training mode, or None.
        calls: every use of a weight.
    """

    operations: OperationGraph
    operands: dict[Node, Operand]
    training: OperationGraph | None
    calls: tuple[Call, ...]


def _assembled(flow: Flow, traced: _Traced) -> tuple[ChannelGraph, list[NDArray[np.int64]]]:
    """Returns the graph that follows from what the rules have said, and the positions of every prunable group."""
    operations, classes = traced.operations, flow.classes()
    parameters = {flow.canonical[id(p)] for p in operations.modules[""].parameters()}
    groups, lanes = _groups(flow, classes)
    blocks = find_blocks(operations, traced.training)
    graph = ChannelGraph(
        groups=groups,
        blocks=blocks,
        settings=_settings(flow, classes, groups, lanes),
        activations=_activations(
            operations, traced.operands, blocks, _coefficients(classes, groups, lanes), flow.batch
        ),
        sizes=flow.sizes,
        trainable=frozenset(parameters),
        calls=traced.calls,
        unsupported=flow.unsupported(classes),
        kinds={path: kind_of(module) for path, module in operations.modules.items()},
        norms=_norms(flow, classes, groups, lanes),
        bare=_bare(flow, operations),
    )
    group_of = lanes[classes.label, 0]
    return graph, [
        np.flatnonzero(group_of == i) for i, group in enumerate(groups) if group.fixed is None
    ]


def _fit_layout(model: nn.Module, operations: OperationGraph, example: Example) -> None:
    """Finds out how batches have to lie for a network that looks at them by views, which alone ask for a layout."""
    if any(node.target == "view" for node in operations.nodes):
        fit_layout(model, example)


def _bare(flow: Flow, operations: OperationGraph) -> frozenset[str]:
    """Returns the canonical names of the parameters that forward computes with itself."""
    parameters = dict(operations.modules[""].named_parameters(remove_duplicate=False))
    names = {str(node.target) for node in operations.nodes if node.op == "get_attr"}
    return frozenset(flow.canonical[id(parameters[name])] for name in names & parameters.keys())


def _one_image(model: nn.Module, example: Example) -> tuple[OperationGraph, Example, int]:
    """Traces on the first image of the example, since costs are per image.

    What is cut to the first image is told from what all images share, and from an image without an axis for others, by
    the example alone; see `Example`. Where that leaves doubt (tensors of three axes or fewer), the results of both
    passes say whether their rows are images.

    Returns the operations, the input that was used, and the number of images in it: more than one only if forward
    insists on them.
    """
    batch, most = len(example), max((x.ndim for x in example.tensors), default=0)
    doubtful = most < 4 and not example.listed
    whole = trace_operations(model, example) if batch <= 1 or doubtful else None
    if batch > 1:
        single = example[:1]
        with contextlib.suppress(TraceError):
            operations = trace_operations(model, single)
            if whole is None or [n * batch for n in _rows(operations)] == _rows(whole):
                return operations, single, 1
    whole = whole or trace_operations(model, example)
    unbatched = doubtful and most == 3  # one image as (channels, height, width)
    return whole, example, 1 if unbatched else max(batch, 1)


def _rows(operations: OperationGraph) -> list[int]:
    """Returns the first size of every tensor that forward returns."""
    shapes = [
        operations.values[source]
        for node in operations.nodes[-1:]
        for source in node.all_input_nodes
    ]
    return [shape[0] for shape in shapes if isinstance(shape, torch.Size) and shape]


def summarised(unsupported: Sequence[str]) -> list[str]:
    """Returns one line per kind of operation and reason: the first such operation, and how many more there are."""
    alike: dict[tuple[str, str], list[str]] = {}
    for text in unsupported:
        name, _, reason = text.partition(": ")
        alike.setdefault((name.split(" ")[0], reason), []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more {kind}' if len(names) > 1 else ''}: {reason}"
        for (kind, reason), names in alike.items()
    ]


def _couple_training(
    flow: Flow, operations: OperationGraph, model: nn.Module, example: Example
) -> OperationGraph | None:
    """Adds what forward does in training mode only (auxiliary classifiers), so that the sliced network trains.

    The layers that appear there keep their channels: no cost of inference depends on them. Returns the operations of
    training mode, None where they cannot be traced.
    """
    if not operations.asks:
        return operations
    try:
        training = trace_operations(model, example, training=True)
    except TraceError:
        return (
            None  # the sliced network is as it was asked for; whether it trains, training will tell
        )
    if [node.format_node() for node in training.nodes] == [
        node.format_node() for node in operations.nodes
    ]:
        return training
    flow.canonical.update(tensor_names(training)[0])
    known, start = set(flow.axes), flow.count
    propagate(flow, training)
    for key, positions in flow.axes.items():
        if key not in known and key[1] == 0:
            flow.fix(positions[positions >= start], "used in training only")
    return training


def _fix_modules(flow: Flow, fixed: Sequence[str]) -> None:
    """Fixes the output channels of the named modules and everything inside them."""
    made = {axis: positions for axis, positions in flow.axes.items() if axis in flow.makes}
    for path in fixed:
        outputs = [
            positions for (name, _), positions in made.items() if name.startswith(f"{path}.")
        ]
        if not outputs:
            paths = {name.rpartition(".")[0] for name, _ in made}
            raise TraceError(unknown_name("module in fixed", path, paths))
        for positions in outputs:
            flow.fix(positions, "fixed by the caller")


def _groups(flow: Flow, classes: Classes) -> tuple[tuple[ChannelGroup, ...], NDArray[np.int64]]:
    """Collects classes that lie on the same parameter axes, equally often, into groups in network order.

    Returns also (classes, 2) int64: the group of every class and its channel there, -1 for none.
    """
    touched: list[list[tuple[int, int]]] = [[] for _ in range(classes.total)]
    for index, positions in enumerate(flow.axes.values()):
        present, counts = np.unique(classes.label[positions], return_counts=True)
        for label, count in zip(present.tolist(), counts.tolist(), strict=True):
            touched[label].append((index, count))
    grouped: dict[tuple[Any, ...], list[int]] = {}
    # Positions ascend in execution order, so labels are met in the order of the first module that computes them.
    produced = [
        label
        for _, start, count in flow.producers
        for label in classes.label[start : start + count].tolist()
    ]
    for label in dict.fromkeys(produced):
        key = (tuple(touched[label]), classes.reasons.get(label), bool(classes.residual[label]))
        grouped.setdefault(key, []).append(label)
    keys = list(flow.axes)
    together = np.zeros(classes.total, dtype=bool)
    for norm in flow.norms.found.values():
        together[classes.label[norm.positions]] = True
    groups: list[ChannelGroup] = []
    lanes = np.full((classes.total, 2), -1, dtype=np.int64)
    for (axes, reason, residual), labels in grouped.items():
        lanes[labels, 0], lanes[labels, 1] = len(groups), np.arange(len(labels))
        channel_of = np.full(classes.total, -1, dtype=np.int64)
        channel_of[labels] = np.arange(len(labels))
        members = tuple(
            _member(flow, keys[index], channel_of[classes.label[flow.axes[keys[index]]]])
            for index, _ in axes
        )
        name = _group_name(flow, classes, labels)
        same = sum(group.name.partition("#")[0] == name for group in groups)
        if len(labels) == 1:
            several = any(len(member.entries) > 1 for member in members if not member.reads)
            reason = reason or (
                "its channels go all together" if several else "it has only one channel"
            )
        groups.append(
            ChannelGroup(
                name=f"{name}#{same + 1}" if same else name,
                channels=len(labels),
                kind="stage" if residual else "filter",
                fixed=reason,
                members=members,
                renormalises=bool(reason is None and together[labels].any()),
            )
        )
    return tuple(groups), lanes


def _settings(
    flow: Flow, classes: Classes, groups: tuple[ChannelGroup, ...], lanes: NDArray[np.int64]
) -> tuple[SizeAttribute, ...]:
    """Returns the attributes that count channels which can be removed."""
    prunable = {
        index: n
        for n, index in enumerate(i for i, group in enumerate(groups) if group.fixed is None)
    }
    attributes: list[SizeAttribute] = []
    for setting in flow.settings:
        indices, channels = lanes[classes.label[setting.positions]].T
        counted = tuple(
            (prunable[g], channels[indices == g])
            for g in np.unique(indices).tolist()
            if g in prunable
        )
        constant = len(indices) - sum(len(removable) for _, removable in counted)
        attributes.append(
            SizeAttribute(
                path=setting.path,
                name=setting.attribute,
                index=setting.index,
                constant=constant,
                counted=counted,
            )
        )
    return tuple(setting for setting in attributes if setting.counted)


def _norms(
    flow: Flow, classes: Classes, groups: tuple[ChannelGroup, ...], lanes: NDArray[np.int64]
) -> tuple[ChannelNorm, ...]:
    """Returns what is computed over channels that can be removed."""
    # The last one is for positions of no group
    start, starts = (0, np.full(len(groups) + 1, -1, dtype=np.int64))
    for index, group in enumerate(groups):
        if group.fixed is None:
            starts[index], start = start, start + group.channels
    norms: list[ChannelNorm] = []
    for (kind, scope, call), norm in flow.norms.found.items():
        of, channels = lanes[classes.label[norm.positions]].T
        numbers = np.where(starts[of] >= 0, starts[of] + channels, -1)
        if (numbers >= 0).any():
            norms.append(
                ChannelNorm(kind=kind, scope=scope, call=call, axis=norm.axis, channels=numbers)
            )
    return tuple(norms)


def _coefficients(
    classes: Classes, groups: tuple[ChannelGroup, ...], lanes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the column of every position, and what one entry adds there per kept channel.

    Column 0 is for entries that always stay; the prunable groups follow.
    """
    prunable = np.array([group.fixed is None for group in groups], dtype=bool)
    column = np.append(np.where(prunable, np.cumsum(prunable), 0), 0)
    share = np.array([1.0, *(1 / group.channels for group in groups if group.fixed is None)])
    return column[lanes[classes.label, 0]], share


def _activations(
    operations: OperationGraph,
    operands: dict[Node, Operand],
    blocks: tuple[Block, ...],
    coefficients: tuple[NDArray[np.int64], NDArray[np.float64]],
    batch: int,
) -> Activations:
    """Returns which activations are alive when, and how their sizes follow the widths.

    A tensor that holds only some channels of a group counts as many of them as are left on average.
    """
    column, share = coefficients
    sizes = np.zeros((len(operations.storage_sizes), len(share)))
    for number, (node, index, size) in enumerate(operations.storage_sizes):
        operand = operands.get(node)
        operand = operand.tensors[index] if operand is not None and operand.parts else operand
        if operand is None or operand.layout is None:
            sizes[number, 0] = size / batch
        else:
            positions = operand.layout.positions
            entries = np.bincount(column[positions], minlength=len(share))
            sizes[number] = entries * share * size / batch / len(positions)
    steps = tuple(
        Step(
            operations.scopes[node],
            tuple(s for source in node.all_input_nodes for s in operations.storages[source]),
            operations.storages[node],
        )
        for node in operations.nodes
    )
    first = [
        operations.storages[operations.nodes[i]]
        for block in blocks
        for i in (block.source, block.result)
    ]
    ends = [
        (block.name, a[0], b[0])
        for block, a, b in zip(blocks, first[::2], first[1::2], strict=True)
    ]
    return Activations(steps, sizes, ends)


def _member(flow: Flow, key: tuple[str, int], channels: NDArray[np.int64]) -> Member:
    """Returns the part of a parameter axis that belongs to a group; `channels` is -1 where it does not."""
    entries = np.flatnonzero(channels >= 0)
    return Member(
        parameter=key[0],
        axis=key[1],
        entries=entries,
        channels=channels[entries],
        reads=key not in flow.makes,
        sums=key in flow.sums,
    )


def _group_name(flow: Flow, classes: Classes, labels: list[int]) -> str:
    """Returns the first module that computes the channels, with their ranges if it computes others too."""
    wanted = set(labels)
    for path, start, count in flow.producers:
        inside = [
            i
            for i, label in enumerate(classes.label[start : start + count].tolist())
            if label in wanted
        ]
        if inside:
            return path if len(inside) == count else f"{path}[{_ranges(inside)}]"
    raise TraceError(f"no module computes channels {labels}")


def _ranges(indices: list[int]) -> str:
    """Returns ascending indices as ranges: "0:8,24:32"; of many ranges the first, and how many channels follow."""
    breaks = np.flatnonzero(np.diff(indices) > 1) + 1
    runs = [f"{run[0]}:{run[-1] + 1}" for run in np.split(np.array(indices), breaks)]
    return (
        ",".join(runs)
        if len(runs) <= 3
        else f"{runs[0]} and {len(indices) - len(range(*map(int, runs[0].split(':'))))} more"
    )
