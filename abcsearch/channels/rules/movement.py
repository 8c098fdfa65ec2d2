"""What moves entries without mixing them: reshapes and axes.

A smaller network runs the same forward. So besides where channels go, a rule must say when the same call does the same
to fewer channels: a size that is written as a number keeps its channels (`Flow.follows`), and channels that are cut
into equal parts lose the same ones in every part (`tie`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from abcsearch.channels.operands import Count, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import axes_of, numbers, rule_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.channels.flow import Flow


# Sizes of a result: the value of each, and how forward's argument follows channels (None: torch works it out).
Sizes = list[tuple[int, Count | None]]


# --- Reshapes. ---


@rule_for("view", "reshape", torch.reshape, thorough=True)
def view(flow: Flow, op: Op) -> Layout | None:
    """The same entries in the same order, with other sizes."""
    operand = op.tensor()
    given = op.args[1:] or tuple(
        op.kwargs.get(name) for name in ("shape", "size") if name in op.kwargs
    )
    sizes: Sizes = [
        (v, None if c.constant == -1 and not c.terms else c) for v, c in numbers(*given)
    ]
    return _reshape(flow, op, operand, [(n, c) for n, (_, c) in zip(op.value, sizes, strict=True)])


@rule_for(
    nn.Flatten, torch.flatten, "flatten", torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze"
)
def merging(flow: Flow, op: Op) -> Layout | None:
    """Merges neighbouring axes, or adds and removes axes of size 1; the sizes follow by themselves."""
    operand = op.tensor()
    squeezes = op.target in ("squeeze", torch.squeeze)
    if operand.layout is not None and squeezes:
        dims = op.plain(1, "dim")
        # Without axes, or on the channels' axis, it depends on whether a single channel is left.
        if dims is None or operand.layout.axis in axes_of(dims, len(operand.value)):
            msg = "it would remove the axis of a single channel"
            raise NoRuleError(msg)
    return _reshape(flow, op, operand, [(n, None) for n in op.value])


@rule_for("view_as", "reshape_as", thorough=True)
def view_as(flow: Flow, op: Op) -> Layout | None:
    """The same entries with the sizes of another tensor."""
    other = op.tensor(1, "other")
    sizes: Sizes = [(n, Count(Fraction(n))) for n in other.value]
    if other.layout is not None:
        sizes[other.layout.axis] = (len(other.layout.positions), Count.of(other.layout.positions))
    return _reshape(flow, op, op.tensor(), sizes)


@rule_for(nn.Unflatten, torch.unflatten, "unflatten", thorough=True)
def unflatten(flow: Flow, op: Op) -> Layout | None:
    """Splits one axis into several."""
    operand = op.tensor()
    if isinstance(op.module, nn.Unflatten):
        dim, given = op.module.dim, tuple(op.module.unflattened_size)
    else:
        dim, given = op.plain(1, "dim"), op.argument(2, "sizes")
    (axis,) = axes_of(dim, len(operand.value))
    new: Sizes = [(v, None if c.constant == -1 and not c.terms else c) for v, c in numbers(given)]
    sizes: Sizes = [(n, None) for n in op.value]
    sizes[axis : axis + len(new)] = [
        (n, c) for (n, _), (_, c) in zip(sizes[axis:], new, strict=False)
    ]
    return _reshape(flow, op, operand, sizes)


def _reshape(flow: Flow, op: Op, operand: Operand, sizes: Sizes) -> Layout | None:
    """Returns the layout of the same entries with other sizes.

    The axes that share entries with the channels' axis on both sides form a segment; in it, one axis of the result runs
    over channels, and every other one must look the same for each of them.
    """
    layout = operand.layout
    if layout is None:
        _require_sizes(flow, op, sizes, None)
        return None
    if (layout.positions == layout.positions[0]).all():
        flow.fix(layout.positions, "it has only one channel")
        _require_sizes(flow, op, sizes, None)
        return None
    old, new = _shared_axes(operand.value, op.value, layout.axis)
    shape = [operand.value[axis] for axis in old]
    spread = [-1 if axis == layout.axis else 1 for axis in old]
    block = np.broadcast_to(layout.positions.reshape(spread), shape).reshape(
        [op.value[axis] for axis in new]
    )
    varying = [i for i in range(len(new)) if (block != block.take([0], axis=i)).any()]
    counts = [sizes[new[i]][1] for i in varying]
    # Of several axes, the one whose size follows channels loses them; then the one that torch works out; then one whose
    # size is an attribute, which can be set.
    given = list(zip(varying, counts, strict=True))
    follows = [
        i for i, count in given if count is not None and count.terms and not flow.stands(count)
    ]
    free = [i for i, count in given if count is None]
    written = [i for i, count in given if flow.stands(count)]
    # Heads stand before their channels
    heads = sorted([*free, *written]) if flow.heads and len(varying) > 1 else []
    chosen = [*heads, *follows, *free, *written, *varying][0]
    lines = np.moveaxis(block, chosen, 0).reshape(block.shape[chosen], -1)
    for column in lines.T[1:] if len(varying) > 1 else ():
        flow.tie(lines[:, 0], column)
    behind = Layout(new[chosen], lines[:, 0].copy())
    _require_sizes(flow, op, sizes, behind)
    return behind


def _shared_axes(old: Sequence[int], new: Sequence[int], axis: int) -> tuple[range, range]:
    """Returns the shortest runs of axes, around `axis` (longer than 1) in the old shape, that hold the same entries."""
    before, after = (np.cumprod([1, *shape], dtype=np.int64) for shape in (old, new))
    shared = np.intersect1d(before, after)
    low, high = shared[shared <= before[axis]].max(), shared[shared >= before[axis + 1]].min()
    first, last = (
        [
            int(np.searchsorted(ends, low, side="right")) - 1,
            int(np.searchsorted(ends, high, side="left")),
        ]
        for ends in (before, after)
    )
    return range(*first), range(*last)


def _require_sizes(flow: Flow, op: Op, sizes: Sizes, layout: Layout | None) -> None:
    """Says what the sizes given in forward must count."""
    none = np.zeros(0, np.int64)
    for axis, (_, count) in enumerate(sizes):
        on_channels = layout is not None and axis == layout.axis
        if flow.heads and count is not None and on_channels and layout is not None:
            _together(flow, count, layout)
        if count is not None and (on_channels or count.terms):
            flow.follows(
                count, layout.positions if layout is not None and on_channels else none, op
            )


def _together(flow: Flow, count: Count, layout: Layout) -> None:
    """Ties the channels of heads to those of another tensor whose number forward writes in their place."""
    if len(count.terms) == 1 and not count.constant and not flow.stands(count):
        factor, positions = count.terms[0]
        if factor == 1 and len(positions) == len(layout.positions):
            flow.tie(positions, layout.positions)


@rule_for("expand", thorough=True)
def expand(flow: Flow, op: Op) -> Layout | None:
    """Repeats axes of size 1; new axes come first."""
    operand = op.tensor()
    given = op.args[1:] or tuple(op.kwargs.values())
    sizes: Sizes = [
        (n, None if c.constant == -1 and not c.terms else c)
        for n, (_, c) in zip(op.value, numbers(*given), strict=True)
    ]
    layout = operand.layout
    behind = (
        None
        if layout is None
        else Layout(layout.axis + len(op.value) - len(operand.value), layout.positions)
    )
    if behind is not None and op.value[behind.axis] != len(behind.positions):
        msg = "a single channel is repeated"
        raise NoRuleError(msg)
    _require_sizes(flow, op, sizes, behind)
    return behind


@rule_for("repeat", "tile", torch.tile)
def repeat(flow: Flow, op: Op) -> Layout | None:
    """Repeats whole axes; new axes come first."""
    operand = op.tensor()
    layout = operand.layout
    if layout is None:
        return None
    axis = layout.axis + len(op.value) - len(operand.value)
    return Layout(axis, np.tile(layout.positions, op.value[axis] // len(layout.positions)))


@rule_for("repeat_interleave", torch.repeat_interleave)
def repeat_interleave(flow: Flow, op: Op) -> Layout | None:
    """Repeats every entry of an axis."""
    operand = op.tensor()
    times, dim = op.plain(1, "repeats"), op.plain(2, "dim")
    layout = operand.layout
    if layout is None:
        return None
    if not isinstance(times, int) or not isinstance(dim, int):
        msg = "it repeats entries of all axes, or each differently"
        raise NoRuleError(msg)
    same = dim % len(operand.value) != layout.axis
    return layout if same else Layout(layout.axis, np.repeat(layout.positions, times))


# --- Axes. ---


@rule_for(
    "permute",
    torch.permute,
    "transpose",
    torch.transpose,
    "swapaxes",
    torch.swapaxes,
    "movedim",
    torch.movedim,
)
@rule_for("t", torch.t, "T", "mT", "flip", torch.flip)
def reordering(flow: Flow, op: Op) -> Layout | None:
    """Axes in another order, or entries in reversed order."""
    operand = op.tensor()
    layout = operand.layout
    if layout is None:
        return None
    # What happens to a small tensor that holds indices along the channels' axis happens to the channels.
    length = max(len(layout.positions), 2)
    marked = torch.arange(length).reshape(
        [-1 if axis == layout.axis else 1 for axis in range(len(operand.value))]
    )
    name = op.target if isinstance(op.target, str) else op.target.__name__
    moved: Any = getattr(marked, name)
    if callable(moved):
        rest = [op.plain(i, "") for i in range(1, len(op.args))]
        moved = moved(
            *rest, **{key: op.plain(len(op.args), key) for key in op.kwargs if key != "input"}
        )
    axis = next(axis for axis, n in enumerate(moved.shape) if n == length)
    return Layout(axis, layout.positions[moved.flatten().numpy() % len(layout.positions)])
