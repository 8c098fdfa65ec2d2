"""Runs the rules over an operation graph; what no rule covers is fixed, by name."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.nn.utils.parametrize import is_parametrized

from abcsearch.channels.flow import Flow
from abcsearch.channels.interception import SIZE_ATTRIBUTES
from abcsearch.channels.operands import LOOSE, Count, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules import find_rule, number, ruled_class
from abcsearch.channels.rules.attention import count_attention
from abcsearch.channels.rules.computed import by_rows, source_of
from abcsearch.channels.rules.contraction import count_products
from abcsearch.channels.rules.layers import count_calls
from abcsearch.channels.rules.pointwise import addition, elementwise, pairwise
from abcsearch.channels.rules.recurrent import count_recurrent
from abcsearch.channels.rules.table import run_rule
from abcsearch.channels.rules.views import view_of
from abcsearch.channels.uses import Call
from abcsearch.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.channels.operands import Norm
    from abcsearch.channels.rules.table import Rule
    from abcsearch.channels.trace import OperationGraph


_BY_ENTRY = (elementwise, addition, pairwise)  # rules of operations on single entries


def tensor_names(operations: OperationGraph) -> tuple[dict[int, str], dict[str, tuple[int, ...]]]:
    """Returns the canonical name by tensor id, and the shape by canonical name, of all parameters and buffers."""
    canonical: dict[int, str] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    root = operations.modules[""]
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        if canonical.setdefault(id(tensor), name) == name:
            sizes[name] = tuple(tensor.shape)
    return canonical, sizes


def propagate(flow: Flow, operations: OperationGraph) -> dict[fx.Node, Operand]:
    """Runs the rules over all operations; the flow collects what they say. Returns the result of every operation."""
    operands: dict[fx.Node, Operand] = {}
    flow.norms.restart()
    driven: set[fx.Node] = set()  # what depends on the input
    for node in operations.nodes:
        if node.op == "placeholder" or not driven.isdisjoint(node.all_input_nodes):
            driven.add(node)
        flow.shared = node not in driven
        if node.op == "output":
            for source in node.all_input_nodes:
                _fix_all(flow, [operands[source]], "the network's output")
        else:
            operands[node] = _result_of(flow, node, operands, operations)
    for node, reason in operations.unseen.items():
        touched = operands[node].touched if node in operands else []
        flow.problem(reason, touched, parameters=False)
        for positions in touched:
            flow.fix(positions, reason)
    return operands


def _result_of(
    flow: Flow, node: fx.Node, operands: dict[fx.Node, Operand], operations: OperationGraph
) -> Operand:
    """Returns the result of one operation, of which those before are known."""
    value = operations.values[node]
    if node.op == "placeholder":
        return _constant(value, "the network's input")
    if node.op == "get_attr":
        return _attribute(operations, str(node.target), flow, value)
    op = _operation(node, value, operands, operations)
    counted = any(
        count(flow, op) for count in (count_calls, count_products, count_recurrent, count_attention)
    )
    if not counted and operations.macs.get(node):
        macs = flow.per_image(operations.macs[node])
        flow.calls.append(Call(weight=macs, bias=None, times=1, outputs=0, scope=op.scope))
    return _apply(flow, op)


def _constant(value: Any, why: str) -> Operand:  # noqa: ANN401 - operations return anything
    """Returns a result in which nothing follows channels."""
    several = _several(value)
    parts = tuple(_constant(inner, why) for inner in value) if several else ()
    return Operand(value=value, why=why, is_tensor=isinstance(value, torch.Size), parts=parts)


def _several(value: Any) -> bool:  # noqa: ANN401 - operations return anything
    """Returns whether an operation returned several tensors."""
    if isinstance(value, torch.Size) or not isinstance(value, tuple):
        return False
    given = [inner for inner in value if inner is not None]
    return bool(given) and all(isinstance(inner, torch.Size) or _several(inner) for inner in given)


def _attribute(operations: OperationGraph, path: str, flow: Flow, value: Any) -> Operand:  # noqa: ANN401
    """Returns a tensor, or a whole number, that forward uses directly.

    Along its only axis with more than one entry, a parameter or buffer has positions of its own.
    """
    owner, _, attribute = path.rpartition(".")
    if type(value) is int:
        return _written(operations, owner, attribute, flow, value)
    tensor = (
        getattr(operations.modules[owner], attribute, None) if owner in operations.modules else None
    )
    name = flow.canonical.get(id(tensor))
    if name is None or not isinstance(value, torch.Size):
        return _constant(value, f"{LOOSE} ({path})")
    layout, long = None, [axis for axis, n in enumerate(value) if n > 1]
    if len(long) == 1:
        layout = Layout(long[0], flow.fresh(value[long[0]]))
        flow.parameter(name, long[0], layout.positions)
    return Operand(
        value=value,
        layout=layout,
        parameter=name,
        why=name,
        computed="" if layout is None else name,
    )


def _written(
    operations: OperationGraph, owner: str, attribute: str, flow: Flow, value: int
) -> Operand:
    """Returns a number among a module's attributes that forward reads.

    Of a layer, it may be the length of an axis of its weight, and slicing sets it already.
    """
    module = operations.modules[owner]
    positions = None
    if attribute in SIZE_ATTRIBUTES and ruled_class(type(module)) is not None:
        counted = _axis_of(module, attribute)
        if counted is None or flow.canonical.get(id(counted[0])) is None:
            problem = f"{type(module).__name__} {owner}: forward reads its {attribute}"
            flow.problem(problem, [], parameters=True)
            _freeze(flow, module, problem)
            return Operand(value=value, is_tensor=False)
        positions = flow.counted(flow.canonical[id(counted[0])], counted[1])
    elif value <= _MOST:
        positions = flow.attribute(owner, attribute, value)
    return Operand(
        value=value, is_tensor=False, counts=() if positions is None else (Count.of(positions),)
    )


_MOST = 1 << 14  # no number of channels is larger


def _axis_of(module: nn.Module, attribute: str) -> tuple[torch.Tensor | None, int] | None:
    """Returns the tensor, and its axis, whose length an attribute of a layer is; None if it is no length."""
    weight: Any = getattr(module, "weight", None)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    grouped = getattr(module, "groups", 1) > 1
    if attribute in ("num_features", "num_parameters"):
        return (getattr(module, "running_mean", None) if weight is None else weight), 0
    if attribute in ("out_features", "in_features"):
        return weight, 0 if attribute == "out_features" else 1
    if attribute in ("num_embeddings", "embedding_dim"):
        return weight, 0 if attribute == "num_embeddings" else 1
    if attribute == "groups" or (grouped and (attribute == "in_channels" or transposed)):
        return None
    return weight, int((attribute == "in_channels") != transposed)


def _operation(
    node: fx.Node,
    value: Any,  # noqa: ANN401 - operations return anything
    operands: dict[fx.Node, Operand],
    operations: OperationGraph,
) -> Op:
    """Returns the operation of a node as rules see it."""
    module = operations.modules[str(node.target)] if node.op == "call_module" else None
    target = node.target if module is None else ruled_class(type(module)) or type(module)
    kind = str(getattr(target, "__name__", target))
    args: Any = map_arg(node.args, lambda n: operands[n])  # pyright: ignore[reportArgumentType]
    if target is getattr and isinstance(value, torch.Size) and args[0].is_tensor:  # x.T, x.data
        target, args = args[1], args[:1]
    return Op(
        name=f"{kind} {node.target}" if module is not None else f"{kind} ({node.name})",
        target=target,
        path=str(node.target) if module is not None else "",
        scope=operations.scopes[node],
        module=module,
        args=args,
        kwargs=map_arg(node.kwargs, lambda n: operands[n]),  # pyright: ignore[reportArgumentType]
        value=value,
    )


def _apply(flow: Flow, op: Op) -> Operand:
    """Runs the rule of one operation and returns its result; what no rule covers is fixed, with the reason."""
    several = _several(op.value)
    if not op.is_tensor and not several and (result := number(flow, op)) is not None:
        return result
    if (
        op.target in (operator.getitem, getattr)
        and isinstance(op.args[0], Operand)
        and op.args[0].parts
    ):
        return _part(op)
    if isinstance(op.target, type) and issubclass(op.target, tuple):  # a named tuple of results
        return Operand(value=op.value, is_tensor=False, parts=tuple(op.operands))
    flow.begin(op)
    _spread(flow, op)
    reason, rule = _obstacle(op), find_rule(op.target)
    if reason is None and rule is not None and (op.is_tensor or several):
        if (view := view_of(flow, op)) is not None:
            return Operand(value=op.value, parameter=view, why=str(view))
        try:
            op = by_rows(flow, op, rule)
            return _result(flow, op, _ruled(flow, op, rule))
        except NoRuleError as error:
            reason = str(error)
    return _uncovered(flow, op, f"{op.name}: {reason or 'no rule'}")


def _spread(flow: Flow, op: Op) -> None:
    """Fixes channels whose common numbers go anywhere else than back to them, entry by entry."""
    if not any(operand.pooled for operand in op.operands) or find_rule(op.target) in _BY_ENTRY:
        return
    for operand in op.operands:
        for norm in operand.pooled:
            flow.fix(norm.positions, norm.reason)
            flow.problem(norm.reason, [norm.positions], parameters=False)


def _returned(op: Op, layout: Layout | None) -> tuple[Norm, ...]:
    """Returns of which norms a result is still to reach the channels: numbers that they have in common."""
    return (
        ()
        if layout is not None
        else tuple(norm for operand in op.operands for norm in operand.pooled)
    )


def _obstacle(op: Op) -> str | None:
    """Returns why a module does something else than its class says; None where it does not, or there is none."""
    if op.module is not None and (op.module._forward_hooks or op.module._forward_pre_hooks):
        return "it has a forward hook"
    if op.module is not None and is_parametrized(op.module):
        return "its weights are parametrised; torch.nn.utils.parametrize.remove_parametrizations makes them plain"
    return (
        "its forward was replaced"
        if op.module is not None and "forward" in vars(op.module)
        else None
    )


def _ruled(flow: Flow, op: Op, rule: Rule) -> Layout | Sequence[Layout | None] | None:
    """Returns what a rule says; raises TraceError if it fails: the user's own rules run here as well."""
    try:
        return run_rule(rule, flow, op)
    except NoRuleError:
        raise
    except Exception as error:
        msg = f"the rule for {op.name} fails: {type(error).__name__}: {error}"
        raise TraceError(msg) from error


