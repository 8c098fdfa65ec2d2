"""Parts and wholes: concatenation, splitting, ranges, padding, shuffles, new tensors; see `movement`."""

from __future__ import annotations

import operator
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.operands import Count, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import (
    axes_of,
    equal_runs,
    numbers,
    numbers_plain,
    rule_for,
    same_channels,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.flow import Flow


# --- Parts and wholes. ---


@rule_for(torch.cat, torch.concat, torch.concatenate, torch.stack, thorough=True)
def concatenation(flow: Flow, op: Op) -> Layout | None:
    """Along channels: one after the other. Along another axis: the same channels in every part."""
    pieces = _pieces(op.argument(0, "tensors"))
    layouts = [piece.layout for piece in pieces if piece.layout is not None]
    if not layouts:
        return None
    (axis,) = axes_of(op.argument(1, "dim", op.kwargs.get("axis", 0)), len(op.value))
    current = layouts[0].axis
    if any(layout.axis != current for layout in layouts):
        msg = "the parts have their channels at different axes"
        raise NoRuleError(msg)
    every = [_channels(flow, op, piece, current) for piece in pieces]
    stacked = op.target is torch.stack
    if axis == current and not stacked:
        return Layout(axis, np.concatenate(every))
    for other in every[1:]:
        flow.tie(every[0], other)
    # A new axis before the channels moves them one further.
    return Layout(current + (stacked and axis <= current), every[0])


def _pieces(given: Any) -> list[Operand]:  # noqa: ANN401 - an argument
    """Returns the tensors that are put together: a list of them, or what an operation has returned several of."""
    pieces = given.parts if isinstance(given, Operand) else given
    if not pieces and not isinstance(given, tuple | list):
        msg = "one part is not a tensor"
        raise NoRuleError(msg)
    # Torch passes over empty tensors without axes
    return [piece for piece in pieces if tuple(piece.value) != (0,)]


def _channels(flow: Flow, op: Op, piece: Operand, axis: int) -> NDArray[np.int64]:
    """Returns the positions of a part along an axis; those of a part that never changes are new and must stay."""
    if piece.layout is not None:
        return piece.layout.positions
    positions = flow.fresh(piece.value[axis])
    if piece.parameter is not None:
        flow.parameter(piece.parameter, axis, positions)
    flow.fix(positions, f"{op.name}: one part is {piece.why}")
    return positions


@rule_for(torch.unbind, "unbind")
def unbinding(flow: Flow, op: Op) -> Sequence[Layout | None]:
    """The entries of an axis that is not the channels'."""
    operand = op.tensor()
    layout, count = operand.layout, len(op.value)
    (axis,) = axes_of(op.plain(1, "dim", 0), len(operand.value))
    if layout is not None and axis == layout.axis:
        msg = "it takes single channels"
        raise NoRuleError(msg)
    return [
        None if layout is None else Layout(layout.axis - (axis < layout.axis), layout.positions)
    ] * count


@rule_for(
    torch.chunk, "chunk", torch.split, "split", torch.tensor_split, "tensor_split", thorough=True
)
def splitting(flow: Flow, op: Op) -> Sequence[Layout | None]:
    """Parts along an axis. Equal parts of the channels lose the same ones; parts of a written size keep theirs."""
    operand = op.tensor()
    layout, lengths = operand.layout, list(op.value)
    (axis,) = axes_of(op.plain(2, "dim", 0), len(operand.value))
    if layout is None or axis != layout.axis:
        numbers_plain(op.operands[1:])
        return [layout] * len(lengths)
    ends = np.cumsum([0, *(shape[axis] for shape in lengths)])
    pieces = [layout.positions[start:stop] for start, stop in pairwise(ends)]
    name = op.target if isinstance(op.target, str) else op.target.__name__
    given = op.argument(
        1, {"chunk": "chunks", "split": "split_size_or_sections"}.get(name, "indices_or_sections")
    )
    counts = [count for _, count in numbers(given)]
    listed = isinstance(given.value if isinstance(given, Operand) else given, tuple | list)
    if len(pieces) == 1 and any(flow.stands(count) for count in counts):
        msg = "one part has all of them"
        raise NoRuleError(msg)
    if name == "split" and listed:
        _split_by_sizes(flow, op, pieces, counts, layout)
    elif name == "split" and not counts[0].terms:
        # With one size for all, the last piece takes what is left.
        _split_by_sizes(flow, op, pieces[:-1], counts * (len(pieces) - 1), layout)
    else:
        _split_equally(flow, op, pieces, counts, layout, listed=listed, by_size=name == "split")
    return [Layout(axis, piece) for piece in pieces]


def _split_by_sizes(
    flow: Flow, op: Op, pieces: list[NDArray[np.int64]], counts: Sequence[Count], layout: Layout
) -> None:
    """Says that every piece is as long as a number; where that is computed, equal pieces lose the same channels."""
    if any(count.terms for count in counts) and _same_lengths(pieces):
        equal_runs(flow, layout.positions, len(pieces))
    for piece, count in zip(pieces, counts, strict=False):
        flow.follows(count, piece, op)


def _split_equally(  # noqa: PLR0913 - the call, what it makes, and how it was asked
    flow: Flow,
    op: Op,
    pieces: list[NDArray[np.int64]],
    counts: Sequence[Count],
    layout: Layout,
    *,
    listed: bool,
    by_size: bool,
) -> None:
    """Says that all pieces lose the same channels: there are a written number of them, or of a computed size."""
    if listed or not _same_lengths(pieces) or (not by_size and counts[0].terms):
        msg = (
            "its parts have different sizes, or with other channels there are more or fewer of them"
        )
        raise NoRuleError(msg)
    lane = equal_runs(flow, layout.positions, len(pieces))
    if by_size:
        flow.follows(counts[0], lane, op)


def _same_lengths(pieces: Sequence[NDArray[np.int64]]) -> bool:
    return len({len(piece) for piece in pieces}) == 1


@rule_for(operator.getitem, thorough=True)
def indexing(flow: Flow, op: Op) -> Layout | None:
    """Ranges, single entries of other axes, new axes. A written end keeps the channels that it counts."""
    operand, index = op.tensor(), op.args[1]
    layout = operand.layout
    if layout is None:
        return None
    if isinstance(index, Operand) and index.is_tensor:
        return _looked_up(flow, op, layout, index)
    items = list(index) if isinstance(index, tuple) else [index]
    if any(
        not isinstance(item, int | slice | Operand | type(None) | type(Ellipsis)) for item in items
    ):
        msg = "it picks entries by a list or tensor"
        raise NoRuleError(msg)
    used = sum(item is not None and item is not Ellipsis for item in items)
    gap = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    items[gap : gap + 1] = [slice(None)] * (len(operand.value) - used)
    return _indexed(flow, op, layout, items)


def _looked_up(flow: Flow, op: Op, layout: Layout, index: Operand) -> Layout:
    """Returns the layout behind rows that a tensor picks, which never changes; channels are at another axis."""
    more = len(index.value) - 1
    if not layout.axis or len(op.value) != len(op.tensor().value) + more:
        msg = "it picks entries by a list or tensor"
        raise NoRuleError(msg)
    for positions in index.touched:
        flow.fix(positions, f"{op.name}: it picks rows by them")
    if index.parameter is not None:
        flow.freeze(index.parameter, f"{op.name}: it picks rows by it")
    return Layout(layout.axis + more, layout.positions)


def _indexed(flow: Flow, op: Op, layout: Layout, items: list[Any]) -> Layout:
    """Returns the layout behind one index item per axis of the tensor and per new axis."""
    source = target = 0
    behind: Layout | None = None
    for item in items:
        if source == layout.axis and item is not None:
            if not isinstance(item, slice):
                msg = "it picks a single channel"
                raise NoRuleError(msg)
            behind = Layout(target, _ranged(flow, op, layout.positions, item))
        elif item is not None:
            plain = [item.start, item.stop, item.step] if isinstance(item, slice) else [item]
            if any(isinstance(end, Operand) and not end.is_plain for end in plain):
                msg = "another argument depends on channels"
                raise NoRuleError(msg)
        source += item is not None
        target += item is None or isinstance(item, slice)
    if behind is None:
        msg = "it has more indices than axes"
        raise NoRuleError(msg)
    return behind


def _ranged(flow: Flow, op: Op, positions: NDArray[np.int64], index: slice) -> NDArray[np.int64]:
    """Returns the positions in a range of channels."""
    total = len(positions)
    if index.step not in (None, 1):
        msg = "it takes every other channel"
        raise NoRuleError(msg)
    ends: list[int] = []
    for end, default in ((index.start, 0), (index.stop, total)):
        ((value, count),) = numbers(default if end is None else end)
        cut = max(0, min(total, value + total if value < 0 else value))
        if end is not None and not (cut == total and value >= total and not count.terms):
            if value < 0:
                count = count + Count.of(positions)
            share = Fraction(cut, total)
            if (
                count.terms
                and not count.constant
                and share.denominator > 1
                and total % share.denominator == 0
            ):
                equal_runs(flow, positions, share.denominator)
            flow.follows(count, positions[:cut], op)
        ends.append(cut)
    return positions[ends[0] : ends[1]]


@rule_for(
    torch.narrow,
    "narrow",
    torch.select,
    "select",
    torch.index_select,
    "index_select",
    thorough=True,
)
def picking(flow: Flow, op: Op) -> Layout | None:
    """Entries of an axis that is not the channels'."""
    operand = op.tensor()
    layout = operand.layout
    if layout is None:
        return None
    (axis,) = axes_of(op.plain(1, "dim"), len(operand.value))
    name = op.target if isinstance(op.target, str) else op.target.__name__
    if axis == layout.axis or any(
        positions is not None for o in op.operands[1:] for positions in o.touched
    ):
        msg = "it picks single channels, or as many entries as there are channels"
        raise NoRuleError(msg)
    return Layout(layout.axis - (name == "select" and axis < layout.axis), layout.positions)


# --- Padding. ---


@rule_for(
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
    F.pad,
    thorough=True,
)
def padding(flow: Flow, op: Op) -> Layout | None:
    """Constant entries around space, or constant channels around channels.

    The padding of a module follows the channels; numbers written in forward keep the channels that they add.
    """
    operand = op.tensor()
    layout, rank = operand.layout, len(operand.value)
    if layout is None:
        numbers_plain(op.operands[1:])
        return None
    numbers_plain([operand for operand in op.operands[1:] if operand.is_tensor])
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
    return Layout(1, np.repeat(equal_runs(flow, layout.positions, groups), groups))


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
    return Layout(layout.axis, equal_runs(flow, layout.positions, 2))


# --- New tensors. ---


@rule_for(torch.rand, torch.randn, torch.arange, torch.eye, "new_tensor")
def creation(flow: Flow, op: Op) -> None:
    """A tensor whose sizes are all written in forward holds no channels that can be removed."""
    _require_plain(op)


def _require_plain(op: Op) -> None:
    """Raises NoRuleError if a number that follows channels is among the arguments."""
    for operand in op.operands:
        if not operand.is_tensor and not operand.is_plain:
            msg = "its size depends on channels"
            raise NoRuleError(msg)


@rule_for(torch.zeros, torch.ones, torch.empty, "new_zeros", "new_ones", "new_empty", thorough=True)
def constants(flow: Flow, op: Op) -> Layout | None:
    """A tensor with the same entries everywhere: along an axis that is as long as there are channels, it follows."""
    return _sized(op, op.args[1:] if isinstance(op.target, str) else op.args)


@rule_for(torch.full, "new_full", thorough=True)
def filled(flow: Flow, op: Op) -> Layout | None:
    """Likewise, with an entry that is given."""
    first = int(isinstance(op.target, str))
    entry = op.argument(first + 1, "fill_value")
    numbers_plain([operand for operand in op.operands if operand is entry])
    return _sized(op, (op.argument(first, "size"),))


def _sized(op: Op, sizes: tuple[Any, ...]) -> Layout | None:
    """Returns the layout of a new tensor of some sizes: the channels that the only one which follows any counts."""
    counts = [count for _, count in numbers(*(sizes or (op.kwargs.get("size", ()),)))]
    terms = [(axis, *term) for axis, count in enumerate(counts) for term in count.terms]
    if not terms:
        _require_plain(op)
        return None
    axis, factor, positions = terms[0]
    if len(terms) > 1 or factor != 1 or counts[axis].constant:
        msg = "its size depends on channels"
        raise NoRuleError(msg)
    return Layout(axis, positions)
