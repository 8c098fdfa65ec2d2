"""The tables of the page as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.errors import plural
from abcsearch.reporting.words import (
    change_text,
    cost_text,
    lost_text,
    ms_text,
    time_change,
    width_text,
)
from abcsearch.results.intervals import method_of
from abcsearch.training.named import change_text as metric_change
from abcsearch.training.named import is_share, metric_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.reporting.gathering import Widths
    from abcsearch.reporting.layer_map import LayerMap
    from abcsearch.results.report import Report
    from abcsearch.results.rows import Row

_TRIED = 6  # widths of a layer in the table of a map, evenly spread; report.json has all


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table of networks.

    Attributes:
        name: what it is.
        cells: per network the value, and what it is against the full network ("" for none).
    """

    name: str
    cells: tuple[tuple[str, str], ...]


def network_lines(report: Report) -> list[tuple[str, list[Line]]]:
    """Returns the table of networks in parts: (title, lines). Changes are against the full network."""
    rows = report.rows
    columns = [
        (
            "Size",
            [*_counts(rows), _line("weights", rows, [row.size_mb for row in rows], "{:.3g} MB")],
        ),
        ("Forward time, median (middle half of the passes)", _times(rows)),
        ("Search-validation", [_points("fitness", rows, [row.fitness for row in rows], "")]),
    ]
    for metric in dict.fromkeys(name for row in rows for name in row.tests):
        tests = [_comparable(row, row.tests.get(metric, {})) for row in rows]
        both = ("before", "after")
        lines = [
            _points(f"{when} fine-tuning", rows, [t.get(when) for t in tests], metric)
            for when in both
        ]
        ends = [None if row.otherwise else row.intervals.get(metric) for row in rows]
        lines[-1] = _with_intervals(metric, lines[-1], ends)
        changes = tuple((_tuning(metric, tested), "") for tested in tests)
        columns.append(
            (f"Test, {metric}", [*lines, Line(name="change by fine-tuning", cells=changes)])
        )
    return columns


def _with_intervals(
    metric: str, line: Line, intervals: Sequence[tuple[float, float] | None]
) -> Line:
    """Returns a line of a metric, each value with its 95 % interval, where that is known."""
    if not any(intervals):
        return line
    how = method_of(metric).partition(":")[0]
    cells = [
        (text if ends is None else f"{text} ({ends_text(metric, ends)})", change)
        for ends, (text, change) in zip(intervals, line.cells, strict=True)
    ]
    return Line(name=f"{line.name}, 95 % interval ({how})", cells=tuple(cells))


def ends_text(metric: str, ends: tuple[float, float]) -> str:
    """Returns the ends of an interval: shares in per cent, other metrics in their unit, without it."""
    low, high = ends
    if is_share(metric):
        return f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{metric_text(metric, low).removesuffix(' dB')} to {metric_text(metric, high).removesuffix(' dB')}"


def _comparable(row: Row, tested: Mapping[str, float]) -> Mapping[str, float]:
    """Returns a metric before and after fine-tuning; only before, if its recipe was not the winner's."""
    return {when: value for when, value in tested.items() if when == "before" or not row.otherwise}


def _tuning(metric: str, tested: Mapping[str, float]) -> str:
    """Returns what fine-tuning made of a metric, or "-"."""
    return _difference(metric, tested["after"] - tested["before"]) if "after" in tested else "-"


def _counts(rows: Sequence[Row]) -> list[Line]:
    """Returns macs, flops and params."""
    names = {"macs": "MACs", "flops": "FLOPs", "params": "parameters"}
    return [
        Line(
            name=title,
            cells=tuple(
                (
                    cost_text(name, getattr(row, name)),
                    _change(row, rows[0], getattr(rows[0], name), getattr(row, name)),
                )
                for row in rows
            ),
        )
        for name, title in names.items()
    ]


def _line(name: str, rows: Sequence[Row], values: Sequence[float], form: str) -> Line:
    """Returns numbers with their changes in per cent."""
    cells = [
        (form.format(v), _change(row, rows[0], values[0], v))
        for row, v in zip(rows, values, strict=True)
    ]
    return Line(name=name, cells=tuple(cells))


def _change(row: Row, full: Row, before: float, after: float) -> str:
    """Returns a change in per cent; nothing for the full network itself."""
    return "" if row is full else change_text(before, after)


def _times(rows: Sequence[Row]) -> list[Line]:
    """Returns the forward times."""
    lines: list[Line] = []
    for index, first in enumerate(rows[0].times):
        times = [row.times[index] for row in rows]
        threads = f", {plural(first.threads, 'thread')}" if first.threads else ""
        cells = tuple(
            (
                f"{ms_text(time.median_ms)} ms ({ms_text(time.low_ms)} to {ms_text(time.high_ms)})",
                "" if row is rows[0] else time_change(first, time),
            )
            for row, time in zip(rows, times, strict=True)
        )
        lines.append(Line(name=f"{first.where}{threads}", cells=cells))
    return lines


def _points(name: str, rows: Sequence[Row], values: Sequence[float | None], metric: str) -> Line:
    """Returns a metric with its difference to the full network's."""
    full = values[0]
    cells = [
        (
            "-" if value is None else metric_text(metric, value),
            ""
            if value is None or full is None or row is rows[0]
            else _difference(metric, value - full),
        )
        for row, value in zip(rows, values, strict=True)
    ]
    return Line(name=name, cells=tuple(cells))


def _difference(metric: str, value: float) -> str:
    """Returns a difference of a metric: shares in points, ratios of signals in dB."""
    return metric_change(metric, value).replace("-", "\u2212")


def map_cells(mapped: LayerMap, widths: Widths | None) -> list[list[str]]:
    """Returns layer by layer what it alone loses at the widths that were tried, the narrowest first; the header first.

    Args:
        mapped: the map.
        widths: what the winner, the last one, keeps; None without.
    """
    winner = list(widths.kept)[-1] if widths is not None else ""
    count = min(max((len(probed.widths) for probed in mapped.layers), default=0), _TRIED)
    head = ["layer", "level", *([f"{winner} keeps"] if winner else []), *(["width: lost"] * count)]
    rows: list[list[str]] = []
    for index, probed in enumerate(mapped.layers):
        tried = list(zip(probed.widths, probed.losses, strict=True))
        spread = np.linspace(0, len(tried) - 1, min(len(tried), count)).round().astype(int)
        lost = [lost_text(probed.layer, *tried[at]) for at in spread.tolist()]
        keeps = [] if widths is None else [width_text(probed.layer, widths.kept[winner][index])]
        rest = [""] * (count - len(lost))
        rows.append([probed.layer.name, probed.layer.level, *keeps, *lost, *rest])
    return [head, *rows]


def width_cells(widths: Widths) -> list[list[str]]:
    """Returns layer by layer what became of it in every structure, the winner first; the header first."""
    names = [*reversed(widths.kept)]
    chosen = widths.criteria.get(names[0])
    head = ["layer", "level", *(f"{name}: full ⇒ kept" for name in names[:1]), *names[1:]]
    head += ["criterion of the winner"] if chosen else []
    rows: list[list[str]] = []
    for index, layer in enumerate(widths.layers):
        kept = [widths.kept[name][index] for name in names]
        share = "" if layer.level == "block" else f" ({100 * kept[0] / layer.full:.0f} %)"
        others = [
            str(value) if layer.level != "block" else width_text(layer, value) for value in kept[1:]
        ]
        rows.append([layer.name, layer.level, width_text(layer, kept[0]) + share, *others])
        rows[-1] += [chosen[index]] if chosen else []
    return [head, *rows]
