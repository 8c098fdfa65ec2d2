"""How many evaluations does a searcher need? Every registered searcher on tables of trained networks and landscapes.

    python -m experiments.benchmarks.searchers --data DIR [--searchers a,b] [--tasks cifar10-*,landscape30-50]
        [--seeds N] [--evaluations N] [--set option=value ...] [--tune] [--again] [--write]

DIR holds nats_sss.csv.gz, the size search space of NATS-Bench. Finished runs are kept in --cache and not made again as
long as the searcher's code is the same; --again makes them again. --tune looks at CIFAR-10 and at other landscapes
only, with seeds of its own, so that the final table stays unseen while a searcher is tuned.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from abcsearch.errors import AbcSearchError, ConfigError, unknown_name
from experiments.benchmarks.searchers import problems
from experiments.benchmarks.searchers.play import Job, Played, play
from experiments.benchmarks.searchers.results import Results
from experiments.benchmarks.searchers.rows import Row, all_rows, code_fingerprint
from experiments.benchmarks.searchers.tables import MARKS, Summary, summary, task_table

_TUNING_SEED = 1000  # first run seed of --tune


def parser() -> argparse.ArgumentParser:
    """Returns the options."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.searchers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--data", type=Path, default=Path("data"), help="folder with the table")
    made.add_argument("--searchers", default="*", help="rows, with wildcards, separated by commas; default all")
    made.add_argument("--tasks", default="*", help="tasks, with wildcards, separated by commas; default all")
    made.add_argument("--seeds", type=int, help="seeds of every task; default 50 on tables, 10 on landscapes")
    made.add_argument("--evaluations", type=int, default=MARKS[-1])
    made.add_argument("--set", action="append", default=[], metavar="option=value", help="for all searchers that run")
    made.add_argument("--tune", action="store_true", help="CIFAR-10 and other landscapes, other seeds")
    made.add_argument("--again", action="store_true", help="make the runs again that are in the cache")
    made.add_argument("--cache", type=Path, default=Path("runs/bench-searchers"), help="finished runs")
    made.add_argument("--workers", type=int, default=2, help="processes")
    return made


def chosen(kind: str, patterns: str, known: Iterable[str]) -> list[str]:
    """Returns the names that comma-separated patterns stand for, in the order of `known`.

    Raises:
        ConfigError: if a pattern stands for nothing.
    """
    names, wanted = list(known), [pattern.strip() for pattern in patterns.split(",")]
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(unknown_name(kind, pattern, names))
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]


def chosen_rows(patterns: str, settings: list[str]) -> list[Row]:
    """Returns the rows that are run, with the settings of the command line in their names and options.

    Raises:
        ConfigError: if a name is unknown or a setting is no option=value.
    """
    known = {row.name: row for row in all_rows()}
    rows = [known[name] for name in chosen("searcher", patterns, known)]
    if not settings:
        return rows
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            msg = f"--set takes option=value, found {setting!r}"
            raise ConfigError(msg)
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:  # a word
            options[name] = value
    label = " ".join(settings)
    return [
        Row(name=f"{row.name} {label}", searcher=row.searcher, options=row.options | options, seeds=row.seeds)
        for row in rows
    ]


def jobs(row: Row, task: str, arguments: argparse.Namespace) -> list[Job]:
    """Returns the runs of a row on a task."""
    count = arguments.seeds or row.seeds[0 if problems.is_table(task) else 1]
    first = _TUNING_SEED if arguments.tune else 0
    return [
        Job(
            row=row.name,
            searcher=row.searcher,
            options=row.options,
            task=task,
            seed=seed,
            evaluations=arguments.evaluations,
        )
        for seed in range(first, first + count)
    ]


def made_with(job: Job, data: Path) -> str:
    """Returns what identifies code and problem of a run."""
    return f"{code_fingerprint(job.searcher):08x}-{problems.fingerprint(job.task, data):08x}"


def run_all(wanted: list[Job], results: Results, data: Path, workers: int) -> None:
    """Makes the runs that are not in the results yet, in some processes, and writes each down as soon as it is done."""
    open_ = [job for job in wanted if results.get(job, made_with(job, data)) is None]
    if not open_:
        return
    with _pool(workers) as pool:
        for number, (job, played) in enumerate(zip(open_, _played(pool, open_, data), strict=True), start=1):
            results.add(job, made_with(job, data), played)
            if number % max(1, len(open_) // 20) == 0:
                sys.stderr.write(f"{number}/{len(open_)} runs, {job.row} on {job.task}: {played.seconds:.2f} s\n")


def _played(pool: ProcessPoolExecutor, open_: list[Job], data: Path) -> Iterator[Played]:
    return pool.map(partial(play, data=data), open_)


def _pool(workers: int) -> ProcessPoolExecutor:
    """Returns the processes: started anew, with one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing and prints the tables; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        tasks = problems.TUNING_TASKS if arguments.tune else (*problems.TABLE_TASKS, *problems.LANDSCAPE_TASKS)
        tasks = chosen("task", arguments.tasks, tasks)
        rows = chosen_rows(arguments.searchers, arguments.set)
        if any(map(problems.is_table, tasks)) and not (arguments.data / problems.TABLE).is_file():
            msg = f"{arguments.data / problems.TABLE} is missing; --data names the folder that holds it"
            raise ConfigError(msg)
        benchmark(rows, tasks, arguments)
    except AbcSearchError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def benchmark(rows: list[Row], tasks: list[str], arguments: argparse.Namespace) -> None:
    """Makes all runs and prints one table per task."""
    results = Results(arguments.cache)
    if arguments.again:
        results.forget(row.name for row in rows)
    wanted = {(row.name, task): jobs(row, task, arguments) for row in rows for task in tasks}
    run_all([job for group in wanted.values() for job in group], results, arguments.data, arguments.workers)
    marks = tuple(n for n in MARKS if n <= arguments.evaluations) or (arguments.evaluations,)
    for task in tasks:
        found: dict[str, Summary] = {}
        optimum = problems.problem(task, arguments.data).optimum
        if optimum is None:
            optimum = problems.climb(task, arguments.data)
        for row in rows:
            runs = [results.get(job, made_with(job, arguments.data)) for job in wanted[row.name, task]]
            found[row.name] = summary([run for run in runs if run is not None], optimum, marks)
        sys.stdout.write(f"\n{task}: optimum {100 * optimum:.2f} %\n\n{task_table(found, arguments.evaluations)}\n")


if __name__ == "__main__":
    sys.exit(main())
