"""Runs the rules over an operation graph; what no rule covers is fixed, by name."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from abcsearch.channels.flow import Flow, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules import RULES, count_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.channels.trace import OperationGraph


def tensor_names(operations: OperationGraph) -> tuple[dict[int, str], dict[str, tuple[int, ...]]]:
    """Returns the canonical name by tensor id, and the shape by canonical name, of all parameters and buffers."""
    canonical: dict[int, str] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    root = operations.modules[""]
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        if canonical.setdefault(id(tensor), name) == name:
            sizes[name] = tuple(tensor.shape)
    return canonical, sizes


def propagate(flow: Flow, operations: OperationGraph) -> None:
    """Runs the rules over all operations; the flow collects what they say."""
    operands: dict[fx.Node, Operand] = {}
    for path, attribute in operations.read.items():
        module = operations.modules[path]
        problem = f"{type(module).__name__} {path}: forward reads its {attribute}"
        flow.problem(problem, [], parameters=True)
        _freeze(flow, module, problem)
    for node in operations.nodes:
        value = operations.values[node]
        is_tensor = isinstance(value, torch.Size)
        if node.op == "output":
            for source in node.all_input_nodes:
                _fix_all(flow, [operands[source]], "the network's output")
        elif node.op == "placeholder":
            layout = _fixed_layout(flow, value, "the network's input") if is_tensor else None
            operands[node] = Operand(value=value, layout=layout, is_tensor=is_tensor)
        elif node.op == "get_attr":
            name = _attribute(operations, str(node.target), flow)
            operands[node] = Operand(value=value, parameter=name, is_tensor=is_tensor)
        else:
            op = _operation(node, value, operands, operations, is_tensor=is_tensor)
            count_calls(flow, op)
            operands[node] = _apply(flow, op)


def _attribute(operations: OperationGraph, path: str, flow: Flow) -> str | None:
    """Returns the canonical name of a parameter or buffer that forward uses directly, or None."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(operations.modules[owner], name, None) if owner in operations.modules else None
    return flow.canonical.get(id(tensor))


def _operation(
    node: fx.Node,
    value: Any,  # noqa: ANN401 - operations return anything
    operands: dict[fx.Node, Operand],
    operations: OperationGraph,
    *,
    is_tensor: bool,
) -> Op:
    """Returns the operation of a node as rules see it."""
    module = operations.modules[str(node.target)] if node.op == "call_module" else None
    target = type(module) if module is not None else node.target
    kind = str(getattr(target, "__name__", target))
    label = f"{kind} {node.target}" if module is not None else f"{kind} ({node.name})"
    return Op(
        name=label,
        target=target,
        path=str(node.target) if module is not None else "",
        module=module,
        args=map_arg(node.args, lambda n: operands[n]),  # pyright: ignore[reportArgumentType]
        kwargs=map_arg(node.kwargs, lambda n: operands[n]),  # pyright: ignore[reportArgumentType]
        value=value,
        is_tensor=is_tensor,
    )


def _apply(flow: Flow, op: Op) -> Operand:
    """Runs the rule of one operation and returns its result; what no rule covers is fixed, with the reason."""
    if not op.is_tensor and (number := _number(op)) is not None:
        return number
    reason = "no rule"
    module, rule = op.module, RULES.get(op.target)
    if module is not None and (module._forward_hooks or module._forward_pre_hooks):
        reason = "it has a forward hook"
    elif module is not None and "forward" in vars(module):
        reason = "its forward was replaced"
    elif rule is not None:
        try:
            return Operand(value=op.value, layout=rule(flow, op))
        except NoRuleError as error:
            reason = str(error)
    problem = f"{op.name}: {reason}"
    _fix_all(flow, op.operands, problem)
    if module is not None:
        _freeze(flow, module, problem)
    layout = _fixed_layout(flow, op.value, problem) if op.is_tensor else None
    own = module is not None and any(True for _ in module.parameters())
    used = own or any(operand.parameter is not None for operand in op.operands)
    flow.problem(problem, [layout, *(operand.layout for operand in op.operands)], parameters=used)
    return Operand(value=op.value, layout=layout, is_tensor=op.is_tensor)


def _number(op: Op) -> Operand | None:
    """Returns the result of an operation that reads sizes or computes with numbers, or None if it is neither.

    A number that was read off a channel axis keeps that tensor's layout, so that whatever uses it is not covered by a
    rule by accident.
    """
    source = op.operands[0] if op.operands else None
    if source is None:
        return Operand(value=op.value, is_tensor=False)
    if source.is_tensor:
        return _size(op, source)
    if op.target is getattr and op.args[1] in ("ndim", "dtype", "device"):
        return Operand(value=op.value, is_tensor=False)
    layout = next((operand.layout for operand in op.operands if operand.layout is not None), None)
    if any(operand.is_tensor for operand in op.operands):
        return None
    if layout is None:
        return Operand(value=op.value, is_tensor=False)
    if op.target is operator.getitem and isinstance(source.value, tuple) and isinstance(op.args[1], int | slice):
        return Operand(value=op.value, layout=_taken(source, layout, op.args[1]), is_tensor=False)
    return None


def _taken(source: Operand, layout: Layout, index: int | slice) -> Layout | None:
    """Returns where the number of channels is in a part of a tuple of sizes; None if it is not among them."""
    ends = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
    numbers = [end.value if isinstance(end, Operand) else end for end in ends]
    taken = range(len(source.value))[slice(*numbers) if isinstance(index, slice) else numbers[0]]
    axes = list(taken) if isinstance(taken, range) else [taken]
    return Layout(axes.index(layout.axis), layout.positions) if layout.axis in axes else None


def _size(op: Op, source: Operand) -> Operand | None:
    """Returns what `x.size()`, `x.shape`, `x.dim()` and the like read off a tensor; None for anything else."""
    attribute = op.args[1] if op.target is getattr else op.target
    if attribute in ("ndim", "dtype", "device", "dim"):
        return Operand(value=op.value, is_tensor=False)
    if attribute not in ("shape", "size") or source.parameter is not None:
        return None
    axis = op.argument(1, "dim") if op.target == "size" else None
    if not isinstance(axis, int):
        return None if axis is not None else Operand(value=tuple(op.value), layout=source.layout, is_tensor=False)
    on_channels = source.layout is not None and axis % len(source.value) == source.layout.axis
    return Operand(value=op.value, layout=source.layout if on_channels else None, is_tensor=False)


def _fix_all(flow: Flow, operands: list[Operand], reason: str) -> None:
    """Fixes every channel that the operands carry."""
    for operand in operands:
        if operand.layout is not None:
            flow.fix(operand.layout.positions, reason)
        if operand.parameter is not None:
            flow.freeze(operand.parameter, reason)


def _freeze(flow: Flow, module: nn.Module, reason: str) -> None:
    """Says that no parameter or buffer of a module may change, and why."""
    for tensor in (*module.parameters(), *module.buffers()):
        flow.freeze(flow.canonical[id(tensor)], reason)


def _fixed_layout(flow: Flow, shape: Sequence[int], reason: str) -> Layout | None:
    """Returns a layout of new, fixed positions along axis 1 (None for tensors without one)."""
    if len(shape) < 2:
        return None
    positions = flow.fresh(shape[1])
    flow.fix(positions, reason)
    return Layout(1, positions)
