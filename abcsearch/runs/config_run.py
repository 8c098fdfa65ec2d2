"""Runs from a config: base network, search, baselines."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.baselines.checks import checked_networks, checked_recipe, checked_structure
from abcsearch.baselines.registry import BASELINES, searched
from abcsearch.data.registry import load_data, takes_seed
from abcsearch.errors import plural
from abcsearch.runs.base import train_base
from abcsearch.runs.chain_check import check_chain
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.known import KNOWN
from abcsearch.runs.disk.shapes import winner_name
from abcsearch.runs.disk.weights import load_brought
from abcsearch.runs.front import run_front
from abcsearch.runs.header import as_begun, data_identity, write_header
from abcsearch.runs.known_runs import found_known
from abcsearch.runs.latency import keep_times
from abcsearch.runs.preparing import check_room, crew_of, preparation_of, prepared
from abcsearch.runs.progress import Progress, logged, silent
from abcsearch.runs.rebuilding import Remains
from abcsearch.runs.roles import Roles
from abcsearch.runs.search import SearchResult, run_search
from abcsearch.runs.settings import Part, RunConfig
from abcsearch.runs.task import Task
from abcsearch.runs.workers import check_workers, workers_for
from abcsearch.steps import doing
from abcsearch.training.checks import check_training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from abcsearch.data.splits import Data
    from abcsearch.runs.front import FrontResult
    from abcsearch.runs.front_settings import Front
    from abcsearch.runs.shared import Shared
    from abcsearch.runs.watching import WatcherFactory

    LoadData = Callable[[RunConfig], Data]


def seeded_data(data: Part, seed: int) -> Part:
    """Returns the data of a config whose split follows the run's seed, unless the data's options have their own."""
    return (
        Part(name=data.name, options={"seed": seed, **data.options})
        if takes_seed(data.name)
        else data
    )


def load_run_data(config: RunConfig) -> Data:
    """Returns the data of a config; the split follows the run's seed unless the data's options have their own."""
    named = seeded_data(config.data, config.seed)
    return load_data(named.name, **named.options)


class LoadedOnce:
    """Loads the data of runs like `load_run_data`; where several have the same, they share it."""

    def __init__(self, load: LoadData = load_run_data) -> None:
        """Begins with none; `load` returns the data of a config."""
        self._load = load
        self._known: dict[str, Data] = {}

    def __call__(self, config: RunConfig) -> Data:
        """Returns the data of a config."""
        named = seeded_data(config.data, config.seed)
        key = json.dumps([named.name, named.options], sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = self._load(config)
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
    shared: Shared | None = None,
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
        shared: what it has in common with the other budgets of a front.

    Raises:
        AbcSearchError: of the kind that fits.

    Warns:
        UserWarning: if run.json was lost, and has been made again.
    """
    folder = RunFolder(run_dir)
    config = as_begun(config, folder)
    task, roles = prepare(config, folder, load=load, elsewhere=executor is not None, shared=shared)
    with folder.locked():
        progress = logged(folder, progress)
        common = shared is not None and shared.holds(task)
        task = _made_ready(config, folder, task, roles, progress, rebuild=rebuild, shared=shared)
        with workers_for(config, folder, executor) as where:
            ready = roles.evaluator if common else None
            roles = replace(Roles.of(task, config, evaluator=ready), executor=where)
            if shared is not None:
                shared.keep(task, roles.evaluator, folder.base)
            known = folder.finished(config.n_trials)
            result = run_search(
                folder,
                task,
                config,
                roles,
                progress,
                winner_name(config.searcher.name),
                watchers=watchers,
            )
            best = result.best
            if not known:
                done = plural(len(result.trials), "trial")
                folder.log(
                    f"search finished: {done}, best {best.fitness:.4f} (trial {best.number})"
                )
            for name in searched(config.baselines):
                _searched_baseline(folder, name, config, result, roles, progress)
    return result


def _made_ready(  # noqa: PLR0913 - what it works with
    config: RunConfig,
    folder: RunFolder,
    task: Task,
    roles: Roles,
    progress: Progress,
    *,
    rebuild: bool,
    shared: Shared | None,
) -> Task:
    """Returns the task with its network trained and prepared, in a folder whose run.json is there.

    Args:
        config: the run.
        folder: its folder, locked.
        task: with its network as it is before it is trained, which is changed.
        roles: of it; the searcher is new.
        progress: of trainings.
        rebuild: as of `run_config`.
        shared: what it has in common with other budgets, of which one may have trained the network already.
    """
    same = config_identity(config, task.data)
    remains = Remains.of(folder)
    if remains is None:
        write_header(folder, config, same)
        keep_times(folder, task.constraint.costs)  # which what is prepared may follow from
    elif config.prepare is None:
        remains = remains.check(config, task, roles)
    else:
        remains.check_prepared(config)
    if shared is not None:
        shared.give_base(folder)
    if shared is None or not shared.holds(task):
        train_base(config, folder.base, task.base, task.data, progress)
        task = prepared(
            folder, config, task.reranked().keeping(folder), preparation_of(config), progress
        )
    if remains is not None:
        roles = Roles.of(task, config)
        if config.prepare is not None:  # whose structures the searcher begins with
            remains = remains.check(config, task, roles)
        remains.rebuild(config, roles.evaluator, same, sure=rebuild)
    return task


