"""Table and picture of what is in a file of results, and nothing else."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from abcsearch.errors import ConfigError
from abcsearch.results.intervals import wilson
from experiments.survey.methods import KINDS, METHODS
from experiments.tables import cell, into_page

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from experiments.survey.measuring import Row
    from experiments.survey.results import Results

    Points = dict[str, tuple[float, float, str]]

_HEAD = (
    "method",
    "seeds",
    "MACs, %",
    "params, k",
    "before, %",
    "after, %",
    "- uniform",
    "epochs",
    "evaluations",
)
_HEAD += ("search", "training", "forward")
_COLORS = dict(
    zip(KINDS, ("#17202a", "#56b4e9", "#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True)
)
_MARKS = dict(zip(KINDS, "sov^DX", strict=True))
_NAMED = 5  # the best of a budget, which the picture names, besides these
_ALWAYS = ("full", "uniform", "random structure", "ours (default)")
_BEST = 3
_LINE = 11.0  # pixels from one name to the next


def _rank(row: Row) -> tuple[int, int, str]:
    """Returns where a row stands: by kind, then as methods are listed; controls by what they are of."""
    listed = [method.name for method in METHODS]
    name = row["method"].partition(" of ")[2] or row["method"]
    return (
        KINDS.index(row["kind"]),
        listed.index(name) if name in listed else len(listed),
        row["method"],
    )


def _by_method(rows: list[Row], budget: float) -> dict[str, list[Row]]:
    """Returns the rows of a budget by method, in the order of the table."""
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(
        (row for row in rows if row["budget"] == budget), key=lambda row: (*_rank(row), row["seed"])
    ):
        by_method[row["method"]].append(row)
    return by_method


def _whole(many: list[Row]) -> list[Row]:
    return [row for row in many if "skipped" not in row]


def best_three(rows: list[Row], budget: float) -> list[str]:
    """Returns the methods with the highest mean accuracy after fine-tuning, of those that ran with most seeds.

    Without the full network and controls; of methods that found the same networks, the first.
    """
    every = {
        name: _whole(many)
        for name, many in _by_method(rows, budget).items()
        if many[0]["kind"] != KINDS[5]
    }
    most = max((len(many) for many in every.values()), default=0)
    means = {
        n: statistics.mean(r["after"] for r in many)
        for n, many in every.items()
        if len(many) == most > 0
    }
    means.pop("full", None)
    others: dict[str, str] = {}  # what a method found -> its name
    for name in means:
        others.setdefault(
            repr(sorted((r["seed"], r["candidate"], r["after"]) for r in every[name])), name
        )
    return sorted(others.values(), key=lambda name: -means[name])[:_BEST]


def table(rows: list[Row]) -> str:
    """Returns the tables in Markdown, one for each budget; below, which methods did not run, and why."""
    lines: list[str] = []
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        every = _by_method(rows, budget)
        uniform = {row["seed"]: row["after"] for row in _whole(every.get("uniform", []))}
        lines += [
            "",
            f"**{budget:.0%} of the MACs**",
            "",
            f"| {' | '.join(_HEAD)} |",
            "|" + " --- |" * len(_HEAD),
        ]
        kind = ""
        for name, many in every.items():
            whole = _whole(many)
            if whole and whole[0]["kind"] != kind:
                kind = whole[0]["kind"]
                lines.append(f"| *{kind}* |" + " |" * (len(_HEAD) - 1))
            if whole:
                lines.append(f"| {' | '.join([name, *_cells(whole, uniform)])} |")
        reasons = {
            row["skipped"]: [] for many in every.values() for row in many if "skipped" in row
        }
        for name, many in every.items():
            for reason in dict.fromkeys(row["skipped"] for row in many if "skipped" in row):
                reasons[reason].append(name)
        lines += [""] if reasons else []
        lines += [f"- not run: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join(lines).strip("\n")


def _cells(many: list[Row], uniform: dict[int, float]) -> list[str]:
    """Returns the cells of a method: means over seeds, and standard deviations of what depends on chance."""
    images = many[0]["images"]
    mean = statistics.mean(row["after"] for row in many)
    low, high = (100 * end for end in wilson(mean, images))
    ahead = [100 * (row["after"] - uniform[row["seed"]]) for row in many if row["seed"] in uniform]
    epochs = " + ".join(
        f"{statistics.mean(row['epochs'][when] for row in many):.0f}" for when in (0, 1)
    )
    forward = [row["forward"] for row in many if "forward" in row]
    return [
        str(len(many)),
        f"{100 * statistics.mean(row['macs'] for row in many):.1f}",
        f"{statistics.mean(row['params'] for row in many) / 1000:.1f}",
        cell([100 * row["before"] for row in many], 1),
        f"{cell([100 * row['after'] for row in many], 1)} [{low:.1f}, {high:.1f}]",
        cell(ahead, 1) if ahead and many[0]["method"] != "uniform" else "",
        epochs,
        f"{statistics.mean(row['trials'] for row in many):.0f}",
        *(f"{statistics.mean(row[what] for row in many):.1f}" for what in ("search", "training")),
        f"{statistics.mean(forward):.2f}" if forward else "",
    ]


def footer(results: Results) -> str:
    """Returns where the rows were run, with what, and which seeds."""
    machines = ", ".join(dict.fromkeys(row["machine"] for row in _whole(results.rows)))
    seeds = ", ".join(map(str, sorted({row["seed"] for row in results.rows})))
    full = statistics.mean({row["seed"]: row["full"] for row in _whole(results.rows)}.values())
    return f"The full network as it was: {100 * full:.1f} %. {machines}; {results.common['versions']}; seeds {seeds}."


def written(results: Results, page: Path) -> str:
    """Returns the tables of a file of results; where a page has room for them, they are written there.

    Args:
        results: of a network.
        page: a Markdown file, with the lines `<!-- NETWORK -->` and `<!-- /NETWORK -->`.

    Raises:
        ConfigError: if no row is whole.
    """
    if not _whole(results.rows):
        reasons = "; ".join(f"{row['method']}: {row['skipped']}" for row in results.rows)
        msg = f"no method of {results.file} could be run: {reasons}"
        raise ConfigError(msg)
    text = f"{table(results.rows)}\n\n{footer(results)}"
    into_page(page, results.file.stem, text)
    return text


def draw(results: Results, path: Path) -> None:
    """Draws accuracy after fine-tuning against what search and training took, a panel for each budget, as PNG."""
    rows = results.rows
    budgets = sorted({row["budget"] for row in _whole(rows)}, reverse=True)
    figure = Figure(figsize=(5.6 * len(budgets), 4.8), layout="constrained")
    panels = figure.subplots(1, len(budgets), squeeze=False, sharex=True, sharey=True).ravel()
    points = [
        _panel(axes, _by_method(rows, budget), budget)
        for axes, budget in zip(panels, budgets, strict=True)
    ]
    figure.supxlabel("search and training, CPU time in epochs of the base network", fontsize=9)
    figure.supylabel("test accuracy after fine-tuning, %", fontsize=9)
    marks = {}
    for axes in panels:
        marks |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        marks.values(), marks.keys(), loc="outside upper center", ncols=3, fontsize=8, frameon=False
    )
    figure.draw_without_rendering()  # so that it is known where the points are
    for axes, on_panel in zip(panels, points, strict=True):
        _name(axes, on_panel)
    figure.savefig(path, dpi=100, format="png")


def _panel(axes: Axes, every: dict[str, list[Row]], budget: float) -> Points:
    """Draws the methods of a budget; returns them: cost, accuracy in per cent, and kind."""
    points: Points = {}
    for name, many in every.items():
        if whole := _whole(many):
            cost = statistics.mean(row["search"] + row["training"] for row in whole)
            points[name] = (
                cost,
                100 * statistics.mean(row["after"] for row in whole),
                whole[0]["kind"],
            )
    for kind in KINDS:
        mine = [(cost, after) for cost, after, its_kind in points.values() if its_kind == kind]
        if mine:
            axes.scatter(
                *zip(*mine, strict=True),
                s=22,
                c=_COLORS[kind],
                marker=_MARKS[kind],
                label=kind,
                alpha=0.85,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(f"{budget:.0%} of the MACs", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    return points


def _name(axes: Axes, points: Points) -> None:
    """Names the best methods of a panel, and what all are compared with, one name beside the other."""
    candidates = [name for name in points if name != "full" and points[name][2] != KINDS[5]]
    best = sorted(candidates, key=lambda name: -points[name][1])[:_NAMED]
    taken: list[tuple[float, float, float]] = []  # left, right and height of names, in pixels
    for name in sorted({*best, *_ALWAYS} & {*points}, key=lambda name: -points[name][1]):
        x, y = axes.transData.transform(points[name][:2])
        height = y + 3
        while any(
            left < x + 6 * len(name) and x < right and abs(height - level) < _LINE
            for left, right, level in taken
        ):
            height -= _LINE
        taken.append((x, x + 6 * len(name), height))
        offset = (4, (height - y) * 72 / axes.figure.dpi)
        axes.annotate(name, points[name][:2], xytext=offset, textcoords="offset points", fontsize=7)
