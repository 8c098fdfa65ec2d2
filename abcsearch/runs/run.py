"""A search on the user's own objects: model, data, searcher, evaluator."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from abcsearch.baselines.structures import initial_structures
from abcsearch.channels.named import names_of
from abcsearch.channels.options import LatencyOptions
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, SearcherError
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.execution.options import ExecutionOptions
from abcsearch.execution.serial import SerialExecutor
from abcsearch.preparation.base import Preparation
from abcsearch.registry import OBJECT, object_name
from abcsearch.runs.blame import named
from abcsearch.runs.executing import workers_for
from abcsearch.runs.folder import RunFolder
from abcsearch.runs.header import identity, write_header
from abcsearch.runs.knowledge import learned
from abcsearch.runs.latency import keep_times, measured
from abcsearch.runs.loop import Loop, Progress, logged, silent
from abcsearch.runs.preparing import preparation_of, prepared
from abcsearch.runs.result import SearchResult, collected
from abcsearch.runs.settings import Part, SearchSettings, SpaceOptions
from abcsearch.runs.setup_check import check_setup
from abcsearch.runs.task import Task
from abcsearch.searchers.base import Searcher
from abcsearch.searchers.registry import make_searcher
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from torch import nn

    from abcsearch.budget import Budget, Constraint
    from abcsearch.channels.criteria import Criterion
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.watching import WatcherFactory
    from abcsearch.space import Candidate, SearchSpace

    SearcherFactory = Callable[["SearchSpace", "Constraint"], Searcher]


def search(  # noqa: PLR0913 - the one entry point; everything but the first three has a good default
    model: nn.Module,
    data: Data,
    *,
    budget: Budget,
    n_trials: int,
    run_dir: str | Path,
    searcher: str | Mapping[str, Any] | SearcherFactory | Searcher = "response_surface",
    evaluator: str | Mapping[str, Any] | Evaluator = "adaptive_bn",
    executor: Executor | None = None,
    execution: ExecutionOptions | None = None,
    seed: int = 0,
    space: SpaceOptions | None = None,
    criterion: str | Criterion | Callable[..., Any] | Sequence[str | Criterion | Callable[..., Any]] = "reader_l2",
    prepare: str | Mapping[str, Any] | Preparation | None = None,
    known: Sequence[str | Path] = (),
    latency: LatencyOptions | None = None,
    max_failures: int = 10,
    progress: Progress = silent,
    watchers: Sequence[WatcherFactory] = (),
) -> SearchResult:
    """Searches the smallest network that still does the job; called again with the same arguments, it continues.

    Args:
        model: the trained network, any module that runs; never changed.
        data: its data; fitness sees the training and search-validation splits only.
        budget: how small it must get.
        n_trials: structures to evaluate.
        run_dir: where everything is kept; made if missing.
        searcher: a name or import path, {"name": ..., option: value}, a function of (space, constraint), or a new
            searcher.
        evaluator: likewise, or your own function (candidate, seed) -> Evaluation.
        executor: where evaluations run; by default as `execution` says.
        execution: workers, their timeout, and the schedule; by default one evaluation after the other, in this process.
        seed: of everything random.
        space: which widths are searched.
        criterion: which channels are kept: a name, an import path, or your own, see `rank_channels`; of a list of these
            every layer chooses one, as it chooses its width.
        prepare: what is trained before the search: a name, {"name": ..., option: value}, or your own `Preparation`. A
            searcher by name begins with the structures that it proposes; of yours, only networks come from it.
        known: folders of other runs of the same network, data, space, criterion and evaluator, whatever their budget:
            what they found, the searcher is told before it begins, and it is not evaluated again.
        latency: how forward time is measured where the budget bounds it.
        max_failures: more failed evaluations than this in a row stop the run.
        progress: called after every trial.
        watchers: functions of (task, folder) that return who hears of every trial, e.g. `TensorBoard`.

    Raises:
        AbcSearchError: of the kind that fits: TraceError, BudgetError, SearcherError, ConfigError, RunError (the
            folder holds a different run or is in use), FailuresError.
    """
    settings = SearchSettings(
        budget=budget,
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
    brought = Brought(
        searcher=None if isinstance(searcher, str | Mapping) else searcher,
        evaluator=None if isinstance(evaluator, str | Mapping) else evaluator,
        preparation=prepare if isinstance(prepare, Preparation) else None,
    )
    return run_here(RunFolder(run_dir), model, data, settings, brought, executor, progress, watchers)


def _absolute(known: Any) -> Any:  # noqa: ANN401 - whatever it was called with
    """Returns paths of known runs whole; anything else as it is, for the settings to refuse."""
    listed = [known] if isinstance(known, str | os.PathLike) else known
    if not isinstance(listed, list | tuple) or not all(isinstance(run, str | os.PathLike) for run in listed):
        return known
    return tuple(os.path.abspath(run) for run in listed)  # noqa: PTH100 - Path.absolute keeps ".."


@dataclass(frozen=True, kw_only=True)
class Brought:
    """Objects of the caller's own, which a record of settings cannot name; None: it names one.

    Attributes:
        searcher: a function of (space, constraint), or a new searcher.
        evaluator: candidate and seed -> evaluation.
        criterion: which channels are kept; of several, all.
        preparation: of the source.
    """

    searcher: SearcherFactory | Searcher | None = None
    evaluator: Evaluator | None = None
    criterion: Criterion | Callable[..., Any] | Sequence[str | Criterion | Callable[..., Any]] | None = None
    preparation: Preparation | None = None

    def missing(self, settings: SearchSettings) -> list[str]:
        """Returns the arguments that the caller has to bring again to go on with a run."""
        prepare = "" if settings.prepare is None else settings.prepare.name
        parts = {
            "searcher": (settings.searcher.name, self.searcher),
            "evaluator": (settings.evaluator.name, self.evaluator),
            "prepare": (prepare, self.preparation),
        }
        missing = [name for name, (recorded, own) in parts.items() if recorded.endswith(OBJECT) and own is None]
        unnamed = any(name.endswith(OBJECT) for name in settings.criteria)
        return [*missing, *(["criterion"] if unnamed and self.criterion is None else [])]


def run_here(  # noqa: PLR0913 - all that a search from Python has
    folder: RunFolder,
    model: nn.Module,
    data: Data,
    settings: SearchSettings,
    brought: Brought,
    executor: Executor | None,
    progress: Progress,
    watchers: Sequence[WatcherFactory],
) -> SearchResult:
    """Runs or continues a search on objects of the caller's, as `search` says.

    Args:
        folder: of the run.
        model: the trained network.
        data: its data.
        settings: of the run.
        brought: what they do not name.
        executor: where evaluations run.
        progress: called after every trial.
        watchers: make those who hear of every trial.
    """
    task = Task.of(model, data, settings, folder=folder)
    parts = Parts.of(task, settings, searcher=brought.searcher, evaluator=brought.evaluator)
    preparation = preparation_of(settings, brought.preparation)
    if preparation is not None:
        preparation.check(task)
    with folder.locked():
        progress = logged(folder, progress)
        if preparation is not None:
            write_header(folder, settings, identity(task))
            task = prepared(folder, settings, task, preparation, progress)
            parts = Parts.of(task, settings, searcher=brought.searcher, evaluator=brought.evaluator)
        with workers_for(settings, folder, executor) as where:
            return run_search(folder, task, settings, replace(parts, executor=where), progress, watchers=watchers)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Who does the work of one search.

    Attributes:
        searcher: new.
        evaluator: candidate and seed -> evaluation.
        executor: where evaluations run.
    """

    searcher: Searcher
    evaluator: Evaluator
    executor: Executor = field(default_factory=SerialExecutor)

    @classmethod
    def of(
        cls,
        task: Task,
        settings: SearchSettings,
        *,
        searcher: SearcherFactory | Searcher | None = None,
        evaluator: Evaluator | None = None,
    ) -> Parts:
        """Returns the caller's own parts, and for those left out the ones that the settings name.

        Raises:
            SearcherError, ConfigError: if a name or option is unknown, or the caller's searcher is of another space or
                has been used.
        """
        own = settings.evaluator
        return cls(
            searcher=_searcher(task, settings, searcher),
            evaluator=evaluator or make_evaluator(own.name, task.source, task.data, **own.options),
        )


