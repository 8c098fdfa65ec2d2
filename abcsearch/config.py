"""Config files: TOML in, `RunConfig` out, all mistakes at once.

seed, n_trials, criterion, max_failures, baselines, known, rewind      top level
[model]      name, checkpoint, and the constructor's own options; or export, a folder of `abcsearch export`, and trust
[data]       name, and the data set's own options
[pretrain]   training recipe of the base network: preset, and changes to it
[budget]     macs, params, flops; or [[budgets]], several of them that are searched in one run
[[peers]]    name, macs, accuracy: of networks of others, for the report of several budgets
[space]      alpha, step, lowest, levels, divisor, fixed, renormalise, bake, ranks, hardware
[latency]    where and how forward time is measured: runtime, threads, batch, repeats, finalists, check
[searcher]   name, and the searcher's own options
[evaluator]  name, and the evaluator's own options
[prepare]    name, and the preparation's own options: what is trained before the search
[iterate]    rounds, epochs ...: the same as [prepare] with name = "iterate"
[execution]  workers, ray_address, gpus, timeout, schedule, window
[finetune]   training recipe of the winner: likewise
[[transform]] name, and the transform's own options: what is done to the fine-tuned winner, in this order
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from abcsearch.baselines.registry import check_names
from abcsearch.baselines.structures import initial_problems
from abcsearch.bounds import meant
from abcsearch.budget import Budget
from abcsearch.channels.named import CRITERIA, names_of
from abcsearch.channels.options import LatencyOptions
from abcsearch.data.registry import check_data_options
from abcsearch.errors import AbcSearchError, ConfigError, SearcherError, unknown_name
from abcsearch.evaluation.registry import EVALUATORS, check_evaluator_options
from abcsearch.execution.options import ExecutionOptions
from abcsearch.preparation.registry import PREPARATIONS, check_preparation_options
from abcsearch.records import check_value
from abcsearch.runs.front_settings import Front, Peer
from abcsearch.runs.settings import (
    NO_LATENCY,
    ModelSettings,
    Part,
    RunConfig,
    SpaceOptions,
    check_base,
    check_rewind,
    names_of_runs,
)
from abcsearch.searchers.registry import SEARCHERS, check_searcher_options
from abcsearch.tables import checked_table, record_of, set_override, typed
from abcsearch.training.recipe import Recipe, find_preset
from abcsearch.transforms.registry import TRANSFORMS, make_transform, order_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_SECTIONS: dict[str, type] = {
    "budget": Budget,
    "space": SpaceOptions,
    "latency": LatencyOptions,
    "execution": ExecutionOptions,
}
_RECIPES = ("pretrain", "finetune")
_PARTS: dict[str, Any] = {  # where they are registered, and who checks options without a record
    "searcher": (SEARCHERS, check_searcher_options),
    "evaluator": (EVALUATORS, check_evaluator_options),
    "prepare": (PREPARATIONS, check_preparation_options),
    "transform": (TRANSFORMS, make_transform),
}
T = TypeVar("T")
_SEVERAL = ("budgets", "peers")  # settings of several budgets
_REQUIRED = ("n_trials", "model", "data", "budget")


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the run of one budget that a TOML file describes, as `read_run`.

    Raises:
        ConfigError: also if it has several budgets.
    """
    run = read_run(path, overrides)
    if isinstance(run, Front):
        msg = f"config {path} has several budgets ([[budgets]]), one is wanted here: set [budget]"
        raise ConfigError(msg)
    return run


def read_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig | Front[RunConfig]:
    """Returns the run, or the front of several budgets, that a TOML file describes.

    Args:
        path: the file.
        overrides: "dotted.key=value", e.g. "searcher.n_sources=20"; values as in TOML, plain words without quotes.

    Raises:
        ConfigError: if the file is missing or not TOML, or with all mistakes in it.
    """
    plain = toml_of(path)
    for override in overrides:
        set_override(plain, override)
    return parse_run(
        plain, f"{path} with --set {' --set '.join(overrides)}" if overrides else str(path)
    )


