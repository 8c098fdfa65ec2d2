"""How busy a search keeps its workers, what it costs the process that drives it, and how soon a long run goes on.

    python -m experiments.benchmarks.scaling [--parts throughput resume evaluations] [--workers 2 8 32 64]
        [--schedules asynchronous rounds] [--trials-per-worker 25] [--repeats 3] [--sleep 0.5 1.5]
        [--resume-searchers bee_colony evolution random] [--resume-trials 10000] [--evaluations 40]

- Throughput: evaluations sleep, so that there may be many more workers than cores. Measured once all workers of Ray
  are up. Ideal is that they sleep all the time. But a run has an end, at which workers have nothing left to do, and
  where trials have an order, workers wait for it: so the same sleeps are also played through without any cost
  ("possible").
- Resume: a run of many trials is continued by one, in a new process.
- Evaluations: AdaptiveBN on a ResNet-20 with random weights and images, each worker with one thread.
"""

from __future__ import annotations

import argparse
import heapq
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from abcsearch import Budget, Candidate, Evaluation, Searcher, Trial, make_searcher
from abcsearch.evaluation.base import Evaluator, evaluate
from abcsearch.execution.options import SCHEDULES, ExecutionOptions
from abcsearch.execution.ray_executor import RayExecutor
from abcsearch.models.resnet import resnet20
from experiments.benchmarks import evaluation
from experiments.benchmarks.evaluation import Case, table
from experiments.benchmarks.resuming import loop_of, problem, resumed
from experiments.benchmarks.sleeping import Sleeping
from experiments.tables import versions

PARTS = ("throughput", "resume", "evaluations")
_START = 600.0  # seconds that workers may take to start

Sleep = tuple[float, float]  # when it began, and how long it was meant to take


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run of the loop.

    Attributes:
        trials: all of them in the order of asking.
        seconds: from the call of the loop to its return.
        cpu: processor seconds of this process in that time, all threads.
        proposing: of these, the searcher's in ask and tell.
    """

    trials: list[Trial]
    seconds: float
    cpu: float
    proposing: float


def steady(sleeps: Sequence[Sleep], workers: int) -> float:
    """Returns the share of the workers' time that sleeps fill, from the beginning of the first to that of the last."""
    start, end = min(began for began, _ in sleeps), max(began for began, _ in sleeps)
    return sum(min(began + took, end) - began for began, took in sleeps) / (workers * (end - start))


def whole(sleeps: Sequence[Sleep], workers: int, seconds: float) -> float:
    """Returns the share of the workers' time that sleeps fill in a run of so many seconds."""
    return sum(took for _, took in sleeps) / (workers * seconds)


def possible(times: Sequence[float], workers: int, window: int) -> tuple[list[Sleep], float]:
    """Returns the sleeps as they would be if nothing else took any time, and how long all would take.

    Args:
        times: that the trials sleep, in the order of asking.
        workers: how many sleep at the same time.
        window: trial n is asked for when all up to n - window have finished; 0: when a worker is free.
    """
    free, sleeps = [0.0] * workers, list[Sleep]()
    told = [0.0]  # when so many trials have been told in their order
    for number, took in enumerate(times):
        asked = told[max(0, number + 1 - window)] if window else 0.0
        began = max(heapq.heappop(free), asked)
        heapq.heappush(free, began + took)
        sleeps.append((began, took))
        told.append(max(told[-1], began + took))
    return sleeps, told[-1]


def clocked(searcher: Searcher) -> list[float]:
    """Returns a list of the processor seconds that the searcher takes from now on, in one number."""
    spent = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: object, **options: object) -> object:
            start = time.thread_time()
            try:
                return call(*args, **options)
            finally:
                spent[0] += time.thread_time() - start

        return run

    searcher.ask, searcher.tell = timed(searcher.ask), timed(searcher.tell)
    return spent