def run_search(  # noqa: PLR0913 - what it works with, and how it is shown
    folder: RunFolder,
    task: Task,
    settings: SearchSettings,
    parts: Parts,
    progress: Progress,
    stage: str = "search",
    known: Mapping[Candidate, Evaluation] | None = None,
    watchers: Sequence[WatcherFactory] = (),
) -> SearchResult:
    """Runs or continues a search in a folder that the caller has locked.

    Args:
        folder: the run's.
        task: what is pruned.
        settings: of the run.
        parts: who does the work.
        progress: shown after every trial.
        stage: what progress calls it.
        known: evaluations of structures by the same evaluator; they are not evaluated again.
        watchers: make those who hear of every trial.

    Raises:
        RunError: if the folder holds a different run, or no trial succeeded.
    """
    write_header(folder, settings, identity(task))
    check_setup(folder, task, settings, parts.evaluator, progress)
    keep_times(folder, task)
    told = learned(folder, task, settings, parts, progress)
    with named(parts.searcher):
        parts.searcher.know(told.trials)
    evaluator = measured(parts.evaluator, task, settings)
    if evaluator is parts.evaluator:  # else what was evaluated has no measured time
        known = {**told.evaluations, **(known or {})}
    loop = Loop(
        folder=folder,
        searcher=parts.searcher,
        evaluator=evaluator,
        costs=task.graph.costs,
        executor=parts.executor,
        n_trials=settings.n_trials,
        seed=settings.seed,
        max_failures=settings.max_failures,
        execution=settings.execution,
        known=known or {},
        watchers=[make(task, folder) for make in watchers],
        progress=progress,
        stage=stage,
    )
    trials = loop.run()
    return collected(folder, task, settings, trials, parts.evaluator, loop.decision)


