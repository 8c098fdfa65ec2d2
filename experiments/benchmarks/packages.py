"""Prints a Markdown table of whole packages: of how many of their networks slices are exact, and what can be pruned.

    python -m experiments.benchmarks.packages [--package NAME ...] [--detail] [--rows FILE]

Networks have random weights and see one small example; nothing is downloaded. A slice is exact if everything that it
returns equals what the whole network returns under gates of 0 and 1 (norms over channels restricted to those that are
left), in double precision, for two random structures of half to all channels. What is in FILE is not checked again, but
for what failed; a package that is not installed is left out:

    pip install '.[zoo]'   # and, as it asks for an old torch: pip install --no-deps facenet-pytorch
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib.util
import json
import statistics
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.channels.baking import baked
from abcsearch.channels.gates import gated
from abcsearch.channels.groups import ChannelGraph, UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.example import Example
from experiments.benchmarks.package_networks import IMPORTED, NETWORKS
from experiments.processes import side_by_side
from experiments.tables import processors, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

# Relative to the largest number of an output, in double precision, and in single
EXACT, EXACT_SINGLE = 1e-9, 1e-3
OUTPUT = "the network's output"  # every network's last layer keeps its channels for this reason: not worth a word


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is found out about one network.

    Attributes:
        name: "PACKAGE/NETWORK".
        groups: number of channel groups.
        prunable: number of groups that can be pruned.
        macs: prunable share of the macs, 0 ... 1.
        seconds: time of the processor to trace, with the check at its end.
        error: largest difference between a slice and the gated network, relative to the largest number.
        moved: the same between the gated network and the full one: what a slice that does nothing would be off by.
        reasons: why groups stay, and how many.
        failed: what was raised instead of all this.
    """

    name: str
    groups: int = 0
    prunable: int = 0
    macs: float = 0.0
    seconds: float = 0.0
    error: float = 0.0
    moved: float = 0.0
    reasons: dict[str, int] | None = None
    failed: str = ""

    @property
    def exact(self) -> bool:
        """Whether something of it can be pruned, slices are what they must be, and the check would have seen others."""
        most = EXACT if NETWORKS[self.name].double else EXACT_SINGLE
        return bool(self.prunable) and self.error < most < self.moved


def installed(name: str) -> bool:
    """Returns whether the package of a network is installed."""
    return importlib.util.find_spec(IMPORTED[name.partition("/")[0]]) is not None