def prepare(
    config: RunConfig,
    folder: RunFolder,
    *,
    load: LoadData = load_run_data,
    elsewhere: bool = False,
    weights: bool = True,
    shared: Shared | None = None,
) -> tuple[Task, Roles]:
    """Returns what a configured run works on and who does it, as far as that is known before its network is trained.

    Refuses what cannot work before anything is written or trained: only the ranking depends on the weights.

    Args:
        config: the run.
        folder: its folder, which need not exist yet; nothing is written.
        load: returns its data.
        elsewhere: whether the caller says where evaluations run, so that it does not matter whether workers can start.
        weights: whether the checkpoint is needed; without it a missing one is none.
        shared: what it has in common with the other budgets of a front.

    Raises:
        AbcSearchError: of the kind that fits.
    """
    make = partial(_drafted, config, folder, load, weights=weights)
    task = make() if shared is None else shared.task_for(config, folder, make)
    data = task.data
    common = shared.evaluator if shared is not None and shared.holds(task) else None
    roles = Roles.of(task, config, evaluator=common)
    preparation = preparation_of(config)
    if preparation is not None:
        preparation.check(task)
        crew_of(preparation, config)
        check_room(folder, task, preparation)
    for name in config.baselines:
        if name not in BASELINES.homes or BASELINES[name].networks is not None:
            _check_baseline(name, config, task)
    if config.known and not (folder.path / KNOWN).exists():
        found_known(folder, task.space, config, config_identity(config, data))
    if not elsewhere and not folder.finished(config.n_trials):
        check_workers(config.execution)
    if config.pretrain is not None:
        check_training(config.pretrain, data.train, data.objective, taught=False, scored=True)
    taught = config.finetune.taught
    check_training(config.finetune, data.train, data.objective, taught=taught, scored=True)
    check_chain(config.transform, task.base, data, config.finetune)
    return task, roles


def _drafted(config: RunConfig, folder: RunFolder, load: LoadData, *, weights: bool) -> Task:
    """Returns the task of a run as far as it is known before its network is trained; arguments as of `prepare`."""
    doing(f"building the network {config.model.name}")
    model = config.model.build(config.seed)
    doing(f"reading the data {config.data.name}")
    data = load(config)
    checkpoint = config.model.checkpoint
    if (
        checkpoint is not None
        and not folder.base.exists()
        and (weights or Path(checkpoint).exists())
    ):
        load_brought(model, checkpoint)
    return Task.of(model, data, config, trained=False, folder=folder)


def _check_baseline(name: str, config: RunConfig, task: Task) -> None:
    """Raises unless a baseline brings what it should, as far as that is known before the search.

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
        taught = recipe.taught
        check_training(recipe, task.data.train, task.data.objective, taught=taught, scored=True)


def config_identity(config: RunConfig, data: Data) -> dict[str, Any]:
    """Returns what a configured run is recognised by: its data, and the file of its checkpoint if that is there."""
    checkpoint = Path(config.model.checkpoint or "")
    if not checkpoint.is_file():
        return data_identity(data)
    return {
        **data_identity(data),
        "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16],
    }


def _searched_baseline(
    folder: RunFolder,
    name: str,
    config: RunConfig,
    result: SearchResult,
    roles: Roles,
    progress: Progress,
) -> None:
    """Runs a search that the winner is compared with, by the same evaluator."""
    settings = replace(
        config, searcher=Part(name=BASELINES.find(name).searcher), baselines=(), known=()
    )
    baseline = folder.baseline(name)
    folder.check()
    baseline.path.mkdir(parents=True, exist_ok=True)
    task = result.task
    # Of which the weights are what all structures come from, and the structures are searched
    if task.made is not None:
        task = replace(task, made=replace(task.made, starts=()))
    roles = replace(Roles.of(task, settings, evaluator=roles.evaluator), executor=roles.executor)
    known = {trial.candidate: trial.evaluation for trial in result.trials}
    run_search(baseline, task, settings, roles, progress, f"{name} baseline", known)


def run_front_config(  # noqa: PLR0913 - all but the first two have a default
    front: Front[RunConfig],
    run_dir: str | Path,
    *,
    load: LoadData = load_run_data,
    executor: Executor | None = None,
    progress: Progress = silent,
    watchers: Sequence[WatcherFactory] = (),
    before: Callable[[RunFolder], object] = str,
) -> FrontResult:
    """Runs the configured searches of several budgets, or continues them; arguments as of `run_config`.

    Args:
        front: the budgets, and the run of one of them.
        run_dir: folder of all.
        load: returns the data of a config, the same for all.
        executor: where evaluations run, instead of what the config says.
        progress: shown after every step.
        watchers: as of `run_config`, for every budget.
        before: called with the folder of every budget that has one, before it goes on.
    """
    data = LoadedOnce(load)

    def run_one(
        config: RunConfig, subfolder: RunFolder, shared: Shared, where: Executor, shown: Progress
    ) -> SearchResult:
        return run_config(
            config,
            subfolder.path,
            load=data,
            executor=where,
            progress=shown,
            watchers=watchers,
            shared=shared,
        )

    front = replace(front, settings=as_begun(front.settings, RunFolder(run_dir)))
    return run_front(
        front, RunFolder(run_dir), run_one, executor=executor, progress=progress, before=before
    )
