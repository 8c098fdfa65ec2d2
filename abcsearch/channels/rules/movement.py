"""What moves entries without mixing them: reshapes, axes, parts, concatenation, padding, shuffles.

A smaller network runs the same forward. So besides where channels go, a rule must say when the same call does the same
to fewer channels: a size that is written as a number keeps its channels (`Flow.follows`), and channels that are cut
into equal parts lose the same ones in every part (`tie`).
"""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.flow import Count, Flow, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import axes_of, numbers, others_plain, rule_for, same_channels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Sizes of a result: the value of each, and how forward's argument follows channels (None: torch works it out).
Sizes = list[tuple[int, Count | None]]


def _lanes(flow: Flow, positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Ties the same channels of `count` equal runs; returns the first run."""
    lanes = positions.reshape(count, -1)
    for lane in lanes[1:]:
        flow.tie(lanes[0], lane)
    return lanes[0]


# --- Reshapes. ---


@rule_for("view", "reshape", torch.reshape, sized=True)
def view(flow: Flow, op: Op) -> Layout | None:
    """The same entries in the same order, with other sizes."""
    operand = op.tensor()
    given = op.args[1:] or tuple(op.kwargs.get(name) for name in ("shape", "size") if name in op.kwargs)
    if len(given) == 1 and isinstance(given[0], torch.dtype):
        msg = "it views the bytes as another type"
        raise NoRuleError(msg)
    sizes: Sizes = [(v, None if c.constant == -1 and not c.terms else c) for v, c in numbers(*given)]
    return _reshape(flow, op, operand, [(n, c) for n, (_, c) in zip(op.value, sizes, strict=True)])


@rule_for(nn.Flatten, torch.flatten, "flatten", torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze")
def merging(flow: Flow, op: Op) -> Layout | None:
    """Merges neighbouring axes, or adds and removes axes of size 1; the sizes follow by themselves."""
    operand = op.tensor()
    others_plain(op)
    squeezes = op.target in ("squeeze", torch.squeeze)
    if operand.layout is not None and squeezes:
        dims = op.plain(1, "dim")
        # Without axes, or on the channels' axis, it depends on whether a single channel is left.
        if dims is None or operand.layout.axis in axes_of(dims, len(operand.value)):
            msg = "it would remove the axis of a single channel"
            raise NoRuleError(msg)
    return _reshape(flow, op, operand, [(n, None) for n in op.value])


@rule_for(nn.Unflatten, torch.unflatten, "unflatten", sized=True)
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
    sizes[axis : axis + len(new)] = [(n, c) for (n, _), (_, c) in zip(sizes[axis:], new, strict=False)]
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
    block = np.broadcast_to(layout.positions.reshape(spread), shape).reshape([op.value[axis] for axis in new])
    varying = [i for i in range(len(new)) if (block != block.take([0], axis=i)).any()]
    counts = [sizes[new[i]][1] for i in varying]
    # Of several axes, the one whose size follows channels loses them; then the one that torch works out.
    follows = [i for i, count in zip(varying, counts, strict=True) if count is not None and count.terms]
    chosen = [*follows, *(i for i, count in zip(varying, counts, strict=True) if count is None), *varying][0]
    lines = np.moveaxis(block, chosen, 0).reshape(block.shape[chosen], -1)
    for column in lines.T[1:] if len(varying) > 1 else ():
        flow.tie(lines[:, 0], column)
    found = Layout(new[chosen], lines[:, 0].copy())
    _require_sizes(flow, op, sizes, found)
    return found


def _shared_axes(old: Sequence[int], new: Sequence[int], axis: int) -> tuple[range, range]:
    """Returns the shortest runs of axes, around `axis` (longer than 1) in the old shape, that hold the same entries."""
    before, after = (np.cumprod([1, *shape], dtype=np.int64) for shape in (old, new))
    shared = np.intersect1d(before, after)
    low, high = shared[shared <= before[axis]].max(), shared[shared >= before[axis + 1]].min()
    first, last = (
        [int(np.searchsorted(ends, low, side="right")) - 1, int(np.searchsorted(ends, high, side="left"))]
        for ends in (before, after)
    )
    return range(*first), range(*last)


def _require_sizes(flow: Flow, op: Op, sizes: Sizes, layout: Layout | None) -> None:
    """Says what the sizes given in forward must count."""
    none = np.zeros(0, np.int64)
    for axis, (_, count) in enumerate(sizes):
        on_channels = layout is not None and axis == layout.axis
        if count is not None and (on_channels or count.terms):
            flow.follows(count, layout.positions if layout is not None and on_channels else none, op)


@rule_for("view_as", "reshape_as")
def view_as(flow: Flow, op: Op) -> Layout | None:
    """The same entries in the same order, with the sizes of another tensor."""
    operand, other = op.tensor(), op.tensor(1, "other")
    sizes: Sizes = [(n, Count(Fraction(n))) for n in op.value]
    if other.layout is not None:
        sizes[other.layout.axis] = (op.value[other.layout.axis], Count.of(other.layout.positions))
    return _reshape(flow, op, operand, sizes)


@rule_for("expand", torch.Tensor.expand, sized=True)
def expand(flow: Flow, op: Op) -> Layout | None:
    """Repeats axes of size 1; new axes come first."""
    operand = op.tensor()
    given = op.args[1:] or tuple(op.kwargs.values())
    sizes: Sizes = [
        (n, None if c.constant == -1 and not c.terms else c)
        for n, (_, c) in zip(op.value, numbers(*given), strict=True)
    ]
    layout = operand.layout
    found = None if layout is None else Layout(layout.axis + len(op.value) - len(operand.value), layout.positions)
    if found is not None and op.value[found.axis] != len(found.positions):
        msg = "a single channel is repeated"
        raise NoRuleError(msg)
    _require_sizes(flow, op, sizes, found)
    return found


@rule_for("repeat", "tile", torch.tile)
def repeat(flow: Flow, op: Op) -> Layout | None:
    """Repeats whole axes; new axes come first."""
    operand = op.tensor()
    layout = operand.layout
    others_plain(op)
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


@rule_for("permute", torch.permute, "transpose", torch.transpose, "swapaxes", torch.swapaxes, "movedim", torch.movedim)
@rule_for("t", torch.t, "T", "mT", "flip", torch.flip)
def reordering(flow: Flow, op: Op) -> Layout | None:
    """Axes in another order, or entries in reversed order."""
    operand = op.tensor()
    others_plain(op)
    layout = operand.layout
    if layout is None:
        return None
    # What happens to a small tensor that holds indices along the channels' axis happens to the channels.
    length = max(len(layout.positions), 2)
    marked = torch.arange(length).reshape([-1 if axis == layout.axis else 1 for axis in range(len(operand.value))])
    name = op.target if isinstance(op.target, str) else op.target.__name__
    moved = getattr(marked, name)
    if callable(moved):
        rest = [op.plain(i, "") for i in range(1, len(op.args))]
        moved = moved(*rest, **{key: op.plain(len(op.args), key) for key in op.kwargs if key != "input"})
    axis = next(axis for axis, n in enumerate(moved.shape) if n == length)
    return Layout(axis, layout.positions[moved.flatten().numpy() % len(layout.positions)])


# --- Parts and wholes. ---


@rule_for(torch.cat, torch.concat, torch.concatenate, torch.stack)
def concatenation(flow: Flow, op: Op) -> Layout | None:
    """Along channels: one after the other. Along another axis: the same channels in every part."""
    parts, dim = op.argument(0, "tensors"), op.argument(1, "dim", op.kwargs.get("axis", 0))
    known = isinstance(parts, tuple | list) and all(isinstance(p, Operand) and p.is_tensor for p in parts)
    parts = parts.parts if isinstance(parts, Operand) else parts
    if not known and not parts:
        msg = "one part is not a tensor"
        raise NoRuleError(msg)
    layouts = [part.layout for part in parts if part.layout is not None]
    if not layouts:
        return None
    (axis,), own = axes_of(dim, len(op.value)), layouts[0].axis
    if any(layout.axis != own for layout in layouts):
        msg = "the parts have their channels at different axes"
        raise NoRuleError(msg)
    stacked = op.target is torch.stack
    if axis == own and not stacked:
        return Layout(axis, np.concatenate([_channels(flow, op, part, axis) for part in parts]))
    positions = [_channels(flow, op, part, own) for part in parts]
    for other in positions[1:]:
        flow.tie(positions[0], other)
    return Layout(own + (stacked and axis <= own), positions[0])


def _channels(flow: Flow, op: Op, part: Operand, axis: int) -> NDArray[np.int64]:
    """Returns the positions of a part along an axis; those of a part that never changes are new and must stay."""
    if part.layout is not None:
        return part.layout.positions
    positions = flow.fresh(part.value[axis])
    if part.parameter is not None:
        flow.parameter(part.parameter, axis, positions)
    flow.fix(positions, f"{op.name}: one part is {part.why}")
    return positions


@rule_for(torch.chunk, "chunk", torch.tensor_split, "tensor_split", torch.unbind, "unbind")
@rule_for(torch.split, "split", sized=True)
def splitting(flow: Flow, op: Op) -> Sequence[Layout | None]:
    """Parts along an axis. Equal parts of the channels lose the same ones; parts of a written size keep theirs."""
    operand = op.tensor()
    layout, lengths = operand.layout, list(op.value)
    if layout is None:
        return [None] * len(lengths)
    name = op.target if isinstance(op.target, str) else op.target.__name__
    unbound = name == "unbind"
    (axis,) = axes_of(op.plain(1 if unbound else 2, "dim", 0), len(operand.value))
    if axis != layout.axis:
        return [Layout(layout.axis - (unbound and axis < layout.axis), layout.positions)] * len(lengths)
    given = op.argument(1, {"chunk": "chunks", "split": "split_size_or_sections"}.get(name, "indices_or_sections"))
    sizes = [shape[axis] for shape in lengths] if not unbound else []
    if unbound or (name == "tensor_split" and not isinstance(given, int)):
        msg = "it takes channels apart at written places"
        raise NoRuleError(msg)
    equal = len(set(sizes)) == 1
    counts = [count for _, count in numbers(given)]
    follow = name != "split" or any(count.terms for count in counts)
    if equal and follow and len(sizes) > 1:
        _lanes(flow, layout.positions, len(sizes))
    elif name != "split" or (len(counts) == 1 and counts[0].terms and len(sizes) > 1):
        msg = "its parts have different sizes"
        raise NoRuleError(msg)
    ends = np.cumsum([0, *sizes])
    parts = [layout.positions[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]
    if name == "split":
        # With one size for all, the last part takes what is left.
        one = isinstance(given, int) or (isinstance(given, Operand) and not isinstance(given.value, tuple))
        for part, count in zip(
            parts[: -1 if one and not counts[0].terms else None], counts * (len(parts) if one else 1), strict=False
        ):
            flow.follows(count, part, op)
    return [Layout(axis, part) for part in parts]


@rule_for(operator.getitem, sized=True)
def indexing(flow: Flow, op: Op) -> Layout | None:
    """Ranges, single entries of other axes, new axes. A written end keeps the channels that it counts."""
    operand, index = op.tensor(), op.args[1]
    layout = operand.layout
    if layout is None:
        return None
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(item, int | slice | Operand | type(None) | type(Ellipsis)) for item in items):
        msg = "it picks entries by a list or tensor"
        raise NoRuleError(msg)
    used = sum(item is not None and item is not Ellipsis for item in items)
    place = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    items[place : place + 1] = [slice(None)] * (len(operand.value) - used)
    return _indexed(flow, op, layout, items)


def _indexed(flow: Flow, op: Op, layout: Layout, items: list[Any]) -> Layout:
    """Returns the layout behind one index item per axis of the tensor and per new axis."""
    source = target = 0
    found: Layout | None = None
    for item in items:
        if source == layout.axis and item is not None:
            if not isinstance(item, slice):
                msg = "it picks a single channel"
                raise NoRuleError(msg)
            found = Layout(target, _ranged(flow, op, layout.positions, item))
        elif item is not None:
            plain = [item.start, item.stop, item.step] if isinstance(item, slice) else [item]
            if any(isinstance(end, Operand) and not end.is_plain for end in plain):
                msg = "another argument depends on channels"
                raise NoRuleError(msg)
        source += item is not None
        target += item is None or isinstance(item, slice)
    if found is None:
        msg = "it has more indices than axes"
        raise NoRuleError(msg)
    return found


def _ranged(flow: Flow, op: Op, positions: NDArray[np.int64], index: slice) -> NDArray[np.int64]:
    """Returns the positions in a range of channels."""
    total = len(positions)
    if index.step not in (None, 1):
        msg = "it takes every other channel"
        raise NoRuleError(msg)
    ends: list[int] = []
    for end, default in ((index.start, 0), (index.stop, total)):
        ((value, count),) = numbers(default if end is None else end)
        place = max(0, min(total, value + total if value < 0 else value))
        if end is not None and not (place == total and value >= total and not count.terms):
            if value < 0:
                count = count + Count.of(positions)
            share = Fraction(place, total)
            if count.terms and share.denominator > 1 and total % share.denominator == 0:
                _lanes(flow, positions, share.denominator)
            flow.follows(count, positions[:place], op)
        ends.append(place)
    return positions[ends[0] : ends[1]]


@rule_for(torch.narrow, "narrow", torch.select, "select", torch.index_select, "index_select", torch.gather, "gather")
def picking(flow: Flow, op: Op) -> Layout | None:
    """Entries of an axis that is not the channels'."""
    operand = op.tensor()
    layout = operand.layout
    if layout is None:
        return None
    (axis,) = axes_of(op.plain(1, "dim"), len(operand.value))
    name = op.target if isinstance(op.target, str) else op.target.__name__
    if axis == layout.axis or name == "gather" or any(o.layout is not None for o in op.operands[1:]):
        msg = "it picks single channels"
        raise NoRuleError(msg)
    return Layout(layout.axis - (name == "select" and axis < layout.axis), layout.positions)


# --- Padding. ---


@rule_for(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
@rule_for(F.pad, sized=True)
def padding(flow: Flow, op: Op) -> Layout | None:
    """Constant entries around space, or constant channels around channels.

    The padding of a module follows the channels; numbers written in forward keep the channels that they add.
    """
    operand = op.tensor()
    layout, rank = operand.layout, len(operand.value)
    if layout is None:
        others_plain(op)
        for index in range(len(op.module.padding) if op.module is not None else 0):
            kept = flow.fresh(max(op.module.padding[index], 0))
            flow.fix(kept, operand.why)
            flow.setting(op.path, "padding", kept, index)
        return None
    pads = numbers(op.module.padding if op.module is not None else op.argument(1, "pad"))
    first = 2 * (rank - 1 - layout.axis)  # pads are given from the last axis to the first
    around = pads[first : first + 2]
    if any(count.terms for i, (_, count) in enumerate(pads) if i not in (first, first + 1)):
        msg = "another argument depends on channels"
        raise NoRuleError(msg)
    if not any(value for value, _ in around):
        return same_channels(operand, op)
    if op.plain(2, "mode", "constant") != "constant" or min(value for value, _ in around) < 0:
        msg = "it crops channels, or repeats them"
        raise NoRuleError(msg)
    sides: list[NDArray[np.int64]] = []
    for index, (value, count) in enumerate(around):
        sides.append(flow.fresh(value))
        if op.module is not None:
            flow.setting(op.path, "padding", sides[-1], first + index)
        else:
            flow.follows(count, sides[-1], op)
    return Layout(layout.axis, np.concatenate([sides[0], layout.positions, sides[1]]))


# --- Shuffles. ---


@rule_for(nn.ChannelShuffle, torch.channel_shuffle, F.channel_shuffle)
def channel_shuffle(flow: Flow, op: Op) -> Layout | None:
    """Interleaves equal runs of channels, which lose the same ones."""
    operand = op.tensor()
    groups = op.module.groups if isinstance(op.module, nn.ChannelShuffle) else op.plain(1, "groups")
    layout = operand.layout
    if layout is None:
        return None
    if layout.axis != 1:
        msg = "the channels are not at axis 1"
        raise NoRuleError(msg)
    return Layout(1, np.repeat(_lanes(flow, layout.positions, groups), groups))


@rule_for(nn.PixelShuffle, F.pixel_shuffle, torch.pixel_shuffle)
@rule_for(nn.PixelUnshuffle, F.pixel_unshuffle, torch.pixel_unshuffle)
def pixel_shuffle(flow: Flow, op: Op) -> Layout | None:
    """Neighbouring channels become one with more pixels, or the other way round."""
    operand = op.tensor()
    layout = operand.layout
    if layout is None:
        return None
    axis = len(operand.value) - 3
    if layout.axis != axis:
        msg = "the channels are not the third axis from the end"
        raise NoRuleError(msg)
    before, after = operand.value[axis], op.value[axis]
    if after > before:
        return Layout(axis, np.repeat(layout.positions, after // before))
    lanes = layout.positions.reshape(after, -1)
    for column in lanes.T[1:]:
        flow.tie(lanes[:, 0], column)
    return Layout(axis, lanes[:, 0].copy())


@rule_for(nn.GLU, F.glu)
def gated(flow: Flow, op: Op) -> Layout | None:
    """One half of an axis gates the other; halves of the channels lose the same ones."""
    operand = op.tensor()
    dim = op.module.dim if isinstance(op.module, nn.GLU) else op.plain(1, "dim", -1)
    layout = operand.layout
    if layout is None:
        return None
    if axes_of(dim, len(operand.value)) != [layout.axis]:
        return same_channels(operand, op)
    return Layout(layout.axis, _lanes(flow, layout.positions, 2))


# --- New tensors. ---


@rule_for(torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn, torch.arange, torch.eye)
@rule_for("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor")
def creation(flow: Flow, op: Op) -> None:
    """A tensor whose sizes are all written in forward holds no channels that can be removed."""
    for operand in op.operands:
        if not operand.is_tensor and not operand.is_plain:
            msg = "its size depends on channels"
            raise NoRuleError(msg)
