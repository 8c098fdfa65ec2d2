"""Trials in MLflow and in Weights & Biases: watchers beside TensorBoard and Optuna, each an extra.

Points are written in order of number, a trial that finishes early waiting for those before it, and none twice: a search
that continues goes on in the same MLflow or W&B run, from the first step that this lacks.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

from abcsearch.errors import ConfigError
from abcsearch.runs.disk.lines import run_id
from abcsearch.runs.watching import finish_times
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.runs.task import Task
    from abcsearch.runs.watching import WatcherFactory
    from abcsearch.trial import Trial

_TAG = "abcsearch.run"  # of an MLflow run: the id of the run folder


class _InOrder:
    """Takes trials in any order, and writes them in that of their numbers."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._waiting: dict[int, tuple[Trial, float]] = {}
        self._next, self._failures = 0, 0
        self._best: Trial | None = None
        self._there = -1  # number of the last trial that has been written before

    def begin(self, trials: Sequence[Trial], n_trials: int) -> None:
        """Opens the run, and writes what it lacks of these trials."""
        self._there = self._opened(n_trials)
        times = finish_times(self._journal)
        for trial in trials:
            self._take(trial, times.get(trial.number, time.time()))

    def trial(self, trial: Trial, best: Trial | None) -> None:
        """Writes a trial once it is its turn."""
        del best  # so far, of trials that may be later than this one
        self._take(trial, time.time())

    def end(self) -> None:
        """Writes what still waits for earlier trials, which will not come, and closes the run."""
        for number in sorted(self._waiting):
            self._count(*self._waiting.pop(number))
        self._closed()

    def _take(self, trial: Trial, finished: float) -> None:
        self._waiting[trial.number] = trial, finished
        while self._next in self._waiting:
            self._count(*self._waiting.pop(self._next))
            self._next += 1

    def _count(self, trial: Trial, finished: float) -> None:
        """Takes a trial into the running numbers, and writes it unless it is there."""
        evaluation = trial.evaluation
        self._failures += evaluation.failure is not None
        self._best = best_trial([trial] if self._best is None else [self._best, trial])
        values: dict[str, float | None] = {
            "fitness": evaluation.fitness,
            "best_fitness": self._best and self._best.fitness,
            "macs": evaluation.macs,
            "params": evaluation.params,
            "seconds": evaluation.seconds,
            **{f"metrics/{name}": value for name, value in evaluation.metrics.items()},
            "failures": self._failures,  # last: where it is written, all of the trial is
        }
        if trial.number > self._there:
            self._write(
                trial.number,
                {name: value for name, value in values.items() if value is not None},
                finished,
            )

    def _opened(self, n_trials: int) -> int:
        """Opens the run; returns the number of the last trial that it has, or -1."""
        raise NotImplementedError

    def _write(self, number: int, values: dict[str, float], finished: float) -> None:
        """Writes the numbers of a trial at step number + 1."""
        raise NotImplementedError

    def _closed(self) -> None:
        """Closes the run."""
        raise NotImplementedError


def _settings(settings: SearchSettings) -> dict[str, Any]:
    """Returns what a run is called by in tables of runs."""
    budget = ", ".join(f"{name} {bound}" for name, bound in settings.budget.bounds.items())
    facts = {
        "searcher": settings.searcher.name,
        "evaluator": settings.evaluator.name,
        "budget": budget,
    }
    return {**facts, "n_trials": settings.n_trials, "seed": settings.seed}


def _identity(folder: RunFolder) -> str:
    """Returns letters and digits that a run is known by elsewhere: its id or, of older ones, a hash of its place."""
    known = run_id(folder.path) or ""
    return (
        known
        if known.isalnum()
        else hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:32]
    )


def mlflow_watcher(uri: str | None = None, experiment: str = "abcsearch") -> WatcherFactory:
    """Returns what makes a watcher that writes a search into MLflow.

    Args:
        uri: of the tracking server, or of a folder or database; None: MLflow's own default (MLFLOW_TRACKING_URI).
        experiment: made if missing.

    Raises:
        ConfigError: if the package is missing.
    """
    try:
        import mlflow  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        msg = f"MLflow is not installed ({error}); run: pip install 'abcsearch[mlflow]'"
        raise ConfigError(msg) from error
    client: Any = mlflow.MlflowClient(tracking_uri=uri)
    return lambda task, folder: _MLflow(client, experiment, task, folder)


class _MLflow(_InOrder):
    """One run of MLflow for one search."""

    def __init__(self, client: Any, experiment: str, task: Task, folder: RunFolder) -> None:  # noqa: ANN401 - MLflow's
        super().__init__(folder.journal)
        self._client, self._experiment = client, experiment
        self._settings, self._name, self._id = (
            _settings(task.settings),
            folder.path.name,
            _identity(folder),
        )
        self._run = ""

    def _opened(self, n_trials: int) -> int:
        del n_trials
        client = self._client
        known = client.get_experiment_by_name(self._experiment)
        home = client.create_experiment(self._experiment) if known is None else known.experiment_id
        matching = client.search_runs(
            [home], filter_string=f"tags.`{_TAG}` = '{self._id}'", max_results=1
        )
        if matching:
            self._run = matching[0].info.run_id
            return max(
                (metric.step - 1 for metric in client.get_metric_history(self._run, "failures")),
                default=-1,
            )
        self._run = client.create_run(home, run_name=self._name, tags={_TAG: self._id}).info.run_id
        for name, value in self._settings.items():
            client.log_param(self._run, name, value)
        return -1

    def _write(self, number: int, values: dict[str, float], finished: float) -> None:
        for name, value in values.items():
            self._client.log_metric(
                self._run, name, value, timestamp=round(1000 * finished), step=number + 1
            )

    def _closed(self) -> None:
        if self._run:
            self._client.set_terminated(self._run)


def wandb_watcher(project: str = "abcsearch", **options: Any) -> WatcherFactory:  # noqa: ANN401 - of wandb.init
    """Returns what makes a watcher that writes a search into Weights & Biases.

    Args:
        project: that the run belongs to.
        options: others of `wandb.init`, e.g. mode="offline", entity="team".

    Raises:
        ConfigError: if the package is missing.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        msg = f"Weights & Biases is not installed ({error}); run: pip install 'abcsearch[wandb]'"
        raise ConfigError(msg) from error
    return lambda task, folder: _WandB(wandb, {"project": project, **options}, task, folder)


class _WandB(_InOrder):
    """One run of Weights & Biases for one search."""

    def __init__(self, wandb: Any, options: dict[str, Any], task: Task, folder: RunFolder) -> None:  # noqa: ANN401
        super().__init__(folder.journal)
        self._wandb = wandb
        settings = {
            "id": f"abcsearch-{_identity(folder)}",
            "name": folder.path.name,
            "resume": "allow",
        }
        self._options = {
            **settings,
            "dir": str(folder.path),
            "config": _settings(task.settings),
            **options,
        }
        self._run: Any = None

    def _opened(self, n_trials: int) -> int:
        del n_trials
        self._run = self._wandb.init(**self._options)
        # The step that comes next, one more than the number of its trial
        return int(self._run.step or 0) - 2

    def _write(self, number: int, values: dict[str, float], finished: float) -> None:
        self._run.log({**values, "finished": finished}, step=number + 1)

    def _closed(self) -> None:
        if self._run is not None:
            self._run.finish()