def built(name: str) -> tuple[nn.Module, Example]:
    """Returns a network with random weights in evaluation mode, and random images that it can run on."""
    network = NETWORKS[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = network.build().eval()
        return model, Example(tuple(torch.rand(shape) for shape in network.shapes))


def checked(name: str) -> Row:
    """Returns the row of a network."""
    torch.set_num_threads(1)
    model, example = built(name)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        warnings.filterwarnings("ignore", "tensors of the network are computed")
        model = baked(model)
        graph = trace_channels(model, example)
    seconds = time.process_time() - start
    full = [group.channels for group in graph.prunable]
    macs = graph.costs.macs([full, [1] * len(full)]).tolist()
    precision = torch.float64 if NETWORKS[name].double else torch.float32
    error, moved = exactness(model, graph, example, precision)
    return Row(
        name=name,
        groups=len(graph.groups),
        prunable=len(graph.prunable),
        macs=1 - macs[1] / macs[0],
        seconds=seconds,
        error=error,
        moved=moved,
        reasons=dict(collections.Counter(group.fixed for group in graph.groups if group.fixed)),
    )


def exactness(
    model: nn.Module, graph: ChannelGraph, example: Example, precision: torch.dtype
) -> tuple[float, float]:
    """Returns how far slices are off what they must compute, and how far that is off the full network.

    Args:
        model: the network; in this precision and with other weights afterwards.
        graph: its channel groups.
        example: what it runs on.
        precision: that is computed in.

    Returns:
        The largest differences of all numbers of all structures, relative to the largest number of their tensor.

    Raises:
        ValueError: if a slice returns other tensors, or all of the channels are not all of the network.
    """
    model.to(precision)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        # No weight is 0, and no norm's 1, so that every channel matters
        for parameter in model.parameters():
            size = 0.02 if parameter.ndim < 2 else 0.3 * (len(parameter) / parameter.numel()) ** 0.5
            parameter.add_(torch.randn_like(parameter) * size)
    example = Example(tuple(tensor.to(precision) for tensor in example.args))
    ranking = rank_channels(model, graph, "random", seed=1)
    whole = _outputs(model, example)
    full = tuple(group.channels for group in graph.prunable)
    if _distance(_outputs(slice_model(model, graph, full, ranking), example), whole) != 0:
        msg = "the slice of all channels is not the network"
        raise ValueError(msg)
    error = moved = 0.0
    for seed in range(2):
        draws = np.random.default_rng(seed)
        candidate = tuple(int(draws.integers(max(1, width // 2), width + 1)) for width in full)
        sliced = _outputs(slice_model(model, graph, candidate, ranking), example)
        gates = []
        for index, (group, width) in enumerate(zip(graph.prunable, candidate, strict=True)):
            kept = torch.as_tensor(ranking.kept(index, width))
            gates.append(torch.zeros(group.channels, dtype=precision).index_fill(0, kept, 1))
        with gated(model, graph, gates):
            expected = _outputs(model, example)
        error = max(error, _distance(sliced, expected))
        moved = max(moved, _distance(expected, whole))
    return error, moved


def _outputs(model: nn.Module, example: Example) -> list[torch.Tensor]:
    """Returns all tensors that a network returns, in whatever they lie; it may draw, the same numbers every time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        returned = model(*example.args)
    tensors: list[torch.Tensor] = []
    left = [returned]
    while left:
        value: Any = left.pop()
        if isinstance(value, torch.Tensor):
            tensors.append(value.double())
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
        elif hasattr(value, "__dict__"):
            left += vars(value).values()
    if not any(tensor.numel() for tensor in tensors):
        msg = "it returns no number that could be compared"
        raise ValueError(msg)
    return tensors


def _distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Returns the largest difference between tensors, relative to the largest number of each.

    Raises:
        ValueError: if they have other shapes, or numbers that are not finite.
    """
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (one, other)]
    if shapes[0] != shapes[1]:
        msg = f"a slice returns tensors of shapes {shapes[0]}, not {shapes[1]}"
        raise ValueError(msg)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*one, *other)):
        msg = "a slice or the network returns what is not finite"
        raise ValueError(msg)
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.numel()]
    return max(
        (float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs), default=0.0
    )


def _row(name: str) -> Row:
    """Returns the row of a network, whatever is raised."""
    try:
        return checked(name)
    except Exception as error:  # noqa: BLE001 - the table says so, and goes on
        return Row(name=name, failed=f"{type(error).__name__}: {' '.join(str(error).split())}")


def table(rows: Sequence[Row]) -> str:
    """Returns a line for each package, in Markdown."""
    lines = [
        "| package (networks) | exact | prunable MACs, %: median, least | tracing, s: median, most | what stays, mostly |",
        "| --- | --- | --- | --- | --- |",
    ]
    for package in dict.fromkeys(row.name.partition("/")[0] for row in rows):
        mine = [row for row in rows if row.name.startswith(f"{package}/")]
        exact = [row for row in mine if row.exact]
        if not exact:
            lines.append(f"| {package} ({len(mine)}) | 0 | | | |")
            continue
        macs, seconds = [100 * row.macs for row in exact], [row.seconds for row in exact]
        reasons = collections.Counter[str]()
        for row in exact:
            reasons.update({_kind(reason) for reason in row.reasons or {} if reason != OUTPUT})
        order = sorted(reasons, key=lambda reason: (-reasons[reason], reason))
        mostly = "; ".join(order[:2])
        lines.append(
            f"| {package} ({len(mine)}) | {len(exact)} | {statistics.median(macs):.1f}, {min(macs):.1f} | "
            f"{statistics.median(seconds):.1f}, {max(seconds):.1f} | {mostly} |"
        )
    return "\n".join(lines)


def _kind(reason: str) -> str:
    """Returns a reason without the name of the operation."""
    return reason.partition(": ")[2] or reason


def detail(rows: Sequence[Row]) -> str:
    """Returns a line for each network."""
    return "\n".join(
        f"{row.name}: "
        + (
            row.failed
            or f"{row.prunable} of {row.groups} groups, {100 * row.macs:.1f} % of the MACs, {row.seconds:.1f} s, "
            f"off by {row.error:.1e} of {row.moved:.1e}"
        )
        for row in rows
    )


def main() -> None:
    """Checks what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", nargs="+", default=list(IMPORTED), choices=list(IMPORTED))
    parser.add_argument("--detail", action="store_true", help="a line for each network, too")
    parser.add_argument("--rows", type=Path, default=Path("runs/packages.jsonl"))
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    names = [name for name in NETWORKS if name.partition("/")[0] in arguments.package]
    names = [name for name in names if installed(name)]
    lines = arguments.rows.read_text().splitlines() if arguments.rows.exists() else []
    rows = {row["name"]: Row(**row) for row in map(json.loads, lines) if not row["failed"]}

    def keep(row: Row) -> None:
        rows[row.name] = row
        arguments.rows.parent.mkdir(parents=True, exist_ok=True)
        with arguments.rows.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    pieces = {name: functools.partial(_row, name) for name in names if name not in rows}
    if pieces:
        side_by_side(pieces, arguments.workers, keep)
    shown = [rows[name] for name in names]
    packages = dict.fromkeys(IMPORTED[name.partition("/")[0]] for name in names)
    text = f"{table(shown)}\n\n{processors()}, one thread; {versions('torch', *packages)}.\n"
    sys.stdout.write(f"{detail(shown)}\n\n{text}" if arguments.detail else text)


if __name__ == "__main__":
    main()
