"""Numbers that remember the operation which computed them, and where forward decided something by one.

While a forward pass is recorded, `x.shape` is a torch.Size of these. torch takes them as the ints that they are and
hands them on; arithmetic on them is remembered. What cannot be is noted at once: a comparison took one branch, `int()`
left a plain number. What is computed but never used makes no node.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import fx


def comparison(a: Any, b: Any, how: str, outcome: bool, line: str) -> bool:  # noqa: ANN401, ARG001, FBT001
    """Stands in a graph where forward compared two numbers, and for what it found on the example."""
    return outcome


def conversion(a: Any, line: str) -> Any:  # noqa: ANN401, ARG001
    """Stands in a graph where a number became a plain one, which would stay what it was on the example."""
    return a


_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, np.__file__, __file__))


def place_in_forward() -> str:
    """Returns `file:line` of the innermost frame outside torch and outside the tracer."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "inside torch"


class Records(Protocol):
    """What keeps the operations of a forward pass: `Recorder`."""

    @property
    def listens(self) -> bool:
        """Whether what happens now is recorded."""
        ...

    @property
    def scope(self) -> str:
        """The path of the module in whose forward it happens."""
        ...

    def add(self, op: str, target: Any, args: Any, kwargs: Any, value: Any, scope: str) -> fx.Node:  # noqa: ANN401
        """Adds an operation; see `Pending`."""
        ...

    def note(self, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Adds that forward has decided something."""
        ...


class Pending:
    """An operation that becomes a node of the graph when its result is used.

    Attributes:
        recorder: whose graph.
        op: as fx has it, "call_function" for one.
        target: likewise.
        args: nodes, pending operations and plain values; so are kwargs.
        value: the result, as `OperationGraph.values` has it.
        scope: the path of the module in whose forward it happens.
    """

    __slots__ = ("_node", "args", "kwargs", "op", "recorder", "scope", "target", "value")

    def __init__(
        self,
        recorder: Records,
        op: str,
        target: Any,  # noqa: ANN401 - functions and names
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        value: Any,  # noqa: ANN401 - shapes and numbers
    ) -> None:
        self.recorder, self.op, self.target = recorder, op, target
        self.args, self.kwargs, self.value, self.scope = args, kwargs, value, recorder.scope
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:
        """The node, made when it is asked for the first time."""
        if self._node is None:
            self._node = self.recorder.add(
                self.op, self.target, self.args, self.kwargs, self.value, self.scope
            )
        return self._node

    def item(self, index: int | str, value: Any) -> Pending:  # noqa: ANN401 - shapes and numbers
        """Returns the operation that takes one of several results."""
        return Pending(self.recorder, "call_function", operator.getitem, (self, index), {}, value)


class Number:
    """What `Int` and `Float` share.

    Attributes:
        pending: the operation that computed the number.
    """

    pending: Pending

    def __hash__(self) -> int:
        return hash(plain(self))

    def __bool__(self) -> bool:
        value = bool(plain(self))
        _note(self, comparison, self, 0, "ne", value)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return _KINDS[type(self)], (plain(self),)

    def __deepcopy__(self, memo: object) -> Number:
        return self

    def __divmod__(self, other: Any) -> tuple[Any, Any]:  # noqa: ANN401 - numbers
        return self // other, self % other  # pyright: ignore[reportOperatorIssue]

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:  # noqa: ANN401 - numbers
        return other // self, other % self

    def __format__(self, spec: str) -> str:
        return format(plain(self), spec)


class Int(Number, int):
    """An int that remembers what computed it."""

    __repr__ = int.__repr__


class Float(Number, float):
    """A float that remembers what computed it."""

    __repr__ = float.__repr__


_KINDS = {Int: int, Float: float}
_PLAIN = {Int: int.__int__, Float: float.__float__}


def plain(value: Any) -> Any:  # noqa: ANN401 - anything
    """Returns a number without its memory; anything else as it is."""
    convert = _PLAIN.get(type(value))
    return value if convert is None else convert(value)


def remembered(value: Any, pending: Pending) -> Any:  # noqa: ANN401 - anything
    """Returns an int or float with a memory; anything else, truth values among it, as it is."""
    kind = {int: Int, float: Float}.get(type(value))
    if kind is None:
        return value
    number = kind(value)
    number.pending = pending
    return number


def _note(number: Number, target: Callable[..., Any], *args: Any) -> None:  # noqa: ANN401 - numbers
    """Makes a node of what forward did with a number, with the line."""
    recorder = number.pending.recorder
    if recorder.listens:
        recorder.note(target, (*args, place_in_forward()))


def _left(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a method whose result is a plain number."""

    def leave(self: Number, *args: Any) -> Any:  # noqa: ANN401 - numbers
        _note(self, conversion, self)
        return method(plain(self), *(plain(arg) for arg in args))

    return leave


def _kept(function: Callable[..., Any], *, swapped: bool) -> Callable[..., Any]:
    """Returns a method for arithmetic, which is remembered."""

    def compute(self: Number, *others: Any) -> Any:  # noqa: ANN401 - numbers
        if any(not isinstance(other, int | float) for other in others):
            return NotImplemented
        sides = (*others, self) if swapped else (self, *others)
        value = function(*(plain(side) for side in sides))
        recorder = self.pending.recorder
        if not recorder.listens:
            return value
        args = tuple(side.pending if isinstance(side, Number) else side for side in sides)
        return remembered(value, Pending(recorder, "call_function", function, args, {}, value))

    return compute


def _compared(name: str) -> Callable[..., Any]:
    """Returns a method for a comparison, which is noted."""
    function = getattr(operator, name)

    def compare(self: Number, other: Any) -> Any:  # noqa: ANN401 - anything may be compared with a number
        if not isinstance(other, int | float):
            return NotImplemented
        outcome = function(plain(self), plain(other))
        _note(self, comparison, self, other, name, outcome)
        return outcome

    return compare


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    setattr(Number, f"__{_name}__", _kept(getattr(operator, _name), swapped=False))
    setattr(Number, f"__r{_name}__", _kept(getattr(operator, _name), swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Number, f"__{_name}__", _compared(_name))
for _name, _function in (("neg", operator.neg), ("pos", operator.pos)):
    setattr(Number, f"__{_name}__", _kept(_function, swapped=False))
_CONVERSIONS: dict[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "complex": complex,
    "round": round,
    "abs": abs,
    "invert": operator.invert,
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
    "index": operator.index,
}
for _name, _function in _CONVERSIONS.items():
    setattr(Number, f"__{_name}__", _left(_function))
for _name in ("and_", "or_", "xor", "lshift", "rshift"):
    _function = getattr(operator, _name)
    setattr(Number, f"__{_name.rstrip('_')}__", _left(_function))
    setattr(
        Number,
        f"__r{_name.rstrip('_')}__",
        _left(lambda a, b, _function=_function: _function(b, a)),
    )
