"""Warm starts: structures and keep ratios that a search begins with, checked as far as no space is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, cast

from abcsearch.errors import SearcherError


def listed_starts(initial: object) -> list[Any]:
    """Returns warm starts as a list; raises SearcherError if they are something else."""
    if isinstance(initial, Iterable) and not isinstance(initial, str | Mapping):
        return list(cast("Iterable[Any]", initial))
    msg = f"searcher.initial is a list of structures and keep ratios, found {initial!r}"
    raise SearcherError(msg)


def start_problems(starts: list[Any]) -> list[str]:
    """Returns what is wrong with warm starts whatever the space, a line for each of them."""
    if all(map(_is_whole, starts)) and any(start > 1 for start in starts):
        inner = f"a structure is a list in the list: searcher.initial = [{starts}]"
        return [f"searcher.initial = {starts}: keep ratios are in (0, 1], and {inner}"]
    rule = "a warm start is a keep ratio in (0, 1] or a list of whole numbers"
    return [
        f"searcher.initial[{i}] = {start!r}: {rule}"
        for i, start in enumerate(starts)
        if not _may_be(start)
    ]


def is_ratio(start: object) -> bool:
    """Returns whether a warm start is one number, also one of numpy's."""
    return not isinstance(start, bool) and isinstance(start, Real)


def _is_whole(value: object) -> bool:
    """Returns whether a value is a whole number, also one of numpy's."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def _may_be(start: Any) -> bool:  # noqa: ANN401 - whatever is in the list
    """Returns whether a warm start is a keep ratio, or a structure of some space."""
    if is_ratio(start):
        return 0 < start <= 1
    return isinstance(start, Iterable) and all(map(_is_whole, cast("Iterable[Any]", start)))
