"""Numbers in forward: what is read off shapes, and arithmetic on it."""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.channels.operands import Count, Op, Operand, View
from abcsearch.channels.remembered import comparison, conversion
from abcsearch.channels.rules.table import pinned

if TYPE_CHECKING:
    from abcsearch.channels.flow import Flow

_PLAIN = (
    "ndim",
    "dtype",
    "device",
    "dim",
    "is_cuda",
    "is_floating_point",
    "requires_grad",
    "get_device",
)


def number(flow: Flow, op: Op) -> Operand | None:
    """Returns the result of an operation that reads sizes or computes with numbers.

    A number that was read off a channel axis remembers what it counts. None means that the operation is none of these,
    or that what it returns does not follow channels linearly.
    """
    operands = op.operands
    if op.target in (comparison, conversion) and not all(operand.is_plain for operand in operands):
        return _decided(flow, op)
    if all(operand.is_plain for operand in operands):
        return Operand(value=op.value, is_tensor=False)
    first = op.args[0] if op.args else None
    if isinstance(first, Operand) and first.is_tensor:
        return _read(flow, op, first)
    if any(operand.is_tensor or operand.parts for operand in operands):
        return None
    if flow.heads and op.target is operator.floordiv and (each := _per_head(flow, op)) is not None:
        return each
    computed = _arithmetic(op)
    values = op.value if isinstance(op.value, tuple) else (op.value,)
    if computed is None or [count.full for count in computed] != list(values):
        # Not linear, or rounded already in the full network.
        kept = pinned(flow, op)
        return None if kept is op else number(flow, kept)
    if op.target in (operator.floordiv, operator.ifloordiv):
        flow.whole(computed[0], op)
    counts = tuple(count if count.terms else None for count in computed)
    return Operand(value=op.value, is_tensor=False, counts=counts)


def _decided(flow: Flow, op: Op) -> Operand | None:
    """Says what follows from a number that forward compared, or turned into a plain one; None where that is unknown."""
    *sides, where = op.args[:2] + op.args[-1:] if op.target is comparison else op.args
    counts = [_counts(side) for side in sides]
    if any(count is None or len(count) != 1 for count in counts):
        return None
    first, *second = [count[0] for count in counts if count]
    difference = first + (second[0] * Fraction(-1) if second else Count(-first.full))
    if op.target is conversion:
        text = f"{where}: a plain number of channels there would not follow them"
        flow.decides(difference, "eq", text)
        return Operand(value=op.value, is_tensor=False)
    how, outcome = op.args[2:4]
    how = how if outcome else _OPPOSITE[how]
    text = f"{where}: with other channels, forward would go another way there"
    if how == "eq" and second and _alone(first) and _alone(second[0]):
        flow.tie(first.terms[0][1], second[0].terms[0][1])
    else:
        flow.decides(difference, how, text)
    return Operand(value=op.value, is_tensor=False)


_OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}


def _alone(count: Count) -> bool:
    """Returns whether a number counts the channels of one tensor, and nothing else."""
    return len(count.terms) == 1 and count.terms[0][0] == 1 and not count.constant


def _read(flow: Flow, op: Op, source: Operand) -> Operand | None:
    """Returns what `x.size()`, `x.shape`, `x.dim()` and the like read off a tensor; None for anything else."""
    what = op.args[1] if op.target is getattr else op.target
    if what in _PLAIN:
        return Operand(value=op.value, is_tensor=False)
    if (
        len(op.operands) > 1
        or (what == "numel" and source.parameter is not None)
        or isinstance(source.parameter, View)
    ):
        return None
    layout = source.layout
    count = None if layout is None else Count.of(layout.positions)
    if what == "numel" and layout is not None and count is not None:
        per_channel = Fraction(math.prod(source.value), len(layout.positions))
        return Operand(value=op.value, is_tensor=False, counts=(count * per_channel,))
    if what not in ("shape", "size", "numel"):
        return None
    counts = tuple(
        count if layout is not None and axis == layout.axis else None
        for axis in range(len(source.value))
    )
    if source.parameter is not None:
        counts = tuple(
            Count.of(flow.counted(source.parameter, axis)) for axis in range(len(source.value))
        )
    axis = op.argument(1, "dim") if op.target == "size" else None
    if axis is None:
        return Operand(
            value=op.value, is_tensor=False, counts=counts if isinstance(op.value, tuple) else ()
        )
    return (
        Operand(value=op.value, is_tensor=False, counts=(counts[axis],))
        if isinstance(axis, int)
        else None
    )


