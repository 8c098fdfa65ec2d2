"""What can be named in a config, and the options of its tables: every registry as one table, without torch."""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.baselines.registry import BASELINES
from abcsearch.budget import Budget
from abcsearch.channels.named import CRITERIA
from abcsearch.channels.options import LatencyOptions, SpaceOptions
from abcsearch.data.named import DATASETS
from abcsearch.errors import ConfigError, plural, unknown_name
from abcsearch.evaluation.registry import EVALUATORS
from abcsearch.execution.options import ExecutionOptions
from abcsearch.models.named import MODELS
from abcsearch.preparation.registry import PREPARATIONS
from abcsearch.records import Rule, rule_of
from abcsearch.registry import Home
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.training.named import METRICS, OBJECTIVES
from abcsearch.training.recipe import PRESETS, Recipe
from abcsearch.transforms.registry import TRANSFORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from abcsearch.registry import Registry


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


def _whole(texts: Iterable[str], options: tuple[str, ...], *records: type) -> str:
    """Returns all there is to say, defaults and what the fields of records may hold last."""
    said = [text for text in texts if text]
    if options:
        said.append(f"Defaults: {', '.join(options)}")
    if ranges := [text for record in records for text in _ranges(record)]:
        said.append(f"Ranges: {', '.join(dict.fromkeys(ranges))}")
    return "\n\n".join(said)


def _records(options: object) -> list[type]:
    """Returns the class of options, if it is a record: without one, what is made takes arguments of its own."""
    return [options] if isinstance(options, type) and is_dataclass(options) else []


def _ranges(record: type) -> list[str]:
    """Returns what the fields of a record may hold, where a rule says more than their types."""
    texts = {field.name: _range(rule_of(field)) for field in fields(record)}
    return [f"{name} {text}" for name, text in texts.items() if text]


def _range(rule: Rule) -> str:
    """Returns what a rule allows, and what that is counted in."""
    allowed = rule.allowed()
    return f"{allowed} ({rule.unit})" if allowed and rule.unit else allowed


def _searcher(name: str) -> Entry:
    entry = SEARCHERS.find(name)
    options = _options(entry.options or entry.searcher)
    text = _whole([_doc(entry.searcher), _doc(entry.options)], options, *_records(entry.options))
    description = entry.description or _first_line(entry.searcher)
    return Entry(
        name=name, description=description, options=options, source=entry.source, text=text
    )


def _evaluator(name: str) -> Entry:
    entry = EVALUATORS.find(name)
    kinds = entry.options.__mro__ if entry.options else ()
    # Options that evaluators share come last
    records = [kind for kind in kinds if is_dataclass(kind)]
    options = _options(entry.options or entry.make)
    text = _whole(map(_doc, [entry.make, *records]), options, *_records(entry.options))
    description = entry.description or _first_line(entry.make)
    return Entry(
        name=name, description=description, options=options, source=entry.source, text=text
    )


def _preparation(name: str) -> Entry:
    entry = PREPARATIONS.find(name)
    options = _options(entry.options)
    # Options that preparations share come last
    records = [kind for kind in entry.options.__mro__ if is_dataclass(kind)]
    text = _whole(map(_doc, [entry.make, *records]), options, *_records(entry.options))
    description = entry.description or _first_line(entry.make)
    passes = _passes(entry.options)
    if passes:
        description, text = f"{description}; {passes}", f"{text}\n\nBy default {passes}"
    return Entry(
        name=name, description=description, options=options, source=entry.source, text=text
    )


def _passes(options: type) -> str:
    """Returns what a training step costs by default, or "" where the options do not say or cannot be left out."""
    if any(f.default is MISSING and f.default_factory is MISSING for f in fields(options)):
        return ""
    passes = getattr(options(), "passes", None)
    return "" if passes is None else f"{plural(passes, 'forward pass')} per step"


def _transform(name: str) -> Entry:
    entry = TRANSFORMS.find(name)
    options = _options(entry.options)
    description = entry.description or _first_line(entry.make)
    text = _whole([description, _doc(entry.options)], options)
    return Entry(
        name=name, description=description, options=options, source=entry.source, text=text
    )


def _described(registry: Registry[Any], name: str) -> Entry:
    """Describes an entry that has no options of its own."""
    entry = registry.where(name) or registry[name]
    description = getattr(entry, "description", "") or _first_line(entry)
    return Entry(
        name=name,
        description=description,
        options=(),
        source=getattr(entry, "source", ""),
        text=description,
    )


def _criterion(name: str) -> Entry:
    """Describes a criterion by the docstrings of the functions that it is made of, or of its class."""
    entry, home = _described(CRITERIA, name), CRITERIA.where(name)
    if home is None:
        return replace(entry, text=_whole([entry.description, _doc(CRITERIA[name])], ()))
    path, _, constant = home.path.partition(":")
    body = _tree(path).body
    docs = [
        ast.get_docstring(_definition(body, function)) or ""
        for function in _made_of(body, constant)
    ]
    return replace(entry, text=_whole([entry.description, *docs], ()))


