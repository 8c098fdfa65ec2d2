"""A search on the user's own objects: model, data, searcher, evaluator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.bounds import COSTS
from abcsearch.channels.criteria import CRITERIA
from abcsearch.channels.options import LatencyOptions
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, RunError, SearcherError, quoted
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.evaluation.staged import Staged
from abcsearch.execution.options import ExecutionOptions
from abcsearch.execution.serial import SerialExecutor
from abcsearch.registry import object_name
from abcsearch.runs.executing import workers_for
from abcsearch.runs.folder import RunFolder
from abcsearch.runs.header import identity, write_header
from abcsearch.runs.latency import keep_times, measured
from abcsearch.runs.loop import Loop, Progress, logged, silent
from abcsearch.runs.settings import Part, SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.searchers.base import Searcher
from abcsearch.searchers.registry import make_searcher
from abcsearch.trial import Evaluation, Trial, best_trial

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


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A finished search.

    Attributes:
        run_dir: its folder.
        settings: what it was asked to do.
        task: network, data, channel groups, space, budget and ranking.
        trials: all trials in the order of asking.
        best: the trial of the highest fitness.
        build: candidate -> sliced network with its batch-norm statistics re-estimated, on the CPU: the very one that
            fitness saw where the evaluator is `AdaptiveBN`, and the one before training where it trains.
    """

    run_dir: Path
    settings: SearchSettings
    task: Task
    trials: tuple[Trial, ...] = field(repr=False)
    best: Trial
    build: Callable[[Candidate], nn.Module] = field(repr=False)

    def pareto(self, x: str = "macs", y: str = "fitness") -> list[Trial]:
        """Returns the trials that no other one beats in both x (smaller is better) and y (larger is better).

        Args:
            x: "macs", "params", "seconds", a metric, or another cost in closed form: "flops", "peak_activation" and,
                where the budget bounds it, "latency_ms" (as expected from layers, unless all candidates were measured).
            y: "fitness", or any of these.

        Returns:
            Trials by ascending x; failed trials are left out.

        Raises:
            RunError: if a trial has no such number.
        """
        ranked = sorted(
            ((self.number(t, x), -self.number(t, y), t.number, t) for t in self.trials if t.evaluation.failure is None),
            key=lambda entry: entry[:3],
        )
        front: list[Trial] = []
        best = np.inf
        for _, negative, _, trial in ranked:
            if negative < best:
                front.append(trial)
                best = negative
        return front

    def number(self, trial: Trial, name: str) -> float:
        """Returns a number of a trial by name, as `pareto` takes it.

        Raises:
            RunError: if it has no such number.
        """
        evaluation, costs = trial.evaluation, self.task.constraint.costs
        reported = {key: getattr(evaluation, key) for key in ("fitness", "macs", "params", "seconds")}
        reported |= {key: value for key, value in evaluation.metrics.items() if key not in reported}
        if name in reported:
            return float(reported[name])
        closed = [key for key in COSTS if hasattr(costs, key)]
        if name in closed:
            return float(getattr(costs, name)([trial.candidate])[0])
        msg = f"trial {trial.number} has no {name!r}; it has: {', '.join(dict.fromkeys([*reported, *closed]))}"
        raise RunError(msg)

    @cached_property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Kept and full channels of the best structure; see `SearchSpace.widths`."""
        return self.task.space.widths(self.best.candidate)

    def model(self) -> nn.Module:
        """Returns the best network: sliced, statistics of its batch norms re-estimated, in evaluation mode."""
        return self.build(self.best.candidate)


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
    criterion: str | Criterion | Callable[..., Any] = "l1",
    latency: LatencyOptions | None = None,
    max_failures: int = 10,
    progress: Progress = silent,
    watchers: Sequence[WatcherFactory] = (),
) -> SearchResult:
    """Searches the smallest network that still does the job; called again with the same arguments, it continues.

    Args:
        model: the trained network, anything that torch.fx can trace; never changed.
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
        criterion: which channels are kept: a name, an import path, or your own, see `rank_channels`.
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
        criterion=CRITERIA.name_of(criterion),
        latency=latency or LatencyOptions(),
        execution=execution or ExecutionOptions(),
        seed=seed,
        max_failures=max_failures,
    )
    folder = RunFolder(run_dir)
    task = Task.of(model, data, settings, folder=folder)
    parts = Parts.of(
        task,
        settings,
        searcher=None if isinstance(searcher, str | Mapping) else searcher,
        evaluator=None if isinstance(evaluator, str | Mapping) else evaluator,
    )
    with folder.locked(), workers_for(settings, folder, executor) as where:
        return run_search(
            folder, task, settings, replace(parts, executor=where), logged(folder, progress), watchers=watchers
        )


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
    write_header(folder, settings, identity(task.source, task.data))
    keep_times(folder, task)
    loop = Loop(
        folder=folder,
        searcher=parts.searcher,
        evaluator=measured(parts.evaluator, task, settings),
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
    return collected(folder, task, settings, loop.run(), parts.evaluator)


def collected(
    folder: RunFolder, task: Task, settings: SearchSettings, trials: Sequence[Trial], evaluator: Evaluator
) -> SearchResult:
    """Returns what trials found.

    Args:
        folder: the run's.
        task: what is pruned.
        settings: of the run.
        trials: in the order of asking.
        evaluator: what evaluated them.

    Raises:
        RunError: if no trial succeeded.
    """
    best = best_trial(trials)
    if best is None:
        reasons = "; ".join(dict.fromkeys(str(t.evaluation.failure) for t in trials)) or "no structure was evaluated"
        msg = (
            f"no trial of {folder.path} succeeded: {reasons}; once that is mended, evaluate them again with: "
            f"abcsearch resume {quoted(folder.run)} --retry-failed"
        )
        raise RunError(msg)
    builder = cache(lambda: _builder(task, evaluator))  # made when first needed: it may read images
    return SearchResult(
        run_dir=folder.path,
        settings=settings,
        task=task,
        trials=tuple(trials),
        best=best,
        build=lambda candidate: builder().build(candidate),
    )


def _builder(task: Task, evaluator: Evaluator) -> AdaptiveBN:
    """Returns the AdaptiveBN of the search, or one with default options where the search had another evaluator."""
    own = evaluator.first if isinstance(evaluator, Staged) else evaluator
    if isinstance(own, AdaptiveBN):
        return own
    options = AdaptiveBNOptions(batch_size=max(2, min(AdaptiveBNOptions.batch_size, len(task.data.train))))
    with warnings.catch_warnings():  # nobody asked for a calibration
        warnings.simplefilter("ignore", UserWarning)
        return AdaptiveBN(task.source, task.data, options)


def _part(what: str, value: str | Mapping[str, Any] | object) -> Part:
    """Returns the record of a searcher or evaluator; objects are recorded by the name of their class or function."""
    if isinstance(value, str | Mapping):
        return Part.of(value)
    if not callable(value) and not isinstance(value, Searcher):
        own = "a function of (space, constraint) or a new Searcher" if what == "searcher" else "a function"
        msg = f'{what} is a name, {{"name": name, "option": value}} or {own}, found {value!r}'
        raise ConfigError(msg)
    return Part(name=object_name(value))


def _searcher(task: Task, settings: SearchSettings, given: SearcherFactory | Searcher | None) -> Searcher:
    """Returns the searcher that the caller brought, or makes the one that the settings name."""
    if given is None:
        part = settings.searcher
        return make_searcher(part.name, task.space, task.constraint, seed=settings.seed, **part.options)
    searcher = given if isinstance(given, Searcher) else given(task.space, task.constraint)
    if not isinstance(searcher, Searcher):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"a function of (space, constraint) returns a new Searcher, found {searcher!r}"
        raise SearcherError(msg)
    if searcher.space != task.space or searcher.state_dict()["known"].size:
        msg = "the searcher must be new and made for this network's space: pass a function of (space, constraint)"
        raise SearcherError(msg)
    return searcher