def toml_of(path: str | Path) -> dict[str, Any]:
    """Returns what is in a TOML file.

    Raises:
        ConfigError: if it is missing or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        msg = f"config {path} cannot be read: {error.strerror}; give the path of a TOML file"
        raise ConfigError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not TOML: {error}") from error


def parse_run(plain: Mapping[str, Any], where: str = "config") -> RunConfig | Front[RunConfig]:
    """Returns the run, or the front of several budgets, that plain values describe.

    Raises:
        ConfigError: with all mistakes.
    """
    problems: list[str] = []
    plain = _iterated(plain, problems)
    if problems:
        raise _mistakes(where, problems)
    if "budgets" not in plain:
        return parse_config(plain, where)
    budgets = _listed("budgets", Budget, plain["budgets"], problems)
    if "budget" in plain:
        problems.append(
            "[budget] is one budget, [[budgets]] are several: set one of the two, found both"
        )
    peers = _listed("peers", Peer, plain.get("peers", []), problems)
    rest = {key: value for key, value in plain.items() if key not in ("budgets", "budget", "peers")}
    first = budgets[0] if budgets else Budget(macs=1.0)
    config = _parsed({**rest, "budget": first.bounds}, problems)
    if config is not None:
        try:
            return Front(config, budgets, peers)
        except ConfigError as error:
            problems.append(str(error))
    raise _mistakes(where, problems)


def _iterated(plain: Mapping[str, Any], problems: list[str]) -> Mapping[str, Any]:
    """Returns plain values with [iterate] as the preparation that it is; what is wrong is added to the problems."""
    if "iterate" not in plain:
        return plain
    rest, table = {key: value for key, value in plain.items() if key != "iterate"}, plain["iterate"]
    if "prepare" in plain:
        problems.append(
            "[iterate] is a preparation, and a run has one: set it or [prepare], found both"
        )
    elif not isinstance(table, dict) or "name" in table:
        problems.append(
            f"[iterate] is a table: rounds, epochs, searcher, trials, recipe; found {table!r:.80}"
        )
    return rest if problems else {**rest, "prepare": {"name": "iterate", **table}}


def _listed(name: str, kind: type[T], tables: Any, problems: list[str]) -> tuple[T, ...]:  # noqa: ANN401 - plain
    """Returns the records of tables [[name]]; what is wrong with them is added to the problems."""
    if not isinstance(tables, list) or (name == "budgets" and not tables):
        problems.append(
            f"{name} is a list of tables, one [[{name}]] for each, found {tables!r:.80}"
        )
        return ()
    records: list[T] = []
    for index, table in enumerate(tables):
        key = f"{name}[{index}]"
        try:
            records.append(_record(kind, checked_table(key, table), key))
        except AbcSearchError as error:
            problems.append(str(error) if key in str(error) else f"[{key}]: {error}")
    return tuple(records)


def parse_config(plain: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Returns the run of one budget that plain values describe.

    Raises:
        ConfigError: with all mistakes.
    """
    problems: list[str] = []
    config = _parsed(plain, problems)
    if config is None:
        raise _mistakes(where, problems)
    return config


def _mistakes(where: str, problems: list[str]) -> ConfigError:
    """Returns the error that lists all mistakes."""
    listed = "\n".join(f"  - {line}" for problem in problems for line in problem.split("\n"))
    return ConfigError(f"{where} has {len(listed.splitlines())} mistake(s):\n{listed}")