def _part(op: Op) -> Operand:
    """Returns one of several tensors, or some of them."""
    source, index = op.args
    index = index.value if isinstance(index, Operand) else index
    if isinstance(index, str):  # x.max(2).values
        index = ("values", "indices").index(index) if index in ("values", "indices") else 0
    taken = source.parts[index]
    return (
        taken
        if isinstance(taken, Operand)
        else Operand(value=op.value, is_tensor=False, parts=tuple(taken))
    )


def _result(flow: Flow, op: Op, returned: Layout | Sequence[Layout | None] | None) -> Operand:
    """Returns the result of a covered operation. What the rule did not register must stay as it is."""
    for operand in op.operands:
        name, claimed = operand.parameter, {parameter for parameter, _ in flow.claimed}
        if name is not None and operand.layout is None and name not in claimed:
            flow.freeze(name, f"{op.name}: it computes with {name}")
    held = [] if op.module is None else [*op.module.parameters(), *op.module.buffers()]
    used = [
        operand.parameter
        for operand in op.operands
        if operand.parameter is not None and operand.layout is None
    ]
    flow.hold(op, [*used, *(flow.canonical[id(tensor)] for tensor in held)])
    why = next((operand.why for operand in op.operands if operand.why), op.name)
    if returned is None and not op.is_tensor:
        return _constant(op.value, why)
    if returned is None or isinstance(returned, Layout):
        placed = _placed(flow, op.value, returned, why)
        source = "" if returned is None else source_of(flow, op, op.value)
        return replace(
            placed, pooled=(*flow.norms.pooled, *_returned(op, returned)), computed=source
        )
    parted = _parted(flow, op.value, returned, why)
    sources = tuple(
        replace(result, computed=source_of(flow, op, ())) if result.layout else result
        for result in parted.parts
    )
    return replace(parted, parts=sources)


