"""A search of a config, finished or as far as it is: the structures that are compared, their networks and scores."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from abcsearch.baselines.checks import checked_networks, checked_recipe
from abcsearch.baselines.registry import searched
from abcsearch.channels.source import Sliced
from abcsearch.errors import ConfigError, RunError, plural, quoted, unknown_name
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.racing import complete, finalists
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.execution.serial import SerialExecutor
from abcsearch.results.compared import Structure, baseline_best, baseline_trials, compared
from abcsearch.results.finetuned_files import problems, read_tuned, refusal, weights_path
from abcsearch.runs.base import load_base
from abcsearch.runs.config_run import load_run_data, run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.lines import run_id
from abcsearch.runs.disk.missing import AGAIN
from abcsearch.runs.disk.weights import load_checkpoint
from abcsearch.runs.header import identity, trusted_header
from abcsearch.runs.prepared_record import RECORD, WEIGHTS
from abcsearch.runs.preparing import opened, preparation_of
from abcsearch.runs.result import builder_of, collected
from abcsearch.runs.settings import RunConfig, from_plain
from abcsearch.runs.task import Task
from abcsearch.training.checkpoints import network_hash
from abcsearch.training.computing import find_device
from abcsearch.training.objectives import find_objective, metric_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from abcsearch.channels.source import Source
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.results.finetuned_files import Tuned
    from abcsearch.runs.config_run import LoadData
    from abcsearch.runs.result import SearchResult
    from abcsearch.space import Candidate
    from abcsearch.training.recipe import Recipe
    from abcsearch.trial import Trial


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A configured run whose search is finished, or what there is of it so far.

    Attributes:
        folder: its folder.
        config: its settings.
        result: its search.
        structures: what the report compares: full, uniform, random, and the winner under the name of its searcher.
    """

    folder: RunFolder
    config: RunConfig
    result: SearchResult
    structures: tuple[Structure, ...]

    @property
    def winner(self) -> Structure:
        """The searched structure."""
        return self.structures[-1]

    def named(self, name: str) -> Structure:
        """Returns a structure by its name.

        Raises:
            ConfigError: if there is none.
        """
        by_name = {structure.name: structure for structure in self.structures}
        if name not in by_name:
            raise ConfigError(unknown_name("network", name, by_name))
        return by_name[name]

    def network(self, structure: Structure, *, tuned: bool) -> nn.Module:
        """Returns a structure's network: sliced and calibrated, or as fine-tuned.

        Raises:
            RunError: if it is to be fine-tuned and has not been, or what there is of that is damaged.
        """
        network = self._untuned(structure)
        if tuned:
            now = self.tuned(structure)
            if now.scores is None:
                folder = self.folder.path
                msg = f"{structure.name} has not been fine-tuned; run: abcsearch finetune {quoted(folder)}"
                raise RunError(refusal(self.folder, structure.name, now) if now.wrong else msg)
            path = weights_path(self.folder, structure.name)
            load_checkpoint(network, path)
            if now.scores.get("weights", {}).get(path.name, network_hash(network)) != network_hash(
                network
            ):
                msg = f"{path} has been replaced while it was read; run it again"
                raise RunError(msg)
        return network.eval()

    def _untuned(self, structure: Structure) -> nn.Module:
        """Returns a structure's network as it is before fine-tuning."""
        task, source = self.result.task, self.source(structure)
        if (
            source.model is task.base
            and structure.candidate == task.space.full
            and not structure.has_networks
        ):
            return copy.deepcopy(task.base)
        if source is task.source:
            return self.result.build(structure.candidate)
        builder = builder_of(replace(task, source=source), self._evaluator_on(source))
        return builder.build(structure.candidate, self.config.seed)

    def source(self, structure: Structure) -> Source:
        """Returns where a structure's network comes from.

        That is what candidates come from, unless its baseline has networks of its own, or it is the full network of a
        run in which something was prepared: that stays as it was brought.

        Raises:
            ConfigError, ModelError: if the user's baseline gives no source, or one that does not keep its word.
        """
        task, networks = self.result.task, structure.baseline and structure.baseline.networks
        if structure.name not in self._sources:
            source = task.source
            if networks:
                source = checked_networks(structure.name, networks, task)
            elif task.made is not None and structure == self.structures[0]:
                source = Sliced(task.base, task.graph, task.source.ranking)
            self._sources[structure.name] = source
        return self._sources[structure.name]

    @cached_property
    def _sources(self) -> dict[str, Source]:
        """The sources of structures, by name, as far as they have been asked for."""
        return {}

    def origin(self, structure: Structure) -> str | None:
        """Returns a hash of the network that a structure's baseline begins with; None where it has none of its own."""
        if not structure.has_networks:
            return None
        return network_hash(self.source(structure).network(structure.candidate, self.config.seed))

    def recipe(self, structure: Structure, asked: Recipe) -> Recipe:
        """Returns the recipe that a structure is fine-tuned by where a recipe is asked for.

        Raises:
            ConfigError: if the user's baseline fails, or gives no recipe.
        """
        change = structure.baseline and structure.baseline.recipe
        if not change:
            return asked
        return checked_recipe(structure.name, change, asked, self.result.task, structure.candidate)

    def fitness(self, structure: Structure) -> float | None:
        """Returns the fitness of a structure on search-validation, evaluated as in the search, in full.

        One that is no trial, or has not been scored in full, is evaluated once, which may be a training: the folder
        keeps its fitness.
        """
        source = self.source(structure)
        apart = source is not self.result.task.source  # no trial was evaluated on these weights
        same = [
            trial.evaluation for trial in self._trials if trial.candidate == structure.candidate
        ]
        full = [evaluation.fitness for evaluation in same if complete(self._evaluator, evaluation)]
        if full and not apart:
            return next((fitness for fitness in full if fitness is not None), None)
        origin = self.origin(structure)
        usual = "as brought" if apart else ",".join(map(str, structure.candidate))
        key = usual if origin is None else f"{structure.name} {origin}"
        return self.fitness_on(
            source, structure.candidate, key, seed=0 if origin is None else self.config.seed
        )

    def fitness_on(
        self, source: Source, candidate: Candidate, key: str, *, seed: int = 0
    ) -> float | None:
        """Returns the fitness of a structure whose network comes from a source, evaluated as in the search, in full.

        Args:
            source: where its network comes from.
            candidate: the structure.
            key: under which the folder keeps it.
            seed: of the evaluation.
        """
        known = self._known()
        if key not in known:
            evaluator = (
                self._evaluator if source is self.result.task.source else self._evaluator_on(source)
            )
            stage = "in_full" if finalists(evaluator) else None
            fitness = evaluate(evaluator, candidate, seed, stage).fitness
            if fitness is None:
                return None
            known[key] = fitness
            with contextlib.suppress(OSError):  # where it cannot be kept, it is evaluated again
                self.folder.write_json(
                    self.folder.fitness.name, {**known, "id": run_id(self.folder.path)}
                )
        return known[key]

    def _known(self) -> dict[str, float]:
        """Returns the fitness that the folder keeps, by candidate; nothing if the file is damaged or another run's."""
        try:
            kept = self.folder.read_json(self.folder.fitness.name)
        except (RunError, OSError):
            return {}
        if not isinstance(kept, dict) or kept.pop("id", None) != run_id(self.folder.path):
            return {}
        return (
            kept
            if all(isinstance(one, float) and math.isfinite(one) for one in kept.values())
            else {}
        )

    @cached_property
    def _trials(self) -> tuple[Trial, ...]:
        """The trials of the search and of its searched baselines, the winners first, as full scores have them."""
        names = searched(self.config.baselines)
        others = itertools.chain.from_iterable(
            baseline_trials(self.folder, name, self.config) for name in names
        )
        best = (baseline_best(self.folder, name, self.config) for name in names)
        return (self.result.best, *filter(None, best), *self.result.trials, *others)

    @cached_property
    def _evaluator(self) -> Evaluator:
        """The evaluator of the search."""
        return self._evaluator_on(self.result.task.source)

    def _evaluator_on(self, source: Source) -> Evaluator:
        """Returns a new evaluator, as that of the search, for the networks of a source."""
        evaluator = self.config.evaluator
        return make_evaluator(evaluator.name, source, self.result.task.data, **evaluator.options)

    @property
    def metric(self) -> str:
        """The metric on the test split that reports show."""
        return find_objective(self.result.task.data.objective).headline

    def change(self, scores: dict[str, Any]) -> str:
        """Returns what fine-tuning made of that metric, in words."""
        return " -> ".join(
            metric_text(self.metric, scores[when][self.metric]) for when in ("before", "after")
        )

    def tuned(self, structure: Structure) -> Tuned:
        """Returns what there is of the fine-tuning of a structure, see `read_tuned`."""
        task = self.result.task
        return read_tuned(
            self.folder,
            structure.name,
            candidate=structure.candidate,
            metric=self.metric,
            network=lambda: task.source.network(structure.candidate),
        )

    def scores(self, structure: Structure) -> dict[str, Any] | None:
        """Returns recipe and test metrics before and after, or None if this structure has not been fine-tuned.

        Warns:
            UserWarning: if the file of scores or one of weights is damaged, missing, or not the one that belongs to the
                other: unless that is the weights that are not kept, it counts as not fine-tuned.
        """
        tuned = self.tuned(structure)
        for line in problems(self.folder, structure.name, tuned):
            warnings.warn(line, UserWarning, stacklevel=2)
        return tuned.scores


