"""Pictures: median regret against the number of evaluations, one panel per task, one line per searcher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.benchmarks.searchers.bench import Found
from experiments.benchmarks.searchers.tables import value_at

_COLUMNS = {12: 4}  # panels side by side; else 3
# Okabe and Ito's, readable for most eyes, then four more
_COLORS = (
    *(
        "#0072b2",
        "#d55e00",
        "#009e73",
        "#cc79a7",
        "#e69f00",
        "#56b4e9",
        "#7f3c8d",
        "#8c564b",
        "#17202a",
        "#7fb800",
    ),
)
_STYLES = ("-", "--", "-.")
_RANDOM = {"color": "#8a8a8a", "linestyle": (0, (2, 1.5)), "linewidth": 1.6}
_FLOOR = 0.05  # points; below that the scale is linear, so that a regret of 0 can be seen
_POINTS = 80
_TICKS = (5, 10, 25, 50, 100, 200, 400)


def draw(tasks: list[Found], evaluations: int, path: Path) -> None:
    """Draws a PNG file.

    Args:
        tasks: the tasks, all with the same searchers.
        evaluations: where the lines end.
        path: the file.

    Raises:
        OSError: if the file cannot be written.
    """
    columns = min(_COLUMNS.get(len(tasks), 3), len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(max(2.9 * columns, 5), 2.2 * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    numbers = np.unique(np.geomspace(min(5, evaluations), evaluations, _POINTS).astype(int))
    for axes, one in zip(panels, tasks, strict=False):
        for row, style in _styles([*one.runs]).items():
            axes.plot(numbers, median_regrets(one, row, numbers), label=row, **style)
        _scale(axes, one.task, evaluations)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    figure.supxlabel("evaluations", fontsize=9)
    figure.supylabel("median regret, points of accuracy", fontsize=9)
    _finish(figure, panels[0], path)


def draw_means(groups: dict[str, list[Found]], evaluations: int, path: Path) -> None:
    """Draws a PNG file: a panel for each group of tasks, with the mean over its tasks of the median regrets.

    Args:
        groups: tasks by the title of their panel, all with the same searchers.
        evaluations: where the lines end.
        path: the file.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(max(4.6 * len(groups), 5), 3.4), layout="constrained")
    panels = figure.subplots(1, len(groups), sharex=True, squeeze=False).ravel()
    numbers = np.unique(np.geomspace(min(5, evaluations), evaluations, _POINTS).astype(int))
    for axes, (title, tasks) in zip(panels, groups.items(), strict=True):
        for row, style in _styles([*tasks[0].runs]).items():
            regrets = [median_regrets(one, row, numbers) for one in tasks]
            axes.plot(numbers, np.mean(regrets, axis=0), label=row, **style)
        _scale(axes, title, evaluations)
    figure.supxlabel("evaluations", fontsize=9)
    figure.supylabel("mean regret, points", fontsize=9)
    _finish(figure, panels[0], path)


def median_regrets(one: Found, row: str, numbers: Any) -> Any:  # noqa: ANN401 - arrays
    """Returns the median regret of a row after each number of evaluations, in points."""
    best = [[value_at(run, int(n)) for n in numbers] for run in one.runs[row]]
    return 100 * (one.optimum - np.median(best, axis=0))


def _finish(figure: Figure, panel: Axes, path: Path) -> None:
    """Adds the legend of a panel, which stands for all, and writes the file."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(len(labels), 6),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=110, format="png")


def _styles(rows: list[str]) -> dict[str, dict[str, Any]]:
    """Returns how every line is drawn; random search, the baseline, is grey and dotted."""
    others = [row for row in rows if row != "random"]
    styles = {
        row: {
            "color": _COLORS[i % len(_COLORS)],
            "linestyle": _STYLES[i // len(_COLORS) % 3],
            "linewidth": 1.4,
        }
        for i, row in enumerate(others)
    }
    return {row: styles.get(row, _RANDOM) for row in rows}


def _scale(axes: Axes, title: str, evaluations: int) -> None:
    """Gives a panel its title and axes."""
    axes.set_title(title, fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(min(5, evaluations), evaluations)
    axes.set_xticks([n for n in _TICKS if n <= evaluations] or [evaluations])
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("symlog", linthresh=_FLOOR, linscale=0.4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