def _parsed(plain: Mapping[str, Any], problems: list[str]) -> RunConfig | None:
    """Returns the run that plain values describe; None where there are problems, which are added to those given."""
    known = [f.name for f in fields(RunConfig)]
    unknown = [key for key in plain if key not in known and key != "peers"]
    problems += [unknown_name("setting", key, [*known, *_SEVERAL]) for key in unknown]
    problems += (
        ["[[peers]] are drawn beside several budgets: set [[budgets]]"] if "peers" in plain else []
    )
    problems += [f"setting {key!r} is missing" for key in _REQUIRED if key not in plain]
    values: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for key in sorted(plain, key=lambda key: _turn(key, plain[key])):
        if key in known:
            try:
                values[key] = section(key, plain[key])
            except AbcSearchError as error:
                wrong[key] = str(error)
    problems += [wrong[key] for key in plain if key in wrong]
    if "model" in values and ("pretrain" in values or "pretrain" not in plain):
        try:
            check_base(values["model"], values.get("pretrain"))
            check_rewind(values.get("rewind", 0), values.get("pretrain"))
        except ConfigError as error:
            problems.append(str(error))
    space = values.get("space")
    if space is not None and space.hardware and "latency" not in plain:
        problems.append(NO_LATENCY)
    return None if problems else RunConfig(**values)


def _turn(key: str, value: Any) -> tuple[bool, int]:  # noqa: ANN401 - a plain value
    """Returns when a table is read: the user's modules come first, since others may be named by what they register."""
    name = value.get("name") if isinstance(value, dict) else value
    first = ("model", "data", "evaluator", "searcher", key)
    return not (isinstance(name, str) and ":" in name), first.index(key)


def parse_recipe(overrides: Sequence[str], recipe: Recipe) -> Recipe:
    """Returns a training recipe with some fields changed.

    Args:
        overrides: "epochs=5" or "finetune.epochs=5"; "preset=cifar" takes all other fields from that preset.
        recipe: the other fields, without a preset.

    Raises:
        ConfigError: if a field is unknown or a value does not fit.
    """
    plain: dict[str, Any] = {"finetune": {}}
    for override in overrides:
        short = "=" in override and not override.startswith("finetune.")
        set_override(plain, f"finetune.{override}" if short else override)
    return _recipe("finetune", plain["finetune"], recipe)


def section(key: str, value: Any) -> Any:  # noqa: ANN401 - a plain value in, a record out
    """Returns the record of a table, or a checked top-level value."""
    if key in ("model", "data", *_PARTS):
        return (_transforms if key == "transform" else partial(_named, key))(value)
    if key in _RECIPES:
        return _recipe(key, checked_table(key, value), Recipe())
    if key in _SECTIONS:
        return _record(_SECTIONS[key], checked_table(key, value), key)
    value = [value] if key == "known" and isinstance(value, str) else value
    value = typed(key, get_type_hints(RunConfig)[key], value)
    if key == "known":
        value = names_of_runs(value)
    if key == "criterion":
        named = names_of(value)
        for name in [named] if isinstance(named, str) else named:
            CRITERIA.find(name)
    if key == "baselines":
        check_names(value)
    check_value(RunConfig, key, value)
    # Paths are kept whole, relative ones as seen from where the run started: it may be continued from anywhere.
    return tuple(os.path.abspath(run) for run in value) if key == "known" else value  # noqa: PTH100 - without ".."


def _record(kind: type[T], table: dict[str, Any], key: str) -> T:
    """Returns the record of a table; where a bound is a text, the message says how per cents are written."""
    try:
        return record_of(kind, table, key)
    except ConfigError as error:
        hints = "".join(
            dict.fromkeys(meant(value) for value in table.values() if isinstance(value, str))
        )
        raise ConfigError(f"{error}{hints if kind is Budget else ''}") from error


def _recipe(where: str, table: dict[str, Any], base: Recipe) -> Recipe:
    """Returns a recipe: that of the table's preset, or else the base, with the other keys as changes to it.

    Raises:
        ConfigError: if the preset is unknown, or with all mistakes in the other keys.
    """
    changes = dict(table)
    name = changes.pop("preset", None)
    problems: list[str] = []
    if name is not None:
        try:
            base = find_preset(str(name)).recipe
        except ConfigError as error:
            problems.append(f"[{where}]: {error}")
    close = difflib.get_close_matches("preset", changes, n=1, cutoff=0.8)
    problems += [unknown_name(f"setting in [{where}]:", key, ["preset"]) for key in close]
    try:
        recipe = record_of(
            Recipe, {**vars(base), **{k: v for k, v in changes.items() if k not in close}}, where
        )
    except ConfigError as error:
        raise ConfigError("\n".join([*problems, str(error)])) from error
    if problems:
        raise ConfigError("\n".join(problems))
    return recipe


