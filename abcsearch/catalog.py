"""What can be named in a config: every registry as one table."""

from __future__ import annotations

import inspect
import json
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.channels.criteria import CRITERIA
from abcsearch.data.registry import DATASETS
from abcsearch.errors import ConfigError, unknown_name
from abcsearch.evaluation.registry import EVALUATORS
from abcsearch.models.registry import MODELS
from abcsearch.preparation.registry import PREPARATIONS
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.training.recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something that can be named.

    Attributes:
        name: as a config names it.
        description: one line.
        options: "name=default" of every option, or the name alone where it has to be given.
        source: paper, or "".
        text: everything there is to say.
    """

    name: str
    description: str
    options: tuple[str, ...]
    source: str
    text: str


def _whole(texts: Iterable[str], options: tuple[str, ...]) -> str:
    """Returns all there is to say, defaults last."""
    return "\n\n".join([*texts, *([f"Defaults: {', '.join(options)}"] if options else [])])


def _searcher(name: str) -> Entry:
    entry = SEARCHERS[name]
    options = _defaults(entry.options)
    text = _whole([_doc(entry.searcher), _doc(entry.options)], options)
    return Entry(name=name, description=entry.description, options=options, source=entry.source, text=text)


def _evaluator(name: str) -> Entry:
    entry = EVALUATORS[name]
    records = [kind for kind in entry.options.__mro__ if is_dataclass(kind)]  # options that evaluators share come last
    options = _defaults(entry.options)
    text = _whole(map(_doc, [entry.make, *records]), options)
    return Entry(name=name, description=entry.description, options=options, source=entry.source, text=text)


def _preparation(name: str) -> Entry:
    entry = PREPARATIONS[name]
    options = _defaults(entry.options)
    text = _whole([_doc(entry.preparation), _doc(entry.options)], options)
    return Entry(name=name, description=entry.description, options=options, source=entry.source, text=text)


def _criterion(name: str) -> Entry:
    entry = CRITERIA[name]
    return Entry(name=name, description=entry.description, options=(), source=entry.source, text=entry.description)


def _recipe(name: str) -> Entry:
    entry = PRESETS[name]
    usual, own = vars(Recipe()), vars(entry.recipe)
    changes = tuple(f"{key}={_toml(value)}" for key, value in own.items() if value != usual[key])
    listed = "\n".join(f"{key} = {_toml(value)}" for key, value in own.items())
    text = f"{entry.description}\n\n{entry.note}\n\nSource: {entry.source}\n\n{listed}\n\n{_doc(Recipe)}"
    return Entry(name=name, description=entry.description, options=changes, source=entry.source, text=text)


def _function(registry: Mapping[str, Callable[..., Any]]) -> Callable[[str], Entry]:
    def entry(name: str) -> Entry:
        text, options = _doc(registry[name]), _defaults(registry[name])
        return Entry(
            name=name, description=text.split("\n")[0], options=options, source="", text=_whole([text], options)
        )

    return entry


def _doc(described: object) -> str:
    """Returns a docstring without its indentation, or ""."""
    return inspect.getdoc(described) or ""


def _toml(value: object) -> str:
    """Returns a value as a config has it, numbers in lists with three digits; None, which TOML has not, as Python."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(f'{own:.3g}' if isinstance(own, float) else _toml(own) for own in value)}]"
    return repr(value)


def _defaults(made: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the options of a record or a function."""
    if is_dataclass(made):
        defaults = {
            f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(made)
        }
        return tuple(name if value is MISSING else f"{name}={_toml(value)}" for name, value in defaults.items())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(made).parameters.values() if p.kind in named]
    return tuple(p.name if p.default is p.empty else f"{p.name}={_toml(p.default)}" for p in parameters)


# Kind -> (what its names are, how one of them is described).
_KINDS: dict[str, tuple[Mapping[str, Any], Callable[[str], Entry]]] = {
    "searchers": (SEARCHERS, _searcher),
    "evaluators": (EVALUATORS, _evaluator),
    "preparations": (PREPARATIONS, _preparation),
    "criteria": (CRITERIA, _criterion),
    "models": (MODELS, _function(MODELS)),
    "datasets": (DATASETS, _function(DATASETS)),
    "recipes": (PRESETS, _recipe),
}
KINDS = tuple(_KINDS)


def catalog(kind: str, name: str | None = None) -> list[Entry]:
    """Returns all entries of a kind, or the one of a name.

    Args:
        kind: one of `KINDS`.
        name: an entry's.

    Raises:
        ConfigError: if the kind or the name is unknown, with the nearest valid one.
    """
    if kind not in _KINDS:
        raise ConfigError(unknown_name("kind", kind, _KINDS))
    registry, describe = _KINDS[kind]
    if name is not None and name not in registry:
        raise ConfigError(unknown_name(f"name among the {kind}:", name, registry))
    return [describe(own) for own in ([name] if name is not None else registry)]
