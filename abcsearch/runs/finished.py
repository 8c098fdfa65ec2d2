"""A finished search of a config: the structures that are compared, their networks and scores."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from abcsearch.errors import RunError
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.execution.serial import SerialExecutor
from abcsearch.runs.configured import run_config
from abcsearch.runs.folder import RunFolder
from abcsearch.runs.journal import read_journal
from abcsearch.runs.settings import RunConfig, from_plain
from abcsearch.runs.weights import load_checkpoint
from abcsearch.training.objectives import find_objective, metric_text
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.run import SearchResult
    from abcsearch.space import Candidate


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
    parts = [folder, *(folder.baseline(name) for name in config.baselines if name == "random")]
    if not all(part.finished(config.n_trials) for part in parts):
        msg = f"the search in {folder.path} is not finished; continue it with: abcsearch resume {folder.path}"
        raise RunError(msg)
    result = run_config(config, run_dir, executor=SerialExecutor())  # nothing is left to evaluate
    names = [Structure("full", result.task.space.full)]
    if "uniform" in config.baselines:
        names.append(Structure("uniform", result.task.uniform()))
    if "random" in config.baselines:
        trials = read_journal(folder.baseline("random").journal).trials
        best = best_trial([trial for number, trial in sorted(trials.items()) if number < config.n_trials])
        if best is None:
            msg = f"no trial of the random baseline in {folder.path} succeeded; leave it out: --set baselines=[]"
            raise RunError(msg)
        names.append(Structure("random", best.candidate))
    names.append(Structure(config.searcher.name, result.best.candidate))
    return FinishedRun(folder=folder, config=config, result=result, structures=tuple(names))