def session(
    searcher: Searcher,
    evaluator: Evaluator,
    executor: Executor,
    execution: ExecutionOptions,
    n_trials: int,
) -> Session:
    """Runs a search in a folder of its own."""
    proposing = clocked(searcher)
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_of(Path(folder), searcher, evaluator, executor, execution, n_trials)
        cpu, start = time.process_time(), time.perf_counter()
        trials = loop.run()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Session(trials=trials, seconds=seconds, cpu=cpu, proposing=proposing[0])


def start_all(
    executor: RayExecutor, evaluator: Evaluator, candidate: Candidate, workers: int
) -> list[Evaluation]:
    """Returns the first evaluations when all workers are up and each has been used.

    Raises:
        SystemExit: if that takes too long.
    """
    late = time.monotonic() + _START
    calls = [executor.submit(evaluate, evaluator, candidate, 0, None) for _ in range(workers)]
    while executor.alive < workers:
        if time.monotonic() > late:
            sys.exit(f"only {executor.alive} of {workers} workers have started in {_START:g} s")
        time.sleep(0.05)
    wait(calls)
    # All are idle now, so each gets one of these.
    wait([executor.submit(evaluate, evaluator, candidate, 0, None) for _ in range(workers)])
    return [call.result() for call in calls]


def check(trials: Sequence[Trial], workers: int) -> None:
    """Makes sure that all workers took part, and none with torch loaded.

    Raises:
        SystemExit: if not.
    """
    every = [trial.evaluation for trial in trials]
    if failed := [evaluation.failure for evaluation in every if evaluation.failure is not None]:
        sys.exit(f"an evaluation failed: {failed[0]}")
    if any(evaluation.metrics["torch"] for evaluation in every):
        sys.exit("a worker has loaded torch")
    if (there := len({evaluation.metrics["process"] for evaluation in every})) != workers:
        sys.exit(f"{there} of {workers} workers took part")


def efficiencies(done: Session, workers: int, window: int) -> dict[str, float]:
    """Returns the columns of a session's row in the table."""
    metrics = [trial.evaluation.metrics for trial in done.trials]
    sleeps = [(each["began"], each["slept"]) for each in metrics]
    best, shortest = possible([took for _, took in sleeps], workers, window)
    count = len(sleeps)
    return {
        "trials per s": count / done.seconds,
        "steady": steady(sleeps, workers),
        "steady, possible": steady(best, workers),
        "whole run": whole(sleeps, workers, done.seconds),
        "whole run, possible": whole(best, workers, shortest),
        "driver CPU, ms per trial": 1000 * done.cpu / count,
        "of it ask and tell, ms": 1000 * done.proposing / count,
    }


def spread(values: Sequence[float]) -> str:
    """Returns the median and, where there are more than one, the range."""
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def throughput(arguments: argparse.Namespace) -> list[str]:
    """Returns the tables of sleeping evaluations."""
    constraint, evaluator = problem(), Sleeping(*arguments.sleep)
    rows: list[list[str]] = []
    starts: list[list[str]] = []
    names: list[str] = []
    for workers in arguments.workers:
        begin = time.monotonic()
        with RayExecutor(workers) as executor:
            first = start_all(executor, evaluator, constraint.space.full, workers)
            starts.append(
                [str(workers), f"{min(each.metrics['began'] for each in first) - begin:.1f}"]
            )
            for schedule in arguments.schedules:
                window = 2 * workers if schedule == "rounds" else 0
                execution = ExecutionOptions(workers=workers, schedule=schedule, window=window)
                measured: list[dict[str, float]] = []
                for seed in range(arguments.repeats):
                    searcher = make_searcher("bee_colony", constraint.space, constraint, seed=seed)
                    count = workers * arguments.trials_per_worker
                    done = session(searcher, evaluator, executor, execution, count)
                    check(done.trials, workers)
                    measured.append(efficiencies(done, workers, window))
                    sys.stderr.write(
                        f"{schedule}, {workers} workers, seed {seed}: {measured[-1]['steady']:.3f}\n"
                    )
                names = list(measured[0])
                rows.append(
                    [
                        schedule,
                        str(workers),
                        str(count),
                        *(spread([f[n] for f in measured]) for n in names),
                    ]
                )
    return [
        table(["schedule", "workers", "trials", *names], rows),
        table(["workers", "first trial begins, s"], starts),
    ]