def _made_of(statements: Iterable[ast.stmt], constant: str) -> list[str]:
    """Returns the names of the functions of a module in `constant = Class(function, ...)`, or of the class."""
    there = {node.name for node in statements if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    made: Any = next(
        node.value
        for node in statements
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == constant
    )
    functions = [ast.unparse(argument) for argument in made.args]
    return [name for name in functions or [ast.unparse(made.func)] if name in there]


def _recipe(name: str) -> Entry:
    entry = PRESETS.find(name)
    usual, chosen = vars(Recipe()), vars(entry.recipe)
    changes = tuple(f"{key}={_toml(value)}" for key, value in chosen.items() if value != usual[key])
    listed = "\n".join(f"{key} = {_toml(value)}" for key, value in chosen.items())
    text = f"{entry.description}\n\n{entry.note}\n\nSource: {entry.source}\n\n{listed}\n\n{_doc(Recipe)}"
    return Entry(
        name=name, description=entry.description, options=changes, source=entry.source, text=text
    )


def _function(registry: Registry[Any], name: str) -> Entry:
    """Describes a class or function by its docstring and its arguments."""
    entry = registry.where(name) or registry[name]
    options = _options(entry)
    text = _whole([_doc(entry)], options)
    return Entry(name=name, description=_first_line(entry), options=options, source="", text=text)


def _setting(record: type, name: str) -> Entry:
    """Describes a field of a record by what the docstring of the record says of it."""
    options = tuple(option for option in _options(record) if option.partition("=")[0] == name)
    said = re.search(
        rf"^    {name}: (.*?)(?=^    \w+: |^\w|\Z)", _doc(record), re.MULTILINE | re.DOTALL
    )
    description = " ".join(said[1].split()) if said else ""
    text = _whole([description], options)
    if allowed := rule_of(next(field for field in fields(record) if field.name == name)).allowed():
        text += f"\n\nRange: {allowed}"
    return Entry(name=name, description=description, options=options, source="", text=text)


def _doc(described: object) -> str:
    """Returns a docstring without its indentation, or ""."""
    if isinstance(described, Home):
        return ast.get_docstring(_written(described)) or ""
    return inspect.getdoc(described) or ""


def _first_line(described: object) -> str:
    return _doc(described).split("\n", maxsplit=1)[0]


def _written(home: Home) -> ast.ClassDef | ast.FunctionDef:
    """Returns the source of a class or function of this package: nothing is imported for it."""
    module, _, name = home.path.partition(":")
    return _definition(_tree(module).body, name)


def _tree(module: str) -> ast.Module:
    """Returns the source of a module of this package."""
    # `find_spec` would import what is above it
    path = Path(__file__).parent.joinpath(*module.split(".")[1:])
    return ast.parse(path.with_suffix(".py").read_bytes())


def _definition(statements: Iterable[ast.stmt], name: str) -> ast.ClassDef | ast.FunctionDef:
    """Returns the definition of a name among statements."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return next(node for node in statements if isinstance(node, kinds) and node.name == name)


def _toml(value: object) -> str:
    """Returns a value as a config has it, numbers in lists with three digits; None, which TOML has not, as Python."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        items = [f"{item:.3g}" if isinstance(item, float) else _toml(item) for item in value]
        return f"[{', '.join(items)}]"
    return repr(value)


def _options(made: Any) -> tuple[str, ...]:  # noqa: ANN401 - a record, a function, or where one is
    """Returns the options of a record or a function: "name=default", or the name alone where it has to be given."""
    if isinstance(made, Home):
        defaults = _written_defaults(made)
    elif is_dataclass(made):
        defaults = {
            f.name: f.default_factory() if f.default_factory is not MISSING else f.default
            for f in fields(made)
        }
    else:
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = [p for p in inspect.signature(made).parameters.values() if p.kind in named]
        defaults = {p.name: MISSING if p.default is p.empty else p.default for p in parameters}
    return tuple(
        name if value is MISSING else f"{name}={_toml(value)}" for name, value in defaults.items()
    )


def _written_defaults(home: Home) -> dict[str, Any]:
    """Returns the defaults of a class or function of this package as its source has them."""
    node = _written(home)
    function: Any = _definition(node.body, "__init__") if isinstance(node, ast.ClassDef) else node
    arguments = function.args
    needed = len(arguments.args) - len(arguments.defaults)
    defaults = [None] * needed + arguments.defaults + arguments.kw_defaults
    pairs = zip([*arguments.args, *arguments.kwonlyargs], defaults, strict=True)
    values = {
        argument.arg: MISSING if value is None else ast.literal_eval(value)
        for argument, value in pairs
    }
    return {name: value for name, value in values.items() if name != "self"}


# Kind -> (what its names are, how one of them is described).
_KINDS: dict[str, tuple[Mapping[str, Any], Callable[[str], Entry]]] = {
    "searchers": (SEARCHERS, _searcher),
    "evaluators": (EVALUATORS, _evaluator),
    "preparations": (PREPARATIONS, _preparation),
    "transforms": (TRANSFORMS, _transform),
    "criteria": (CRITERIA, _criterion),
    "models": (MODELS, partial(_function, MODELS)),
    "datasets": (DATASETS, partial(_function, DATASETS)),
    "recipes": (PRESETS, _recipe),
    "metrics": (METRICS, partial(_described, METRICS)),
    "objectives": (OBJECTIVES, partial(_described, OBJECTIVES)),
    "baselines": (BASELINES, partial(_described, BASELINES)),
    **{
        table: (dict.fromkeys(f.name for f in fields(record)), partial(_setting, record))
        for table, record in {
            "space": SpaceOptions,
            "budget": Budget,
            "latency": LatencyOptions,
            "execution": ExecutionOptions,
        }.items()
    },
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
    return [describe(entry) for entry in ([name] if name is not None else registry)]
