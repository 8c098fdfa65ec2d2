"""A search on the user's own objects: model, data, searcher, evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError
from abcsearch.evaluation.sliced import repair_lines
from abcsearch.preparation.base import Preparation
from abcsearch.registry import OBJECT
from abcsearch.runs.blame import named
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.front import FrontResult, run_front
from abcsearch.runs.front_settings import Front
from abcsearch.runs.header import identity, write_header
from abcsearch.runs.knowledge import learned
from abcsearch.runs.latency import keep_times
from abcsearch.runs.loop import Loop
from abcsearch.runs.preparing import crew_of, preparation_of, prepared
from abcsearch.runs.progress import Progress, logged
from abcsearch.runs.result import SearchResult, collected
from abcsearch.runs.roles import Roles
from abcsearch.runs.settings import SearchSettings
from abcsearch.runs.setup_check import check_setup
from abcsearch.runs.stopwatch import Stopwatch
from abcsearch.runs.task import Task
from abcsearch.runs.timed_evaluator import measured
from abcsearch.runs.workers import workers_for
from abcsearch.searchers.base import Searcher
from abcsearch.steps import doing
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from torch import nn

    from abcsearch.budget import Constraint
    from abcsearch.channels.criteria import Criterion
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.shared import Shared
    from abcsearch.runs.watching import WatcherFactory
    from abcsearch.space import Candidate, SearchSpace

    SearcherFactory = Callable[["SearchSpace", "Constraint"], Searcher]


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
    criterion: (
        Criterion | Callable[..., Any] | Sequence[str | Criterion | Callable[..., Any]] | None
    ) = None
    preparation: Preparation | None = None

    def missing(self, settings: SearchSettings) -> list[str]:
        """Returns the arguments that the caller has to bring again to go on with a run."""
        prepare = "" if settings.prepare is None else settings.prepare.name
        needed = {
            "searcher": (settings.searcher.name, self.searcher),
            "evaluator": (settings.evaluator.name, self.evaluator),
            "prepare": (prepare, self.preparation),
        }
        missing = [
            name
            for name, (recorded, given) in needed.items()
            if recorded.endswith(OBJECT) and given is None
        ]
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
    shared: Shared | None = None,
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
        shared: what it has in common with the other budgets of a front.
    """
    make = partial(Task.of, model, data, settings, folder=folder)
    task = make() if shared is None else shared.task_for(settings, folder, make)
    evaluator = brought.evaluator
    if shared is not None and shared.holds(task):
        evaluator = shared.evaluator
    roles = Roles.of(task, settings, searcher=brought.searcher, evaluator=evaluator)
    if shared is not None:
        shared.keep(task, roles.evaluator)
    preparation = preparation_of(settings, brought.preparation)
    if preparation is not None:
        preparation.check(task)
        crew_of(preparation, settings)
    with folder.locked():
        progress = logged(folder, progress)
        if preparation is not None:
            write_header(folder, settings, identity(task))
            keep_times(folder, task.constraint.costs)  # which what is prepared may follow from
            task = prepared(folder, settings, task, preparation, progress)
            roles = Roles.of(task, settings, searcher=brought.searcher, evaluator=brought.evaluator)
        with workers_for(settings, folder, executor) as where:
            return run_search(
                folder, task, settings, replace(roles, executor=where), progress, watchers=watchers
            )


def front_here(  # noqa: PLR0913 - all that a search from Python has
    folder: RunFolder,
    model: nn.Module,
    data: Data,
    front: Front[SearchSettings],
    brought: Brought,
    executor: Executor | None,
    progress: Progress,
    watchers: Sequence[WatcherFactory],
    before: Callable[[RunFolder], object] = str,
) -> FrontResult:
    """Runs or continues a search of several budgets on objects of the caller's; arguments as of `run_here`.

    Raises:
        ConfigError: if it is to be one searcher for all of them.
    """
    if isinstance(brought.searcher, Searcher):
        msg = "one searcher cannot search several budgets: pass a function of (space, constraint), or a name"
        raise ConfigError(msg)

    def run_one(
        settings: SearchSettings,
        subfolder: RunFolder,
        shared: Shared,
        where: Executor,
        shown: Progress,
    ) -> SearchResult:
        return run_here(subfolder, model, data, settings, brought, where, shown, watchers, shared)

    return run_front(front, folder, run_one, executor=executor, progress=progress, before=before)


def run_search(  # noqa: PLR0913 - what it works with, and how it is shown
    folder: RunFolder,
    task: Task,
    settings: SearchSettings,
    roles: Roles,
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
        roles: who does the work.
        progress: shown after every trial.
        stage: what progress calls it.
        known: evaluations of structures by the same evaluator; they are not evaluated again.
        watchers: make those who hear of every trial.

    Raises:
        RunError: if the folder holds a different run, or no trial succeeded.
    """
    write_header(folder, settings, identity(task))
    check_setup(folder, task, settings, roles.evaluator, progress)
    keep_times(folder, task.constraint.costs)
    told = learned(folder, task, settings, roles, progress)
    with named(roles.searcher):
        roles.searcher.know(told.trials)
    evaluator = measured(roles.evaluator, task, settings)
    if evaluator is roles.evaluator:  # else what was evaluated has no measured time
        known = {**told.evaluations, **(known or {})}
    loop = Loop(
        folder=folder,
        searcher=roles.searcher,
        evaluator=evaluator,
        costs=task.graph.costs,
        executor=roles.executor,
        n_trials=settings.n_trials,
        seed=settings.seed,
        max_failures=settings.max_failures,
        execution=settings.execution,
        known=known or {},
        watchers=[make(task, folder) for make in watchers],
        progress=progress,
        stage=stage,
        watch=Stopwatch.of(
            task, settings, folder.path, finished=folder.finished(settings.n_trials)
        ),
    )
    if not folder.finished(settings.n_trials):
        for line in repair_lines(roles.evaluator):
            folder.log(line)
        doing("evaluating the first structures")
    trials = loop.run()
    return collected(folder, task, settings, trials, roles.evaluator, loop.decision)