def resume(arguments: argparse.Namespace) -> list[str]:
    """Returns the table of long runs that go on."""
    rows: list[list[str]] = []
    for name in arguments.resume_searchers:
        for schedule in arguments.schedules:
            sys.stderr.write(f"resume, {name}, {schedule}\n")
            with tempfile.TemporaryDirectory() as folder:
                times = resumed(Path(folder) / "run", name, schedule, arguments.resume_trials)
            seconds = [f"{each['resumed']:.2f}" for each in times]
            rows.append(
                [
                    name,
                    schedule,
                    *seconds,
                    f"{statistics.mean(each['ready'] for each in times):.1f}",
                ]
            )
    header = [
        "searcher",
        "schedule",
        "resumed, s",
        "without the snapshot, s",
        "before: import and tracing, s",
    ]
    return [table(header, rows)]


def evaluations(arguments: argparse.Namespace) -> list[str]:
    """Returns the table of real evaluations with 1 and 2 workers."""
    evaluation.CASES["resnet20"] = Case(build=resnet20, size=32, images=(512, 512, 1), batch=128)
    bench = evaluation.prepare("resnet20", "cpu")
    constraint = Budget(macs=0.5).bind(bench.graph.space(), bench.graph.costs)
    by_workers: dict[int, list[Session]] = {1: [], 2: []}
    for _ in range(arguments.repeats):  # in turns: a busy machine slows down both
        for workers, sessions in by_workers.items():
            with RayExecutor(workers) as executor:
                start_all(executor, bench.evaluator, constraint.space.full, workers)
                # Random search: the same structures, whoever finishes first.
                searcher = make_searcher("random", constraint.space, constraint, seed=0)
                execution = ExecutionOptions(workers=workers, schedule="asynchronous")
                sessions.append(
                    session(searcher, bench.evaluator, executor, execution, arguments.evaluations)
                )
            sys.stderr.write(f"evaluations, {workers} workers: {sessions[-1].seconds:.1f} s\n")
    rows = [
        [
            str(workers),
            spread([len(each.trials) / each.seconds for each in sessions]),
            spread(
                [
                    one.seconds / each.seconds
                    for one, each in zip(by_workers[1], sessions, strict=True)
                ]
            ),
            spread(
                [
                    statistics.mean(trial.evaluation.seconds for trial in each.trials)
                    for each in sessions
                ]
            ),
        ]
        for workers, sessions in by_workers.items()
    ]
    header = [
        "workers (resnet20), one thread each",
        "evaluations per s",
        "against one",
        "s per evaluation",
    ]
    return [table(header, rows)]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 32, 64])
    parser.add_argument(
        "--schedules", nargs="+", default=["asynchronous", "rounds"], choices=SCHEDULES
    )
    parser.add_argument("--trials-per-worker", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument(
        "--sleep", type=float, nargs=2, default=[0.5, 1.5], help="seconds, from and to"
    )
    parser.add_argument(
        "--resume-searchers", nargs="+", default=["bee_colony", "evolution", "random"]
    )
    parser.add_argument("--resume-trials", type=int, default=10_000)
    parser.add_argument("--evaluations", type=int, default=40, help="real ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = {"throughput": throughput, "resume": resume, "evaluations": evaluations}
    parts = [text for name in arguments.parts for text in made[name](arguments)]
    seeds = ", ".join(map(str, range(arguments.repeats)))
    made_with = f"Python {platform.python_version()}, {versions('ray', 'numpy', 'torch')}"
    what = f"{platform.machine()} CPU, {os.cpu_count()} cores; {made_with}."
    sys.stdout.write("\n\n".join([*parts, f"{what} Seeds {seeds}."]) + "\n")


if __name__ == "__main__":
    main()
