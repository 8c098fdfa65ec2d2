"""How many evaluations does a searcher need? Every registered searcher on tables of trained networks and landscapes.

    python -m experiments.benchmarks.searchers --data DIR [--searchers a,b] [--tasks cifar10-*,landscape30-50]
        [--seeds N] [--evaluations N] [--set option=value ...] [--tune] [--again] [--write] [--picture FILE]

DIR holds nats_sss.csv.gz, the size search space of NATS-Bench. Finished runs are kept in --cache and not made again as
long as the searcher's code is the same; --again makes them again. --tune looks at CIFAR-10 and at other landscapes
only, with seeds of its own, so that the final table stays unseen while a searcher is tuned.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from abcsearch.errors import AbcSearchError, ConfigError, DataError, unknown_name
from experiments.benchmarks.searchers import problems
from experiments.benchmarks.searchers.bench import Plan, benchmark
from experiments.benchmarks.searchers.plots import draw_means
from experiments.benchmarks.searchers.report import by_title, place, text, write
from experiments.benchmarks.searchers.results import Results
from experiments.benchmarks.searchers.rows import Row, all_rows
from experiments.benchmarks.searchers.tables import MARKS


def parser() -> argparse.ArgumentParser:
    """Returns the options."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.searchers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--data", type=Path, default=Path("data"), help=f"folder with {problems.TABLE}"
    )
    made.add_argument(
        "--searchers", default="*", help="rows, with wildcards, separated by commas; default all"
    )
    made.add_argument(
        "--tasks", default="*", help="tasks, with wildcards, separated by commas; default all"
    )
    made.add_argument(
        "--seeds",
        type=positive,
        help="seeds of every task; default 50 on tables, 10 on landscapes, fewer for slow rows",
    )
    made.add_argument("--evaluations", type=positive, default=MARKS[-1])
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="option=value",
        help="for all searchers that run",
    )
    made.add_argument(
        "--tune", action="store_true", help="CIFAR-10 and other landscapes, other seeds"
    )
    made.add_argument("--again", action="store_true", help="make runs again that are in the cache")
    made.add_argument(
        "--cache", type=Path, default=Path("runs/bench-searchers"), help="folder of finished runs"
    )
    made.add_argument("--workers", type=positive, default=2, help="processes")
    made.add_argument(
        "--write",
        action="store_true",
        help="tables and pictures into this benchmark's README; of all runs",
    )
    made.add_argument(
        "--picture",
        type=Path,
        help="a PNG file: mean regrets of what is run, tables and landscapes",
    )
    return made


def positive(word: str) -> int:
    """Returns a whole number of at least 1."""
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def partial(made: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """Returns the arguments that make other tables than the published ones."""
    names = ("tune", "set", "tasks", "searchers", "seeds", "evaluations")
    return [f"--{name}" for name in names if getattr(arguments, name) != made.get_default(name)]


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
    return [
        replace(row, name=" ".join([row.name, *settings]), options=row.options | options)
        for row in rows
    ]


def plan(arguments: argparse.Namespace) -> Plan:
    """Returns what the arguments ask for.

    Raises:
        ConfigError: if a name is unknown.
        DataError: if the table is needed and missing.
    """
    final = (*problems.TABLE_TASKS, *problems.LANDSCAPE_TASKS)
    tasks = chosen("task", arguments.tasks, problems.TUNING_TASKS if arguments.tune else final)
    table = arguments.data / problems.TABLE
    if any(map(problems.is_table, tasks)) and not table.is_file():
        msg = f"{table} is missing; DATA names the folder that holds it: make bench-searchers DATA=folder, or --data"
        raise DataError(msg)
    return Plan(
        rows=chosen_rows(arguments.searchers, arguments.set),
        tasks=tasks,
        data=arguments.data,
        evaluations=arguments.evaluations,
        seeds=arguments.seeds,
        tune=arguments.tune,
    )


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing and prints the tables; returns the exit status."""
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.write and (given := partial(made, arguments)):
        made.error(
            f"--write replaces the published tables, which are of everything: leave out {', '.join(given)}"
        )
    try:
        if arguments.write:
            place(Path(__file__).parent)  # said now, not after an hour of runs
        wanted = plan(arguments)
        results = Results(arguments.cache)
        if arguments.again:
            results.forget(row.name for row in wanted.rows)
        tasks = benchmark(wanted, results, arguments.workers)
    except AbcSearchError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if arguments.write:
        write(Path(__file__).parent, tasks, arguments.evaluations)
    if arguments.picture:
        draw_means(by_title(tasks), arguments.evaluations, arguments.picture)
    sys.stdout.write(text(tasks, arguments.evaluations) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
