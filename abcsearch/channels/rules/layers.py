"""Layers with weights: convolutions and linear layers; and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.flow import Flow
from abcsearch.channels.operands import LOOSE, Count, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import channels_at, numbers, numbers_plain, pinned, rule_for
from abcsearch.channels.uses import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """The parameters of a convolution or linear layer, module or function.

    Attributes:
        weight: canonical name.
        shape: of the weight.
        bias: the bias, a parameter or one number for each output that forward has computed; or None.
        groups: conv_groups.
        count: how conv_groups follow channels where forward gives the number; None for a module, where slicing sets it.
    """

    weight: str
    shape: tuple[int, ...]
    bias: Operand | None
    groups: int
    count: Count | None

    @classmethod
    def of(cls, flow: Flow, op: Op) -> _Weights:
        """Reads them off an operation; raises NoRuleError for a weight that is computed in forward."""
        weight, bias = _operands(flow, op)
        if weight is None or weight.parameter is None:
            msg = f"it computes with {LOOSE}"
            raise NoRuleError(msg)
        groups, count = getattr(op.module, "groups", 1), None
        if op.module is None and op.target is not F.linear:
            given = op.argument(6, "groups", 1)
            ((groups, count),) = numbers(given)
            numbers_plain([o for o in op.operands if not o.is_tensor and o is not given])
        return cls(
            weight=weight.parameter,
            shape=tuple(weight.value),
            bias=bias,
            groups=groups,
            count=count,
        )

    @property
    def name(self) -> str:
        """What the channels are named after that a function computes: the parameter."""
        return self.weight.removesuffix(".weight")


@rule_for(nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d, thorough=True)
@rule_for(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, *_TRANSPOSED, thorough=True)
def convolution(flow: Flow, op: Op) -> Layout | None:
    """New channels out, or with conv_groups: whole conv groups, or the same channels of every conv group."""
    if op.module is None:
        op = _steps_pinned(flow, op)
    if (
        (weight := _operands(flow, op)[0]) is not None
        and weight.parameter is None
        and weight.computed
    ):
        return _by_rows(flow, op, weight)
    return _by_parameter(flow, op)


def _steps_pinned(flow: Flow, op: Op) -> Op:
    """Returns a call of a function in which attributes of modules are numbers that stay, but for conv_groups.

    Strides and paddings are attributes as often as conv_groups are, and sometimes the same one.
    """
    groups = {name: value for name, value in op.kwargs.items() if name == "groups"}
    others = {name: value for name, value in op.kwargs.items() if name != "groups"}
    pinned_op = pinned(flow, replace(op, args=(*op.args[:6], *op.args[7:]), kwargs=others))
    args = (*pinned_op.args[:6], *op.args[6:7], *pinned_op.args[6:])
    return replace(op, args=args, kwargs={**pinned_op.kwargs, **groups})


def _by_parameter(flow: Flow, op: Op) -> Layout | None:
    """New channels from a weight that is a parameter or buffer."""
    operand, weights = op.tensor(), _Weights.of(flow, op)
    axis = len(operand.value) - len(weights.shape) + 1  # 0 without a batch axis
    layout = operand.layout
    if layout is not None and layout.axis != axis:
        msg = "the input is not (batch, channels, space...)"
        raise NoRuleError(msg)
    transposed = isinstance(op.module, nn.modules.conv._ConvTransposeNd) or op.target in _TRANSPOSED
    into, out = (0, 1) if transposed else (1, 0)
    channels = weights.shape[1] * weights.groups if transposed else weights.shape[0]
    if weights.groups == 1 and weights.count is not None and weights.count.terms:
        msg = "conv_groups follow channels"
        raise NoRuleError(msg)
    if weights.groups == 1:
        if layout is not None:
            flow.parameter(weights.weight, into, layout.positions, reads=True)
        made = flow.fresh(channels, op.path or weights.name)
        flow.parameter(weights.weight, out, made)
    elif layout is None:
        made = _fixed(flow, op, weights, channels)
        if not transposed:
            flow.parameter(weights.weight, 0, made)
    else:
        made = _grouped(flow, op, weights, layout.positions, channels)
    _biased(flow, weights.bias, made)
    return Layout(axis, made)


def _by_rows(flow: Flow, op: Op, weight: Operand) -> Layout:
    """New channels from a weight that forward computes row by row from a parameter: it needs all that a row reads.

    With conv_groups whole groups go, with what they read.
    """
    operand, bias, rank = op.tensor(), _operands(flow, op)[1], len(weight.value)
    if weight.layout is None or weight.layout.axis or op.target in _TRANSPOSED:
        msg = "its weight is computed in forward, and is not one row for each output"
        raise NoRuleError(msg)
    flat = op.target is F.linear
    given = 1 if flat else op.argument(6, "groups", 1)
    ((groups, count),) = numbers(given)
    numbers_plain([o for o in op.operands if not o.is_tensor and o is not given])
    axis = len(operand.value) - (1 if flat else rank - 1)
    if groups > 1 or count.terms:
        made = _whole_groups(flow, op, operand, axis, (groups, count), weight)
    else:
        for positions in operand.touched:
            flow.fix(positions, f"{op.name}: forward computes its weight from all that a row reads")
        made = flow.fresh(weight.value[0], weight.computed.removesuffix(".weight"))
    flow.tie(made, weight.layout.positions)
    _biased(flow, bias, made)
    return Layout(axis, made)


def _whole_groups(
    flow: Flow, op: Op, operand: Operand, axis: int, groups: tuple[int, Count], weight: Operand
) -> NDArray[np.int64]:
    """Returns the positions of what conv_groups make, each of which goes with what it reads."""
    rows, name = weight.value[0], weight.computed.removesuffix(".weight")
    layout = channels_at(operand, axis, "before space")
    if layout is None:
        made = flow.fresh(rows, name)
        flow.fix(made, f"{op.name}: grouped convolution of an input that keeps its channels")
        return made
    lanes = layout.positions.reshape(groups[0], -1)
    for column in lanes.T[1:]:
        flow.tie(lanes[:, 0], column)
    flow.follows(groups[1], lanes[:, 0], op)
    return np.repeat(lanes[:, 0], rows // groups[0])


def _fixed(flow: Flow, op: Op, weights: _Weights, channels: int) -> NDArray[np.int64]:
    """Returns new positions that must stay: conv_groups of an input that does not change."""
    made = flow.fresh(channels, op.path or weights.name)
    flow.fix(made, f"{op.name}: grouped convolution of an input that keeps its channels")
    return made


def _grouped(
    flow: Flow, op: Op, weights: _Weights, positions: NDArray[np.int64], channels: int
) -> NDArray[np.int64]:
    """Returns the output's positions of a convolution with conv_groups > 1.

    Either whole conv groups go, with their inputs and outputs (depthwise convolution is the finest case), or every conv
    group loses the same inputs and, apart from that, the same outputs. Whichever leaves more to choose from.
    """
    transposed = isinstance(op.module, nn.modules.conv._ConvTransposeNd) or op.target in _TRANSPOSED
    lanes = positions.reshape(weights.groups, -1)
    if (
        op.module is None
        and weights.count is not None
        and not weights.count.terms
        and lanes.shape[1] == 1
    ):
        msg = "conv_groups is a number that would not follow the channels"
        raise NoRuleError(msg)
    follows = weights.count is not None and bool(weights.count.terms)
    settable = op.module is not None or flow.stands(weights.count)
    whole = weights.groups >= lanes.shape[1] if settable else follows
    if not whole and flow.stands(weights.count):
        msg = "conv_groups are a number that is written in the network"
        raise NoRuleError(msg)
    if whole:
        for column in lanes.T[1:]:
            flow.tie(lanes[:, 0], column)
        if weights.count is not None:
            flow.follows(weights.count, lanes[:, 0], op)
        else:
            flow.setting(op.path, "groups", lanes[:, 0])
        made = np.repeat(lanes[:, 0], channels // weights.groups)
        flow.parameter(weights.weight, 0, positions if transposed else made)
        return made
    for lane in lanes[1:]:
        flow.tie(lanes[0], lane)
    first = flow.fresh(channels // weights.groups)
    made = flow.fresh(channels, op.path or weights.name)
    flow.tie(np.tile(first, weights.groups), made)
    flow.parameter(weights.weight, 0, positions if transposed else made, reads=transposed)
    flow.parameter(weights.weight, 1, first if transposed else lanes[0], reads=not transposed)
    return made


@rule_for(nn.Linear, F.linear, thorough=True)
def linear(flow: Flow, op: Op) -> Layout | None:
    """New features out; the weight's second axis runs over the input's last axis."""
    if (
        (weight := _operands(flow, op)[0]) is not None
        and weight.parameter is None
        and weight.computed
    ):
        return _by_rows(flow, op, weight)
    operand, weights = op.tensor(), _Weights.of(flow, op)
    layout = channels_at(operand, len(operand.value) - 1, "the last axis")
    if layout is not None:
        flow.parameter(weights.weight, 1, layout.positions, reads=True)
    made = flow.fresh(weights.shape[0], op.path or weights.name)
    flow.parameter(weights.weight, 0, made)
    _biased(flow, weights.bias, made)
    return Layout(len(operand.value) - 1, made)


def _biased(flow: Flow, bias: Operand | None, made: NDArray[np.int64]) -> None:
    """Says that a bias has a number for each output; raises NoRuleError for one in which nothing follows channels."""
    if bias is None:
        return
    if bias.parameter is not None:
        flow.parameter(bias.parameter, 0, made)
    elif bias.layout is not None and len(bias.value) == 1:
        flow.tie(made, bias.layout.positions)
    else:
        msg = f"it computes with {LOOSE}"
        raise NoRuleError(msg)


def count_calls(flow: Flow, op: Op) -> bool:
    """Records the multiply-accumulates of a convolution or linear layer, whether or not it has a rule.

    Returns whether it is one.
    """
    module, source = op.module, op.argument(0, "input")
    is_linear = isinstance(module, nn.Linear) or op.target is F.linear
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) or op.target in _TRANSPOSED
    is_conv = isinstance(module, nn.modules.conv._ConvNd) or op.target in (
        F.conv1d,
        F.conv2d,
        F.conv3d,
    )
    if (
        not op.is_tensor
        or not isinstance(source, Operand)
        or not (is_linear or transposed or is_conv)
    ):
        return False
    weight, bias = _operands(flow, op)
    if weight is None:
        return False
    space = 0 if is_linear else len(weight.value) - 2
    outputs = _places(flow, op.value, space)
    flow.calls.append(
        Call(
            weight=counted_as(flow, weight),
            bias=None if bias is None else counted_as(flow, bias),
            times=_places(flow, source.value, space) if transposed else outputs,
            outputs=outputs,
            scope=op.scope,
            **_sizes(op, source.value, space),
        )
    )
    return True


def counted_as(flow: Flow, weight: Operand) -> str | int:
    """Returns the name of a weight whose elements are all used, or else how many are."""
    elements, name = math.prod(weight.value), weight.parameter or weight.computed
    return str(name) if name and elements == math.prod(flow.sizes[name]) else elements


def _sizes(op: Op, shape: Sequence[int], space: int) -> dict[str, int]:
    """Returns channels, height and width of a layer's input, whose last `space` axes are space, and its stride."""
    height, width = (1, 1, *shape[len(shape) - space :])[-2:]
    stride = 1
    if space:
        stride = op.argument(3, "stride", 1) if op.module is None else op.module.stride
    while isinstance(stride, Operand | tuple | list):
        stride = stride.value if isinstance(stride, Operand) else stride[0]
    in_channels = shape[len(shape) - space - 1]
    return {
        "in_channels": in_channels,
        "height": height,
        "width": width,
        "stride": int(cast("int", stride)),
    }


def _operands(flow: Flow, op: Op) -> tuple[Operand | None, Operand | None]:
    """Returns weight and bias of a convolution or linear layer, module or function."""
    if op.module is None:
        given = op.argument(1, "weight"), op.argument(2, "bias")
    else:
        tensors = cast(
            "tuple[torch.Tensor, torch.Tensor | None]", (op.module.weight, op.module.bias)
        )
        given = tuple(
            t if t is None else Operand(value=t.shape, parameter=flow.canonical.get(id(t)))
            for t in tensors
        )
    weight, bias = (item if isinstance(item, Operand) else None for item in given)
    return weight, bias


def _places(flow: Flow, shape: Sequence[int], space: int) -> int:
    """Returns at how many places per image a layer works on a tensor whose last `space` axes are space.

    A linear layer (space 0) has its features last and works at every other index.
    """
    if space and len(shape) == space + 1:  # no batch axis
        return math.prod(shape[1:])
    total = math.prod(shape) // shape[1 if space else -1]
    return flow.per_image(total)
