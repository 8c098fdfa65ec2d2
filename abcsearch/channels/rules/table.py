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

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from abcsearch.channels.flow import Count, Flow, Layout, NoRuleError, Op, Operand

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Rule = Callable[[Flow, Op], Layout | None | Sequence[Layout | None]]
RULES: dict[Any, Rule] = {}
SIZED: set[Any] = set()  # the operations whose rule says what numbers do that follow channels


def rule_for(*operations: Any, sized: bool = False) -> Callable[[Rule], Rule]:  # noqa: ANN401 - classes, functions, names
    """Registers the decorated rule for module classes, functions, or names.

    An example, a module of your own that reverses its channels and has one weight per channel:

        @rule_for(MyFlip)
        def my_flip(flow, op):
            positions = op.tensor().layout.positions[::-1]
            flow.parameter(op.module.weight, 0, positions)
            return Layout(1, positions)

    `Flow` lists what a rule can say (`tie`, `fix`, `parameter`, `setting`, `fresh` ...). Only a rule that is `sized`
    is asked about uses in which a number among the arguments follows channels.
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, rule))
        if sized:
            SIZED.update(operations)
        return rule

    return register


def find_rule(target: Any) -> Rule | None:  # noqa: ANN401 - classes, functions and names
    """Returns the rule of an operation, or None."""
    try:
        found = RULES.get(target)
    except TypeError:  # an object that cannot be hashed was called
        return None
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return found or RULES.get(name)


# --- What several rules ask of their arguments. ---


def same_channels(operand: Operand, op: Op) -> Layout | None:
    """Returns the operand's layout if the result has the same rank and the same size of its channel axis."""
    layout = operand.layout
    if layout is None:
        return None
    if not op.is_tensor or len(op.value) != len(operand.value) or op.value[layout.axis] != operand.value[layout.axis]:
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


def fixed_channels(flow: Flow, operand: Operand, axis: int) -> NDArray[np.int64]:
    """Returns new positions for an axis of a tensor without channels that can be removed: they must stay."""
    found = flow.fresh(operand.value[axis])
    flow.fix(found, operand.why or "a tensor that keeps its channels")
    return found


def others_plain(op: Op, known: int = 1) -> None:
    """Raises NoRuleError unless all operands behind the first `known` are numbers that do not follow channels."""
    if not all(operand.is_plain for operand in op.operands[known:]):
        msg = "another argument depends on channels"
        raise NoRuleError(msg)


def axes_of(value: Any, rank: int) -> list[int]:  # noqa: ANN401 - arguments are anything
    """Returns one axis or a sequence of axes as a list, counted from the front."""
    items = list(value) if isinstance(value, tuple | list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        msg = "an axis is not a plain number"
        raise NoRuleError(msg)
    return [item % rank for item in items]


def numbers(*arguments: Any) -> list[tuple[int, Count]]:  # noqa: ANN401 - arguments are anything
    """Returns sizes that are given one by one or as sequences: the value of each and how it follows channels."""
    found: list[tuple[int, Count]] = []
    for item in arguments:
        if isinstance(item, Operand) and not item.is_tensor:
            values = item.value if isinstance(item.value, tuple) else (item.value,)
            if not all(isinstance(value, int | float) for value in values):
                msg = "a size is not a number"
                raise NoRuleError(msg)
            counts = item.counts or (None,) * len(values)
            found += [(v, Count(Fraction(v)) if c is None else c) for v, c in zip(values, counts, strict=True)]
        elif isinstance(item, tuple | list):
            found += numbers(*item)
        elif isinstance(item, int):
            found.append((item, Count(Fraction(item))))
        else:
            msg = "a size is not a number"
            raise NoRuleError(msg)
    return found
