"""The page of what is known: a table for each step, made of the file of results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.gpu.steps import STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.gpu.results import Results
    from experiments.gpu.steps import Row


# Where no call has begun to measure
NOT_BEGUN = "Not run yet: no GPU was at hand. The script is rehearsed on a CPU by the tests."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _tests(rows: Sequence[Row]) -> str:
    lines = [f"`pytest -m gpu`: {row['pytest'] or row['state']}" for row in rows]
    return "\n".join([*lines, *(f"- {name}" for row in rows for name in row["failed"])])


def _workers(rows: Sequence[Row]) -> str:
    alone = {
        row["precision"]: row["per_second"]
        for row in rows
        if row["workers"] == 1 and "per_second" in row
    }
    cells = []
    for row in rows:
        measured = ["", "", ""]
        if "per_second" in row:
            one = alone.get(row["precision"])
            times = f"{row['per_second'] / one:.2f}" if one else ""
            measured = [f"{row['per_second']:.2f}", times, f"{row['start']:.1f}"]
        cells.append([row["precision"], str(row["workers"]), *measured, row["state"]])
    head = ["precision", "workers", "evaluations per s", "against one", "start, s", "state"]
    return table(head, cells)


def _abcpruner(rows: Sequence[Row]) -> str:
    cells = [
        [
            row["phase"],
            f"{row['done']} of {row['of']} {row['unit']}",
            f"{row['seconds'] / 60:.1f}",
            f"{row['seconds'] * row['of'] / row['done'] / 60:.1f}" if row["done"] else "",
            row["state"],
        ]
        for row in rows
    ]
    return table(["phase", "done", "minutes", "minutes, for all", "state"], cells)


def _searchers(rows: Sequence[Row]) -> str:
    cells, left = [], "done"
    for row in rows:
        if not row["name"]:
            left = row["state"]
            continue
        shares = [f"{100 * row[key]:.2f}" if key in row else "" for key in ("fitness", "before")]
        seconds = f"{row['seconds']:.2f}" if "seconds" in row else ""
        after = f"{100 * row['after']:.2f}"
        macs = f"{row['macs'] / 1e6:.2f}"
        cells.append([row["name"], macs, seconds, *shares, after, row["state"]])
    head = ["network", "MACs, M", "s per trial", "fitness, %", "before, %", "after, %", "state"]
    others = f"\n\nThe others: {left}." if left != "done" else ""
    return f"{table(head, cells)}{others}"


_TABLES = {"tests": _tests, "workers": _workers, "abcpruner": _abcpruner, "searchers": _searchers}
_TITLES = {
    "tests": "Tests that need a GPU",
    "workers": "Evaluations per second",
    "abcpruner": "ABCPruner's published setting for ResNet-56",
    "searchers": "Searchers on ResNet-56",
}


def page(results: Results) -> str:
    """Returns the page in Markdown: what is not known yet is said."""
    if not results.steps and not results.common:
        return NOT_BEGUN
    texts = []
    for step in STEPS:
        rows = results.steps.get(step, [])
        texts.append(f"**{_TITLES[step]}**\n\n{_TABLES[step](rows) if rows else 'Not run yet.'}")
    if results.common:
        texts.append(f"{results.common['machine']}; {results.common['versions']}.")
    return "\n\n".join(texts)
