"""One table: operation -> how channel positions pass through it.

A rule takes the `Flow` and the `Op`, says what it knows (ties, registered parameter axes) and returns the layout of the
result. It raises `NoRuleError` for a use that it does not cover; an operation that is absent from the table counts as
such a use. What an uncovered operation touches is fixed by name, never sliced silently wrong.

Modules are looked up by their exact class: a subclass may have overridden forward.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.flow import Call, Flow, Layout, NoRuleError, Op, Operand

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Rule = Callable[[Flow, Op], Layout | None]

# Operation -> rule. Keys are module classes, functions, and names of tensor methods.
RULES: dict[Any, Rule] = {}


def rule_for(*operations: Any) -> Callable[[Rule], Rule]:  # noqa: ANN401 - classes, functions and names
    """Registers the decorated rule for module classes, functions or names of tensor methods."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, rule))
        return rule

    return register


def _same_shape_along(operand: Operand, layout: Layout, op: Op) -> Layout:
    """Returns the layout unchanged if the result has the same channel axis as the operand."""
    if not op.is_tensor or len(op.value) != len(operand.value) or op.value[layout.axis] != operand.value[layout.axis]:
        msg = "the result has other channels than the argument"
        raise NoRuleError(msg)
    return layout


@rule_for(
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Threshold),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.hardswish),
    *(F.hardsigmoid, F.hardtanh, F.softplus, F.logsigmoid, F.dropout, F.dropout2d),
    *(torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.neg, operator.neg),
    *("relu", "relu_", "sigmoid", "tanh", "abs", "exp", "neg", "clamp", "contiguous", "clone", "detach", "float"),
)
def elementwise(flow: Flow, op: Op) -> Layout:
    """Every entry is mapped on its own: channels stay where they are."""
    operand = op.tensor()
    _require_plain(op.operands[1:])
    return _same_shape_along(operand, operand.layout, op)  # pyright: ignore[reportArgumentType]


@rule_for(
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.max_pool1d, F.avg_pool1d),
    *(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
)
def pooling(flow: Flow, op: Op) -> Layout:
    """Windows over space: each channel on its own. The input has a batch axis and channels at axis 1."""
    operand = op.tensor()
    _require_plain(op.operands[1:])
    layout = operand.layout
    if layout is None or layout.axis != 1 or len(operand.value) < 3 or _space(op, operand) != len(operand.value) - 2:
        msg = "the input is not (batch, channels, space...)"
        raise NoRuleError(msg)
    return _same_shape_along(operand, layout, op)


def _space(op: Op, operand: Operand) -> int:
    """Returns over how many axes the operation's window runs, read off its name ("...2d")."""
    name = type(op.module).__name__ if op.module is not None else getattr(op.target, "__name__", "")
    return int(name[-2]) if name[-1:] == "d" and name[-2].isdigit() else len(operand.value) - 2


