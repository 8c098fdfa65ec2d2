"""Views of parameters: axes in another order, split or picked, which slicing still reaches."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.operands import Op, Operand, View
from abcsearch.channels.rules.computed import rows_of
from abcsearch.channels.rules.table import pinned

if TYPE_CHECKING:
    from abcsearch.channels.flow import Flow

_VIEWS = (
    *(
        "t",
        torch.t,
        "T",
        "mT",
        "permute",
        torch.permute,
        "transpose",
        torch.transpose,
        "swapaxes",
        torch.swapaxes,
    ),
    *(
        "movedim",
        torch.movedim,
        "unsqueeze",
        torch.unsqueeze,
        "squeeze",
        torch.squeeze,
        "view",
        "reshape",
    ),
    *(torch.reshape, "flatten", torch.flatten, operator.getitem),
)


_ALIKE = ("contiguous", "clone", "detach")


def view_of(flow: Flow, op: Op) -> View | None:
    """Returns the parameter that an operation shows: axes in another order, split, or with axes of one entry more.

    Also rows of one that a tensor picks which never changes, as of a table of relative positions. None where it does
    anything else.
    """
    source = op.args[0] if op.args else None
    if not isinstance(source, Operand) or source.parameter is None or source.layout is not None:
        return None
    if op.target in _ALIKE and isinstance(source.parameter, View):
        return source.parameter
    if op.target is operator.getitem and isinstance(op.args[1], Operand) and op.args[1].is_tensor:
        return _rows(flow, op, source, op.args[1])
    if rows_of(source) is None:  # rows, whose number may be an attribute, are for `by_rows`
        op = pinned(flow, op) if op.target in _VIEWS else op
    if op.target not in _VIEWS or not all(operand.is_plain for operand in op.operands[1:]):
        return None
    return _moved(op, source.parameter, source.value)


def _moved(op: Op, name: str, shape: Any) -> View | None:  # noqa: ANN401 - a torch.Size
    """Returns the view that an operation without other tensors makes; None where it does anything else."""
    # What happens to the strides of a tensor without entries says which axis goes where.
    whole = torch.empty(tuple(shape), device="meta")
    rest = [op.plain(i, "") for i in range(1, len(op.args))]
    options = {key: op.plain(len(op.args), key) for key in op.kwargs}
    moved: Any = (
        getattr(whole, op.target)
        if isinstance(op.target, str)
        else op.target(whole, *rest, **options)
    )
    moved = (
        moved(*rest, **options)
        if callable(moved) and not isinstance(moved, torch.Tensor)
        else moved
    )
    known = {step: axis for axis, step in enumerate(whole.stride()) if whole.shape[axis] > 1}
    axes = tuple(
        known.get(step) if n > 1 else None
        for n, step in zip(moved.shape, moved.stride(), strict=True)
    )
    fits = [
        n == 1 or (axis is not None and whole.shape[axis] == n)
        for n, axis in zip(moved.shape, axes, strict=True)
    ]
    if not moved._is_view():
        return None
    if op.target is operator.getitem:  # nor do channels lie on axes of which a range is taken
        axes = tuple(axis if fit else None for axis, fit in zip(axes, fits, strict=True))
    elif not all(
        fits
    ):  # split axes are none that channels lie on, nor is one whose size is written
        sizes = rest[0] if rest and isinstance(rest[0], tuple | list) else rest
        if op.target not in ("view", "reshape", torch.reshape) or len(sizes) != len(axes):
            return None
        axes = tuple(
            axis if fit and n == -1 else None
            for axis, fit, n in zip(axes, fits, sizes, strict=True)
        )
    return View.of(name, axes)


def _rows(flow: Flow, op: Op, source: Operand, index: Operand) -> View | None:
    """Returns the rows of a parameter that a tensor of whole numbers picks; the other axes are whole."""
    count = len(index.value)
    if len(op.value) != count + len(source.value) - 1 or source.parameter is None:
        return None
    for positions in index.touched:
        flow.fix(positions, f"{op.name}: it picks entries of {source.parameter}")
    if index.parameter is not None:
        flow.freeze(index.parameter, f"{op.name}: it picks entries of {source.parameter}")
    return View.of(source.parameter, (*[None] * count, *range(1, len(source.value))))
