"""The entry point of searches on the caller's own objects."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, Required, TypedDict, Unpack, cast, overload

from abcsearch.channels.named import names_of
from abcsearch.channels.options import LatencyOptions
from abcsearch.errors import ConfigError, ModelError
from abcsearch.execution.options import ExecutionOptions
from abcsearch.preparation.base import Preparation
from abcsearch.registry import object_name
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.front import FrontResult
from abcsearch.runs.front_settings import Front, as_budgets
from abcsearch.runs.header import as_begun
from abcsearch.runs.progress import Progress, silent
from abcsearch.runs.search import Brought, front_here, run_here
from abcsearch.runs.seeds import SeedsResult, run_seeds
from abcsearch.runs.settings import NO_LATENCY, Part, SearchSettings, SpaceOptions
from abcsearch.searchers.base import Searcher
from abcsearch.training.named import METRICS

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from torch import nn

    from abcsearch.budget import Budget
    from abcsearch.channels.criteria import Criterion
    from abcsearch.data.splits import Data
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.result import SearchResult
    from abcsearch.runs.search import SearcherFactory
    from abcsearch.runs.watching import WatcherFactory


class _Options(TypedDict, total=False):
    """The other arguments of `search`."""

    n_trials: Required[int]
    run_dir: Required[str | Path]
    searcher: str | Mapping[str, Any] | SearcherFactory | Searcher
    evaluator: str | Mapping[str, Any] | Evaluator
    executor: Executor | None
    execution: ExecutionOptions | None
    seed: int
    space: SpaceOptions | None
    criterion: str | Criterion | Callable[..., Any] | Sequence[str | Criterion | Callable[..., Any]]
    prepare: str | Mapping[str, Any] | Preparation | None
    known: Sequence[str | Path]
    latency: LatencyOptions | None
    max_failures: int
    progress: Progress | bool
    watchers: Sequence[WatcherFactory]


@overload
def search(
    model: nn.Module, data: Data, *, budget: Budget, **options: Unpack[_Options]
) -> SearchResult: ...


@overload
def search(
    model: nn.Module,
    data: Data,
    *,
    budget: Budget,
    seeds: Iterable[int],
    **options: Unpack[_Options],
) -> SeedsResult: ...


@overload
def search(
    model: nn.Module, data: Data, *, budgets: Sequence[Budget], **options: Unpack[_Options]
) -> FrontResult: ...


def search(  # noqa: PLR0913 - the one entry point; everything but the first three has a good default
    model: nn.Module,
    data: Data,
    *,
    budget: Budget | None = None,
    budgets: Sequence[Budget] | None = None,
    n_trials: int,
    run_dir: str | Path,
    searcher: str | Mapping[str, Any] | SearcherFactory | Searcher = "response_surface",
    evaluator: str | Mapping[str, Any] | Evaluator = "adaptive_bn",
    executor: Executor | None = None,
    execution: ExecutionOptions | None = None,
    seed: int = 0,
    seeds: Iterable[int] | None = None,
    space: SpaceOptions | None = None,
    criterion: str
    | Criterion
    | Callable[..., Any]
    | Sequence[str | Criterion | Callable[..., Any]] = "reader_l2",
    prepare: str | Mapping[str, Any] | Preparation | None = None,
    known: Sequence[str | Path] = (),
    latency: LatencyOptions | None = None,
    max_failures: int = 10,
    progress: Progress | bool = silent,
    watchers: Sequence[WatcherFactory] = (),
) -> SearchResult | FrontResult | SeedsResult:
    """Searches the smallest network that still does the job; called again with the same arguments, it continues.

    Args:
        model: the trained network, any module that runs; never changed.
        data: its data; fitness sees the training and search-validation splits only.
        budget: how small it must get.
        budgets: several instead: each is searched, and knows what those before it have found.
        n_trials: structures to evaluate; of several budgets, those of one alone: together they have twice as many.
        run_dir: where everything is kept; made if missing.
        searcher: a name or import path, {"name": ..., option: value}, a function of (space, constraint), or a new
            searcher.
        evaluator: likewise, or your own function (candidate, seed) -> Evaluation, or -> fitness. Its option "metric"
            may be a function of (outputs, labels).
        executor: where evaluations run; by default as `execution` says.
        execution: workers, their timeout, and the schedule; by default one evaluation after the other, in this process.
        seed: of everything random.
        seeds: several instead, e.g. range(5): the search runs with each of them, in run_dir/seed-0 and so on, and what
            comes back has a table of mean, spread and interval.
        space: which widths are searched.
        criterion: which channels are kept: a name, an import path, or your own, see `rank_channels`; of a list of these
            every layer chooses one, as it chooses its width.
        prepare: what is trained before the search: a name, {"name": ..., option: value}, or your own `Preparation`. A
            searcher by name begins with the structures that it proposes; of yours, only networks come from it.
        known: folders of other runs of the same network, data, space, criterion and evaluator, whatever their budget:
            what they found, the searcher is told before it begins, and it is not evaluated again.
        latency: how forward time is measured where the budget bounds it.
        max_failures: more failed evaluations than this in a row stop the run.
        progress: called after every trial with (stage, done, total, note); True: print, a line each.
        watchers: functions of (task, folder) that return who hears of every trial, e.g. `TensorBoard`.

    Raises:
        AbcSearchError: of the kind that fits: TraceError, BudgetError, SearcherError, ConfigError, RunError (the
            folder holds a different run or is in use), FailuresError.
    """
    if (budget is None) == (budgets is None):
        msg = f"give a budget or a list of budgets, {'neither' if budget is None else 'both'} was given"
        raise ConfigError(msg)
    progress = _progress(progress)
    _check_model(model)
    front = None if budgets is None else as_budgets(budgets)
    settings = SearchSettings(
        budget=front[0] if front else cast("Budget", budget),
        n_trials=n_trials,
        searcher=_part("searcher", searcher),
        evaluator=_part("evaluator", evaluator),
        space=space or SpaceOptions(),
        criterion=names_of(criterion),
        latency=latency or LatencyOptions(),
        execution=execution or ExecutionOptions(),
        seed=seed,
        max_failures=max_failures,
        prepare=None if prepare is None else _part("prepare", prepare),
        known=_absolute(known),
    )
    if settings.space.hardware and latency is None:
        raise ConfigError(NO_LATENCY)
    brought = Brought(
        searcher=None if isinstance(searcher, str | Mapping) else searcher,
        evaluator=None if isinstance(evaluator, str | Mapping) else evaluator,
        preparation=prepare if isinstance(prepare, Preparation) else None,
    )
    if seeds is not None:
        if front is not None or isinstance(searcher, Searcher):
            what = (
                "several budgets"
                if front is not None
                else "one searcher object: pass a name, or a function"
            )
            msg = f"seeds are of searches that differ in nothing else, each with a searcher of its own; found {what}"
            raise ConfigError(msg)
        return run_seeds(
            seeds,
            run_dir,
            lambda one_seed, path: run_here(
                RunFolder(path),
                model,
                data,
                replace(settings, seed=one_seed),
                brought,
                executor,
                progress,
                watchers,
            ),
        )
    folder = RunFolder(run_dir)
    settings = as_begun(settings, folder)
    if front is None:
        return run_here(folder, model, data, settings, brought, executor, progress, watchers)
    return front_here(
        folder, model, data, Front(settings, front), brought, executor, progress, watchers
    )


def _progress(progress: Any) -> Progress:  # noqa: ANN401 - whatever it was called with
    """Returns what is called after every trial; True prints, False is silent.

    Raises:
        ConfigError: if it cannot be called.
    """
    if isinstance(progress, bool):
        return _printed if progress else silent
    if not callable(progress):
        msg = "progress is True, or a function called with (stage, done, total, note) after every trial, such as print; "
        raise ConfigError(f"{msg}found {progress!r:.80}")
    return cast("Progress", progress)


def _printed(stage: str, done: int, total: int, note: str) -> None:
    """Prints a line, which is what `progress=True` asks for."""
    sys.stdout.write(f"{stage}: {done}/{total}, {note}\n")


def _check_model(model: object) -> None:
    """Raises ModelError for weights without a network, which people pass in its place."""
    if isinstance(model, Mapping):
        some = ", ".join(map(str, list(model)[:3]))
        msg = f"model is a network (torch.nn.Module), found a state dict of weights ({some} ...): build the network, "
        raise ModelError(
            f"{msg}load them with network.load_state_dict(state), and pass the network"
        )


def _absolute(known: Any) -> Any:  # noqa: ANN401 - whatever it was called with
    """Returns paths of known runs whole; anything else as it is, for the settings to refuse."""
    listed = [known] if isinstance(known, str | os.PathLike) else known
    if not isinstance(listed, list | tuple) or not all(
        isinstance(run, str | os.PathLike) and run for run in listed
    ):
        return known
    return tuple(os.path.abspath(run) for run in listed)  # noqa: PTH100 - Path.absolute keeps ".."


_OWN = {
    "searcher": "a function of (space, constraint) or a new Searcher",
    "evaluator": "a function",
    "prepare": "a Preparation",
}


def _part(what: str, value: str | Mapping[str, Any] | object) -> Part:
    """Returns the record of a part; objects are recorded by the name of their class or function."""
    if isinstance(value, Mapping) and callable(value.get("metric")):  # a function of the caller's
        value = {**value, "metric": METRICS.name_of(value["metric"])}
    if isinstance(value, str | Mapping):
        return Part.of(value)
    good = (
        isinstance(value, Preparation)
        if what == "prepare"
        else callable(value) or isinstance(value, Searcher)
    )
    if not good:
        kind = _OWN[what]
        msg = f'{what} is a name, {{"name": name, "option": value}} or {kind}, found {value!r}'
        raise ConfigError(msg)
    options = _recorded(value.options) if isinstance(value, Preparation) else {}
    return Part(name=object_name(value), options=options)


def _recorded(options: Any) -> dict[str, Any]:  # noqa: ANN401 - a record
    """Returns the options of a preparation as plain values.

    Those that its record calls `LATER` are left out where they are the default: runs from before there were such
    options have not recorded them, and go on.
    """
    later, usual = getattr(options, "LATER", ()), {f.name: f.default for f in fields(options)}
    plain = json.loads(json.dumps(asdict(options), default=repr))
    return {
        name: value
        for name, value in plain.items()
        if name not in later or getattr(options, name) != usual[name]
    }
