"""Sums of products over named axes: einsum and matrix products."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch

from abcsearch.channels.flow import Flow, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import rule_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@rule_for(torch.einsum)
def einsum(flow: Flow, op: Op) -> Layout | None:
    """Every letter is an axis; channels pass through letters that stay, and end at a parameter in those that go."""
    equation = op.plain(0, "equation")
    operands = [o for arg in op.args[1:] for o in (arg if isinstance(arg, tuple | list) else [arg])]
    left, arrow, right = str(equation).replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or any(len(set(term)) < len(term) for term in [*terms, right]):
        msg = "only equations like 'ij,jk->ik' are read"
        raise NoRuleError(msg)
    return _contract(flow, op, terms, right, operands)


@rule_for(torch.matmul, torch.bmm, torch.mm, operator.matmul, "matmul", "bmm", "mm", "__matmul__")
def matrix_product(flow: Flow, op: Op) -> Layout | None:
    """The last axis of the first meets the last but one of the second; axes before are broadcast."""
    operands = [op.tensor(0), op.tensor(1, "other")]
    ranks = [len(operand.value) for operand in operands]
    if min(ranks) < 2:
        msg = "one side is a vector"
        raise NoRuleError(msg)
    batch = "abcdefgh"[: max(ranks) - 2]
    terms = [batch[len(batch) - (rank - 2) :] + ends for rank, ends in zip(ranks, ("ij", "jk"), strict=True)]
    if any(1 in operand.value[:-2] and max(ranks) > 2 for operand in operands) and any(
        operand.layout is not None and operand.layout.axis < rank - 2
        for operand, rank in zip(operands, ranks, strict=True)
    ):
        msg = "channels at an axis that is broadcast"
        raise NoRuleError(msg)
    return _contract(flow, op, terms, batch + "ik", operands)


def _contract(flow: Flow, op: Op, terms: list[str], right: str, operands: list[Operand]) -> Layout | None:
    """Follows the letters of all operands."""
    channels: dict[str, NDArray[np.int64]] = {}
    for term, operand in zip(terms, operands, strict=True):
        if operand.layout is not None and operand.parameter is None:
            letter = term[operand.layout.axis]
            known = channels.setdefault(letter, operand.layout.positions)
            if len(known) != len(operand.layout.positions):
                msg = "a single channel is broadcast over others"
                raise NoRuleError(msg)
            flow.tie(known, operand.layout.positions)
    if len(channels) > 1:
        msg = "channels at several axes"
        raise NoRuleError(msg)
    if not channels:
        return None
    ((letter, positions),) = channels.items()
    meets = [(term, o) for term, o in zip(terms, operands, strict=True) if letter in term]
    weights = [(term, o) for term, o in meets if o.parameter is not None]
    if letter not in right and (len(meets) != 2 or len(weights) != 1):
        # A sum over channels is exact only where the parameter that it meets loses them as well.
        msg = "it sums over channels without a weight of its own for each"
        raise NoRuleError(msg)
    for term, operand in meets:
        if operand.parameter is not None:
            flow.parameter(operand.parameter, term.index(letter), positions)
        elif operand.layout is None:
            flow.fix(positions, f"{op.name}: combined with {operand.why}")
    if letter in right:
        return Layout(right.index(letter), positions)
    ((term, weight),) = weights
    others = "".join(other for other, operand in zip(terms, operands, strict=True) if operand is not weight)
    return _computed(flow, right, term, weight, others)


def _computed(flow: Flow, right: str, term: str, weight: Operand, others: str) -> Layout | None:
    """Returns the layout of new channels: the only axis that the weight alone brings; None if there are several."""
    kept = [letter for letter in term if letter in right and letter not in others]
    if len(kept) != 1 or weight.parameter is None:
        return None
    axis = term.index(kept[0])
    positions = flow.fresh(weight.value[axis], weight.parameter.removesuffix(".weight"))
    flow.parameter(weight.parameter, axis, positions)
    return Layout(right.index(kept[0]), positions)