def _model(name: str, table: dict[str, Any]) -> ModelSettings:
    """Returns the record of [model]: checkpoint, and the constructor's own options."""
    checkpoint = table.pop("checkpoint", None)
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise ConfigError(f"model.checkpoint is a path, found {checkpoint!r}")
    for option in difflib.get_close_matches("checkpoint", table, n=1, cutoff=0.8):
        raise ConfigError(unknown_name("setting in [model]:", option, ["checkpoint"]))
    # A run is continued from any folder: paths are kept whole, relative ones as seen from where the run started.
    whole = None if checkpoint is None else str(Path(checkpoint).absolute())
    settings = ModelSettings(name=name, options=table, checkpoint=whole)
    settings.check()
    return settings


def _exported(table: Mapping[str, Any]) -> ModelSettings:
    """Returns the record of [model] for a network that has been exported, to be pruned again."""
    others = ", ".join(key for key in table if key not in ("export", "trust"))
    if others or not isinstance(table["export"], str):
        msg = "model.export is a folder that abcsearch export wrote, and says name, options and weights itself; found "
        raise ConfigError(
            msg + (f"also {others}: leave them out" if others else repr(table["export"]))
        )
    trust = typed("model.trust", bool, table.get("trust", False))
    settings = ModelSettings.of_export(Path(table["export"]).absolute(), trust=trust)
    settings.build()  # with its sizes: an export may be of a network that is another one by now
    return settings


def _named(key: str, value: Any) -> Part | ModelSettings:  # noqa: ANN401 - a plain value
    """Returns a part whose table holds its name and its own options."""
    table = dict(checked_table(key, {"name": value} if isinstance(value, str) else value))
    if key == "model" and "export" in table:
        return _exported(table)
    usual = getattr(RunConfig, key, None)  # --set searcher.batch=4 changes the usual one
    name = table.pop("name", usual.name if isinstance(usual, Part) else None)
    if not isinstance(name, str):
        raise ConfigError(f"[{key}] needs a name, found {name!r}")
    if key == "model":
        return _model(name, table)
    if key == "data":
        check_data_options(name, table)
        if isinstance(table.get("path"), str):
            table["path"] = str(Path(table["path"]).absolute())
        return Part(name=name, options=table)
    return _part(key, name, table)


def _transforms(value: Any) -> tuple[Part, ...]:  # noqa: ANN401 - a plain value
    """Returns the records of [[transform]], with all mistakes in their options and their order."""
    if not isinstance(value, list):
        msg = f"transform is a list, one [[transform]] for each link, or names, found {value!r:.80}"
        raise ConfigError(msg)
    transforms: list[Part] = []
    problems: list[str] = []
    for index, table in enumerate(value):
        try:
            transform = _named("transform", table)
            assert isinstance(transform, Part)
            transforms.append(transform)
        except AbcSearchError as error:
            problems += [
                f"transform[{index}]: {line.removeprefix('[transform] ')}"
                for line in str(error).split("\n")
            ]
    problems += [] if problems else order_problems([transform.name for transform in transforms])
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(transforms)


def _part(key: str, name: str, table: dict[str, Any]) -> Part:
    """Returns the record of [searcher], [evaluator] or [prepare], with all mistakes in its options and warm starts."""
    searches, (registry, check) = key == "searcher", _PARTS[key]
    given = {k: value for k, value in table.items() if k != "initial" or not searches}
    options = registry.find(name).options
    problems: list[str] = []
    try:
        if options is None:
            check(name, given)
        else:
            record_of(options, given, key)
    except AbcSearchError as error:
        known = options is None or set(given) <= {f.name for f in fields(options)}
        hint = (
            ""
            if known
            else f"; left over from another {key}? --set {key}={name} replaces the whole table"
        )
        problems.append(f"{error}{hint}")
    try:
        problems += initial_problems(table.get("initial", ())) if searches else []
    except SearcherError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return Part(name=name, options=table)
