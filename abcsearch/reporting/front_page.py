"""The page of a front: accuracy against size and measured time, and the table of its networks."""

from __future__ import annotations

import html
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from abcsearch.reporting.page import Page, Section, link, paragraph, table
from abcsearch.reporting.plotting import figure_of
from abcsearch.reporting.words import BLACK, BLUE, GREEN, PURPLE, change_text
from abcsearch.results.front_report import FULL, PEER, UNIFORM, WINNER, FrontReport, FrontRow
from abcsearch.results.intervals import method_of
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.training.objectives import metric_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# What is drawn: kind, colour, symbols of plotly and matplotlib, whether its points are joined.
_SERIES = (
    (WINNER, BLUE, "star", "*", True),
    (UNIFORM, GREEN, "diamond", "D", True),
    (FULL, BLACK, "square", "s", False),
    (PEER, PURPLE, "circle", "o", False),
)


def write_front(report: FrontReport, page: Path) -> Path:
    """Writes the page of a front, and pictures and numbers beside it by the same name; returns the page's path.

    Args:
        report: what is shown.
        page: report.html in the folder of the front, or a page elsewhere.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    folder, name = RunFolder(page.parent), page.stem
    for picture, draw in drawings(report).items():
        folder.write(f"{name}/{picture}.png", partial(_save, draw), lasting=False)
    folder.write(f"{name}.md", lambda path: path.write_text(report.markdown(), encoding="utf-8"))
    folder.write_json(f"{name}.json", report.to_plain())
    text = front_page(report, linked=(page.parent / "budgets").is_dir()).html()
    folder.write(page.name, lambda path: path.write_text(text, encoding="utf-8"))
    return page


def _save(draw: Callable[[], Figure], path: Path) -> None:
    """Draws a picture to a file."""
    draw().savefig(path, format="png")


def front_page(report: FrontReport, *, linked: bool) -> Page:
    """Returns the page of a front.

    Args:
        report: what is shown.
        linked: whether the reports of the budgets lie beside it.
    """
    shown = "A star is the winner of a budget, a diamond its uniform widths, the square the full network."
    shown += (
        " Circles are networks of others." if any(row.kind == PEER for row in report.rows) else ""
    )
    if any(report.spread(row) is not None for row in report.rows):
        how = method_of(report.metric)
        shown += (
            f" Lines are 95 % intervals ({how}) by the number of test images, {report.images[0]:,}."
        )
    # What is asked first, on telephones too
    cells = [[*row[:3], *row[-2:], *row[3:-2]] for row in report.cells()]
    sections = [
        Section(title="Accuracy and MACs", lead=shown, chart="macs"),
        Section(title="Accuracy and measured time", lead=_time_lead(report), chart="time"),
        Section(
            title="Networks",
            lead="Of every budget the winner and uniform widths, which keep the same share of every layer. MACs are "
            "multiply-accumulates, the work of one image; fitness is what the search maximises; before and after: test "
            "images, before and after fine-tuning. Against full: by what the charts show.",
            body=table(cells, range(2, len(cells[0])), "dense")
            + "".join(paragraph(note, "note") for note in report.notes),
        ),
    ]
    if linked:
        lead = "Each budget is a run of its own, with a report of its own:"
        body = "".join(link(f"budgets/{name}/report.html", name) for name in report.names)
        sections.append(Section(title="The budgets", lead=lead, body=body))
    charts = {
        "macs": _chart(report, "MACs", _macs),
        "time": _chart(report, _time_axis(report), _time),
    }
    subtitle = f"Shown: {report.axis}."
    first = report.notes[0] if report.notes else ""
    return Page(
        title=report.title,
        headline=first if first.startswith("At a loss") else "",
        subtitle=subtitle,
        tiles=_tiles(report),
        sections=sections,
        charts=charts,
    )


def _tiles(report: FrontReport) -> list[tuple[str, str]]:
    """Returns the numbers at the top of the page: of every winner its MACs and what charts show."""
    full = report.rows[0]
    tiles: list[tuple[str, str]] = []
    for row in (each for each in report.rows if each.kind == WINNER):
        value = report.accuracy(row)
        text = "-" if value is None else _value_text(report, value)
        tiles.append((text, f"{row.budget}: {change_text(full.macs, row.macs)} MACs"))
    return tiles


def _value_text(report: FrontReport, value: float) -> str:
    """Returns what charts show of a network, in words."""
    return metric_text(report.metric, value) if report.tuned else f"{value:.4f}"


def _time_lead(report: FrontReport) -> str:
    """Returns how time was measured."""
    time = report.rows[0].times[-1]
    text = f"Median forward time of a batch of {time.batch}, {time.device}, all networks in turns"
    return f"{text}; fewer MACs are not always less."


def _time_axis(report: FrontReport) -> str:
    """Returns the title of the axis of time."""
    time = report.rows[0].times[-1]
    return f"forward time, ms ({time.where})"


def _macs(row: FrontRow) -> float:
    """Returns where a network stands on the axis of MACs."""
    return float(row.macs)


def _time(row: FrontRow) -> float:
    """Returns where a network stands on the axis of time; nowhere if it has not been measured."""
    return row.times[-1].median_ms if row.times else float("nan")


def _points(
    report: FrontReport, kind: str, cost: Callable[[FrontRow], float]
) -> list[tuple[float, float, FrontRow]]:
    """Returns the networks of a kind by ascending cost: cost, what is shown, and the row."""
    points = [(cost(row), report.accuracy(row), row) for row in report.rows if row.kind == kind]
    known = [(x, y, row) for x, y, row in points if y is not None and not math.isnan(x)]
    return sorted(known, key=lambda point: point[:2])


def _spreads(
    report: FrontReport, points: Sequence[tuple[float, float, FrontRow]]
) -> tuple[list[float], list[float]]:
    """Returns how far the intervals of networks reach down and up; nothing where one has none."""
    spreads = [report.spread(row) for _, _, row in points]
    known = [one for one in spreads if one is not None]
    return (
        ([low for low, _ in known], [high for _, high in known])
        if len(known) == len(spreads)
        else ([], [])
    )


def _chart(report: FrontReport, title: str, cost: Callable[[FrontRow], float]) -> go.Figure:
    """Returns accuracy against a cost."""
    traces: list[Any] = []
    for kind, color, symbol, _, joined in _SERIES:
        points = _points(report, kind, cost)
        if not points:
            continue
        below, above = _spreads(report, points)
        ends = {"array": above, "arrayminus": below, "symmetric": False}
        bars = {"type": "data", **ends, "thickness": 1, "width": 3} if above else None
        text = [
            f"{html.escape(row.budget or kind)}<br>{_value_text(report, y)}" for _, y, row in points
        ]
        traces.append(
            go.Scatter(
                x=[x for x, _, _ in points],
                y=[y for _, y, _ in points],
                error_y=bars,
                mode="lines+markers" if joined else "markers",
                name=kind,
                marker={"color": color, "symbol": symbol, "size": 13 if kind == WINNER else 10},
                line={"color": color, "width": 2},
                hovertext=text,
                hoverinfo="text",
            )
        )
    return figure_of(traces, f"{title} (lower is better)", report.axis, 440)


def drawings(report: FrontReport) -> Mapping[str, Callable[[], Figure]]:
    """Returns what draws each chart, by name."""
    return {
        "macs": lambda: _drawn(report, "MACs", _macs),
        "time": lambda: _drawn(report, _time_axis(report), _time),
    }


def _drawn(report: FrontReport, title: str, cost: Callable[[FrontRow], float]) -> Figure:
    """Returns accuracy against a cost as a picture."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for kind, color, _, symbol, joined in _SERIES:
        points = _points(report, kind, cost)
        if not points:
            continue
        x, y = [point[0] for point in points], [point[1] for point in points]
        spreads = _spreads(report, points)
        bars = np.array(spreads, dtype=float) if spreads[0] else None
        style = "-" if joined else "none"
        axes.errorbar(
            x,
            y,
            yerr=bars,
            color=color,
            marker=symbol,
            linestyle=style,
            label=kind,
            capsize=2,
            markersize=9,
        )
    axes.set_xlabel(f"{title} (lower is better)")
    axes.set_ylabel(report.axis)
    axes.grid(visible=True, color="#e6e6e6")
    axes.legend()
    return figure
