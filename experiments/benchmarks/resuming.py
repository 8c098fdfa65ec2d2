"""How long a long run takes to go on: from its folder to the first new evaluation. `scaling` runs this.

    python -m experiments.benchmarks.resuming FOLDER SEARCHER SCHEDULE TRIALS

searches in a folder up to so many trials, in a process of its own, and prints three moments as JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch

from abcsearch import Budget, Candidate, Evaluation, Searcher, make_searcher, trace_channels
from abcsearch.budget import Constraint
from abcsearch.evaluation.base import Evaluator
from abcsearch.execution.options import ExecutionOptions
from abcsearch.execution.serial import SerialExecutor
from abcsearch.models.resnet import resnet56
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.loop import Loop
from abcsearch.runs.progress import logged, silent
from experiments.benchmarks.sleeping import Sleeping

_INSTANT = Sleeping(0, 0)


@dataclass
class Noting:
    """Evaluates at once, and notes when it was first called."""

    first: float = field(default=0.0, init=False)

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns an evaluation."""
        self.first = self.first or time.monotonic()
        return _INSTANT(candidate, seed)


def problem() -> Constraint:
    """Returns what searchers see of a ResNet-56 that has to lose half of its MACs."""
    graph = trace_channels(resnet56().eval(), torch.zeros(1, 3, 32, 32))
    return Budget(macs=0.5).bind(graph.space(), graph.costs)


def loop_of(
    path: Path,
    searcher: Searcher,
    evaluator: Evaluator,
    executor: Executor,
    execution: ExecutionOptions,
    n_trials: int,
) -> Loop:
    """Returns the loop of a search in a folder, put together as `run_search` does."""
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    return Loop(
        folder=folder,
        searcher=searcher,
        evaluator=evaluator,
        costs=searcher.constraint.costs,
        executor=executor,
        n_trials=n_trials,
        seed=searcher.seed,
        max_failures=10,
        execution=execution,
        progress=logged(folder, silent),
    )


def search(path: Path, constraint: Constraint, name: str, schedule: str, n_trials: int) -> float:
    """Searches in this process, without waiting for evaluations; returns when the first of them began."""
    searcher = make_searcher(name, constraint.space, constraint, seed=0)
    noting = Noting()
    loop_of(
        path, searcher, noting, SerialExecutor(), ExecutionOptions(schedule=schedule), n_trials
    ).run()
    return noting.first


def started_anew(path: Path, name: str, schedule: str, n_trials: int) -> dict[str, float]:
    """Returns the seconds until a new process has imported and traced all, and from then to a new evaluation."""
    start = time.monotonic()
    call = [sys.executable, "-m", __name__, str(path), name, schedule, str(n_trials)]
    moments = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    return {"ready": moments["ready"] - start, "resumed": moments["first"] - moments["ready"]}


def resumed(path: Path, name: str, schedule: str, n_trials: int) -> list[dict[str, float]]:
    """Makes a run and continues it by one trial: as it was left, and without the snapshot of the searcher.

    Args:
        path: of a new folder.
        name: of the searcher.
        schedule: of the run.
        n_trials: that the run has.
    """
    with mock.patch("os.fsync"):  # what is in the files is the same, sooner
        search(path, problem(), name, schedule, n_trials)
    times: list[dict[str, float]] = []
    for dropped in ([], ["searcher.json"]):
        copy = Path(shutil.copytree(path, path.with_name(f"{path.name}-{len(times)}")))
        for file in dropped:
            (copy / file).unlink()
        times.append(started_anew(copy, name, schedule, n_trials + 1))
        shutil.rmtree(copy)
    return times


def main() -> None:
    """Prints when all was imported and traced, and when the first new evaluation began."""
    path, name, schedule, n_trials = sys.argv[1:]
    constraint = problem()
    ready = time.monotonic()
    first = search(Path(path), constraint, name, schedule, int(n_trials))
    sys.stdout.write(json.dumps({"ready": ready, "first": first}))


if __name__ == "__main__":
    main()
