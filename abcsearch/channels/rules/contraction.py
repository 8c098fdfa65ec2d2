"""Sums of products over named axes: einsum and matrix products."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.channels.operands import Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.layers import counted_as
from abcsearch.channels.rules.table import numbers_plain, rule_for
from abcsearch.channels.uses import Call

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.channels.flow import Flow


@rule_for(torch.einsum, thorough=True)
def einsum(flow: Flow, op: Op) -> Layout | None:
    """Every letter is an axis; channels pass through letters that stay, and end at a parameter in those that go."""
    read = _read(op)
    if read is None:
        msg = "only equations like 'ij,jk->ik' are read"
        raise NoRuleError(msg)
    return _contract(flow, op, *read)


_PRODUCTS = (
    torch.matmul,
    torch.bmm,
    torch.mm,
    operator.matmul,
    "matmul",
    "bmm",
    "mm",
    "__matmul__",
)
_SUMMED = (torch.addmm, "addmm")


@rule_for(*_PRODUCTS, thorough=True)
def matrix_product(flow: Flow, op: Op) -> Layout | None:
    """The last axis of the first meets the last but one of the second; axes before are broadcast."""
    for index, name in enumerate(("input", "other")):
        op.tensor(index, name)
    read = _read(op)
    if read is None:
        msg = "one side is a vector"
        raise NoRuleError(msg)
    return _contract(flow, op, *read)


@rule_for(*_SUMMED, thorough=True)
def product_and_sum(flow: Flow, op: Op) -> Layout | None:
    """A matrix product, and something added to it."""
    added, read = op.tensor(0), _read(op)
    numbers_plain([operand for operand in op.operands if not operand.is_tensor])
    layout = None if read is None else _contract(flow, op, *read)
    if layout is None:
        if added.layout is not None:
            msg = "it is added to what keeps its channels"
            raise NoRuleError(msg)
        return None
    axis = layout.axis - len(op.value) + len(added.value)
    if axis < 0 or added.value[axis] == 1:
        return layout
    if added.layout is not None and added.layout.axis == axis:
        flow.tie(layout.positions, added.layout.positions)
    elif added.parameter is not None:
        flow.parameter(added.parameter, axis, layout.positions)
    else:
        flow.fix(layout.positions, f"{op.name}: combined with {added.why}")
    return layout


def _read(op: Op) -> tuple[list[str], str, list[Operand]] | None:
    """Returns the axes of every side as letters, those of the result, and the sides; None where they cannot be read."""
    if op.target is torch.einsum:
        operands = [
            o for arg in op.args[1:] for o in (arg if isinstance(arg, tuple | list) else [arg])
        ]
        left, arrow, right = str(op.plain(0, "equation")).replace(" ", "").partition("->")
        terms = left.split(",")
        unclear = (
            not arrow or "." in left or any(len(set(term)) < len(term) for term in [*terms, right])
        )
        return None if unclear else (terms, right, operands)
    first = 1 if op.target in _SUMMED else 0
    operands = [op.argument(first, "input"), op.argument(first + 1, "other")]
    ranks = [len(o.value) if isinstance(o, Operand) and o.is_tensor else 0 for o in operands]
    if min(ranks) < 2:
        return None
    batch = "abcdefgh"[: max(ranks) - 2]
    terms = [
        batch[len(batch) - (rank - 2) :] + ends
        for rank, ends in zip(ranks, ("ij", "jk"), strict=True)
    ]
    return terms, batch + "ik", operands


def count_products(flow: Flow, op: Op) -> bool:
    """Records the multiply-accumulates of a product with a weight, as those of a layer; returns whether it is one.

    That is a sum over an axis of the weight that it shares with the other side.
    """
    read = _read(op) if op.target in (torch.einsum, *_PRODUCTS, *_SUMMED) and op.is_tensor else None
    weights = (
        []
        if read is None
        else [(t, o) for t, o in zip(read[0], read[2], strict=True) if o.parameter is not None]
    )
    if read is None or len(weights) != 1 or len(read[0]) != 2:
        return False
    (term, weight), (other,) = (
        weights[0],
        [t for t, o in zip(read[0], read[2], strict=True) if o is not weights[0][1]],
    )
    if not set(term) & set(other) - set(read[1]):
        return False
    lengths = {
        a: n for t, o in zip(read[0], read[2], strict=True) for a, n in zip(t, o.value, strict=True)
    }
    times = math.prod(n for letter, n in lengths.items() if letter not in term)
    times = flow.per_image(times)
    inputs = math.prod(
        n for letter, n in lengths.items() if letter in term and letter not in read[1]
    )
    flow.calls.append(
        Call(
            weight=counted_as(flow, weight),
            bias=None,
            times=times,
            outputs=0,
            scope=op.scope,
            in_channels=inputs,
        )
    )
    return True


def _contract(
    flow: Flow, op: Op, terms: list[str], right: str, operands: list[Operand]
) -> Layout | None:
    """Follows the letters of all operands."""
    _check_lengths(terms, operands)
    letter, positions = _channel_letter(flow, terms, operands)
    if letter is None:
        return None
    computed = [o for o in operands if o.layout is not None and o.parameter is None]
    flow.attends = flow.attends or len(computed) > 1
    meets = [(term, o) for term, o in zip(terms, operands, strict=True) if letter in term]
    if letter in right:
        _meet(flow, op, meets, letter, positions)
        return Layout(right.index(letter), positions)
    weights = [(term, o) for term, o in meets if o.parameter is not None]
    if len(meets) != 2 or len(weights) != 1:
        # A sum over channels is exact only where the parameter that it meets loses them as well.
        msg = "it sums over channels without a weight of its own for each"
        raise NoRuleError(msg)
    _meet(flow, op, meets, letter, positions, reads=True)
    ((term, weight),) = weights
    others = [t for t, o in zip(terms, operands, strict=True) if o is not weight]
    return _computed(flow, right, term, weight, "".join(others))


def _check_lengths(terms: list[str], operands: list[Operand]) -> None:
    """Raises NoRuleError if a letter stands for axes of two lengths, as where torch repeats one, and there are channels.

    Args:
        terms: of every operand, the letters of its axes.
        operands: tensors.
    """
    if all(operand.layout is None for operand in operands):
        return
    lengths: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, length in zip(term, operand.value, strict=True):
            if lengths.setdefault(letter, length) != length:
                msg = "an axis of one entry is repeated"
                raise NoRuleError(msg)


def _meet(
    flow: Flow,
    op: Op,
    meets: list[tuple[str, Operand]],
    letter: str,
    positions: NDArray[np.int64],
    *,
    reads: bool = False,
) -> None:
    """Has parameters lose the channels that meet them, and keeps those that meet what never changes.

    Args:
        flow: of the analysis.
        op: the product.
        meets: letters and operand, of those that have the letter.
        letter: of the channels.
        positions: of these, (channels,).
        reads: whether the product sums over them.
    """
    for term, operand in meets:
        if operand.parameter is not None:
            flow.parameter(operand.parameter, term.index(letter), positions, reads=reads)
        elif operand.layout is None:
            flow.fix(positions, f"{op.name}: combined with {operand.why}")


def _channel_letter(
    flow: Flow, terms: list[str], operands: list[Operand]
) -> tuple[str | None, NDArray[np.int64]]:
    """Returns the letter that runs over channels (None: there is none) and the positions; ties all that meet there."""
    channels: dict[str, NDArray[np.int64]] = {}
    for term, operand in zip(terms, operands, strict=True):
        if operand.layout is not None and operand.parameter is None:
            letter = term[operand.layout.axis]
            flow.tie(
                channels.setdefault(letter, operand.layout.positions), operand.layout.positions
            )
    if len(channels) > 1:
        msg = "channels at several axes"
        raise NoRuleError(msg)
    return next(iter(channels.items()), (None, np.zeros(0, np.int64)))


def _computed(flow: Flow, right: str, term: str, weight: Operand, others: str) -> Layout | None:
    """Returns the layout of new channels: the only axis that the weight alone brings; None if there are several."""
    kept = [letter for letter in term if letter in right and letter not in others]
    if len(kept) != 1 or weight.parameter is None:
        return None
    axis = term.index(kept[0])
    positions = flow.fresh(weight.value[axis], weight.parameter.removesuffix(".weight"))
    flow.parameter(weight.parameter, axis, positions)
    return Layout(right.index(kept[0]), positions)
