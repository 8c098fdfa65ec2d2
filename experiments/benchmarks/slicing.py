"""How long one candidate takes to build, against copy.deepcopy and torch-pruning; a shared slice of it; and tracing.

    python experiments/benchmarks/slicing.py [--models resnet56 ...] [--repeats 15] [--pruning-repeats 3] [--steps 7]

One candidate at half the width of every layer, its channels ranked once before; one thread. What is compared runs in
turns, so that a busy machine slows down all of it. Times are those of the processor for this process: the clock on the
wall of a shared machine counts what others do. A candidate of torch-pruning is what its user does for one: deepcopy
(it prunes in place), dependency graph and pruner, step().

--steps: a training step of `slimmable` (full network, smallest and two random slices, in-place distillation) against a
hand-written loop over the same four networks, sliced before.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
import torchvision
from torch import nn

from abcsearch import Budget, Data, Recipe, rank_channels, share, slice_model, trace_channels
from abcsearch.models.resnet import SmallResNet
from abcsearch.preparation.slimmable import Sampler, Sandwich
from abcsearch.rng import numpy_stream

MODELS = ("resnet56", "resnet50", "mobilenet_v2", "vgg16_bn", "densenet121", "efficientnet_b0")
COLUMNS = {
    "deepcopy": "deepcopy, ms",
    "ours": "slice_model, ms",
    "ratio": "/ deepcopy",
    "share": "share, ms",
    "share_ratio": "/ slice_model",
    "pruning": "torch-pruning, ms",
    "pruning_ratio": "/ deepcopy",
    "step": "of it step(), ms",
    "trace": "trace_channels, s",
    "forward": "forward, ms",
    "bound": "20 forwards + 2 s",
}

Timed = Callable[[], dict[str, float]]


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Returns a network with random weights, in evaluation mode, and one image for it."""
    torch.manual_seed(0)
    if name == "resnet56":
        return SmallResNet(3, 10, (16, 32, 64), (9, 9, 9)).eval(), torch.randn(1, 3, 32, 32)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)


def timed(work: Callable[[], object]) -> float:
    """Returns the milliseconds that something takes; clearing up what it returns is not part of it."""
    start = time.process_time()
    result = work()
    took = time.process_time() - start
    del result
    return 1000 * took


def candidate_of_torch_pruning(model: nn.Module, image: torch.Tensor) -> Timed:
    """Returns what builds one candidate with torch-pruning, and tells how long that and its step() took."""
    import torch_pruning  # an extra of the benchmark: not everybody has it

    def run() -> dict[str, float]:
        start = time.process_time()
        network = copy.deepcopy(model)
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        pruner = torch_pruning.pruner.MagnitudePruner(
            network,
            image,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            global_pruning=False,
            ignored_layers=[last],
        )
        prepared = time.process_time()
        pruner.step()
        end = time.process_time()
        return {"pruning": 1000 * (end - start), "step": 1000 * (end - prepared)}

    return run


def prepare(
    model: nn.Module, image: torch.Tensor
) -> tuple[float, dict[str, Callable[[], object]], float]:
    """Traces and ranks; returns the seconds of tracing, what builds a candidate, and its share of the parameters."""
    seconds = timed(lambda: trace_channels(model, image)) / 1000
    graph = trace_channels(model, image)
    ranking = rank_channels(model, graph)
    candidate = graph.space().uniform(0.5)
    params, full = graph.costs.params([candidate, graph.space().full])
    works = {
        "ours": lambda: slice_model(model, graph, candidate, ranking),
        "share": lambda: share(model, graph, candidate, ranking),
    }
    return seconds, works, float(params / full)


def measure(name: str, repeats: int, pruning_repeats: int) -> tuple[dict[str, float], float]:
    """Returns the medians of one network by column, and the share of parameters that its candidate keeps."""
    model, image = build(name)
    seconds, works, kept = prepare(model, image)
    works = {"deepcopy": lambda: copy.deepcopy(model), **works}
    times: dict[str, list[float]] = {"trace": [seconds]}
    for work in works.values():
        work()  # once for caches and code paths
    for _ in range(repeats):
        for key, work in works.items():
            times.setdefault(key, []).append(timed(work))
    with torch.no_grad():
        times["forward"] = [timed(lambda: model(image)) for _ in range(5)]
    if pruning_repeats:
        prune = candidate_of_torch_pruning(model, image)
        for _ in range(pruning_repeats):
            times.setdefault("deepcopy_too", []).append(timed(works["deepcopy"]))
            for key, value in prune().items():
                times.setdefault(key, []).append(value)
            gc.collect()
    row = {key: statistics.median(values) for key, values in times.items()}
    row |= {"ratio": row["ours"] / row["deepcopy"], "share_ratio": row["share"] / row["ours"]}
    row["bound"] = 20 * row["forward"] / 1000 + 2
    if pruning_repeats:
        row["pruning_ratio"] = row["pruning"] / row["deepcopy_too"]
    return row, kept