@rule_for(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(flow: Flow, op: Op) -> Layout:
    """Plain: new channels out, the weight's second axis runs over the input's. Depthwise: channels pass through."""
    operand, conv = op.tensor(), op.module
    if not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise NoRuleError(type(conv).__name__)
    layout = operand.layout
    if layout is None or layout.axis != 1 or len(operand.value) != conv.weight.ndim:
        msg = "the input is not (batch, channels, space...)"
        raise NoRuleError(msg)
    if conv.groups == 1:
        flow.parameter(conv.weight, 1, layout.positions)
        out = flow.fresh(conv.out_channels, op.path)
    elif conv.groups == conv.in_channels:
        out = np.repeat(layout.positions, conv.out_channels // conv.groups)
    else:
        msg = f"grouped convolution with conv_groups={conv.groups} is neither plain nor depthwise"
        raise NoRuleError(msg)
    flow.parameter(conv.weight, 0, out)
    flow.parameter(conv.bias, 0, out)
    return Layout(1, out)


@rule_for(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(flow: Flow, op: Op) -> Layout:
    """Each channel is scaled on its own; weight, bias and running statistics run over the channels."""
    operand, norm = op.tensor(), op.module
    layout = operand.layout
    if layout is None or layout.axis != 1 or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        msg = "the input does not have its channels at axis 1"
        raise NoRuleError(msg)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        flow.parameter(tensor, 0, layout.positions)
    return _same_shape_along(operand, layout, op)


@rule_for(nn.PReLU)
def prelu(flow: Flow, op: Op) -> Layout:
    """One slope for all channels, or one per channel."""
    operand = op.tensor()
    layout = operand.layout
    if layout is None or not isinstance(op.module, nn.PReLU) or layout.axis != 1:
        msg = "the input does not have its channels at axis 1"
        raise NoRuleError(msg)
    if op.module.num_parameters > 1:
        flow.parameter(op.module.weight, 0, layout.positions)
    return _same_shape_along(operand, layout, op)


@rule_for(nn.Linear)
def linear(flow: Flow, op: Op) -> Layout:
    """New features out; the weight's second axis runs over the input's last axis."""
    operand, layer = op.tensor(), op.module
    layout = operand.layout
    if layout is None or layout.axis != len(operand.value) - 1 or not isinstance(layer, nn.Linear):
        msg = "the channels are not the last axis of the input"
        raise NoRuleError(msg)
    flow.parameter(layer.weight, 1, layout.positions)
    out = flow.fresh(layer.out_features, op.path)
    flow.parameter(layer.weight, 0, out)
    flow.parameter(layer.bias, 0, out)
    return Layout(layout.axis, out)


@rule_for(operator.add, operator.iadd, torch.add, "add", "add_")
def addition(flow: Flow, op: Op) -> Layout:
    """Both sides lose the same channels: this is what couples the residual stream of a stage."""
    return _pairwise(flow, op, residual=True)


@rule_for(operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv)
@rule_for(torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, "sub", "mul", "mul_", "div")
def pairwise(flow: Flow, op: Op) -> Layout:
    """Entry by entry: both sides lose the same channels."""
    return _pairwise(flow, op, residual=False)


def _pairwise(flow: Flow, op: Op, *, residual: bool) -> Layout:
    """Ties the channels of two tensors of equal rank; a plain number on either side changes nothing."""
    tensors = [operand for operand in op.operands if operand.is_tensor]
    _require_plain(operand for operand in op.operands if not operand.is_tensor)
    layouts = [operand.layout for operand in tensors if operand.layout is not None]
    if len(layouts) != len(tensors) or not tensors:
        msg = "one side is a tensor without known channels"
        raise NoRuleError(msg)
    axis = layouts[0].axis
    if any(layout.axis != axis for layout in layouts) or len({len(operand.value) for operand in tensors}) != 1:
        msg = "the two sides have their channels at different axes"
        raise NoRuleError(msg)
    widest = max(layouts, key=lambda layout: len(layout.positions))
    for layout in layouts:
        if len(layout.positions) == len(widest.positions):
            flow.tie(widest.positions, layout.positions, residual=residual)
        elif len(layout.positions) == 1:
            flow.fix(layout.positions, "a single channel that is broadcast over others")
        else:
            msg = "the two sides have different numbers of channels"
            raise NoRuleError(msg)
    if widest.positions.shape != (op.value[axis],):
        msg = "the result has other channels than the arguments"
        raise NoRuleError(msg)
    return Layout(axis, widest.positions)


@rule_for(torch.cat, torch.concat)
def concatenation(flow: Flow, op: Op) -> Layout:
    """Along channels: one after the other. Along space: entry by entry the same channels."""
    parts = op.argument(0, "tensors")
    axis = _integers(op.argument(1, "dim", 0))[0] % len(op.value)
    known = isinstance(parts, tuple | list) and all(isinstance(p, Operand) and p.layout is not None for p in parts)
    if not known:
        msg = "one part is not a tensor with known channels"
        raise NoRuleError(msg)
    layouts: list[Layout] = [part.layout for part in parts]
    if len({layout.axis for layout in layouts}) != 1 or sum(part.value[axis] for part in parts) != op.value[axis]:
        msg = "the parts have their channels at different axes, or the result has other sizes"
        raise NoRuleError(msg)
    if axis == layouts[0].axis:
        return Layout(axis, np.concatenate([layout.positions for layout in layouts]))
    for layout in layouts[1:]:
        flow.tie(layouts[0].positions, layout.positions)
    return layouts[0]


@rule_for(nn.Flatten, torch.flatten, "flatten", "reshape", "view", torch.reshape)
def flattening(flow: Flow, op: Op) -> Layout:
    """(batch, channels, space...) -> (batch, channels * space): every channel becomes its block of neighbours.

    For view and reshape the second size must be written as -1: a number would still be there in the smaller network.
    """
    operand = op.tensor()
    layout = operand.layout
    if layout is None or layout.axis != 1 or len(op.value) != 2 or op.value[0] != operand.value[0]:
        msg = "only (batch, channels, ...) to (batch, -1) keeps channels apart"
        raise NoRuleError(msg)
    if op.target in ("reshape", "view", torch.reshape):
        sizes = op.args[1:] or (op.kwargs.get("shape"),)
        sizes = sizes[0] if isinstance(sizes[0], tuple | list) else sizes
        if not isinstance(sizes, tuple | list) or len(sizes) != 2 or sizes[1] != -1:
            msg = "the second size is not -1, so it would not follow the channels"
            raise NoRuleError(msg)
        _require_plain(size for size in sizes if isinstance(size, Operand))
    return Layout(1, np.repeat(layout.positions, math.prod(operand.value[2:])))


@rule_for("mean", torch.mean, "amax", torch.amax)
def mean_over_space(flow: Flow, op: Op) -> Layout:
    """Reduces axes behind the channels; the channels stay where they are."""
    operand = op.tensor()
    layout = operand.layout
    _require_plain(op.operands[1:])
    dims = op.argument(1, "dim")
    axes = [dim % len(operand.value) for dim in _integers(dims)]
    if layout is None or not axes or any(axis <= layout.axis for axis in axes):
        msg = "it reduces more than the axes behind the channels"
        raise NoRuleError(msg)
    return Layout(layout.axis, layout.positions)


def _require_plain(operands: Iterable[Operand]) -> None:
    """Raises NoRuleError unless the operands are numbers that do not depend on the number of channels."""
    if any(operand.is_tensor or operand.layout is not None for operand in operands):
        msg = "another argument depends on channels"
        raise NoRuleError(msg)


def _integers(value: Any) -> list[int]:  # noqa: ANN401 - arguments are anything
    """Returns one integer or a sequence of them as a list; raises NoRuleError for anything else."""
    items = list(value) if isinstance(value, tuple | list) else [value]
    if not all(isinstance(item, int) for item in items):
        msg = "an axis is not a plain number"
        raise NoRuleError(msg)
    return items


_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def count_calls(flow: Flow, op: Op) -> None:
    """Records the multiply-accumulates of a convolution or linear layer, whether or not it has a rule."""
    module, source = op.module, op.argument(0, "input")
    is_linear = isinstance(module, nn.Linear) or op.target is F.linear
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) or op.target in _TRANSPOSED
    is_conv = isinstance(module, nn.modules.conv._ConvNd) or op.target in (F.conv1d, F.conv2d, F.conv3d)
    if not op.is_tensor or not isinstance(source, Operand) or not (is_linear or transposed or is_conv):
        return
    weight, bias = _weights(flow, op)
    if weight is None:
        return
    space = 0 if is_linear else len(weight.value) - 2
    outputs = _places(flow, op.value, space)
    flow.calls.append(
        Call(
            weight=weight.parameter or math.prod(weight.value),
            bias=None if bias is None else bias.parameter or math.prod(bias.value),
            times=_places(flow, source.value, space) if transposed else outputs,
            outputs=outputs,
        )
    )


def _weights(flow: Flow, op: Op) -> tuple[Operand | None, Operand | None]:
    """Returns weight and bias of a convolution or linear layer, module or function."""
    if op.module is None:
        found = op.argument(1, "weight"), op.argument(2, "bias")
    else:
        tensors = cast("tuple[torch.Tensor, torch.Tensor | None]", (op.module.weight, op.module.bias))
        found = tuple(t if t is None else Operand(value=t.shape, parameter=flow.canonical.get(id(t))) for t in tensors)
    weight, bias = (item if isinstance(item, Operand) else None for item in found)
    return weight, bias


def _places(flow: Flow, shape: Sequence[int], space: int) -> int:
    """Returns at how many places per image a layer works on a tensor whose last `space` axes are space.

    A linear layer (space 0) has its features last and works at every other index.
    """
    if space and len(shape) == space + 1:  # no batch axis
        return math.prod(shape[1:])
    total = math.prod(shape) // shape[1 if space else -1]
    return total // flow.batch if total % flow.batch == 0 else total
