"""Recurrent layers: what they read, and their hidden size, whose gates lose the same channels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from abcsearch.channels.operands import Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import channels_at, rule_for
from abcsearch.channels.uses import Call

if TYPE_CHECKING:
    from abcsearch.channels.flow import Flow


@rule_for(nn.LSTM, nn.GRU, nn.RNN, thorough=True)
def recurrent(flow: Flow, op: Op) -> Any:  # noqa: ANN401 - layouts as LSTM nests its results
    """The input's last axis is read; all gates, layers and directions have the same hidden channels.

    There is one number for the hidden size of all layers, so they lose the same channels.
    """
    layer, operand = op.module, op.argument(0, "input")
    if (
        not isinstance(layer, nn.RNNBase)
        or not isinstance(operand, Operand)
        or not operand.is_tensor
    ):
        msg = "its input is no tensor"
        raise NoRuleError(msg)
    if layer.proj_size:
        msg = "it projects its hidden state"
        raise NoRuleError(msg)
    layout = channels_at(operand, len(operand.value) - 1, "the last axis")
    hidden = flow.fresh(layer.hidden_size, op.path)
    several = np.tile(hidden, 2 if layer.bidirectional else 1)
    for name, weight in layer.named_parameters():
        flow.parameter(weight, 0, np.tile(hidden, len(weight) // len(hidden)))
        read = hidden if name.startswith("weight_hh") else several
        if name.startswith("weight_ih_l0"):
            read = None if layout is None else layout.positions
        if name.startswith("weight") and read is not None:
            flow.parameter(weight, 1, read, reads=True)
    flow.setting(op.path, "hidden_size", hidden)
    if layout is not None:
        flow.setting(op.path, "input_size", layout.positions)
    _begin(flow, op, hidden)
    last, end = len(operand.value) - 1, Layout(len(operand.value) - 1, hidden)
    return [Layout(last, several), [end, end] if isinstance(layer, nn.LSTM) else end]


def _begin(flow: Flow, op: Op, hidden: Any) -> None:  # noqa: ANN401 - positions
    """Says what the states are that forward begins with."""
    for state in op.operands:
        if state is op.argument(0, "input") or not state.is_tensor:
            continue
        if state.layout is None:
            flow.fix(hidden, f"{op.name}: it begins with {state.why}")
        elif state.layout.axis == len(state.value) - 1:
            flow.tie(state.layout.positions, hidden)
        else:
            msg = "the states that it begins with have their channels at another axis"
            raise NoRuleError(msg)


def count_recurrent(flow: Flow, op: Op) -> bool:
    """Records the multiply-accumulates of a recurrent layer, of every step; returns whether it is one."""
    layer, operand = op.module, op.argument(0, "input")
    if (
        not isinstance(layer, nn.LSTM | nn.GRU | nn.RNN)
        or not isinstance(operand, Operand)
        or not operand.is_tensor
    ):
        return False
    steps = math.prod(operand.value[:-1])
    steps = steps // flow.batch if steps % flow.batch == 0 else steps
    names = {name: flow.canonical[id(parameter)] for name, parameter in layer.named_parameters()}
    for name, weight in names.items():
        if name.startswith("weight"):
            bias = (
                names.get(name.replace("weight", "bias"))
                if name.partition("_")[2][:2] != "hr"
                else None
            )
            size = flow.sizes[weight][1]
            flow.calls.append(
                Call(
                    weight=weight,
                    bias=bias,
                    times=steps,
                    outputs=steps,
                    scope=op.scope,
                    in_channels=size,
                )
            )
    return True
