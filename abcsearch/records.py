"""Records that carry their rules: what a field may hold, and what a run may change of it, stand beside its default.

n_sources: int = setting(10, at_least=2, at_most=10_000)
timeout: float | None = setting(None, decides=False)
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.errors import AbcSearchError, ConfigError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_RULE = "rule"
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a field may hold.

    Attributes:
        at_least: lowest number.
        above: numbers are larger than this.
        at_most: highest number, or the name of the field that holds it.
        below: numbers are smaller than this.
        zero: whether 0 is taken as well, where the range does not hold it.
        words: one of these.
        each: it is a list, with one at least, and each of its entries is one of these.
        unit: what is counted, for lists: "seconds", "images".
        meaning: what it is, for the message about its range.
        decides: whether it decides the trials of a run, so that it stays what it is when the run is continued.
        compared: whether runs that differ in it are not compared without a warning.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | str | None = None
    below: float | None = None
    zero: bool = False
    words: Collection[str] = ()
    each: Collection[str] = ()
    unit: str = ""
    meaning: str = ""
    decides: bool = True
    compared: bool = False

    def problem(self, name: str, value: Any, record: object = None) -> str:  # noqa: ANN401 - a value of the field's type
        """Returns the message for a value that breaks the rule, or "".

        Args:
            name: of the field.
            value: what it holds.
            record: that holds the other fields.
        """
        if self.each:
            return self._entries_problem(name, value)
        if self.words and value not in self.words:
            return unknown_name(name, value, self.words)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or (self.zero and value == 0)
        ):
            return ""
        high: Any = (
            getattr(record, self.at_most, None) if isinstance(self.at_most, str) else self.at_most
        )
        low, top = self.at_least is None or value >= self.at_least, high is None or value <= high
        inside = (self.above is None or value > self.above) and (
            self.below is None or value < self.below
        )
        allowed = self.allowed(high)
        if not allowed or (low and top and inside and abs(value) < math.inf):
            return ""
        meaning = f"{self.meaning}, " if self.meaning else ""
        return f"{name} is {meaning}{allowed}, found {value!r}"

    def allowed(self, high: Any = None) -> str:  # noqa: ANN401 - a number, or none
        """Returns what the rule allows, in words: "from 2 to 10000"; "" if that is anything.

        Args:
            high: the value of the field that `at_most` names; None names the field.
        """
        if self.words or self.each:
            return f"{'some' if self.each else 'one'} of {', '.join(self.each or self.words)}"
        top = self.at_most if high is None else high
        ends = [
            (self.at_least, "at least"),
            (self.above, "above"),
            (top, "at most"),
            (self.below, "below"),
        ]
        given = [f"{words} {_number(end)}" for end, words in ends if end is not None]
        both = self.at_least is not None and top is not None
        numbers = (
            f"from {_number(self.at_least)} to {_number(top)}" if both else " and ".join(given)
        )
        return f"{'0, or ' if self.zero and numbers else ''}{numbers}"

    def _entries_problem(self, name: str, value: Any) -> str:  # noqa: ANN401 - whatever was given
        """Returns the message for something that is not a list of names, or for the first unknown one; or ""."""
        if not isinstance(value, list | tuple) or not value:
            return f"{name} is a list with at least one of {', '.join(self.each)}, found {value!r}"
        wrong = [entry for entry in value if entry not in self.each]
        return unknown_name(f"entry of {name}:", str(wrong[0]), self.each) if wrong else ""


def _number(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting(default: Any = MISSING, *, make: Callable[[], Any] | None = None, **rule: Any) -> Any:  # noqa: ANN401
    """Returns a field of a dataclass with a rule.

    Args:
        default: its default; without one it has to be given.
        make: makes the default, for what is not frozen.
        **rule: see `Rule`.
    """
    metadata = {_RULE: Rule(**rule)}
    return (
        field(default=default, metadata=metadata)
        if make is None
        else field(default_factory=make, metadata=metadata)
    )


def rule_of(field_: Field[Any]) -> Rule:
    """Returns the rule of a field: one without any holds what it likes, and decides the trials."""
    return field_.metadata.get(_RULE, Rule())


def names(
    kind: type, *, decides: bool | None = None, compared: bool | None = None
) -> tuple[str, ...]:
    """Returns the names of the fields of a record that decide the trials, or do not; likewise that are compared."""
    rules = {field_.name: rule_of(field_) for field_ in fields(kind)}
    kept = [name for name, rule in rules.items() if decides in (None, rule.decides)]
    return tuple(name for name in kept if compared in (None, rules[name].compared))


def problems(record: Any) -> list[str]:  # noqa: ANN401 - any dataclass
    """Returns the message for every plain field whose value is of another type than declared, or breaks the rule.

    Args:
        record: its fields of types int, float, bool and str, or one of these or None, are looked at.
    """
    told = {
        field_.name: _problem(field_, getattr(record, field_.name), None)
        for field_ in fields(record)
    }
    for field_ in fields(record):  # what another field bounds, where that is right itself
        other = rule_of(field_).at_most
        if isinstance(other, str) and not told[other]:
            told[field_.name] = _problem(field_, getattr(record, field_.name), record)
    return [text for text in told.values() if text]


def check_value(kind: type, name: str, value: Any) -> None:  # noqa: ANN401 - whatever somebody has given
    """Raises ConfigError unless a field of a record may hold a value."""
    (field_,) = (field_ for field_ in fields(kind) if field_.name == name)
    if text := _problem(field_, value, None):
        raise ConfigError(text)


def _problem(field_: Field[Any], value: object, record: object) -> str:
    """Returns what is wrong with the value of a field, or ""."""
    kind, _, other = str(getattr(field_.type, "__name__", field_.type)).partition(" | ")
    if kind in _TYPES and other == "None" and value is None:
        return ""
    types, words = _TYPES.get(kind, ((object,), ""))
    if not isinstance(value, types) or (
        isinstance(value, bool) and kind in ("int", "float", "str")
    ):
        return f"{field_.name} is {words}, found {value!r}"
    return rule_of(field_).problem(field_.name, value, record)


def check(record: Any, where: str, error: type[AbcSearchError] = ConfigError) -> None:  # noqa: ANN401 - any dataclass
    """Raises an error that names every field of another type than it is declared, or that breaks its rule.

    Args:
        record: a dataclass.
        where: what it is of, for the message.
        error: of which kind.
    """
    if wrong := problems(record):
        msg = f"{where}: {'; '.join(wrong)}"
        raise error(msg)


def is_record(value: object) -> bool:
    """Returns whether something is a class of records of options."""
    return isinstance(value, type) and is_dataclass(value)


def no_table(key: str, value: Any) -> str:  # noqa: ANN401 - a plain value
    """Returns that a table is expected, how to name a recipe in one, and that of preparations there is one."""
    if key == "prepare" and isinstance(value, list):
        return f"[{key}] is a table, of one preparation: a run has no more; leave one of them, found {value!r:.200}"
    recipe = key.rpartition(".")[2] in ("pretrain", "finetune", "recipe") and isinstance(value, str)
    return f"[{key}] is a table, found {value!r}" + (
        f'; a recipe is named in it: preset = "{value}"' if recipe else ""
    )
