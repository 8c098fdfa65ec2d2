"""Runs from a config: base network, search, baselines, fine-tuning, export."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from abcsearch.data.registry import load_data, takes_seed
from abcsearch.errors import RunError
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.execution.serial import SerialExecutor
from abcsearch.exporting import export
from abcsearch.runs.executing import changed_execution, check_workers, workers_for
from abcsearch.runs.folder import RunFolder
from abcsearch.runs.header import data_identity, write_header
from abcsearch.runs.journal import read_journal
from abcsearch.runs.loop import Progress, logged, silent
from abcsearch.runs.run import Parts, SearchResult, run_search
from abcsearch.runs.settings import OBJECT, Part, RunConfig, SearchSettings, from_plain
from abcsearch.runs.task import Task
from abcsearch.runs.weights import load_checkpoint, weights_writer
from abcsearch.training.loop import FineTuned, Recipe, check_images, finetune, train
from abcsearch.training.objectives import find_objective, metric_text
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from torch import nn

    from abcsearch.data.splits import Data
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.run import SearcherFactory
    from abcsearch.runs.watching import WatcherFactory
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate


def run_config(
    config: RunConfig,
    run_dir: str | Path,
    *,
    executor: Executor | None = None,
    progress: Progress = silent,
    watchers: Sequence[WatcherFactory] = (),
) -> SearchResult:
    """Runs a configured search, or continues it where the folder holds it already.

    Args:
        config: the run.
        run_dir: its folder; made if missing.
        executor: where evaluations run, instead of what the config says.
        progress: shown after every step.
        watchers: functions of (task, folder) that return who hears of every trial of the search.

    Raises:
        AbcSearchError: of the kind that fits.
    """
    folder = RunFolder(run_dir)
    model, data = config.model.build(config.seed), _load_data(config)
    if config.model.checkpoint is not None and not folder.base.exists():
        load_checkpoint(model, config.model.checkpoint)
    # Refuse what cannot work before anything is written or trained: only the ranking depends on the weights.
    task = Task.of(model, data, config, trained=False, folder=folder)
    Parts.of(task, config)
    if executor is None:
        check_workers(config.execution)
    for recipe in (config.pretrain, config.finetune):
        if recipe is not None:
            check_images(recipe, data.train)
    with folder.locked():
        progress = logged(folder, progress)
        same = data_identity(data)
        checkpoint = Path(config.model.checkpoint or "")
        if checkpoint.is_file():
            same["checkpoint"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
        write_header(folder, config, same)
        _base_network(folder, config, model, data, progress)
        task = task.reranked(config)
        with workers_for(config, folder, executor) as where:
            parts = replace(Parts.of(task, config), executor=where)
            result = run_search(folder, task, config, parts, progress, config.searcher.name, watchers=watchers)
            best = result.best
            folder.log(f"search finished: {len(result.trials)} trials, best {best.fitness:.4f} (trial {best.number})")
            if "random" in config.baselines:
                _random_baseline(folder, config, result, parts, progress)
    return result


def _random_baseline(
    folder: RunFolder, config: RunConfig, result: SearchResult, parts: Parts, progress: Progress
) -> None:
    """Runs the random search that the winner is compared with, by the same evaluator."""
    own = replace(config, searcher=Part(name="random"), baselines=())
    baseline = _baseline(folder, "random")
    baseline.path.mkdir(parents=True, exist_ok=True)
    parts = replace(Parts.of(result.task, own, evaluator=parts.evaluator), executor=parts.executor)
    known = {trial.candidate: trial.evaluation for trial in result.trials}
    run_search(baseline, result.task, own, parts, progress, "random baseline", known)


def resume(  # noqa: PLR0913 - a run from Python needs each of its objects again
    run_dir: str | Path,
    *,
    model: nn.Module | None = None,
    data: Data | None = None,
    n_trials: int | None = None,
    execution: Mapping[str, Any] | None = None,
    until: int | None = None,
    searcher: SearcherFactory | Searcher | None = None,
    evaluator: Evaluator | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
    watchers: Sequence[WatcherFactory] = (),
) -> SearchResult:
    """Continues a run with the settings that its folder holds; a finished one is returned as it is.

    A run that was started from a config needs nothing else. A run that `search` started from Python needs the same
    model and data again, and the searcher and evaluator where they were not given by name.

    Args:
        run_dir: the folder.
        model: the same trained network.
        data: the same data.
        n_trials: another number of trials than the run was started with.
        execution: other workers, ray_address, gpus or timeout than before, e.g. {"workers": 8}.
        until: keeps only so many lines of a journal that is damaged behind them; a copy of all is put beside it.
        searcher: the same searcher.
        evaluator: the same evaluator.
        executor: where evaluations run, instead of what the run's settings say.
        progress: called after every trial.
        watchers: functions of (task, folder) that return who hears of every trial.

    Raises:
        RunError: if the folder holds no run, an object is missing, or one differs from what the run was started with.
    """
    folder = RunFolder(run_dir)
    plain = folder.header()["settings"]
    configured = "model" in plain
    settings = from_plain(RunConfig if configured else SearchSettings, plain)
    settings = replace(
        settings,
        n_trials=n_trials or settings.n_trials,
        execution=changed_execution(settings.execution, execution or {}),
    )
    if until is not None:
        with folder.locked():
            folder.cut(until)
    if isinstance(settings, RunConfig):
        return run_config(settings, run_dir, executor=executor, progress=progress, watchers=watchers)
    missing = [name for name, value in (("model", model), ("data", data)) if value is None]
    missing += [
        name
        for name, part, value in (
            ("searcher", settings.searcher, searcher),
            ("evaluator", settings.evaluator, evaluator),
        )
        if part.name.endswith(OBJECT) and value is None
    ]
    if model is None or data is None or missing:
        call = ", ".join(f"{name}=..." for name in missing)
        msg = (
            f"{run_dir} was started from Python with objects of yours; pass the same ones: "
            f"resume({str(run_dir)!r}, {call})"
        )
        raise RunError(msg)
    task = Task.of(model, data, settings, folder=folder)
    parts = Parts.of(task, settings, searcher=searcher, evaluator=evaluator)
    with folder.locked(), workers_for(settings, folder, executor) as where:
        parts = replace(parts, executor=where)
        return run_search(folder, task, settings, parts, logged(folder, progress), watchers=watchers)


def _load_data(config: RunConfig) -> Data:
    """Returns the data of a config; the split follows the run's seed unless the data's options have their own."""
    options = dict(config.data.options)
    if takes_seed(config.data.name):
        options.setdefault("seed", config.seed)
    return load_data(config.data.name, **options)


def _baseline(folder: RunFolder, name: str) -> RunFolder:
    """Returns the run folder of a baseline."""
    return RunFolder(folder.path / "baselines" / name)


def _base_network(folder: RunFolder, config: RunConfig, model: nn.Module, data: Data, progress: Progress) -> None:
    """Gives the network its trained weights: from the folder, as they are (a checkpoint's), or by training it now."""
    if not folder.base.exists():
        if config.pretrain is not None:
            train(
                model,
                data.train,
                config.pretrain,
                seed=config.seed,
                part="pretrain",
                objective=data.objective,
                on_epoch=lambda done, total, loss: progress("base network", done, total, f"loss {loss:.4f}"),
            )
        folder.write(folder.base.name, weights_writer(model))
    load_checkpoint(model, folder.base)
    model.eval()


class Structure(NamedTuple):
    """A structure that the report compares."""

    name: str
    candidate: Candidate


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A configured run whose search is finished.

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

    def network(self, structure: Structure, *, tuned: bool) -> nn.Module:
        """Returns a structure's network: sliced and calibrated, or as fine-tuned.

        Raises:
            RunError: if it is to be fine-tuned and has not been.
        """
        task = self.result.task
        full = structure.candidate == task.space.full
        network = copy.deepcopy(task.model) if full else self.result.build(structure.candidate)
        if tuned:
            path = self.folder.path / "finetuned" / f"{structure.name}.safetensors"
            if not path.exists():
                msg = f"{structure.name} has not been fine-tuned; run: abcsearch finetune {self.folder.path}"
                raise RunError(msg)
            load_checkpoint(network, path)
        return network.eval()

    def fitness(self, structure: Structure) -> float | None:
        """Returns the fitness of a structure on search-validation, evaluated as in the search."""
        for trial in self.result.trials:
            if trial.candidate == structure.candidate:
                return trial.evaluation.fitness
        return evaluate(self._evaluator, structure.candidate, 0).fitness

    @cached_property
    def _evaluator(self) -> Evaluator:
        """The evaluator of the search."""
        task, part = self.result.task, self.config.evaluator
        return make_evaluator(part.name, task.model, task.graph, task.ranking, task.data, **part.options)

    @property
    def metric(self) -> str:
        """The metric on the test split that reports show."""
        return find_objective(self.result.task.data.objective).headline

    def change(self, scores: dict[str, Any]) -> str:
        """Returns what fine-tuning made of that metric, in words."""
        return " -> ".join(metric_text(self.metric, scores[when][self.metric]) for when in ("before", "after"))

    def scores(self, structure: Structure) -> dict[str, Any] | None:
        """Returns recipe and test metrics before and after, or None if this structure has not been fine-tuned."""
        found = self.folder.read_json(f"finetuned/{structure.name}.json")
        same = isinstance(found, dict) and found.get("candidate") == list(structure.candidate)
        return found if same and {"recipe", "before", "after"} <= found.keys() else None


def open_run(run_dir: str | Path) -> FinishedRun:
    """Returns a configured run whose search is finished.

    Raises:
        RunError: if the folder holds no configured run, or its search is not finished.
    """
    folder = RunFolder(run_dir)
    header = folder.header()
    if "model" not in header["settings"]:
        msg = f"{run_dir} was started from Python; fine-tune and export its result there (finetune, export)"
        raise RunError(msg)
    config = from_plain(RunConfig, header["settings"])
    parts = [folder, *(_baseline(folder, name) for name in config.baselines if name == "random")]
    if not all(part.finished(config.n_trials) for part in parts):
        msg = f"the search in {folder.path} is not finished; continue it with: abcsearch resume {folder.path}"
        raise RunError(msg)
    result = run_config(config, run_dir, executor=SerialExecutor())  # nothing is left to evaluate
    names = [Structure("full", result.task.space.full)]
    if "uniform" in config.baselines:
        names.append(Structure("uniform", result.task.uniform()))
    if "random" in config.baselines:
        trials = read_journal(_baseline(folder, "random").journal).trials
        best = best_trial([trial for number, trial in sorted(trials.items()) if number < config.n_trials])
        if best is None:
            msg = f"no trial of the random baseline in {folder.path} succeeded; leave it out: --set baselines=[]"
            raise RunError(msg)
        names.append(Structure("random", best.candidate))
    names.append(Structure(config.searcher.name, result.best.candidate))
    return FinishedRun(folder=folder, config=config, result=result, structures=tuple(names))


def finetune_run(run: FinishedRun, recipe: Recipe | None = None, *, progress: Progress = silent) -> None:
    """Fine-tunes the winner and the baselines with one recipe; what is done already is left alone.

    Args:
        run: the run.
        recipe: other than the run's.
        progress: shown after every epoch.
    """
    recipe = recipe or run.config.finetune
    check_images(recipe, run.result.task.data.train)
    progress = logged(run.folder, progress)
    with run.folder.locked():
        for structure in run.structures:
            done = run.scores(structure)
            wanted = {"candidate": list(structure.candidate), "recipe": asdict(recipe)}
            if done is not None and {key: done[key] for key in wanted} == wanted:
                continue
            stage = f"fine-tuning {structure.name}"
            tuned: FineTuned = finetune(
                run.network(structure, tuned=False),
                run.result.task.data,
                recipe,
                seed=run.config.seed,
                on_epoch=lambda d, total, loss, stage=stage: progress(stage, d, total, f"loss {loss:.4f}"),
            )
            # Scores vouch for the weights beside them: the old ones go first.
            (run.folder.path / "finetuned" / f"{structure.name}.json").unlink(missing_ok=True)
            run.folder.write(f"finetuned/{structure.name}.safetensors", weights_writer(tuned.model))
            scores = {**wanted, "before": tuned.before, "after": tuned.after}
            run.folder.write_json(f"finetuned/{structure.name}.json", scores)
            run.folder.log(f"{stage}: test {run.metric} {run.change(scores)}")


def export_run(run: FinishedRun, directory: str | Path | None = None) -> tuple[Path, bool]:
    """Exports the winner, fine-tuned if it has been; returns the folder, and whether it was fine-tuned."""
    tuned = run.scores(run.winner) is not None
    path = export(
        run.network(run.winner, tuned=tuned),
        directory or run.folder.path / "export",
        example_input=run.result.task.data.example,
        constructor=run.config.model.name,
        options=run.config.model.options,
        info={
            "candidate": list(run.winner.candidate),
            "widths": {name: list(pair) for name, pair in run.result.widths.items()},
            "macs": run.result.best.evaluation.macs,
            "params": run.result.best.evaluation.params,
            "fine_tuned": tuned,
        },
    )
    return path, tuned
