"""Makes the runs that are missing, in some processes, and sums all of them up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments.benchmarks.searchers import problems
from experiments.benchmarks.searchers.oracle import oracle
from experiments.benchmarks.searchers.play import Job, Played, play
from experiments.benchmarks.searchers.results import Results
from experiments.benchmarks.searchers.rows import Row, code_fingerprint

TUNING_SEED = 1000  # the first run seed for tuning: those of the final table stay unseen

Map = Callable[[Callable[..., Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """All runs on one task.

    Attributes:
        task: its name.
        optimum: the best accuracy inside the budget (of landscapes: the best that is known), in [0, 1].
        runs: one per seed, by row.
    """

    task: str
    optimum: float
    runs: dict[str, list[Played]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run.

    Attributes:
        rows: searchers.
        tasks: names of tasks.
        data: the folder with the table.
        evaluations: of every run.
        seeds: number of seeds on every task; None takes those of the row.
        tune: whether seeds are those for tuning.
    """

    rows: list[Row]
    tasks: list[str]
    data: Path
    evaluations: int
    seeds: int | None = None
    tune: bool = False

    def jobs(self, row: Row, task: str) -> list[Job]:
        """Returns the runs of a row on a task, one per seed."""
        count = self.seeds or row.seeds[0 if problems.is_table(task) else 1]
        first = TUNING_SEED if self.tune else 0
        return [
            Job(
                row=row.name,
                searcher=row.searcher,
                options=row.options,
                task=task,
                seed=first + number,
                evaluations=self.evaluations,
            )
            for number in range(count)
        ]


def benchmark(plan: Plan, results: Results, workers: int) -> list[Found]:
    """Returns all runs of a plan by task; those that the results have not got yet are made and written down.

    Args:
        plan: what to run.
        results: finished runs.
        workers: processes; with 1 everything happens in this one.
    """
    wanted = {(task, row.name): plan.jobs(row, task) for row in plan.rows for task in plan.tasks}
    with _mapping(workers) as mapped:
        _run([job for jobs in wanted.values() for job in jobs], results, plan.data, mapped)
        optima = _optima(plan, mapped)
    tasks: list[Found] = []
    for task in plan.tasks:
        runs: dict[str, list[Played]] = {}
        for row in plan.rows:
            made = [results.get(job, _made_with(job, plan.data)) for job in wanted[task, row.name]]
            runs[row.name] = [run for run in made if run is not None]
        # A searcher may beat the oracle on a landscape: then that is the best that is known.
        best = max(value for played in runs.values() for run in played for _, value in run.steps)
        tasks.append(Found(task=task, optimum=max(optima[task], best), runs=runs))
    return tasks


@contextmanager
def _mapping(workers: int) -> Iterator[Map]:
    """Gives a map over processes, started anew with one thread each; the order is kept."""
    if workers == 1:
        yield map
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _run(wanted: list[Job], results: Results, data: Path, mapped: Map) -> None:
    """Makes the runs that are missing; each is written down as soon as it and those before it are done."""
    missing = [job for job in wanted if results.get(job, _made_with(job, data)) is None]
    played: Iterator[Played] = mapped(partial(play, data=data), missing)
    for number, (job, run) in enumerate(zip(missing, played, strict=True), start=1):
        results.add(job, _made_with(job, data), run)
        if number == len(missing) or number % max(20, len(missing) // 20) == 0:
            sys.stderr.write(
                f"{number}/{len(missing)} runs; {job.row} on {job.task} takes {run.seconds:.2f} s\n"
            )


def _optima(plan: Plan, mapped: Map) -> dict[str, float]:
    """Returns the optimum of every task: looked up in the table, or by a long search."""
    known = {task: problems.problem(task, plan.data).optimum for task in plan.tasks}
    unknown = [task for task, optimum in known.items() if optimum is None]
    if unknown:
        sys.stderr.write(f"long searches for the optima of {', '.join(unknown)}\n")
    searched = dict(zip(unknown, mapped(partial(oracle, data=plan.data), unknown), strict=True))
    return {task: searched[task] if optimum is None else optimum for task, optimum in known.items()}


def _made_with(job: Job, data: Path) -> str:
    """Returns what identifies the code and the problem of a run."""
    return f"{code_fingerprint(job.searcher):08x}-{problems.fingerprint(job.task, data):08x}"
