"""Layers with weights: convolutions, linear layers, normalisation; and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.flow import Flow
from abcsearch.channels.operands import LOOSE, Count, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import channels_at, numbers, numbers_plain, rule_for, same_channels
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
        bias: canonical name, or None.
        groups: conv_groups.
        count: how conv_groups follow channels where forward gives the number; None for a module, where slicing sets it.
    """

    weight: str
    shape: tuple[int, ...]
    bias: str | None
    groups: int
    count: Count | None

    @classmethod
    def of(cls, flow: Flow, op: Op) -> _Weights:
        """Reads them off an operation; raises NoRuleError for a weight that is computed in forward."""
        weight, bias = _operands(flow, op)
        if weight is None or weight.parameter is None or (bias is not None and bias.parameter is None):
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
            bias=None if bias is None else bias.parameter,
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
    operand, own = op.tensor(), _Weights.of(flow, op)
    axis = len(operand.value) - len(own.shape) + 1  # 0 without a batch axis
    layout = operand.layout
    if layout is not None and layout.axis != axis:
        msg = "the input is not (batch, channels, space...)"
        raise NoRuleError(msg)
    transposed = isinstance(op.module, nn.modules.conv._ConvTransposeNd) or op.target in _TRANSPOSED
    into, out = (0, 1) if transposed else (1, 0)
    channels = own.shape[1] * own.groups if transposed else own.shape[0]
    if own.groups == 1 and own.count is not None and own.count.terms:
        msg = "conv_groups follow channels"
        raise NoRuleError(msg)
    if own.groups == 1:
        if layout is not None:
            flow.parameter(own.weight, into, layout.positions, reads=True)
        found = flow.fresh(channels, op.path or own.name)
        flow.parameter(own.weight, out, found)
    elif layout is None:
        found = _fixed(flow, op, own, channels)
        if not transposed:
            flow.parameter(own.weight, 0, found)
    else:
        found = _grouped(flow, op, own, layout.positions, channels)
    flow.parameter(own.bias, 0, found)
    return Layout(axis, found)


def _fixed(flow: Flow, op: Op, own: _Weights, channels: int) -> NDArray[np.int64]:
    """Returns new positions that must stay: conv_groups of an input that does not change."""
    found = flow.fresh(channels, op.path or own.name)
    flow.fix(found, f"{op.name}: grouped convolution of an input that keeps its channels")
    return found