def sandwich_step(model: nn.Module, images: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Returns the median processor time of a step of `slimmable`, and of the same by hand, in milliseconds.

    Args:
        model: a classifier.
        images: a batch.
        repeats: of each, in turns.
    """
    graph = trace_channels(model, images[:1])
    ranking, space = rank_channels(model, graph, "l1"), graph.space()
    sampler = Sampler(space, Budget(macs=1.0).bind(space, graph.costs), widths="free")
    lesson = Sandwich(copy.deepcopy(model).train(), graph, ranking, sampler)
    labels = torch.arange(len(images)) % 2
    data = Data.from_tensors((images, labels), (images, labels), validation=0.25)
    lesson.begin(Recipe(batch_size=len(images), device="cpu"), data.train)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        draws = torch.Generator().manual_seed(number)
        rng = numpy_stream(int(torch.randint(2**62, (), generator=draws)), "sandwich")
        slices = [slice_model(model, graph, c, ranking) for c in sampler.drawn(3, 0.0, rng)]
        every = [copy.deepcopy(model).train(), *(one.train() for one in slices)]
        times[0].append(timed(partial(lesson.step, images, labels, draws.manual_seed(number))))
        times[1].append(timed(partial(step_by_hand, every, images, labels)))
    ours, by_hand = (statistics.median(seconds[1:]) for seconds in times)
    return ours, by_hand


def step_by_hand(networks: list[nn.Module], images: torch.Tensor, labels: torch.Tensor) -> None:
    """Adds up the gradients of the first network, which learns labels, and of the others, which learn its outputs."""
    outputs = networks[0](images)
    (0.5 * F.cross_entropy(outputs, labels)).backward()
    wanted = outputs.detach().softmax(1)
    for network in networks[1:]:
        (0.5 / 3 * F.cross_entropy(network(images), wanted)).backward()


def sandwich_table(repeats: int) -> str:
    """Returns the table of steps of `slimmable`, in Markdown."""
    lines = ["| network | batch | step, ms | by hand, ms | ratio |", "|" + " --- |" * 5]
    for name, depth in (("resnet20", 3), ("resnet56", 9)):
        model = SmallResNet(3, 10, (16, 32, 64), (depth, depth, depth))
        for batch in (16, 64):
            ours, hand = sandwich_step(model, torch.randn(batch, 3, 32, 32), repeats)
            lines.append(f"| {name} | {batch} | {ours:.0f} | {hand:.0f} | {ours / hand:.2f} |")
    return "\n".join(lines)


def cells(row: dict[str, float]) -> list[str]:
    """Returns the numbers of a row as text."""
    forms = {
        "ratio": "{:.2f}",
        "share_ratio": "{:.2f}",
        "pruning_ratio": "{:.1f}",
        "trace": "{:.2f}",
        "bound": "{:.2f}",
    }
    return [forms.get(key, "{:.1f}").format(row[key]) if key in row else "-" for key in COLUMNS]


def processor() -> str:
    """Returns the name of the processor where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def header(repeats: int, pruning_repeats: int) -> str:
    """Returns what the numbers depend on."""
    versions: list[str] = []
    for package in ("torch", "torchvision", "numpy", "torch-pruning"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread used; "
        f"Python {platform.python_version()}, {', '.join(versions)}; seed 0\n"
        f"processor time; medians of {repeats}, {pruning_repeats} (torch-pruning) and 5 (forward); 1 trace"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), help="names of the table or of torchvision"
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--pruning-repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of slimmable; 0: the other table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.steps:
        sys.stdout.write(sandwich_table(arguments.steps) + "\n")
        return
    installed = importlib.util.find_spec("torch_pruning") is not None
    pruning_repeats = arguments.pruning_repeats if installed else 0
    out = sys.stdout
    out.write(header(arguments.repeats, pruning_repeats) + "\n")
    if not installed:
        out.write(
            "torch-pruning is left out: it is not installed (pip install 'abcsearch[bench]')\n"
        )
    out.write("\n| network | " + " | ".join([*COLUMNS.values(), "params kept, %"]) + " |\n")
    out.write("|" + " --- |" * (len(COLUMNS) + 2) + "\n")
    for name in arguments.models:
        row, kept = measure(name, arguments.repeats, pruning_repeats)
        out.write("| " + " | ".join([name, *cells(row), f"{100 * kept:.0f}"]) + " |\n")
        out.flush()


if __name__ == "__main__":
    main()
