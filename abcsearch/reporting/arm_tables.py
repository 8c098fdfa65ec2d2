"""What winners are compared with in their own runs, as text: for a page and for a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from abcsearch.reporting.tables import ends_text
from abcsearch.reporting.words import cost_text, short_names
from abcsearch.results.intervals import difference_text
from abcsearch.training.named import change_text, metric_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from abcsearch.reporting.arms import Arm, Contrast
    from abcsearch.reporting.comparison import Comparison

_NAME = 16  # characters of names on a terminal
_FEWEST = 3  # runs that anything is told apart by: two may differ by the same, and have an interval of nothing
_MINUS = "\u2212"
_WINNER = f"winner {_MINUS} it"
# Of all tables
COLUMNS = (
    "MACs are in per cent of the full network; cost is what the epochs cost, in epochs of the full network by MACs, "
    "without the training of the base network"
)


def over_runs(comparison: Comparison) -> Iterator[tuple[str, Sequence[Contrast]]]:
    """Yields the groups of two runs and more that have baselines, each with its networks."""
    for group in comparison.groups:
        rows = [row for row in comparison.contrasts if row.group == group.name]
        if rows and len(group.runs) > 1:
            yield group.name, rows


def run_by_run(comparison: Comparison) -> Iterator[tuple[str, Sequence[Arm]]]:
    """Yields the groups of runs that have baselines, each with the networks of its runs."""
    for group in comparison.groups:
        rows = [arm for arm in comparison.arms if arm.run in group.runs]
        if rows:
            yield group.name, rows


def terminal_tables(comparison: Comparison) -> Iterator[tuple[str, list[list[str]]]]:
    """Yields a title and a table of 80 columns for each group of runs that has baselines: its means, or its one run."""
    means = dict(over_runs(comparison))
    for name, arms in run_by_run(comparison):
        rows = means.get(name)
        what = f"{name}: winner and baselines, test {arms[0].metric}"
        if rows is None:
            head, *cells = [row[1:] for row in arm_cells(arms, short=True)]
            yield f"{what}, \u00b1 and (): 95 % of images", _narrow(head, cells)
        else:
            head, *cells = contrast_cells(rows)
            yield f"{what}, differences \u00b1 95 %", _narrow(head, cells)


def _narrow(head: list[str], rows: list[list[str]]) -> list[list[str]]:
    """Returns a table with short names, heads and cells."""
    names = short_names([row[0] for row in rows], _NAME)
    cells = [[name, *map(_tight, row[1:])] for name, row in zip(names, rows, strict=True)]
    return [["network", _WINNER, *head[2:]], *cells]


def contrast_cells(rows: Sequence[Contrast]) -> list[list[str]]:
    """Returns the networks of a group of runs as text, the header first."""
    head = ["network", f"{_WINNER} ±95 %", "after ±sd", "before", "MACs", "epochs", "cost", "runs"]
    cells: list[list[str]] = []
    for row in rows:
        count = len(row.runs)
        spread = f" ±{_size(row.metric, row.after.deviation)}" if count > 1 else ""
        cells.append(
            [
                row.network,
                _mean_apart(row),
                metric_text(row.metric, row.after.mean) + spread,
                metric_text(row.metric, row.before.mean),
                f"{100 * row.macs_share.mean:.3g} %",
                _number(row.epochs.mean),
                _number(row.cost.mean),
                str(count) if count == row.several else f"{count} of {row.several}",
            ]
        )
    return [head, *cells]


def _mean_apart(row: Contrast) -> str:
    """Returns by how much winners are better than a network of the same runs, on average: -0.37 ±1.20."""
    mean = row.difference
    if mean is None:
        return "" if row.kind == "winner" else "-"
    half = f" ±{_size(row.metric, mean.half)}" if mean.count > 1 else ""
    return _change(row.metric, mean.mean) + half


def arm_cells(arms: Sequence[Arm], *, short: bool = False) -> list[list[str]]:
    """Returns the networks of runs as text, the header first.

    Args:
        arms: the networks.
        short: with less of costs and differences, for a terminal.
    """
    head = [
        "run",
        "network",
        f"{_WINNER} (95 %)",
        "after (95 %)",
        "before",
        "MACs",
        "epochs",
        "cost",
    ]
    cells: list[list[str]] = []
    for arm in arms:
        ends = arm.intervals.get(arm.metric)
        interval = "" if ends is None else f" ({ends_text(arm.metric, ends)})"
        macs = "" if short else f"{cost_text('macs', arm.macs)}, "
        cells.append(
            [
                arm.run,
                "winner" if arm.kind == "winner" else arm.network,
                _apart(arm, short=short),
                "-" if arm.otherwise else metric_text(arm.metric, arm.after) + interval,
                metric_text(arm.metric, arm.before),
                f"{macs}{100 * arm.macs_share:.3g} %",
                _number(arm.epochs),
                _number(arm.cost),
            ]
        )
    return [head, *cells]


def _apart(arm: Arm, *, short: bool) -> str:
    """Returns by how much the winner is better than a network of the same run: -0.37 (-1.20 to +0.50)."""
    one = arm.difference
    if one is None:
        return "" if arm.kind == "winner" else "-"
    if short:
        return f"{_change(arm.metric, one.change)} ±{_size(arm.metric, one.half)}"
    ends = " to ".join(_change(arm.metric, end) for end in (one.low, one.high))
    return f"{_change(arm.metric, one.change)} ({ends})"


def _change(metric: str, value: float) -> str:
    """Returns a difference without its unit: +0.37."""
    text = change_text(metric, value).removesuffix(" points").removesuffix(" dB")
    return text.replace("-", _MINUS)


def _size(metric: str, value: float) -> str:
    """Returns half of an interval, or a spread, without its unit: 0.37."""
    return _change(metric, value).removeprefix("+")


def _number(value: float) -> str:
    """Returns epochs: 30, 45.5."""
    return f"{value:,.1f}".removesuffix(".0")


def _tight(cell: str) -> str:
    """Returns a cell in few characters: 91.20±0.52."""
    return re.sub(r" % (?=±)| dB| (?=±|%)", "", cell).replace(" of ", "/")


def verdicts(comparison: Comparison) -> list[str]:
    """Returns for each group of runs what its winners can be told apart from, over its runs, in a sentence."""
    return [line for name, rows in over_runs(comparison) for line in _verdict(name, rows)]


def _verdict(name: str, rows: Sequence[Contrast]) -> Iterator[str]:
    """Yields what the paired differences of a group are worth; nothing of two runs, or of the same seed again."""
    several = [row for row in rows if not row.repeated]
    known = [
        (row, row.apart) for row in several if row.difference and row.difference.count >= _FEWEST
    ]
    told: list[str] = []
    for sign, words in ((1, "better than"), (-1, "worse than"), (0, "not told apart from")):
        names = [
            f"{row.network} ({difference_text(row.metric, one)})"
            for row, one in known
            if one is not None and sign == (one.low > 0) - (one.high < 0)
        ]
        told += [f"{words} {', '.join(names)}"] if names else []
    if told:
        yield (
            f"{name}, by test {rows[0].metric} after fine-tuning, the winner is {'; '.join(told)}: means of the "
            f"differences within a run, with their 95 % intervals over runs (Student's t)."
        )
