"""Normalisation: channel by channel, by groups of channels, and over all channels: those that are left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.operands import LOOSE, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.pointwise import broadcast_parameter
from abcsearch.channels.rules.table import (
    axes_of,
    channels_at,
    numbers,
    numbers_plain,
    rule_for,
    same_channels,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from abcsearch.channels.flow import Flow


@rule_for(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@rule_for(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def channel_norm(flow: Flow, op: Op) -> Layout | None:
    """Each channel is normalised on its own; weight, bias and running statistics run over the channels."""
    operand, norm = op.tensor(), op.module
    if not isinstance(norm, nn.modules.batchnorm._NormBase):
        raise NoRuleError(type(norm).__name__)
    instance = isinstance(norm, nn.modules.instancenorm._InstanceNorm)
    tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    behind = _channel_norm(flow, op, operand, tensors, batched=not instance)
    if behind is not None and instance:  # it compares, also without parameters
        flow.setting(op.path, "num_features", behind.positions)
    return behind


@rule_for(F.batch_norm, F.instance_norm, torch.batch_norm, thorough=True)
def channel_norm_function(flow: Flow, op: Op) -> Layout | None:
    """Likewise, with the parameters as arguments."""
    operand = op.tensor()
    tensors = [
        op.argument(i + 1, name)
        for i, name in enumerate(("running_mean", "running_var", "weight", "bias"))
    ]
    given = [t for t in tensors if isinstance(t, Operand)]
    if any(t.parameter is None and not t.computed for t in given):
        msg = f"it computes with {LOOSE}"
        raise NoRuleError(msg)
    numbers_plain([o for o in op.operands if not o.is_tensor])
    for scale in given:
        if scale.parameter is None and operand.layout is not None:
            _scales(flow, op, scale, 0, operand.layout.positions)
    names = [t.parameter for t in given if t.parameter is not None]
    return _channel_norm(flow, op, operand, names, batched=True)


def _channel_norm(
    flow: Flow, op: Op, operand: Operand, tensors: list[Any], *, batched: bool
) -> Layout | None:
    """Registers the parameters of a norm that looks at each channel alone."""
    unbatched = (
        not batched and op.module is not None and len(operand.value) == _space(op.module) + 1
    )
    layout = channels_at(operand, 0 if unbatched else 1, "at axis 1")
    if layout is not None:
        for tensor in tensors:
            flow.parameter(tensor, 0, layout.positions)
    return same_channels(operand, op)


def _space(module: nn.Module) -> int:
    """Returns the number of axes of space that a layer is for ("...2d")."""
    return int(type(module).__name__[-2])


@rule_for(nn.GroupNorm)
def group_norm(flow: Flow, op: Op) -> Layout | None:
    """Channels are normalised together with their group: whole groups go; of a single one, any channels do."""
    operand, norm = op.tensor(), op.module
    layout = channels_at(operand, 1, "at axis 1")
    if layout is None:
        return None
    if not isinstance(norm, nn.GroupNorm):
        raise NoRuleError(type(norm).__name__)
    if norm.num_groups == 1:
        flow.norms.over(op, layout.axis, layout.positions)
    else:
        lanes = layout.positions.reshape(norm.num_groups, -1)
        for column in lanes.T[1:]:
            flow.tie(lanes[:, 0], column)
        flow.setting(op.path, "num_groups", lanes[:, 0])
    for tensor in (norm.weight, norm.bias):
        flow.parameter(tensor, 0, layout.positions)
    flow.setting(op.path, "num_channels", layout.positions)
    return same_channels(operand, op)


@rule_for(F.group_norm, torch.group_norm, thorough=True)
def group_norm_function(flow: Flow, op: Op) -> Layout | None:
    """Likewise, with a single group: a number of groups that is written in forward would not follow."""
    operand = op.tensor()
    groups = op.plain(1, "num_groups")
    numbers_plain([o for o in op.operands if not o.is_tensor])
    layout = channels_at(operand, 1, "at axis 1")
    if layout is None:
        return None
    if groups != 1:
        msg = f"it normalises over {groups} groups of channels, a number that is written in forward"
        raise NoRuleError(msg)
    flow.norms.over(op, layout.axis, layout.positions)
    for scale in op.operands[1:]:
        if scale.is_tensor:
            _scales(flow, op, scale, 0, layout.positions)
    return same_channels(operand, op)


@rule_for(nn.LayerNorm, nn.RMSNorm)
def layer_norm(flow: Flow, op: Op) -> Layout | None:
    """Normalises over the last axes; channels at another axis stay where they are."""
    operand, norm = op.tensor(), op.module
    layout = operand.layout
    if not isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        raise NoRuleError(type(norm).__name__)
    axis = -1 if layout is None else layout.axis - len(operand.value) + len(norm.normalized_shape)
    if layout is not None and axis >= 0:
        flow.norms.over(op, layout.axis, layout.positions)
        for tensor in (norm.weight, getattr(norm, "bias", None)):
            flow.parameter(tensor, axis, layout.positions)
        flow.setting(op.path, "normalized_shape", layout.positions, axis)
    return same_channels(operand, op)


@rule_for(F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm, thorough=True)
def layer_norm_function(flow: Flow, op: Op) -> Layout | None:
    """Likewise, with the parameters and the shape as arguments."""
    operand, shape = op.tensor(), op.argument(1, "normalized_shape")
    layout, sizes = operand.layout, numbers(shape)
    tensors = [o for o in op.operands if o.is_tensor and o is not operand]
    axis = -1 if layout is None else layout.axis - len(operand.value) + len(sizes)
    if layout is not None and axis >= 0:
        others = [count for index, (_, count) in enumerate(sizes) if index != axis]
        if any(count.terms for count in others):
            msg = "its shape follows channels elsewhere"
            raise NoRuleError(msg)
        flow.norms.over(op, layout.axis, layout.positions)
        flow.follows(sizes[axis][1], layout.positions, op)
        for scale in tensors:
            _scales(flow, op, scale, axis, layout.positions)
        return same_channels(operand, op)
    numbers_plain([o for o in op.operands if not o.is_tensor])
    for scale in tensors:  # they run over the normalised axes, not over channels
        for positions in scale.touched:
            flow.fix(positions, f"{op.name}: {scale.why} runs over normalised axes")
    return same_channels(operand, op)


def _scales(flow: Flow, op: Op, scale: Operand, axis: int, positions: NDArray[np.int64]) -> None:
    """Says that a tensor scales, or shifts, channels along one of its axes."""
    if scale.layout is None:
        broadcast_parameter(flow, scale, axis, positions, op)
    elif scale.layout.axis == axis and len(scale.layout.positions) == len(positions):
        flow.tie(scale.layout.positions, positions)
    else:
        msg = f"{scale.why or 'what scales'} has its channels at another axis"
        raise NoRuleError(msg)


@rule_for(nn.LocalResponseNorm, F.local_response_norm)
def local_response_norm(flow: Flow, op: Op) -> Layout | None:
    """Divides by neighbouring channels, those that are left; with windows of one channel, each is on its own."""
    operand = op.tensor()
    size = op.module.size if isinstance(op.module, nn.LocalResponseNorm) else op.plain(1, "size")
    layout = channels_at(operand, 1, "at axis 1")
    if layout is not None and size != 1:
        flow.norms.over(
            op, layout.axis, layout.positions, "it normalises over neighbouring channels"
        )
    return same_channels(operand, op)


@rule_for(F.normalize)
def normalize(flow: Flow, op: Op) -> Layout | None:
    """Divides by the norm along one axis."""
    operand = op.tensor()
    layout = operand.layout
    if layout is not None and layout.axis in axes_of(op.plain(2, "dim", 1), len(operand.value)):
        flow.norms.over(op, layout.axis, layout.positions)
    return same_channels(operand, op)