_OWN = {
    "searcher": "a function of (space, constraint) or a new Searcher",
    "evaluator": "a function",
    "prepare": "a Preparation",
}


def _part(what: str, value: str | Mapping[str, Any] | object) -> Part:
    """Returns the record of a part; objects are recorded by the name of their class or function."""
    if isinstance(value, str | Mapping):
        return Part.of(value)
    good = isinstance(value, Preparation) if what == "prepare" else callable(value) or isinstance(value, Searcher)
    if not good:
        own = _OWN[what]
        msg = f'{what} is a name, {{"name": name, "option": value}} or {own}, found {value!r}'
        raise ConfigError(msg)
    options: dict[str, Any] = {}
    if isinstance(value, Preparation):
        options = json.loads(json.dumps(asdict(value.options), default=repr))
    return Part(name=object_name(value), options=options)


def _searcher(task: Task, settings: SearchSettings, given: SearcherFactory | Searcher | None) -> Searcher:
    """Returns the searcher that the caller brought, or makes the one that the settings name."""
    if given is None:
        part = settings.searcher
        options = dict(part.options)
        options["initial"] = [*task.starts, *initial_structures(options.get("initial", ()), task)]
        return make_searcher(part.name, task.space, task.constraint, seed=settings.seed, **options)
    searcher = given if isinstance(given, Searcher) else given(task.space, task.constraint)
    if not isinstance(searcher, Searcher):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"a function of (space, constraint) returns a new Searcher, found {searcher!r}"
        raise SearcherError(msg)
    if searcher.space != task.space or searcher.state_dict()["known"].size:
        msg = "the searcher must be new and made for this network's space: pass a function of (space, constraint)"
        raise SearcherError(msg)
    return searcher
