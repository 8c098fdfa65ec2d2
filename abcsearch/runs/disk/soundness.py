"""What nobody could work with who reads run.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


_DEEPEST = 64  # levels of tables and lists in run.json


_PLAIN = (str, int, float, dict, list, type(None))


_NOWHERE = ("", ".", "..")


def unsound(header: Mapping[str, Any]) -> str:
    """Returns what nobody could work with who reads run.json, or "".

    That is something else than plain JSON, or nested too deep, and names from which paths are made that lead elsewhere.
    """
    level: list[Any] = [header]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if any(not isinstance(value, _PLAIN) for value in level):
            return "it holds something else than texts, numbers, tables and lists"
        level = [value for value in level if isinstance(value, dict | list)]
    if level:
        return f"it is nested deeper than {_DEEPEST} levels"
    settings = header["settings"]
    searcher, baselines = settings.get("searcher"), settings.get("baselines")
    named = [searcher.get("name")] if isinstance(searcher, dict) else []
    named += baselines if isinstance(baselines, list) else []
    wrong = [
        name
        for name in named
        if isinstance(name, str) and (name in _NOWHERE or set(name) & set("/\\\0"))
    ]
    return f"{wrong[0]!r:.60} is no name of a searcher or a baseline" if wrong else ""
