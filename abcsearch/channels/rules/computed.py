"""Weights that forward computes from a parameter: rows of it, each on its own, as standardised weights are."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from abcsearch.channels.operands import Layout, NoRuleError, Op, Operand, View
from abcsearch.channels.rules.movement import view, view_as
from abcsearch.channels.rules.norms import channel_norm_function
from abcsearch.channels.rules.pointwise import addition, elementwise, pairwise, reduced, reduction
from abcsearch.channels.rules.table import rule_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.channels.flow import Flow
    from abcsearch.channels.rules.table import Rule


@rule_for(torch.var_mean, torch.std_mean)
def two_reductions(flow: Flow, op: Op) -> Sequence[Layout | None]:
    """Deviations and means over axes that are not the channels'."""
    first, second = op.value
    if first != second:
        msg = "its results differ in shape"
        raise NoRuleError(msg)
    layout = reduced(dataclasses.replace(op, value=first))
    return [layout, layout]


_BY_ROW = (
    elementwise,
    addition,
    pairwise,
    reduction,
    two_reductions,
    view,
    view_as,
    channel_norm_function,
)


def by_rows(flow: Flow, op: Op, rule: Rule) -> Op:
    """Returns an operation on parameters alone as one on channels, their rows; itself where it is none.

    What comes out has channels along an axis, and makes those of a layer whose weight it becomes. All other axes of the
    parameter stay as they are.
    """
    tensors = [operand for operand in op.operands if operand.is_tensor]
    rows = [operand for operand in tensors if rows_of(operand) is not None]
    if rule not in _BY_ROW or not rows or any(_is_activation(operand) for operand in tensors):
        return op

    def seen(operand: Operand) -> Operand:
        axis = rows_of(operand)
        if axis is None or operand.parameter is None:
            return operand
        name = str(operand.parameter)
        flow.claimed.add((name, 0))
        return Operand(
            value=operand.value, layout=Layout(axis, flow.counted(name, 0)), why=name, computed=name
        )

    layout = op.mapped(seen)
    flow.hold(op, [str(operand.parameter) for operand in rows])
    return layout


def rows_of(operand: Operand) -> int | None:
    """Returns the axis of a parameter, or of a view of one, that its rows lie along; None where there is none."""
    if (
        operand.parameter is None
        or operand.layout is not None
        or not operand.is_tensor
        or len(operand.value) < 2
    ):
        return None
    axes = (
        operand.parameter.axes if isinstance(operand.parameter, View) else range(len(operand.value))
    )
    axis = next((index for index, axis in enumerate(axes) if axis == 0), None)
    return None if axis is None or operand.value[axis] < 2 else axis


def _is_activation(operand: Operand) -> bool:
    """Returns whether a tensor has channels that an operation has made."""
    return operand.layout is not None and operand.parameter is None and not operand.computed


def source_of(flow: Flow, op: Op, shape: Sequence[int]) -> str:
    """Returns the parameter that a result is computed from, if it has as many entries; "" for none."""
    if any(_is_activation(operand) for operand in op.operands):
        return ""
    names = [operand.computed for operand in op.operands if operand.computed]
    alike = [name for name in names if math.prod(flow.sizes[name]) == math.prod(shape)]
    return next(iter([*alike, *names]), "")
