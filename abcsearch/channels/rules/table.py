"""One table: operation -> how channel positions pass through it.

A rule takes the `Flow` and the `Op`, says what it knows (ties, registered parameter axes) and returns the layout of the
result: None if nothing in the result follows channels, a list of layouts for an operation that returns several tensors.
It raises `NoRuleError` for a use that it does not cover; an operation that is absent from the table counts as such a
use. What an uncovered operation touches is fixed by name, never sliced silently wrong.

Keys are module classes, functions, names of tensor methods, and import paths ("package.module.function") where the
import would cost too much. Modules are looked up by their exact class: a subclass may have overridden forward. A module
whose class has a rule is not traced into, so a rule also is the way out where its forward cannot be traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import nn

from abcsearch.channels.flow import Flow
from abcsearch.channels.operands import Count, Layout, NoRuleError, Op, Operand

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Rule = Callable[[Flow, Op], Layout | Sequence[Layout | None] | None]
RULES: dict[Any, Rule] = {}
_THOROUGH: set[Rule] = set()  # rules that look at all arguments themselves


def rule_for(
    *operations: Any,  # noqa: ANN401 - classes, functions and names
    thorough: bool = False,
) -> Callable[[Rule], Rule]:
    """Registers the decorated rule for module classes, functions, or names.

    A rule may look at its first argument only: where another one is a tensor, or a number that follows channels,
    the operation counts as not covered. With `thorough`, the rule looks at all arguments itself.

    An example, a module of your own that reverses its channels and has one weight per channel:

        @rule_for(MyFlip)
        def my_flip(flow, op):
            positions = op.tensor().layout.positions[::-1]
            flow.parameter(op.module.weight, 0, positions)
            return Layout(1, positions)

    `Flow` lists what a rule can say (`tie`, `fix`, `parameter`, `setting`, `fresh` ...).
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, rule))
        if thorough:
            _THOROUGH.add(rule)
        return rule

    return register


def find_rule(target: Any) -> Rule | None:  # noqa: ANN401 - classes, functions and names
    """Returns the rule of an operation, or None."""
    try:
        rule = RULES.get(target)
    except TypeError:  # an object that cannot be hashed was called
        return None
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return rule or RULES.get(name)


# What a subclass may say anew without working in another way.
_HARMLESS = frozenset(
    {"__init__", "__module__", "__doc__", "__annotations__", "__qualname__", "__firstlineno__"}
) | {
    *(
        "__static_attributes__",
        "__constants__",
        "__repr__",
        "__str__",
        "extra_repr",
        "reset_parameters",
        "_get_name",
    ),
    *("__dict__", "__weakref__", "__parameters__", "__orig_bases__", "_version", "__slots__"),
}


def ruled_class(kind: type) -> type | None:
    """Returns the class whose rule covers a module's class: itself, or one that it works exactly like; or None.

    A subclass that only has another way to be made or shown works like its base.
    """
    added: dict[str, Any] = {}
    for base in kind.__mro__:
        if base is nn.Module:
            return None
        if find_rule(base) is not None:
            changed = any(
                hasattr(base, name) or isinstance(value, property) for name, value in added.items()
            )
            return None if changed else base
        added.update({name: value for name, value in vars(base).items() if name not in _HARMLESS})
    return None


# --- What several rules ask of their arguments. ---


def same_channels(operand: Operand, op: Op) -> Layout | None:
    """Returns the operand's layout if the result has the same rank and the same size of its channel axis."""
    layout = operand.layout
    if layout is None:
        return None
    if (
        not op.is_tensor
        or len(op.value) != len(operand.value)
        or op.value[layout.axis] != operand.value[layout.axis]
    ):
        msg = "the result has other channels than the argument"
        raise NoRuleError(msg)
    return layout


def channels_at(operand: Operand, axis: int, where: str) -> Layout | None:
    """Returns the operand's layout if its channels are at `axis` (or if it has none)."""
    layout = operand.layout
    if layout is not None and layout.axis != axis:
        msg = f"the channels are not {where} of the input"
        raise NoRuleError(msg)
    return layout


def run_rule(rule: Rule, flow: Flow, op: Op) -> Layout | Sequence[Layout | None] | None:
    """Returns what a rule says of an operation.

    Raises:
        NoRuleError: if it does not cover this use.
    """
    kept = pinned(flow, op) if rule not in _THOROUGH else op
    if rule not in _THOROUGH:
        numbers_plain(kept.operands[1:])
    try:
        return rule(flow, kept)
    except NoRuleError:
        again = pinned(flow, kept)
        if again is kept:
            raise
        return rule(flow, again)


def pinned(flow: Flow, op: Op) -> Op:
    """Returns an operation to which attributes of modules are numbers that stay; itself where there are none."""

    def pin(item: Operand) -> Operand:
        standing = [count for count in item.counts if count is not None and flow.pins(count)]
        for count in standing:
            for _, positions in count.terms:
                flow.fix(
                    positions, f"{op.name}: it works by a number that is written in the network"
                )
        left = (
            tuple(None if count in standing else count for count in item.counts) if standing else ()
        )
        return dataclasses.replace(item, counts=left) if standing else item

    if not any(flow.pins(count) for operand in op.operands for count in operand.counts):
        return op
    return op.mapped(pin)


def numbers_plain(operands: Sequence[Operand]) -> None:
    """Raises NoRuleError unless all operands are numbers that do not follow channels."""
    if not all(operand.is_plain for operand in operands):
        msg = "another argument depends on channels"
        raise NoRuleError(msg)


def equal_runs(flow: Flow, positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Ties the same channels of `count` equal runs of positions, (count * n,); returns the first run, (n,)."""
    lanes = positions.reshape(count, -1)
    for lane in lanes[1:]:
        flow.tie(lanes[0], lane)
    return lanes[0]


def axes_of(value: Any, rank: int) -> list[int]:  # noqa: ANN401 - arguments are anything
    """Returns one axis or a sequence of axes as a list, counted from the front."""
    items = list(value) if isinstance(value, tuple | list) else [value]
    if not all(type(item) is int for item in items):
        msg = "an axis is not a plain number"
        raise NoRuleError(msg)
    return [item % rank for item in items]


def numbers(*arguments: Any) -> list[tuple[int, Count]]:  # noqa: ANN401 - arguments are anything
    """Returns sizes that are given one by one or as sequences: the value of each and how it follows channels."""
    counted: list[tuple[int, Count]] = []
    for item in arguments:
        if isinstance(item, Operand) and not item.is_tensor:
            values = item.value if isinstance(item.value, tuple) else (item.value,)
            counts = item.counts or (None,) * len(values)
            if not all(isinstance(value, int) for value in values):
                msg = "a size is not a number"
                raise NoRuleError(msg)
            counted += [
                (v, Count(Fraction(v)) if c is None else c)
                for v, c in zip(values, counts, strict=True)
            ]
        elif isinstance(item, tuple | list):
            counted += numbers(*item)
        elif isinstance(item, int):
            counted.append((item, Count(Fraction(item))))
        else:
            msg = "a size is not a number"
            raise NoRuleError(msg)
    return counted