def open_run(
    run_dir: str | Path,
    *,
    load: LoadData = load_run_data,
    trust: bool = False,
    baselines: bool = True,
) -> FinishedRun:
    """Returns a configured run whose search is finished; one in a folder that cannot be written to is only read.

    Args:
        run_dir: its folder.
        load: returns its data; `LoadedOnce` for several runs.
        trust: takes a folder from elsewhere at its word: what its settings name is imported and read.
        baselines: whether its random baseline must be finished as well; without, it is there as far as it is.

    Raises:
        RunError: if the folder holds no configured run, or its search is not finished.
        TrustError: if it is from elsewhere, names code or files, and is not to be trusted.
    """
    folder = RunFolder(run_dir)
    config = _config(folder, trust=trust)
    folders = [folder, *(folder.baseline(name) for name in searched(config.baselines))]
    over = all(each.finished(config.n_trials) for each in folders)
    if not (over if baselines else folder.finished(config.n_trials)):
        lacking = "; ".join(text for each in folders for text in _unfinished(each, config.n_trials))
        msg = (
            f"the search in {folder.path} is not finished; continue it with: abcsearch resume {quoted(folder.path)} "
            f"({lacking})"
        )
        raise RunError(msg)
    if over and _here(config) is config and os.access(folder.path, os.W_OK):
        # Nothing is left to evaluate
        result = run_config(config, run_dir, load=load, executor=SerialExecutor())
    else:  # nothing is left to write, either; a baseline is left to those who continue the run
        result = open_so_far(run_dir, load=load, trust=trust).result
    for name in searched(config.baselines) if baselines else ():
        if baseline_best(folder, name, config) is None:
            msg = f"no trial of the {name} baseline in {folder.path} succeeded; leave it out: --set baselines=[]"
            raise RunError(msg)
    return FinishedRun(
        folder=folder, config=config, result=result, structures=compared(folder, config, result)
    )


