"""Operations on single entries, pairs of entries, and windows over space: channels stay where they are."""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.operands import LOOSE, Layout, NoRuleError, Op, Operand
from abcsearch.channels.renormalising import POOLS, kind_of
from abcsearch.channels.rules.table import axes_of, numbers_plain, rule_for, same_channels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from abcsearch.channels.flow import Flow


@rule_for(
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.RReLU,
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Sigmoid,
    ),
    *(
        nn.Tanh,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.Softplus,
        nn.Softsign,
        nn.LogSigmoid,
        nn.Tanhshrink,
    ),
    *(nn.Threshold, nn.Softshrink, nn.Hardshrink, nn.Identity),
    *(
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
    ),
    *(
        F.relu,
        F.relu6,
        F.leaky_relu,
        F.rrelu,
        F.elu,
        F.selu,
        F.celu,
        F.gelu,
        F.silu,
        F.mish,
        F.sigmoid,
        F.tanh,
    ),
    *(
        F.hardswish,
        F.hardsigmoid,
        F.hardtanh,
        F.softplus,
        F.softsign,
        F.logsigmoid,
        F.tanhshrink,
        F.threshold,
    ),
    *(
        F.relu_,
        F.leaky_relu_,
        F.elu_,
        F.hardtanh_,
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        torch.dropout,
    ),
    *(
        torch.relu,
        torch.relu_,
        torch.sigmoid,
        torch.tanh,
        torch.abs,
        torch.exp,
        torch.neg,
        torch.sqrt,
        torch.rsqrt,
    ),
    *(torch.log, torch.square, torch.clamp, torch.clamp_min, torch.clip),
    *(torch.reciprocal, torch.erf, torch.sin, torch.cos, torch.sign),
    *(operator.neg, torch.zeros_like, torch.ones_like, torch.clone),
    *(
        "relu",
        "relu_",
        "sigmoid",
        "sigmoid_",
        "tanh",
        "tanh_",
        "abs",
        "exp",
        "neg",
        "sqrt",
        "rsqrt",
        "log",
        "square",
    ),
    *(
        "clamp",
        "clamp_",
        "clamp_min",
        "clamp_min_",
        "rsqrt_",
        "sqrt_",
        "clip",
        "reciprocal",
        "erf",
        "sin",
        "cos",
        "bernoulli",
        "bernoulli_",
        "fill_",
        "zero_",
        "sign",
    ),
    *(
        "contiguous",
        "clone",
        "detach",
        "data",
        "float",
        "double",
        "half",
        "bfloat16",
        "to",
        "type",
        "cpu",
        "cuda",
    ),
    *("requires_grad_",),
    "torchvision.ops.stochastic_depth.stochastic_depth",
)
def elementwise(flow: Flow, op: Op) -> Layout | None:
    """Every entry is mapped on its own."""
    operand = op.tensor()
    return same_channels(operand, op)


@rule_for(
    *(
        nn.MaxPool1d,
        nn.MaxPool2d,
        nn.MaxPool3d,
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.AvgPool3d,
        nn.LPPool1d,
        nn.LPPool2d,
    ),
    *(
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveAvgPool3d,
        nn.AdaptiveMaxPool1d,
        nn.AdaptiveMaxPool2d,
    ),
    *(
        F.max_pool1d,
        F.max_pool2d,
        F.max_pool3d,
        F.avg_pool1d,
        F.avg_pool2d,
        F.avg_pool3d,
        F.lp_pool2d,
    ),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d),
    *(F.adaptive_max_pool2d, torch.max_pool2d, torch.avg_pool1d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate, F.upsample),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
)
def pooling(flow: Flow, op: Op) -> Layout | None:
    """Windows over space, each channel on its own. The input has a batch axis and channels at axis 1."""
    operand = op.tensor()
    layout, rank = operand.layout, len(operand.value)
    if layout is None:
        return None
    if rank < 3 or layout.axis not in (0, rank - _space(op, operand) - 1):
        msg = "the input is not (batch, channels, space...)"
        raise NoRuleError(msg)
    return same_channels(operand, op)


def _space(op: Op, operand: Operand) -> int:
    """Returns over how many axes the operation's window runs, read off its name ("...2d")."""
    name = type(op.module).__name__ if op.module is not None else getattr(op.target, "__name__", "")
    return int(name[-2]) if name[-1:] == "d" and name[-2].isdigit() else len(operand.value) - 2


@rule_for(operator.add, operator.iadd, torch.add, "add", "add_", thorough=True)
def addition(flow: Flow, op: Op) -> Layout | None:
    """Both sides lose the same channels: this is what couples the residual stream of a stage."""
    return _pairwise(flow, op, residual=True)


