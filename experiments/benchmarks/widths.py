"""Does it matter for time which multiples widths are of? Forward times at equal MACs, in PyTorch and in ONNX Runtime.

    python -m experiments.benchmarks.widths [--models resnet20 ...] [--divisors 1 2 4 8] [--structures 6]
        [--macs 0.45 0.5] [--repeats 20]

Random structures of some share of the MACs, in spaces with several values of `divisor`, against the full network; one
thread. All networks take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from typing import TYPE_CHECKING

import torch

from abcsearch import Budget, rank_channels, slice_model, trace_channels
from abcsearch.channels.latency import forward_times
from abcsearch.errors import AbcSearchError
from abcsearch.models.registry import INPUT_SHAPES, Constructor
from abcsearch.rng import numpy_stream
from experiments.processes import at_least_one
from experiments.tables import cell, check_onnx, in_onnxruntime, processors, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

BATCHES = (1, 64)
MODELS = ("resnet20", "mobilenet_v2_cifar")


def networks(
    name: str, divisors: Sequence[int], structures: int, macs: tuple[float, float]
) -> tuple[list[nn.Module], list[float]]:
    """Returns the full network and those of every divisor in turn, and their shares of its MACs."""
    model = Constructor(name=name).build().eval()
    graph = trace_channels(model, torch.zeros(1, *INPUT_SHAPES[name]))
    ranking = rank_channels(model, graph)
    candidates = []
    for divisor in divisors:
        space = graph.space(alpha=1.0, divisor=divisor)
        constraint = Budget(macs=macs).bind(space, graph.costs)
        draws = numpy_stream(0, f"widths, divisor {divisor}")
        candidates += [constraint.repair(space.sample(draws), draws) for _ in range(structures)]
    costs = graph.costs.macs([space.full, *candidates])
    return [model, *(slice_model(model, graph, candidate, ranking) for candidate in candidates)], (
        costs / costs[0]
    ).tolist()


def shares(made: Sequence[nn.Module], images: torch.Tensor, repeats: int) -> list[float]:
    """Returns the median forward time of every network, as a share of the first one's."""
    repeats *= 10 if len(images) == 1 else 1  # passes of a millisecond, which anything disturbs
    medians = [
        statistics.median(times)
        for times in forward_times(made, images, threads=1, repeats=repeats)
    ]
    return [median / medians[0] for median in medians]


def rows(name: str, arguments: argparse.Namespace) -> list[list[str]]:
    """Returns the rows of the table of one network."""
    count = arguments.structures
    made, macs = networks(name, arguments.divisors, count, tuple(arguments.macs))
    example = torch.zeros(1, *INPUT_SHAPES[name])
    columns = [macs]
    for batch in BATCHES:
        images = example.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        eager = [network.to(memory_format=torch.channels_last) for network in made]  # pyright: ignore[reportCallIssue]
        columns.append(shares(eager, images, arguments.repeats))
    files = in_onnxruntime(made, example)
    columns += [
        shares(files, example.repeat(batch, 1, 1, 1), arguments.repeats) for batch in BATCHES
    ]
    return [
        [name, str(divisor), *(cell(column[1 + count * index :][:count]) for column in columns)]
        for index, divisor in enumerate(arguments.divisors)
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=sorted(INPUT_SHAPES), default=list(MODELS), metavar="NAME"
    )
    parser.add_argument("--divisors", type=at_least_one, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--structures", type=at_least_one, default=6, help="of every divisor")
    parser.add_argument(
        "--macs", type=float, nargs=2, default=[0.45, 0.5], help="lowest and highest share"
    )
    parser.add_argument(
        "--repeats",
        type=at_least_one,
        default=20,
        help="passes that are timed; of one image, ten times as many",
    )
    arguments = parser.parse_args()
    head = [
        "network",
        "divisor",
        "MACs",
        *(f"{how}, batch {b}" for how in ("PyTorch", "ONNX Runtime") for b in BATCHES),
    ]
    sys.stdout.write("| " + " | ".join(head) + " |\n|" + " --- |" * len(head) + "\n")
    try:
        check_onnx()
        for name in arguments.models:
            for row in rows(name, arguments):
                sys.stdout.write("| " + " | ".join(row) + " |\n")
            sys.stdout.flush()
    except AbcSearchError as error:
        sys.exit(f"error: {error}")
    made_with = f"Python {platform.python_version()}, {versions('torch', 'onnxruntime')}"
    sys.stdout.write(f"\n{processors()}, one thread; {made_with}.\n")


if __name__ == "__main__":
    main()