def open_so_far(
    run_dir: str | Path, *, load: LoadData = load_run_data, trust: bool = False
) -> FinishedRun:
    """Returns a configured run as far as it is: its search may be under way, or have been stopped.

    The folder is only read. What the random baseline has not found yet is left out.

    Args:
        run_dir: its folder.
        load: as of `open_run`.
        trust: as of `open_run`.

    Raises:
        RunError: if the folder holds no configured run, no trial has succeeded, or network or data are others now.
        TrustError: as of `open_run`.
        DataError, ModelError, ConfigError, CheckpointError: if data, network or evaluator are not on this machine.
    """
    folder = RunFolder(run_dir)
    config = _config(folder, trust=trust)
    config = _here(config)
    model, data = config.space.plain(config.model.build(config.seed)), load(config)
    load_base(model, folder.base)
    task = Task.of(model.eval(), data, config, folder=folder)
    _check_identity(folder, identity(task))
    task = opened(folder, config, task, preparation_of(config))
    _check_identity(folder, identity(task))
    contents = read_journal(folder.journal)
    mine = [trial for number, trial in sorted(contents.trials.items()) if number < config.n_trials]
    chosen = config.evaluator
    evaluator = make_evaluator(chosen.name, task.source, data, **chosen.options)
    result = collected(
        folder, task, config, mine, evaluator, contents.decisions.get(config.n_trials)
    )
    return FinishedRun(
        folder=folder, config=config, result=result, structures=compared(folder, config, result)
    )


def _check_identity(folder: RunFolder, now: dict[str, Any]) -> None:
    """Raises RunError if the run was with another network, other data, or something else prepared."""
    recorded = folder.header()["identity"]
    files = {"model": str(folder.base), "prepared": f"{folder.path / RECORD} and {WEIGHTS}"}
    others = [
        key
        for key in ("model", "data", "prepared")
        if key in now and recorded.get(key, now[key]) != now[key]
    ]
    if not others:
        return
    msg = f"{' and '.join(others)} of {folder.path} are others now than when it ran"
    for key in files.keys() & set(others):
        msg += f"; restore {files[key]} from a copy, or delete it: {AGAIN} abcsearch resume {quoted(folder.path)}"
    raise RunError(msg)


def _config(folder: RunFolder, *, trust: bool) -> RunConfig:
    """Returns the settings of a configured run; raises RunError for any other."""
    header = trusted_header(folder, trust=trust)
    if "model" not in header["settings"]:
        msg = f"{folder.path} was started from Python; fine-tune and export its result there (finetune, export)"
        raise RunError(msg)
    return from_plain(RunConfig, header["settings"], folder.path / "run.json")


def _here(config: RunConfig) -> RunConfig:
    """Returns the settings for what a finished run still needs: the CPU stands in for a device that is not here.

    Warns:
        UserWarning: if it does.
    """
    for device in config.evaluator.devices:
        try:
            find_device(device)
        except ConfigError as error:
            msg = f"{str(error).split(';')[0]}: what is computed here is computed on the CPU, and may round otherwise"
            warnings.warn(msg, stacklevel=3)
            return replace(config, evaluator=config.evaluator.on("cpu"))
    return config


def _unfinished(folder: RunFolder, n_trials: int) -> Iterator[str]:
    """Yields what a search lacks that is not finished, with the file that says so."""
    if folder.finished(n_trials):
        return
    done = len(read_journal(folder.journal).trials)
    if done < n_trials:
        yield f"{done} of {plural(n_trials, 'trial')} in {folder.journal}"
    elif folder.decided() is False:
        yield f"the best trials in {folder.journal} are still to be scored in full or measured"
    else:
        yield f"{folder.path / 'searcher.json'} is missing or damaged, which resuming mends"