@rule_for(
    *(
        operator.sub,
        operator.isub,
        operator.mul,
        operator.imul,
        operator.truediv,
        operator.itruediv,
        operator.pow,
    ),
    *(
        operator.gt,
        operator.lt,
        operator.ge,
        operator.le,
        operator.eq,
        operator.ne,
        operator.and_,
        operator.or_,
    ),
    *(
        torch.sub,
        torch.mul,
        torch.div,
        torch.pow,
        torch.maximum,
        torch.minimum,
        torch.where,
        torch.lerp,
    ),
    *(torch.gt, torch.lt, torch.ge, torch.le, torch.addcmul),
    *(
        "sub",
        "sub_",
        "mul",
        "mul_",
        "div",
        "div_",
        "pow",
        "gt",
        "lt",
        "ge",
        "le",
        "where",
        "maximum",
        "minimum",
    ),
    *("masked_fill", "masked_fill_", "lerp"),
    thorough=True,
)
def pairwise(flow: Flow, op: Op) -> Layout | None:
    """Entry by entry: all tensors lose the same channels."""
    return _pairwise(flow, op, residual=False)


@rule_for("type_as", thorough=True)
def typed(flow: Flow, op: Op) -> Layout | None:
    """Of the other tensor only the type is read: it may have any shape and any channels."""
    return same_channels(op.tensor(), op)


def _pairwise(flow: Flow, op: Op, *, residual: bool) -> Layout | None:
    """Ties the channels of tensors that are broadcast against each other; a number changes nothing."""
    tensors = [operand for operand in op.operands if operand.is_tensor]
    numbers_plain(
        [
            operand
            for operand in op.operands
            if not operand.is_tensor or operand is op.kwargs.get("out")
        ]
    )
    rank = len(op.value)
    # Broadcasting aligns the last axes.
    axes = {t.layout.axis + rank - len(t.value) for t in tensors if t.layout is not None}
    if len(axes) > 1:
        msg = "the two sides have their channels at different axes"
        raise NoRuleError(msg)
    if not axes:
        return None
    (axis,) = axes
    widest = max((t.layout.positions for t in tensors if t.layout is not None), key=len)
    if len(widest) != op.value[axis]:
        msg = "a single channel is broadcast over others"
        raise NoRuleError(msg)
    for tensor in tensors:
        _meet(flow, op, tensor, axis - rank, widest, residual=residual)
    return Layout(axis, widest)


def _meet(
    flow: Flow, op: Op, tensor: Operand, axis: int, channels: NDArray[np.int64], *, residual: bool
) -> None:
    """Says what it means for one of the tensors that it meets channels at its axis (counted from the end)."""
    length = tensor.value[axis] if len(tensor.value) >= -axis else 1
    if tensor.layout is not None and length == len(channels):
        flow.tie(channels, tensor.layout.positions, residual=residual)
    elif tensor.layout is not None:
        flow.fix(tensor.layout.positions, "a single channel that is broadcast over others")
    elif length == len(channels) > 1:
        broadcast_parameter(flow, tensor, axis + len(tensor.value), channels, op)


def broadcast_parameter(
    flow: Flow, tensor: Operand, axis: int, positions: NDArray[np.int64], op: Op
) -> None:
    """Registers a parameter that meets channels at one of its axes; any other tensor without channels fixes them."""
    if tensor.parameter is not None:
        flow.parameter(tensor.parameter, axis, positions)
        return
    reason = f"{op.name}: combined with {tensor.why}"
    flow.fix(positions, reason)
    if tensor.why.startswith(LOOSE):
        flow.problem(reason, [positions], parameters=False)


@rule_for("expand_as", thorough=True)
def alike(flow: Flow, op: Op) -> Layout | None:
    """Is repeated along axes of size 1 to the shape of another tensor: both lose the same channels."""
    operand, other = op.tensor(), op.tensor(1, "other")
    layout = operand.layout
    if layout is None and other.layout is None:
        return None
    if (
        layout is None
        or other.layout is None
        or layout.axis != other.layout.axis
        or len(operand.value) != len(other.value)
        or len(layout.positions) != len(other.layout.positions)
    ):
        msg = "the two tensors have their channels at different axes, or only one has channels"
        raise NoRuleError(msg)
    flow.tie(layout.positions, other.layout.positions)
    return same_channels(operand, op)


