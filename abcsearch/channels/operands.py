"""What rules see of one operation: its arguments, where the channels are in them, and numbers that follow channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import AbcSearchError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


# Why nothing follows channels in a tensor that slicing cannot reach.
LOOSE = "a tensor that is neither a parameter nor a buffer"


class NoRuleError(AbcSearchError):
    """A rule does not cover this use of its operation; what the operation touches is fixed, with this reason."""


@dataclass(frozen=True)
class Layout:
    """Where a tensor's channels are.

    Attributes:
        axis: the axis that runs over channels, counted from the front.
        positions: (size of that axis,) int64, the position of every entry.
    """

    axis: int
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Count:
    """A number that follows channels: constant + the sum of factor * (channels kept among positions).

    Attributes:
        constant: what does not depend on channels.
        terms: (factor, positions), any number of them.
    """

    constant: Fraction
    terms: tuple[tuple[Fraction, NDArray[np.int64]], ...] = ()

    @classmethod
    def of(cls, positions: NDArray[np.int64]) -> Count:
        """Returns the number of channels kept among positions, (n,)."""
        return cls(Fraction(0), ((Fraction(1), positions),))

    @property
    def full(self) -> Fraction:
        """The number in the unpruned network."""
        return self.constant + sum(factor * len(positions) for factor, positions in self.terms)

    def __add__(self, other: Count) -> Count:
        return Count(self.constant + other.constant, (*self.terms, *other.terms))

    def __mul__(self, factor: Fraction) -> Count:
        return Count(
            self.constant * factor,
            tuple((times * factor, positions) for times, positions in self.terms),
        )


class View(str):
    """The name of a parameter or buffer that is seen with its axes in another order, or with axes of one entry.

    Attributes:
        axes: the axis of the parameter that each axis of the view is; None for one of one entry.
    """

    __slots__ = ("axes",)

    axes: tuple[int | None, ...]

    @classmethod
    def of(cls, name: str, axes: tuple[int | None, ...]) -> View:
        """Returns the name with its axes; of a view's name, as seen through both."""
        view = cls(name)
        before = name.axes if isinstance(name, View) else None
        view.axes = (
            axes
            if before is None
            else tuple(None if axis is None else before[axis] for axis in axes)
        )
        return view


