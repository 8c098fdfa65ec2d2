"""Attention: its heads are units, which go whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.operands import Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import numbers_plain, rule_for
from abcsearch.channels.uses import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.flow import Flow


@rule_for(nn.MultiheadAttention, thorough=True)
def attention(flow: Flow, op: Op) -> Sequence[Layout | None]:
    """Heads go whole, and with each of them as many of the channels that come in: the layer wants equally many of both.

    Which channels go with which head is a convention: the first ones with the first.
    """
    layer, inputs = op.module, _inputs(op)
    if (
        not isinstance(layer, nn.MultiheadAttention)
        or not layer._qkv_same_embed_dim
        or layer.bias_k is not None
    ):
        msg = "only attention whose inputs have the same channels, without bias_kv, is covered"
        raise NoRuleError(msg)
    layouts = [operand.layout for operand in inputs]
    if any(layout is None or layout.axis != len(inputs[0].value) - 1 for layout in layouts):
        msg = "not all of its inputs have channels at the last axis"
        raise NoRuleError(msg)
    others = [o for o in op.operands if not any(o is operand for operand in inputs)]
    numbers_plain([o for o in others if not o.is_tensor])
    if any(o.layout is not None for o in others):
        msg = "its mask follows channels"
        raise NoRuleError(msg)
    (embedded, *_) = [layout.positions for layout in layouts if layout is not None]
    heads = _heads(flow, embedded, layer.num_heads)
    units = np.repeat(heads, len(embedded) // layer.num_heads)
    for layout in layouts:
        flow.parameter(
            layer.in_proj_weight,
            1,
            layout.positions if layout is not None else embedded,
            reads=True,
        )
    for tensor in (layer.in_proj_weight, layer.in_proj_bias):
        flow.parameter(tensor, 0, np.tile(units, 3))
    flow.parameter(layer.out_proj.weight, 1, units, reads=True)
    made = flow.fresh(len(embedded), f"{op.path}.out_proj")
    for tensor in (layer.out_proj.weight, layer.out_proj.bias):
        flow.parameter(tensor, 0, made)
    for name in ("embed_dim", "kdim", "vdim"):
        flow.setting(op.path, name, embedded)
    flow.setting(op.path, "num_heads", heads)
    return [Layout(len(op.value[0]) - 1, made), *[None] * (len(op.value) - 1)]


def _inputs(op: Op) -> list[Operand]:
    """Returns query, key and value."""
    return [op.tensor(index, name) for index, name in enumerate(("query", "key", "value"))]


def _heads(flow: Flow, channels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Ties the channels of every head; returns one of each."""
    lanes = channels.reshape(count, -1)
    for column in lanes.T[1:]:
        flow.tie(lanes[:, 0], column)
    return lanes[:, 0].copy()


def count_attention(flow: Flow, op: Op) -> bool:
    """Records the multiply-accumulates of an attention layer's projections; returns whether it is one."""
    layer = op.module
    if not isinstance(layer, nn.MultiheadAttention) or not layer._qkv_same_embed_dim:
        return False
    lengths = [_length(flow, operand.value) for operand in _inputs(op)]
    pairs = [(layer.in_proj_weight, layer.in_proj_bias, sum(lengths) / 3)]
    pairs += [(layer.out_proj.weight, layer.out_proj.bias, lengths[0])]
    for weight, bias, times in pairs:
        names = [
            None if tensor is None else flow.canonical[id(tensor)] for tensor in (weight, bias)
        ]
        flow.calls.append(
            Call(
                weight=str(names[0]),
                bias=names[1],
                times=times,
                outputs=times,
                scope=op.scope,
                in_channels=layer.embed_dim,
            )
        )
    return True


def _length(flow: Flow, shape: Sequence[int]) -> int:
    """Returns how many tokens an image has."""
    total = math.prod(shape[:-1])
    return total // flow.batch if total % flow.batch == 0 else total


@rule_for(F.scaled_dot_product_attention, thorough=True)
def dot_products(flow: Flow, op: Op) -> Layout | None:
    """Heads, and whatever comes before tokens, pass; so do the channels of the values."""
    tensors, flow.attends = _inputs(op), True
    rank = len(op.value)
    numbers_plain([o for o in op.operands if not o.is_tensor])
    carriers = [operand for operand in op.operands if operand.layout is not None]
    layouts = [operand.layout for operand in carriers if operand.layout is not None]
    if not layouts:
        return None
    if len(carriers) == 1 and carriers[0] is tensors[2] and layouts[0].axis == rank - 1:
        return layouts[0]
    axes = {o.layout.axis - len(o.value) for o in op.operands if o.layout is not None}
    if len(axes) > 1 or not axes <= set(range(-rank, -2)):
        msg = "it sums over channels without a weight of its own for each, or over tokens that follow them"
        raise NoRuleError(msg)
    (axis,) = axes
    heads = layouts[0].positions
    for operand in op.operands:
        length = operand.value[axis] if operand.is_tensor and len(operand.value) >= -axis else 1
        if operand.layout is not None and len(operand.layout.positions) == len(heads):
            flow.tie(heads, operand.layout.positions)
        elif operand.layout is not None:
            msg = "its inputs have different numbers of heads"
            raise NoRuleError(msg)
        elif length > 1:
            flow.fix(heads, f"{op.name}: combined with {operand.why}")
    return Layout(rank + axis, heads)
