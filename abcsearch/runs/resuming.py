"""Runs that go on: with the settings of their folders, of one budget or of several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from abcsearch.channels.named import names_of
from abcsearch.errors import ConfigError, RunError, plural, quoted
from abcsearch.runs.config_run import run_config, run_front_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.retrying import set_back
from abcsearch.runs.front_folder import FRONT, FrontFolder, is_front
from abcsearch.runs.front_settings import Front
from abcsearch.runs.header import trusted_header
from abcsearch.runs.progress import Progress, silent
from abcsearch.runs.search import Brought, front_here, run_here
from abcsearch.runs.settings import RunConfig, SearchSettings, from_plain
from abcsearch.runs.workers import changed_execution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from torch import nn

    from abcsearch.channels.criteria import Criterion
    from abcsearch.data.splits import Data
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.preparation.base import Preparation
    from abcsearch.runs.front import FrontResult
    from abcsearch.runs.result import SearchResult
    from abcsearch.runs.search import SearcherFactory
    from abcsearch.runs.watching import WatcherFactory
    from abcsearch.searchers.base import Searcher
    from abcsearch.trial import Trial

S = TypeVar("S", bound=SearchSettings)


def resume(  # noqa: PLR0913 - a run from Python needs each of its objects again
    run_dir: str | Path,
    *,
    model: nn.Module | None = None,
    data: Data | None = None,
    n_trials: int | None = None,
    execution: Mapping[str, Any] | None = None,
    device: str | None = None,
    until: int | None = None,
    retry_failed: bool = False,
    shorten: bool = False,
    trust: bool = False,
    searcher: SearcherFactory | Searcher | None = None,
    evaluator: Evaluator | None = None,
    criterion: Criterion
    | Callable[..., Any]
    | Sequence[str | Criterion | Callable[..., Any]]
    | None = None,
    prepare: Preparation | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
    watchers: Sequence[WatcherFactory] = (),
) -> SearchResult | FrontResult:
    """Continues a run with the settings that its folder holds; a finished one is returned as it is.

    A front goes on with all of its budgets; the run of one of them is a folder of its own in it.

    A run that was started from a config needs nothing else. A run that `search` started from Python needs the same
    model and data again, and the searcher, evaluator and criterion where they were not given by name.

    Args:
        run_dir: the folder.
        model: the same trained network.
        data: the same data.
        n_trials: another number of trials than the run was started with; of a front, that of one budget alone.
        execution: other workers, ray_address, gpus or timeout than before, e.g. {"workers": 8}.
        device: where candidates are evaluated from now on, where the evaluator's options name another device; other
            devices may round otherwise.
        trust: takes a folder from elsewhere at its word: what its settings name is imported, read and reached.
        until: keeps only so many lines of a journal that is damaged behind them; a copy of all is put beside it.
        retry_failed: evaluates failed trials again, also those of the random baseline; the run then ends as one in
            which they did not fail. Evaluations of other trials are used again where the same trials come up.
        shorten: whether `n_trials` may be less than what is done; the winner is then that of the first trials.
        searcher: the same searcher.
        evaluator: the same evaluator.
        criterion: the same criterion, or list of criteria.
        prepare: the same preparation.
        executor: where evaluations run, instead of what the run's settings say.
        progress: called after every trial.
        watchers: functions of (task, folder) that return who hears of every trial.

    Raises:
        RunError: if the folder holds no run, an object is missing, or one differs from what the run was started with;
            if more trials are done than `n_trials`, without `shorten`.
        TrustError: if it is from elsewhere, names code, files or addresses, and is not to be trusted.
    """
    changes = _Changes(
        n_trials=n_trials,
        execution=execution,
        device=device,
        until=until,
        retry_failed=retry_failed,
        shorten=shorten,
    )
    brought = Brought(
        searcher=searcher, evaluator=evaluator, criterion=criterion, preparation=prepare
    )
    work = _Work(
        brought=brought,
        model=model,
        data=data,
        executor=executor,
        progress=progress,
        watchers=watchers,
    )
    folder = RunFolder(run_dir)
    if is_front(run_dir):
        return _resume_front(folder, changes, work, trust=trust)
    plain = trusted_header(folder, trust=trust)["settings"]
    settings = from_plain(
        RunConfig if "model" in plain else SearchSettings, plain, folder.path / "run.json"
    )
    now = changes.of(settings, folder)
    if n_trials is not None and not shorten:
        _check_shortened(folder, settings.n_trials, n_trials)
    changes.go_back(folder)
    if isinstance(now, RunConfig):
        return run_config(now, run_dir, executor=executor, progress=progress, watchers=watchers)
    mine, images = work.objects(now, folder)
    return run_here(folder, mine, images, work.named(now), brought, executor, progress, watchers)


@dataclass(frozen=True, kw_only=True)
class _Changes:
    """What a run that goes on is to do otherwise than before; see `resume`."""

    n_trials: int | None
    execution: Mapping[str, Any] | None
    device: str | None
    until: int | None
    retry_failed: bool
    shorten: bool

    def of(self, settings: S, folder: RunFolder) -> S:
        """Returns the settings of a run with these changes.

        Raises:
            ConfigError: if its evaluator names no device that could be another one.
        """
        if self.device is not None and not settings.evaluator.devices:
            msg = (
                f"evaluator {settings.evaluator.name!r} of {folder.path} names no device that --device could change; "
                '"auto" is CUDA where there is one, and an option of an evaluator of yours is no device of ours'
            )
            raise ConfigError(msg)
        return replace(
            settings,
            n_trials=self.n_trials or settings.n_trials,
            execution=changed_execution(settings.execution, self.execution or {}),
            evaluator=settings.evaluator
            if self.device is None
            else settings.evaluator.on(self.device),
        )

    def go_back(self, folder: RunFolder) -> None:
        """Cuts the journal as the caller asks; copies of all of it are put beside it."""
        if self.until is None and not self.retry_failed:
            return
        with folder.locked():
            if self.until is not None:
                folder.cut(self.until)
            if self.retry_failed:
                failed = set_back(folder)
                again = f"to be evaluated again: {plural(failed, 'failed trial')}"
                folder.log(again if failed else "no trial has failed")


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a run that goes on works with; see `resume`."""

    brought: Brought
    model: nn.Module | None
    data: Data | None
    executor: Executor | None
    progress: Progress
    watchers: Sequence[WatcherFactory]

    def objects(self, settings: SearchSettings, folder: RunFolder) -> tuple[nn.Module, Data]:
        """Returns model and data of a run that was started from Python.

        Raises:
            RunError: if one of its objects is missing.
        """
        missing = [
            name for name, value in (("model", self.model), ("data", self.data)) if value is None
        ]
        missing += self.brought.missing(settings)
        if self.model is not None and self.data is not None and not missing:
            return self.model, self.data
        call = ", ".join(f"{name}=..." for name in missing)
        path = str(folder.path)
        msg = f"{path} was started from Python with objects of yours; pass the same ones: resume({path!r}, {call})"
        raise RunError(msg)

    def named(self, settings: SearchSettings) -> SearchSettings:
        """Returns settings that name the criterion as the caller's own is named."""
        criterion = self.brought.criterion
        return settings if criterion is None else replace(settings, criterion=names_of(criterion))