@dataclass(frozen=True, kw_only=True)
class Operand:
    """An argument that comes from another operation.

    Attributes:
        value: the shape of a tensor, the value of a number or tuple of numbers; None for anything else.
        layout: where a tensor's channels are; None if no channel that can be removed is in it: nothing of the tensor
            changes then.
        why: why the layout is None, for messages.
        parameter: the canonical name, where it is a parameter or buffer that forward uses directly, or a view of one.
        is_tensor: whether it is a tensor.
        counts: of a number or tuple of numbers: how each follows channels, None where it does not.
        parts: the tensors of an operation that returns several.
        computed: the canonical name of the parameter that it is computed from alone; its rows are the channels.
        pooled: of a tensor of numbers that channels have in common: the norms that they are for.
    """

    value: Any
    layout: Layout | None = None
    why: str = ""
    parameter: str | None = None
    is_tensor: bool = True
    counts: tuple[Count | None, ...] = ()
    parts: tuple[Operand, ...] = ()
    pooled: tuple[Norm, ...] = ()
    computed: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it is a number, or a tuple of numbers, that does not follow channels."""
        return not self.is_tensor and not self.parts and not any(self.counts)

    @property
    def tensors(self) -> list[Operand]:
        """The tensor itself, or those of an operation that returns several, in order."""
        return (
            [self]
            if self.is_tensor
            else [tensor for inner in self.parts for tensor in inner.tensors]
        )

    @property
    def touched(self) -> list[NDArray[np.int64]]:
        """The positions, (n,) each, of all channels that it depends on."""
        direct = [norm.positions for norm in self.pooled]
        direct += [] if self.layout is None else [self.layout.positions]
        counted = [
            positions for count in self.counts if count is not None for _, positions in count.terms
        ]
        return [
            *direct,
            *counted,
            *(positions for inner in self.parts for positions in inner.touched),
        ]


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation of the forward pass, as rules see it.

    Attributes:
        name: what messages call it, e.g. "Conv2d stages.0.conv1" or "add (add_3)".
        target: the function, the name of the tensor method, or the class of the module: the key of its rule.
        path: the path of the module, "" for functions and methods.
        scope: the path of the innermost module in whose forward it happens (`path`, for a module).
        module: the module, or None.
        args: positional arguments; operands where they come from other operations, plain values otherwise.
        kwargs: keyword arguments, likewise.
        value: what it returned on the example input (see `Operand.value`); a tuple of shapes for several tensors.
    """

    name: str
    target: Any
    path: str
    scope: str
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any

    @property
    def is_tensor(self) -> bool:
        """Whether the result is a tensor."""
        return isinstance(self.value, torch.Size)

    def argument(self, index: int, keyword: str, default: Any = None) -> Any:  # noqa: ANN401 - arguments are anything
        """Returns an argument by position or keyword."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(keyword, default)

    @property
    def operands(self) -> list[Operand]:
        """All operands, also those inside lists, tuples, slices and dicts."""
        operands: list[Operand] = []
        stack: list[Any] = [*self.args, *self.kwargs.values()]
        while stack:
            item = stack.pop(0)
            if isinstance(item, Operand):
                operands.append(item)
            elif isinstance(item, slice):
                stack = [item.start, item.stop, item.step, *stack]
            elif isinstance(item, tuple | list | dict):
                stack = [*(item.values() if isinstance(item, dict) else item), *stack]
        return operands

    def mapped(self, function: Callable[[Operand], Operand]) -> Op:
        """Returns the operation with other operands in the place of its own."""
        return replace(
            self, args=_mapped(self.args, function), kwargs=_mapped(self.kwargs, function)
        )

    def tensor(self, index: int = 0, keyword: str = "input") -> Operand:
        """Returns an argument that must be a tensor.

        Raises:
            NoRuleError: if it is not.
        """
        operand = self.argument(index, keyword)
        if not isinstance(operand, Operand) or not operand.is_tensor:
            msg = f"argument {index} is not a tensor"
            raise NoRuleError(msg)
        return operand

    def plain(self, index: int, keyword: str, default: Any = None) -> Any:  # noqa: ANN401 - arguments are anything
        """Returns an argument that must not follow channels, operands replaced by their values.

        Raises:
            NoRuleError: if it is a tensor or depends on the number of channels.
        """
        return _plain(self.argument(index, keyword, default))


def _mapped(item: Any, function: Callable[[Operand], Operand]) -> Any:  # noqa: ANN401 - arguments are anything
    """Returns an argument with its operands replaced by what a function makes of them."""
    if isinstance(item, Operand):
        return function(item)
    if isinstance(item, slice):
        return slice(*(_mapped(end, function) for end in (item.start, item.stop, item.step)))
    if isinstance(item, tuple | list):
        return type(item)(_mapped(each, function) for each in item)
    return (
        {key: _mapped(each, function) for key, each in item.items()}
        if isinstance(item, dict)
        else item
    )


def _plain(item: Any) -> Any:  # noqa: ANN401 - arguments are anything
    """Returns an argument with its operands replaced by their values; raises NoRuleError if one follows channels."""
    if isinstance(item, Operand):
        if not item.is_plain:
            msg = "another argument depends on channels"
            raise NoRuleError(msg)
        return item.value
    if isinstance(item, slice):
        return slice(*(_plain(end) for end in (item.start, item.stop, item.step)))
    if isinstance(item, tuple | list):
        return type(item)(_plain(inner) for inner in item)
    return item


@dataclass(frozen=True)
class Norm:
    """A computation over channels together, which a sliced network does over those that are left.

    Attributes:
        axis: of its input, that runs over channels.
        positions: of the channels.
        reason: why they would stay if it could not be done.
    """

    axis: int
    positions: NDArray[np.int64]
    reason: str
