"""Runs from a config: base network, search, baselines."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.baselines.checks import checked_networks, checked_recipe, checked_structure
from abcsearch.baselines.registry import BASELINES, searched
from abcsearch.channels.named import names_of
from abcsearch.data.registry import load_data, takes_seed
from abcsearch.errors import ConfigError, RunError, plural, quoted
from abcsearch.runs.base import train_base
from abcsearch.runs.executing import changed_execution, check_workers, workers_for
from abcsearch.runs.folder import RunFolder
from abcsearch.runs.header import data_identity, trusted_header, write_header
from abcsearch.runs.journal import read_journal
from abcsearch.runs.known import KNOWN
from abcsearch.runs.known_runs import found_known
from abcsearch.runs.loop import Progress, logged, silent
from abcsearch.runs.preparing import preparation_of, prepared
from abcsearch.runs.rebuilding import Remains
from abcsearch.runs.retrying import set_back
from abcsearch.runs.run import Brought, Parts, SearchResult, run_here, run_search
from abcsearch.runs.settings import Part, RunConfig, SearchSettings, from_plain
from abcsearch.runs.shapes import winner_name
from abcsearch.runs.task import Task
from abcsearch.runs.weights import load_checkpoint
from abcsearch.training.checks import check_training

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from torch import nn

    from abcsearch.channels.criteria import Criterion
    from abcsearch.data.splits import Data
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.preparation.base import Preparation
    from abcsearch.runs.run import SearcherFactory
    from abcsearch.runs.watching import WatcherFactory
    from abcsearch.searchers.base import Searcher
    from abcsearch.trial import Trial

    LoadData = Callable[[RunConfig], Data]


def seeded_data(data: Part, seed: int) -> Part:
    """Returns the data of a config whose split follows the run's seed, unless the data's options have their own."""
    return Part(name=data.name, options={"seed": seed, **data.options}) if takes_seed(data.name) else data


def load_run_data(config: RunConfig) -> Data:
    """Returns the data of a config; the split follows the run's seed unless the data's options have their own."""
    part = seeded_data(config.data, config.seed)
    return load_data(part.name, **part.options)


class LoadedOnce:
    """Loads the data of runs like `load_run_data`; where several have the same, they share it."""

    def __init__(self) -> None:
        """Begins with none."""
        self._known: dict[str, Data] = {}

    def __call__(self, config: RunConfig) -> Data:
        """Returns the data of a config."""
        part = seeded_data(config.data, config.seed)
        key = json.dumps([part.name, part.options], sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = load_run_data(config)
        return self._known[key]


def run_config(  # noqa: PLR0913 - all but the first two have a default
    config: RunConfig,
    run_dir: str | Path,
    *,
    load: LoadData = load_run_data,
    executor: Executor | None = None,
    progress: Progress = silent,
    watchers: Sequence[WatcherFactory] = (),
    rebuild: bool = False,
) -> SearchResult:
    """Runs a configured search, or continues it where the folder holds it already.

    Args:
        config: the run.
        run_dir: its folder; made if missing.
        load: returns the data of a config; `LoadedOnce` for several runs.
        executor: where evaluations run, instead of what the config says.
        progress: shown after every step.
        watchers: functions of (task, folder) that return who hears of every trial of the search.
        rebuild: whether the caller says that this is the config of a run whose run.json is lost, where what is left
            of it cannot show that (see `rebuilding`).

    Raises:
        AbcSearchError: of the kind that fits.

    Warns:
        UserWarning: if run.json was lost, and has been made again.
    """
    folder = RunFolder(run_dir)
    task, parts = prepare(config, folder, load=load, elsewhere=executor is not None)
    with folder.locked():
        progress = logged(folder, progress)
        task = _made_ready(config, folder, task, parts, progress, rebuild=rebuild)
        with workers_for(config, folder, executor) as where:
            parts = replace(Parts.of(task, config), executor=where)
            known = folder.finished(config.n_trials)
            result = run_search(
                folder, task, config, parts, progress, winner_name(config.searcher.name), watchers=watchers
            )
            best = result.best
            if not known:
                done = plural(len(result.trials), "trial")
                folder.log(f"search finished: {done}, best {best.fitness:.4f} (trial {best.number})")
            for name in searched(config.baselines):
                _searched_baseline(folder, name, config, result, parts, progress)
    return result


def _made_ready(
    config: RunConfig, folder: RunFolder, task: Task, parts: Parts, progress: Progress, *, rebuild: bool
) -> Task:
    """Returns the task with its network trained and prepared, in a folder whose run.json is there.

    Args:
        config: the run.
        folder: its folder, locked.
        task: with its network as it is before it is trained, which is changed.
        parts: of it; the searcher is new.
        progress: of trainings.
        rebuild: as of `run_config`.
    """
    same = config_identity(config, task.data)
    remains = Remains.of(folder)
    if remains is None:
        write_header(folder, config, same)
    elif config.prepare is None:
        remains = remains.check(config, task, parts)
    else:
        remains.check_prepared(config)
    train_base(config, folder.base, task.base, task.data, progress)
    task = prepared(folder, config, task.reranked(), preparation_of(config), progress)
    if remains is not None:
        parts = Parts.of(task, config)
        if config.prepare is not None:  # whose structures the searcher begins with
            remains = remains.check(config, task, parts)
        remains.rebuild(config, parts.evaluator, same, sure=rebuild)
    return task


def prepare(
    config: RunConfig,
    folder: RunFolder,
    *,
    load: LoadData = load_run_data,
    elsewhere: bool = False,
    weights: bool = True,
) -> tuple[Task, Parts]:
    """Returns what a configured run works on and who does it, as far as that is known before its network is trained.

    Refuses what cannot work before anything is written or trained: only the ranking depends on the weights.

    Args:
        config: the run.
        folder: its folder, which need not exist yet; nothing is written.
        load: returns its data.
        elsewhere: whether the caller says where evaluations run, so that it does not matter whether workers can start.
        weights: whether the checkpoint is needed; without it a missing one is none.

    Raises:
        AbcSearchError: of the kind that fits.
    """
    model, data = config.model.build(config.seed), load(config)
    checkpoint = config.model.checkpoint
    if checkpoint is not None and not folder.base.exists() and (weights or Path(checkpoint).exists()):
        load_checkpoint(model, checkpoint)
    task = Task.of(model, data, config, trained=False, folder=folder)
    parts = Parts.of(task, config)
    preparation = preparation_of(config)
    if preparation is not None:
        preparation.check(task)
    for name in config.baselines:
        if name not in BASELINES.homes:
            _check_baseline(name, config, task)
    if config.known and not (folder.path / KNOWN).exists():
        found_known(folder, task.space, config, config_identity(config, data))
    if not elsewhere and not folder.finished(config.n_trials):
        check_workers(config.execution)
    if config.pretrain is not None:
        check_training(config.pretrain, data.train, data.objective, taught=False, scored=True)
    taught = bool(config.finetune.distillation)
    check_training(config.finetune, data.train, data.objective, taught=taught, scored=True)
    return task, parts


def _check_baseline(name: str, config: RunConfig, task: Task) -> None:
    """Raises unless a baseline of the user's brings what it should, as far as that is known before the search.

    Raises:
        ConfigError, ModelError, DataError: as what it brings is checked, and the training by its recipe.
    """
    baseline, structure = BASELINES.find(name), task.space.full
    if baseline.structure is not None:
        structure = checked_structure(name, baseline.structure, task)
    if baseline.networks is not None:
        checked_networks(name, baseline.networks, task)
    if baseline.recipe is not None:
        recipe = checked_recipe(name, baseline.recipe, config.finetune, task, structure)
        taught = bool(recipe.distillation)
        check_training(recipe, task.data.train, task.data.objective, taught=taught, scored=True)


def config_identity(config: RunConfig, data: Data) -> dict[str, Any]:
    """Returns what a configured run is recognised by: its data, and the file of its checkpoint if that is there."""
    checkpoint = Path(config.model.checkpoint or "")
    if not checkpoint.is_file():
        return data_identity(data)
    return {**data_identity(data), "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]}


def _searched_baseline(
    folder: RunFolder, name: str, config: RunConfig, result: SearchResult, parts: Parts, progress: Progress
) -> None:
    """Runs a search that the winner is compared with, by the same evaluator."""
    own = replace(config, searcher=Part(name=BASELINES.find(name).searcher), baselines=(), known=())
    baseline = folder.baseline(name)
    folder.check()
    baseline.path.mkdir(parents=True, exist_ok=True)
    task = result.task
    if task.made is not None:  # of which the weights are what all structures come from, and the structures are searched
        task = replace(task, made=replace(task.made, starts=()))
    parts = replace(Parts.of(task, own, evaluator=parts.evaluator), executor=parts.executor)
    known = {trial.candidate: trial.evaluation for trial in result.trials}
    run_search(baseline, task, own, parts, progress, f"{name} baseline", known)


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
    criterion: Criterion | Callable[..., Any] | Sequence[str | Criterion | Callable[..., Any]] | None = None,
    prepare: Preparation | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
    watchers: Sequence[WatcherFactory] = (),
) -> SearchResult:
    """Continues a run with the settings that its folder holds; a finished one is returned as it is.

    A run that was started from a config needs nothing else. A run that `search` started from Python needs the same
    model and data again, and the searcher, evaluator and criterion where they were not given by name.

    Args:
        run_dir: the folder.
        model: the same trained network.
        data: the same data.
        n_trials: another number of trials than the run was started with.
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
    folder = RunFolder(run_dir)
    plain = trusted_header(folder, trust=trust)["settings"]
    configured = "model" in plain
    settings = from_plain(RunConfig if configured else SearchSettings, plain, folder.path / "run.json")
    if n_trials is not None and not shorten:
        _check_shortened(folder, settings.n_trials, n_trials)
    settings = replace(
        settings,
        n_trials=n_trials or settings.n_trials,
        execution=changed_execution(settings.execution, execution or {}),
        evaluator=settings.evaluator if device is None else settings.evaluator.on(device),
    )
    if device is not None and not settings.evaluator.devices:
        msg = (
            f"evaluator {settings.evaluator.name!r} of {folder.path} names no device that --device could change; "
            '"auto" is CUDA where there is one, and an option of an evaluator of yours is no device of ours'
        )
        raise ConfigError(msg)
    _go_back(folder, until, retry_failed=retry_failed)
    if isinstance(settings, RunConfig):
        return run_config(settings, run_dir, executor=executor, progress=progress, watchers=watchers)
    missing = [name for name, value in (("model", model), ("data", data)) if value is None]
    brought = Brought(searcher=searcher, evaluator=evaluator, criterion=criterion, preparation=prepare)
    missing += brought.missing(settings)
    if model is None or data is None or missing:
        call = ", ".join(f"{name}=..." for name in missing)
        msg = (
            f"{run_dir} was started from Python with objects of yours; pass the same ones: "
            f"resume({str(run_dir)!r}, {call})"
        )
        raise RunError(msg)
    if criterion is not None:
        settings = replace(settings, criterion=names_of(criterion))
    return run_here(folder, model, data, settings, brought, executor, progress, watchers)


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


def _go_back(folder: RunFolder, until: int | None, *, retry_failed: bool) -> None:
    """Cuts the journal as the caller asks; copies of all of it are put beside it."""
    if until is None and not retry_failed:
        return
    with folder.locked():
        if until is not None:
            folder.cut(until)
        if retry_failed:
            failed = set_back(folder)
            folder.log(f"to be evaluated again: {plural(failed, 'failed trial')}" if failed else "no trial has failed")
