"""Which searchers are compared: all that are registered, and variants of some."""

from __future__ import annotations

import functools
import inspect
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import abcsearch.budget
import abcsearch.space
from abcsearch.searchers.registry import SEARCHERS


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        name: what it is called.
        searcher: its name in the registry.
        options: what differs from the searcher's defaults.
        seeds: number of seeds on tables and on landscapes; fewer where a run takes seconds.
    """

    name: str
    searcher: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    seeds: tuple[int, int] = (50, 10)


# Variants of a registered searcher, instead of the one row with its defaults: name -> options.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bee_colony": {
        "bee_colony": {},
        "bee_colony (faithful)": {"guide": 0, "rate": 0, "scale": 1, "decay": 0},
    },
    "random": {"random": {}, "random (not grown)": {"fill": False}},
    "response_surface": {"response_surface": {}, "response_surface (map)": {"levels": 1}},
    "sensitivity": {"sensitivity (1 level)": {"levels": 1}},
    "optuna": {"optuna (tpe)": {}, "optuna (cmaes)": {"sampler": "cmaes"}},
}
# Rows whose runs take seconds: number of seeds on tables and on landscapes.
SEEDS: dict[str, tuple[int, int]] = {
    "ddpg": (5, 2),
    "evolution": (20, 10),
    "greedy": (20, 10),
    "optuna (cmaes)": (10, 5),
    "optuna (tpe)": (5, 2),
    "response_surface": (50, 5),
    "response_surface (map)": (50, 5),
}


def all_rows() -> list[Row]:
    """Returns the rows of all registered searchers, in alphabetical order."""
    return [
        Row(name=name, searcher=searcher, options=options, seeds=SEEDS.get(name, Row.seeds))
        # One searches nothing, the other learns from what no table or landscape says.
        for searcher in sorted(set(SEARCHERS) - {"given", "network_adjustment"})
        for name, options in VARIANTS.get(searcher, {searcher: {}}).items()
    ]


@functools.cache
def code_fingerprint(searcher: str) -> int:
    """Returns a number that changes with the code of a searcher: its classes, what they use of it, budgets, spaces."""
    waiting = {
        cls.__module__
        for cls in SEARCHERS[searcher].searcher.__mro__
        if cls.__module__.startswith("abcsearch.")
    }
    modules = {abcsearch.budget.__name__, abcsearch.space.__name__}
    while waiting:
        name = waiting.pop()
        modules.add(name)
        used = {_home(value) for value in vars(sys.modules[name]).values()}
        waiting |= {other for other in used if other.startswith("abcsearch.searchers.")} - modules
    sources = [Path(inspect.getfile(sys.modules[name])).read_bytes() for name in sorted(modules)]
    return zlib.crc32(b"".join(sources))


def _home(value: object) -> str:
    """Returns the module that something is defined in, or is; "" where it does not tell."""
    return value.__name__ if inspect.ismodule(value) else str(getattr(value, "__module__", ""))