def _arithmetic(op: Op) -> list[Count] | None:
    """Returns the counts that arithmetic on numbers and tuples of numbers gives; None where it is not linear."""
    sides = [_counts(arg) for arg in op.args]
    if op.kwargs or any(side is None for side in sides):
        return None
    if op.target is operator.getitem:
        return _taken(op)
    if op.target is operator.neg:
        return [count * Fraction(-1) for count in sides[0] or []]
    if len(sides) != 2:
        return None
    return _binary(op.target, *op.args, *(side or [] for side in sides))


def _per_head(flow: Flow, op: Op) -> Operand | None:
    """Returns the channels of one head, where forward divides all of them by a number of heads: they go with these."""
    sides = [_counts(arg) for arg in op.args]
    if len(sides) != 2 or any(side is None or len(side) != 1 for side in sides):
        return None
    every, heads = (side[0] for side in sides if side)
    if not (_alone(every) and _alone(heads) and flow.stands(heads)):
        return None
    channels, units = every.terms[0][1], heads.terms[0][1]
    if len(channels) % len(units):
        return None
    flow.tie(np.repeat(units, len(channels) // len(units)), channels)
    return Operand(value=op.value, is_tensor=False)


# On numbers, these are the same.
_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.ifloordiv: operator.floordiv,
    operator.itruediv: operator.truediv,
}


def _binary(
    target: Any,  # noqa: ANN401
    a: Any,  # noqa: ANN401
    b: Any,  # noqa: ANN401
    left: list[Count],
    right: list[Count],
) -> list[Count] | None:
    """Returns left (operation) right; adding tuples appends them."""
    if _is_tuple(a) or _is_tuple(b):
        return (
            [*left, *right]
            if target in (operator.add, operator.iadd) and _is_tuple(a) and _is_tuple(b)
            else None
        )
    one, two = left[0], right[0]
    target = _IN_PLACE.get(target, target)
    if target is operator.add:
        return [one + two]
    if target is operator.sub:
        return [one + two * Fraction(-1)]
    if target is operator.mul and not (one.terms and two.terms):
        return [one * two.constant if one.terms else two * one.constant]
    if target in (operator.floordiv, operator.truediv) and not two.terms and two.constant:
        return [one * (1 / two.constant)]
    return None


def _counts(item: Any) -> list[Count] | None:  # noqa: ANN401 - arguments are anything
    """Returns how a number, or every number of a tuple, follows channels; None for anything else."""
    if isinstance(item, Operand):
        values = item.value if isinstance(item.value, tuple) else (item.value,)
        counts = item.counts or (None,) * len(values)
        pairs = zip(values, counts, strict=True)
        plain = all(
            c is not None or isinstance(v, int | float) for v, c in zip(values, counts, strict=True)
        )
        return [Count(Fraction(v)) if c is None else c for v, c in pairs] if plain else None
    if isinstance(item, tuple | list):
        nested = [_counts(inner) for inner in item]
        return None if None in nested else [count for inner in nested for count in inner or []]
    if isinstance(item, int | float) and math.isfinite(item):
        return [Count(Fraction(item))]
    return [] if isinstance(item, slice) else None


def _is_tuple(item: Any) -> bool:  # noqa: ANN401 - arguments are anything
    """Returns whether an argument is a tuple of numbers."""
    return isinstance(item.value if isinstance(item, Operand) else item, tuple | list)


def _taken(op: Op) -> list[Count] | None:
    """Returns the counts in the part of a tuple of sizes that an index or slice takes."""
    source, index = op.args
    counts = _counts(source)
    if counts is None or not isinstance(source, Operand):
        return None
    if isinstance(index, int):
        return [counts[index]]
    if not isinstance(index, slice):
        return None
    ends: list[Any] = [
        e.value if isinstance(e, Operand) else e for e in (index.start, index.stop, index.step)
    ]
    plain = all(
        not isinstance(e, Operand) or e.is_plain for e in (index.start, index.stop, index.step)
    )
    return counts[slice(*ends)] if plain else None
