"""Prints a Markdown table of what can be pruned in networks of many families: one row per family.

    python -m experiments.benchmarks.zoo [--family NAME ...] [--detail] [--rows FILE]

Networks have no weights (the meta device) and see one image of the size that they were made for. Prunable shares are
1 - cost(one channel per group) / cost(full). Times are of the processor, one thread; tracing is without the check at
its end, which on the meta device compares shapes alone. Beside it stands what recording takes as a multiple of what
torch.fx takes for the same (a copy, symbolic tracing, shapes by its interpreter), for the first network of a family;
with --detail for all; "-" where it does not trace it.
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import importlib.util
import json
import platform
import re
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torchvision
from torch import fx
from torch.fx.passes.shape_prop import ShapeProp

from abcsearch.channels.groups import ChannelGraph, UnsupportedOpWarning, trace_channels
from abcsearch.channels.trace import trace_operations
from experiments.benchmarks.families import FAMILIES, build, usual_size
from experiments.tables import processors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

OUTPUT = "the network's output"  # every network's last layer keeps its channels for this reason: not worth a word


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is found out about one network.

    Attributes:
        name: of the network.
        groups: number of channel groups.
        prunable: number of groups that can be pruned.
        renormalised: how many of them are normalised over the channels that are left.
        blocks: number of residual blocks that can be dropped.
        macs: prunable share of the macs, 0 ... 1.
        params: prunable share of the parameters, 0 ... 1.
        seconds: time to trace.
        recording: that of recording alone; None where it is not compared.
        symbolic: that of torch.fx for the same; None where it is not compared, or does not trace the network.
        reasons: why groups stay, and how many channels.
    """

    name: str
    groups: int
    prunable: int
    renormalised: int
    blocks: int
    macs: float
    params: float
    seconds: float
    recording: float | None
    symbolic: float | None
    reasons: dict[str, int]


def measure(name: str, *, compare: bool) -> Row:
    """Returns the row of one network, compared with torch.fx if asked."""
    size = usual_size(name)
    model = weightless(name)
    example = torch.zeros(1, 3, size, size, device="meta")
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        graph = trace_channels(model, example, check=False)
    seconds = time.process_time() - start
    widths = [[group.channels for group in graph.prunable], [1] * len(graph.prunable)]
    macs, params = graph.costs.macs(widths), graph.costs.params(widths)
    symbolic = symbolic_seconds(model, example) if compare else None
    return Row(
        name=name,
        groups=len(graph.groups),
        prunable=len(graph.prunable),
        renormalised=sum(group.renormalises for group in graph.prunable),
        blocks=len(graph.blocks),
        macs=1 - macs[1] / macs[0],
        params=1 - params[1] / params[0],
        seconds=seconds,
        recording=None if symbolic is None else timed(lambda: trace_operations(model, example)),
        symbolic=symbolic,
        reasons=reasons(graph),
    )


def weightless(name: str) -> nn.Module:
    """Returns a network on the meta device; built there, where its constructor computes nothing with numbers."""
    try:
        with torch.device("meta"):
            return build(name)
    except (NotImplementedError, RuntimeError):
        return build(name).to("meta")


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds of the processor that a call takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def symbolic_seconds(model: nn.Module, example: torch.Tensor) -> float | None:
    """Returns what torch.fx takes for operations and shapes; None where it cannot follow forward."""

    def traced() -> None:
        ShapeProp(fx.symbolic_trace(copy.deepcopy(model))).propagate(example)

    try:
        with torch.no_grad():
            return timed(traced)
    except Exception:  # noqa: BLE001 - it fails in many ways
        return None


def reasons(graph: ChannelGraph) -> dict[str, int]:
    """Returns why groups stay: operation and reason, without the places in the network; and how many channels."""
    channels = collections.Counter[str]()
    for group in graph.groups:
        if group.fixed and group.fixed != OUTPUT:
            operation, colon, why = group.fixed.partition(": ")
            short = f"{operation.split(' ')[0]}: {why}" if colon else operation
            channels[re.sub(r"combined with [^:]+", "combined with another tensor", short)] += (
                group.channels
            )
    return dict(channels)


def spread(values: list[float], form: str) -> str:
    """Returns the range of some numbers, or the number if they are written alike."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} – {high}"  # noqa: RUF001 - a range


def line(title: str, rows: list[Row], *, detail: bool) -> str:
    """Returns one line of the table; in detail with the number of blocks."""
    why = collections.Counter[str]()
    for row in rows:
        why.update(row.reasons)
    blocks = [spread([row.blocks for row in rows], "{}")] if detail else []
    cells = [
        title,
        spread([row.groups for row in rows], "{}"),
        spread([row.prunable for row in rows], "{}"),
        spread([row.renormalised for row in rows], "{}"),
        *blocks,
        spread([100 * row.macs for row in rows], "{:.0f}"),
        spread([100 * row.params for row in rows], "{:.0f}"),
        spread([row.seconds for row in rows], "{:.1f}"),
        beside(rows),
        why.most_common(1)[0][0] if why else "",
    ]
    return f"| {' | '.join(cells)} |"


def beside(rows: list[Row]) -> str:
    """Returns what recording takes as a multiple of torch.fx's time, where both were measured."""
    both = [(row.recording, row.symbolic) for row in rows if row.recording and row.symbolic]
    return spread([ours / theirs for ours, theirs in both], "{:.1f}") if both else "-"


def table(families: dict[str, list[Row]], *, detail: bool) -> str:
    """Returns the Markdown table, one line per family, or per network."""
    blocks = ["blocks"] if detail else []
    shares = ["prunable MACs, %", "prunable params, %", "tracing, s", "recording / torch.fx"]
    first = ["network" if detail else "family (networks)", "groups", "prunable"]
    titles = [*first, "norms renormalised", *blocks, *shares, "what stays, mostly"]
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    for family, rows in families.items():
        if detail:
            lines += [line(row.name, [row], detail=True) for row in rows]
        else:
            lines.append(line(f"{family} ({len(rows)})", rows, detail=False))
    return "\n".join(lines)


def read(path: Path | None) -> dict[str, Row]:
    """Returns the rows of a file, by the name of the network; none if there is no file."""
    if path is None or not path.exists():
        return {}
    rows = [Row(**json.loads(text)) for text in path.read_text().splitlines()]
    return {row.name: row for row in rows}


def write(path: Path | None, row: Row) -> None:
    """Adds a row to a file."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def main() -> None:
    """Measures all networks and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--family", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME"
    )
    parser.add_argument("--detail", action="store_true", help="one line per network")
    parser.add_argument(
        "--rows",
        type=Path,
        help="a file of rows: what is in it is not measured, what is not is added",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with_timm = importlib.util.find_spec("timm") is not None
    families: dict[str, list[Row]] = {}
    known = read(arguments.rows)
    for family in arguments.family:
        names = [name for name in FAMILIES[family] if with_timm or not name.startswith("timm/")]
        rows = []
        for name in names:
            sys.stderr.write(f"{name}\n")
            if name not in known:
                known[name] = measure(name, compare=arguments.detail or name == names[0])
                write(arguments.rows, known[name])
            rows.append(known[name])
        if rows:
            families[family] = rows
    versions = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
    if with_timm:
        import timm

        versions.append(f"timm {timm.__version__}")
    machine = f"{processors()}, one thread, Python {platform.python_version()}"
    sys.stdout.write(
        f"{table(families, detail=arguments.detail)}\n\n{machine}; {', '.join(versions)}\n"
    )


if __name__ == "__main__":
    main()