def _grouped(flow: Flow, op: Op, own: _Weights, positions: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """Returns the output's positions of a convolution with conv_groups > 1.

    Either whole conv groups go, with their inputs and outputs (depthwise convolution is the finest case), or every conv
    group loses the same inputs and, apart from that, the same outputs. Whichever leaves more to choose from.
    """
    transposed = isinstance(op.module, nn.modules.conv._ConvTransposeNd) or op.target in _TRANSPOSED
    lanes = positions.reshape(own.groups, -1)
    if op.module is None and own.count is not None and not own.count.terms and lanes.shape[1] == 1:
        msg = "conv_groups is a number that would not follow the channels"
        raise NoRuleError(msg)
    follows = own.count is not None and bool(own.count.terms)
    settable = op.module is not None or flow.stands(own.count)
    whole = own.groups >= lanes.shape[1] if settable else follows
    if not whole and flow.stands(own.count):
        msg = "conv_groups are a number that is written in the network"
        raise NoRuleError(msg)
    if whole:
        for column in lanes.T[1:]:
            flow.tie(lanes[:, 0], column)
        if own.count is not None:
            flow.follows(own.count, lanes[:, 0], op)
        else:
            flow.setting(op.path, "groups", lanes[:, 0])
        found = np.repeat(lanes[:, 0], channels // own.groups)
        flow.parameter(own.weight, 0, positions if transposed else found)
        return found
    for lane in lanes[1:]:
        flow.tie(lanes[0], lane)
    first = flow.fresh(channels // own.groups)
    found = flow.fresh(channels, op.path or own.name)
    flow.tie(np.tile(first, own.groups), found)
    flow.parameter(own.weight, 0, positions if transposed else found, reads=transposed)
    flow.parameter(own.weight, 1, first if transposed else lanes[0], reads=not transposed)
    return found


@rule_for(nn.Linear, F.linear, thorough=True)
def linear(flow: Flow, op: Op) -> Layout | None:
    """New features out; the weight's second axis runs over the input's last axis."""
    operand, own = op.tensor(), _Weights.of(flow, op)
    layout = channels_at(operand, len(operand.value) - 1, "the last axis")
    if layout is not None:
        flow.parameter(own.weight, 1, layout.positions, reads=True)
    found = flow.fresh(own.shape[0], op.path or own.name)
    flow.parameter(own.weight, 0, found)
    flow.parameter(own.bias, 0, found)
    return Layout(len(operand.value) - 1, found)


@rule_for(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@rule_for(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def channel_norm(flow: Flow, op: Op) -> Layout | None:
    """Each channel is normalised on its own; weight, bias and running statistics run over the channels."""
    operand, norm = op.tensor(), op.module
    if not isinstance(norm, nn.modules.batchnorm._NormBase):
        raise NoRuleError(type(norm).__name__)
    instance = isinstance(norm, nn.modules.instancenorm._InstanceNorm)
    tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    found = _channel_norm(flow, op, operand, tensors, batched=not instance)
    if found is not None and instance:  # it compares, also without parameters
        flow.setting(op.path, "num_features", found.positions)
    return found


@rule_for(F.batch_norm, F.instance_norm, torch.batch_norm, thorough=True)
def channel_norm_function(flow: Flow, op: Op) -> Layout | None:
    """Likewise, with the parameters as arguments."""
    operand = op.tensor()
    tensors = [op.argument(i + 1, name) for i, name in enumerate(("running_mean", "running_var", "weight", "bias"))]
    if any(isinstance(t, Operand) and t.parameter is None for t in tensors):
        msg = f"it computes with {LOOSE}"
        raise NoRuleError(msg)
    numbers_plain([o for o in op.operands if not o.is_tensor])
    names = [t.parameter for t in tensors if isinstance(t, Operand)]
    return _channel_norm(flow, op, operand, names, batched=True)


def _channel_norm(flow: Flow, op: Op, operand: Operand, tensors: list[Any], *, batched: bool) -> Layout | None:
    """Registers the parameters of a norm that looks at each channel alone."""
    unbatched = not batched and op.module is not None and len(operand.value) == _space(op.module) + 1
    layout = channels_at(operand, 0 if unbatched else 1, "at axis 1")
    if layout is not None:
        for tensor in tensors:
            flow.parameter(tensor, 0, layout.positions)
    return same_channels(operand, op)


def _space(module: nn.Module) -> int:
    """Returns the number of axes of space that a layer is for ("...2d")."""
    return int(type(module).__name__[-2])


@rule_for(nn.GroupNorm, F.group_norm, thorough=True)
def group_norm(flow: Flow, op: Op) -> Layout | None:
    """Channels are normalised together with their group: whole groups go (never part of one, that would be inexact)."""
    operand, norm = op.tensor(), op.module
    layout = channels_at(operand, 1, "at axis 1")
    if layout is None:
        return None
    if not isinstance(norm, nn.GroupNorm) or norm.num_groups == 1:
        msg = "it normalises over channels together"
        raise NoRuleError(msg)
    lanes = layout.positions.reshape(norm.num_groups, -1)
    for column in lanes.T[1:]:
        flow.tie(lanes[:, 0], column)
    for tensor in (norm.weight, norm.bias):
        flow.parameter(tensor, 0, layout.positions)
    flow.setting(op.path, "num_groups", lanes[:, 0])
    flow.setting(op.path, "num_channels", layout.positions)
    return same_channels(operand, op)


@rule_for(nn.LayerNorm, F.layer_norm, nn.RMSNorm, thorough=True)
def layer_norm(flow: Flow, op: Op) -> Layout | None:
    """Normalises over the last axes; channels at another axis stay where they are."""
    operand = op.tensor()
    shape = op.module.normalized_shape if op.module is not None else op.plain(1, "normalized_shape")
    layout = operand.layout
    numbers_plain([o for o in op.operands[1:] if not o.is_tensor])
    if layout is not None and layout.axis >= len(operand.value) - len(cast("tuple[int, ...]", shape)):
        msg = "it normalises over channels together"
        raise NoRuleError(msg)
    for scale in op.operands[1:]:  # they run over the normalised axes, not over channels
        for positions in scale.touched:
            flow.fix(positions, f"{op.name}: {scale.why} runs over normalised axes")
    return same_channels(operand, op)


@rule_for(nn.LocalResponseNorm, F.local_response_norm)
def local_response_norm(flow: Flow, op: Op) -> Layout | None:
    """Divides by neighbouring channels: with windows of one channel, each is on its own."""
    operand = op.tensor()
    size = op.module.size if isinstance(op.module, nn.LocalResponseNorm) else op.plain(1, "size")
    if operand.layout is not None and size != 1:
        msg = "it normalises over neighbouring channels"
        raise NoRuleError(msg)
    return same_channels(operand, op)


def count_calls(flow: Flow, op: Op) -> bool:
    """Records the multiply-accumulates of a convolution or linear layer, whether or not it has a rule.

    Returns whether it is one.
    """
    module, source = op.module, op.argument(0, "input")
    is_linear = isinstance(module, nn.Linear) or op.target is F.linear
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) or op.target in _TRANSPOSED
    is_conv = isinstance(module, nn.modules.conv._ConvNd) or op.target in (F.conv1d, F.conv2d, F.conv3d)
    if not op.is_tensor or not isinstance(source, Operand) or not (is_linear or transposed or is_conv):
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
    elements = math.prod(weight.value)
    whole = weight.parameter is not None and elements == math.prod(flow.sizes[weight.parameter])
    return str(weight.parameter) if whole else elements


def _sizes(op: Op, shape: Sequence[int], space: int) -> dict[str, int]:
    """Returns channels, height and width of a layer's input, whose last `space` axes are space, and its stride."""
    height, width = (1, 1, *shape[len(shape) - space :])[-2:]
    stride = 1
    if space:
        stride = op.argument(3, "stride", 1) if op.module is None else op.module.stride
    while isinstance(stride, Operand | tuple | list):
        stride = stride.value if isinstance(stride, Operand) else stride[0]
    in_channels = shape[len(shape) - space - 1]
    return {"in_channels": in_channels, "height": height, "width": width, "stride": int(cast("int", stride))}


def _operands(flow: Flow, op: Op) -> tuple[Operand | None, Operand | None]:
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
    return flow.per_image(total)