@rule_for(
    *(
        torch.mean,
        torch.sum,
        torch.amax,
        torch.amin,
        torch.prod,
        torch.std,
        torch.var,
        torch.norm,
        torch.logsumexp,
    ),
    torch.linalg.vector_norm,
    *("mean", "sum", "amax", "amin", "prod", "std", "var", "norm", "logsumexp"),
)
def reduction(flow: Flow, op: Op) -> Layout | None:
    """Reduces axes that are not the channels'; or all channels to what they have in common, as norms do.

    That is a number per place, from which an operation on single entries goes back to the same channels.
    """
    operand = op.tensor()
    layout, rank = operand.layout, len(operand.value)
    pools = kind_of(op.target) in POOLS and op.is_tensor and len(op.value) == rank
    if layout is None or not pools or layout.axis not in (_reduced_axes(op) or ()):
        return reduced(op)
    if operand.computed:
        msg = "it reduces rows of a weight"
        raise NoRuleError(msg)
    if kind_of(op.target) in ("var", "std"):
        whole = op.plain(2, "unbiased") is False or op.plain(len(op.args), "correction") == 0
        if not whole:
            msg = (
                "of a single channel that is left it would not be a number (unbiased=False has one)"
            )
            raise NoRuleError(msg)
    flow.norms.pool(op, layout.axis, layout.positions)
    return None


def _reduced_axes(op: Op) -> list[int]:
    """Returns the axes over which an operation reduces its input."""
    position = (
        2 if getattr(op.target, "__name__", op.target) in ("norm", "linalg_vector_norm") else 1
    )
    return axes_of(
        op.plain(position, "dim", op.plain(len(op.args), "axis")), len(op.tensor().value)
    )


def reduced(op: Op) -> Layout | None:
    """Returns the layout behind a reduction of other axes than the channels'."""
    operand = op.tensor()
    layout, rank = operand.layout, len(operand.value)
    if layout is None:
        return None
    axes = _reduced_axes(op)
    if not axes or layout.axis in axes:
        msg = "it reduces the channels"
        raise NoRuleError(msg)
    gone = 0 if len(op.value) == rank else sum(axis < layout.axis for axis in axes)
    return Layout(layout.axis - gone, layout.positions)


@rule_for(torch.max, torch.min, "max", "min", thorough=True)
def extremum(flow: Flow, op: Op) -> Layout | Sequence[Layout | None] | None:
    """The largest entries along an axis that is not the channels', and where they are; or entry by entry."""
    if isinstance(op.argument(1, "other"), Operand):
        return _pairwise(flow, op, residual=False)
    numbers_plain(op.operands[1:])
    if op.is_tensor:
        return reduced(op)
    layout = reduced(dataclasses.replace(op, value=op.value[0]))
    return [layout, layout]


@rule_for(nn.Softmax, nn.LogSoftmax, nn.Softmin, F.softmax, F.log_softmax, F.softmin)
@rule_for(
    torch.softmax,
    torch.log_softmax,
    torch.cumsum,
    torch.roll,
    "roll",
    "softmax",
    "log_softmax",
    "cumsum",
)
def along(flow: Flow, op: Op) -> Layout | None:
    """Works along one axis: the channels stay where they are if it is another one."""
    operand = op.tensor()
    layout = operand.layout
    if layout is None:
        return None
    position = 2 if op.target in (torch.roll, "roll") else 1
    dim = (
        op.plain(position, "dim", op.kwargs.get("dims"))
        if op.module is None
        else getattr(op.module, "dim", None)
    )
    if layout.axis in axes_of(dim, len(operand.value)):
        msg = "it mixes the channels"
        raise NoRuleError(msg)
    return same_channels(operand, op)


@rule_for(nn.PReLU, F.prelu, torch.prelu, thorough=True)
def prelu(flow: Flow, op: Op) -> Layout | None:
    """One slope for all channels, or one per channel (at axis 1)."""
    operand = op.tensor()
    layout = operand.layout
    if isinstance(op.module, nn.PReLU):
        slopes, name = op.module.weight.numel(), op.module.weight
    else:
        slope = op.tensor(1, "weight")
        slopes, name = slope.value.numel(), slope.parameter
        if slope.layout is not None and (name is None or layout is None):
            msg = "its slopes follow channels"
            raise NoRuleError(msg)
    if layout is None or slopes == 1:
        return same_channels(operand, op)
    if layout.axis != min(1, len(operand.value) - 1) or name is None:
        msg = "the input does not have its channels at axis 1, or the slopes are no parameter"
        raise NoRuleError(msg)
    flow.parameter(name, 0, layout.positions)
    return same_channels(operand, op)