def _resume_front(folder: RunFolder, changes: _Changes, work: _Work, *, trust: bool) -> FrontResult:
    """Continues the searches of several budgets, one after the other."""
    there = FrontFolder.of(folder.path)
    front = Front.from_plain(there.trusted(trust=trust), folder.path / FRONT)
    if changes.until is not None:
        where = quoted(there.runs[0].path)
        msg = f"--until cuts one journal: name the run folder of a budget, such as {where}"
        raise RunError(msg)
    now = changes.of(front.settings, folder)
    later = replace(front, settings=now)
    if changes.n_trials is not None and not changes.shorten:
        for settings in there.begun:
            _check_shortened(settings, front.trials, later.trials)
    if isinstance(now, RunConfig):
        configured = Front(now, front.budgets, front.peers)
        return run_front_config(
            configured,
            folder.path,
            executor=work.executor,
            progress=work.progress,
            watchers=work.watchers,
            before=changes.go_back,
        )
    model, data = work.objects(now, folder)
    later = replace(front, settings=work.named(now))
    return front_here(
        folder,
        model,
        data,
        later,
        work.brought,
        work.executor,
        work.progress,
        work.watchers,
        changes.go_back,
    )


def _check_shortened(folder: RunFolder, before: int, now: int) -> None:
    """Raises RunError if more trials are done than a run would have now: their best is the winner."""
    if now >= before:
        return
    contents = read_journal(folder.journal)
    trials = contents.trials.values()
    done = [trial for trial in trials if trial.number < before]
    left = [trial for trial in done if trial.number < now]
    if len(left) == len(done):
        return
    winner, other = contents.best(before), contents.best(now)
    change = f"the winner would stay {_named(winner)}"
    if winner != other:
        change = f"the winner would be {_named(other)} instead of {_named(winner)}"
    msg = (
        f"{folder.path}: {plural(len(done), 'trial')} done, and n_trials = {now} would leave out "
        f"{len(done) - len(left)} of them; {change}. If that is meant: abcsearch resume {quoted(folder.path)} "
        f"--n-trials {now} --shorten (from Python shorten=True)"
    )
    raise RunError(msg)


def _named(trial: Trial | None) -> str:
    """Returns a trial in words."""
    return "none" if trial is None else f"trial {trial.number} (fitness {trial.fitness:.4f})"