def _parted(flow: Flow, value: Any, layouts: Any, why: str) -> Operand:  # noqa: ANN401 - shapes and layouts, nested
    """Returns one of several results, or several, with their layouts."""
    if isinstance(value, torch.Size):
        return _placed(flow, value, layouts, why)
    if value is None:
        return Operand(value=None, is_tensor=False)
    parts = tuple(
        _parted(flow, shape, inner, why) for shape, inner in zip(value, layouts, strict=True)
    )
    return Operand(value=value, is_tensor=False, parts=parts, why=why)


def _placed(flow: Flow, shape: Sequence[int], layout: Layout | None, why: str) -> Operand:
    """Returns a tensor with its layout; raises NoRuleError if the two do not fit."""
    if layout is not None:
        positions = np.asarray(layout.positions)
        if (
            positions.dtype.kind != "i"
            or positions.ndim != 1
            or not ((positions >= 0) & (positions < flow.count)).all()
        ):
            msg = "its rule does not return the positions of channels"
            raise NoRuleError(msg)
    if layout is not None and (
        len(shape) <= layout.axis or shape[layout.axis] != len(layout.positions)
    ):
        msg = "its rule finds another number of channels than its result has"
        raise NoRuleError(msg)
    return Operand(value=shape, layout=layout, why=why)


def _uncovered(flow: Flow, op: Op, problem: str) -> Operand:
    """Fixes what an operation without a rule touches; its result then never changes."""
    module, operands = op.module, op.operands
    _fix_all(flow, operands, problem)
    if module is not None:
        _freeze(flow, module, problem)
    weighted = module is not None and any(True for _ in module.parameters())
    used = weighted or any(operand.parameter is not None for operand in operands)
    flow.problem(problem, [p for operand in operands for p in operand.touched], parameters=used)
    if weighted:  # shown as groups that stay
        _show(flow, op, problem)
    return _constant(op.value, problem)


def _show(flow: Flow, op: Op, problem: str) -> None:
    """Registers the output channels of a layer without a rule, so that they are among the fixed groups."""
    weight = getattr(op.module, "weight", None)
    name = flow.canonical.get(id(weight))
    if name is None or not isinstance(weight, torch.Tensor) or weight.ndim < 2:
        return
    positions = flow.fresh(len(weight), op.path)
    flow.parameter(name, 0, positions)
    flow.fix(positions, problem)


def _fix_all(flow: Flow, operands: list[Operand], reason: str) -> None:
    """Fixes every channel that the operands carry."""
    for operand in operands:
        for positions in operand.touched:
            flow.fix(positions, reason)
        if operand.parameter is not None:
            flow.freeze(operand.parameter, reason)


def _freeze(flow: Flow, module: nn.Module, reason: str) -> None:
    """Says that no parameter or buffer of a module may change, and why."""
    for tensor in (*module.parameters(), *module.buffers()):
        flow.freeze(flow.canonical[id(tensor)], reason)
