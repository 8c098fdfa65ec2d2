"""Preparations by name."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from abcsearch.errors import ConfigError, PreparationError, unknown_name
from abcsearch.importing import import_callable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.preparation.base import Preparation


@dataclass(frozen=True, kw_only=True)
class PreparationEntry:
    """One registered preparation.

    Attributes:
        home: where its class is, "module:Class"; it is imported when it is first used.
        description: one line.
        source: paper.
    """

    home: str
    description: str
    source: str

    @property
    def preparation(self) -> type[Preparation]:
        """The class."""
        module, _, name = self.home.partition(":")
        return getattr(importlib.import_module(module), name)

    @property
    def options(self) -> type:
        """The class of its options record."""
        return self.preparation.Options


PREPARATIONS: dict[str, PreparationEntry] = {
    "slimming": PreparationEntry(
        home="abcsearch.preparation.slimming:Slimming",
        description="training with a penalty on batch-norm scales, which pushes those of dispensable channels to 0",
        source="Liu et al., Network Slimming, ICCV 2017",
    ),
}


def find_preparation(name: str) -> type[Preparation]:
    """Returns the class of a preparation by name, or your own by import path, "package.module:Class".

    Raises:
        ConfigError: if the name is unknown (with the nearest valid one), or the import path leads nowhere.
        PreparationError: if it leads to something else than a whole subclass of `Preparation`.
    """
    if name in PREPARATIONS:
        return PREPARATIONS[name].preparation
    if ":" not in name:
        hint = "; your own is named by import path, package.module:Class"
        raise ConfigError(unknown_name("preparation", name, PREPARATIONS) + hint)
    return check_preparation(name, import_callable("preparation", name, ConfigError))


def check_preparation(name: str, kind: object) -> type[Preparation]:
    """Returns a class; raises PreparationError unless it is a whole subclass of `Preparation`."""
    from abcsearch.preparation.base import Preparation

    if not isinstance(kind, type) or not issubclass(kind, Preparation):
        msg = f"preparation {name!r} is a class derived from abcsearch.Preparation, found {kind!r:.80}"
        raise PreparationError(msg)
    if inspect.isabstract(kind):
        msg = f"preparation {name!r} lacks {', '.join(sorted(kind.__abstractmethods__))}(task, trainer); define it as "
        msg += "abcsearch.Preparation says"
        raise PreparationError(msg)
    return kind


def check_preparation_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError, or PreparationError, with what is wrong with a preparation's name or options."""
    make_preparation(name, **options)


def make_preparation(name: str, **options: Any) -> Preparation:  # noqa: ANN401 - each has its own record of options
    """Returns a preparation by name, or your own by import path; it has not prepared anything.

    Raises:
        ConfigError: if the name or an option is unknown (with the nearest valid one), missing, or out of range.
        PreparationError: if an import path leads to something else than a subclass of `Preparation`.
    """
    kind = find_preparation(name)
    known = {f.name: f for f in fields(kind.Options)}
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of preparation {name!r}:", option, known))
    for option, entry in known.items():
        if option not in options and entry.default is MISSING and entry.default_factory is MISSING:
            msg = f"option {option!r} of preparation {name!r} is missing"
            raise ConfigError(msg)
    return kind(kind.Options(**options))
