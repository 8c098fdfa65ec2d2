"""The tables and pictures of this benchmark, and where in its README they go."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from abcsearch.errors import DataError
from experiments.benchmarks.searchers import problems
from experiments.benchmarks.searchers.bench import Found
from experiments.benchmarks.searchers.plots import draw
from experiments.benchmarks.searchers.tables import MARKS, Summary, overview, summary, task_table
from experiments.tables import processors

BEGIN, END = "<!-- tables begin: made by make bench-searchers -->", "<!-- tables end -->"
TITLES = {
    "tables": "NATS-Bench, size search space",
    "landscapes": "Landscapes",
}


def text(tasks: list[Found], evaluations: int) -> str:
    """Returns the whole report in Markdown: for tables and for landscapes an overview, then every task."""
    marks = tuple(n for n in MARKS if n <= evaluations) or (evaluations,)
    parts = [machine()]
    for kind, group in _kinds(tasks).items():
        summaries = {
            one.task: {row: summary(runs, one.optimum, marks) for row, runs in one.runs.items()}
            for one in group
        }
        parts.append(f"### {TITLES[kind]}")
        if len(group) > 1:
            parts.append(f"Means over the {len(group)} tasks of the median regrets, in points:")
            parts.append(overview(list(summaries.values())))
        parts += [_task(one, summaries[one.task], evaluations) for one in group]
    return "\n\n".join(parts)


def write(folder: Path, tasks: list[Found], evaluations: int) -> None:
    """Draws the pictures, and puts the report between the marks in the README of a folder; the rest of it stays.

    Raises:
        DataError: if the README has no marks.
    """
    readme, before, after = place(folder)
    pictures: list[str] = []
    for kind, group in _kinds(tasks).items():
        draw(group, evaluations, folder / f"{kind}.png")
        pictures.append(f"![{TITLES[kind]}: median regret against evaluations]({kind}.png)")
    content = "\n\n".join([BEGIN, *pictures, text(tasks, evaluations), END])
    readme.write_text(before + content + after, encoding="utf-8")


def by_title(tasks: list[Found]) -> dict[str, list[Found]]:
    """Returns the tasks by the title of their kind."""
    return {TITLES[kind]: group for kind, group in _kinds(tasks).items()}


def place(folder: Path) -> tuple[Path, str, str]:
    """Returns the README of a folder, and what stands in it before and after the report.

    Raises:
        DataError: if it has no marks.
    """
    readme = folder / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = f"{readme} has no marks {BEGIN} and {END}: nobody knows where the tables go"
        raise DataError(msg)
    return readme, before, after


def machine() -> str:
    """Returns what times, and where searchers use them also numbers, depend on."""
    versions: list[str] = []
    for package in ("numpy", "torch", "optuna"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{processors()}, one thread per process; Python {platform.python_version()}, {', '.join(versions)}."


def _kinds(tasks: list[Found]) -> dict[str, list[Found]]:
    """Returns the tasks on tables and those on landscapes."""
    groups = {
        "tables": [one for one in tasks if problems.is_table(one.task)],
        "landscapes": [one for one in tasks if not problems.is_table(one.task)],
    }
    return {kind: group for kind, group in groups.items() if group}


def _task(one: Found, summaries: dict[str, Summary], evaluations: int) -> str:
    """Returns title and table of a task."""
    what = "optimum" if problems.is_table(one.task) else "best known"
    return (
        f"**{one.task}**, {what} {100 * one.optimum:.2f} %\n\n{task_table(summaries, evaluations)}"
    )
