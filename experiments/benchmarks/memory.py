"""Does `peak_activation` say how much memory a forward pass takes? Against what torch allocates on the CPU.

    python -m experiments.benchmarks.memory [--models resnet20 ...] [--batches 1 16] [--structures 12]

Random structures, weights and images channels_last, one thread. Measured is the most that is allocated at once during a
pass, beside weights and images, as torch's profiler sees its allocator: results of operations, and what convolutions
need inside (weights and images in another order). `peak_activation` counts results alone, and the images.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import kendalltau
from torch.profiler import ProfilerActivity, profile

from abcsearch import rank_channels, slice_model, trace_channels
from abcsearch.models.registry import INPUT_SHAPES, Constructor
from abcsearch.rng import numpy_stream
from experiments.processes import at_least_one
from experiments.tables import processors, versions

if TYPE_CHECKING:
    from torch import nn

MODELS = ("resnet20", "mobilenet_v2_cifar", "vgg16_cifar")
_HEAD = (
    "network",
    "batch",
    "full: measured",
    "full: peak_activation",
    "measured / peak_activation",
    "tau",
)


def allocated(network: nn.Module, images: torch.Tensor) -> int:
    """Returns the most bytes that a pass has allocated at once, without weights and images."""
    with torch.inference_mode():
        network(images)  # what is made once
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            network(images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], index, event["args"]["Bytes"])
        for index, event in enumerate(events)
        if event.get("name") == "[memory]"
    )
    return int(np.cumsum([change for *_, change in changes]).max())


def row(name: str, batch: int, count: int) -> list[str]:
    """Returns a row of the table."""
    model = Constructor(name=name).build().eval()
    shape = INPUT_SHAPES[name]
    graph = trace_channels(model, torch.zeros(1, *shape))
    space, ranking = graph.space(), rank_channels(model, graph, "random")
    draws = numpy_stream(0, "memory")
    structures = [space.full, *(space.sample(draws) for _ in range(count))]
    layout = torch.channels_last
    images = torch.rand(batch, *shape).contiguous(memory_format=layout)
    measured: list[int] = []
    for structure in structures:
        network = slice_model(model, graph, structure, ranking).eval()
        network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        measured.append(allocated(network, images))
    expected = batch * graph.costs.peak_activation(structures)
    ratios = (np.array(measured) + images.nbytes) / expected
    return [
        name,
        str(batch),
        f"{measured[0] / 2**20:.2f} MiB",
        f"{expected[0] / 2**20:.2f} MiB",
        f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
        f"{kendalltau(measured, expected).statistic:.2f}",
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(INPUT_SHAPES), default=list(MODELS))
    parser.add_argument("--batches", type=at_least_one, nargs="+", default=[1, 16])
    parser.add_argument("--structures", type=at_least_one, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write("| " + " | ".join(_HEAD) + " |\n|" + " --- |" * len(_HEAD) + "\n")
    for name in arguments.models:
        for batch in arguments.batches:
            cells = row(name, batch, arguments.structures)
            sys.stdout.write("| " + " | ".join(cells) + " |\n")
            sys.stdout.flush()
    sys.stdout.write(f"\n{processors()}, one thread; {versions('torch')}.\n")


if __name__ == "__main__":
    main()
