"""What an evaluation costs above the passes that it consists of, and how many run at a time.

    python -m experiments.benchmarks.evaluation [--networks resnet56 resnet50] [--repeats 7] [--device auto]
        [--workers 1 2] [--evaluations 500] [--precision float32]

- AdaptiveBN (slice, calibrate, score) against a bare hand-written loop over the same sliced network and images:
  calibration images with batch norms in training mode, validation images in evaluation mode, channels_last.
- One epoch of ShortTraining's training against a bare hand-written training loop over the same images.
- Memory: what one evaluation needs at its peak above what was there before, the same for the bare loop, and what is
  left after many evaluations.
- Evaluations per second with several worker processes on one device.

What is compared runs in turns, so that a busy machine slows down all of it; the ratio is the median of the turns'
ratios. On the CPU times are those of the processor for this process, with one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
import torchvision
from torch import nn

from abcsearch import (
    AdaptiveBN,
    AdaptiveBNOptions,
    Data,
    Recipe,
    rank_channels,
    slice_model,
    trace_channels,
    train,
)
from abcsearch.channels.graph import ChannelGraph
from abcsearch.channels.onednn import pointwise_safely
from abcsearch.channels.orders import Ranking
from abcsearch.channels.source import Sliced
from abcsearch.data.split import Split
from abcsearch.models.resnet import resnet56
from abcsearch.training.computing import computing, find_device
from abcsearch.training.scoring import scoring_batch
from experiments.tables import versions


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, images for it, and how many.

    Attributes:
        build: makes the network.
        size: height and width of an image.
        images: for calibration, for validation, and for the training epoch.
        batch: of calibration and training.
    """

    build: Callable[[], nn.Module]
    size: int
    images: tuple[int, int, int]
    batch: int


CASES = {
    "resnet56": Case(build=resnet56, size=32, images=(2048, 2048, 1024), batch=128),
    "resnet50": Case(
        build=lambda: torchvision.models.resnet50(weights=None, num_classes=10),
        size=224,
        images=(128, 128, 64),
        batch=32,
    ),
}


@dataclass(frozen=True)
class Bench:
    """What is timed: the evaluator, a candidate, and what the evaluator was made of."""

    evaluator: AdaptiveBN
    candidate: tuple[int, ...]
    model: nn.Module
    graph: ChannelGraph
    ranking: Ranking
    data: Data
    case: Case
    device: torch.device


def images(count: int, size: int, classes: int = 10) -> Split:
    """Returns random images: times do not depend on what they show."""
    generator = torch.Generator().manual_seed(count)
    return Split(
        torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % classes
    )


def prepare(name: str, device: str, precision: str = "float32") -> Bench:
    """Returns a network with random weights, and what evaluates its structure of half the width."""
    case = CASES[name]
    torch.manual_seed(0)
    model = case.build().eval()
    calibration, validation, _ = case.images
    data = Data(
        name="random",
        train=images(calibration, case.size),
        validation=images(validation, case.size),
        test=images(10, case.size),
    )
    graph = trace_channels(model, data.example)
    ranking = rank_channels(model, graph)
    options = AdaptiveBNOptions(
        calibration_images=calibration, batch_size=case.batch, device=device, precision=precision
    )
    evaluator = AdaptiveBN(Sliced(model, graph, ranking), data, options)
    candidate = graph.space().uniform(0.5)
    return Bench(evaluator, candidate, model, graph, ranking, data, case, find_device(device))


def bare_evaluation(bench: Bench) -> Callable[[], object]:
    """Returns the passes of one evaluation without anything else, over a network sliced before."""
    network = slice_model(bench.model, bench.graph, bench.candidate, bench.ranking).to(bench.device)
    network.to(memory_format=torch.channels_last)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    calibration, validation = (
        split.to(bench.device).images for split in (bench.data.train, bench.data.validation)
    )

    def run() -> None:
        with torch.inference_mode(), computing(bench.device):
            network.eval()
            for norm in norms:
                norm.train()
            for batch in calibration.split(bench.case.batch):
                network(batch)
            network.eval()
            for batch in validation.split(scoring_batch(bench.device)):
                network(batch)

    return run


def bare_training(bench: Bench, split: Split) -> Callable[[], object]:
    """Returns a hand-written epoch of training: SGD over the images in random order."""
    network = (
        slice_model(bench.model, bench.graph, bench.candidate, bench.ranking)
        .to(bench.device)
        .train()
    )
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    pictures, labels = split.to(bench.device).images, split.labels.to(bench.device)

    def run() -> None:
        with computing(bench.device), pointwise_safely(network):
            for chosen in torch.randperm(len(labels)).to(bench.device).split(bench.case.batch):
                loss = F.cross_entropy(network(pictures[chosen]), labels[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

    return run


def our_training(bench: Bench, split: Split) -> Callable[[], object]:
    """Returns one epoch of the training loop over the same network and images."""
    network = slice_model(bench.model, bench.graph, bench.candidate, bench.ranking).to(bench.device)
    recipe = Recipe(
        epochs=1, batch_size=bench.case.batch, lr=0.01, precision=bench.evaluator.options.precision
    )
    placed = split.to(bench.device)
    return lambda: train(network, placed, recipe)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that something takes."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def compared(
    ours: Callable[[], object], bare: Callable[[], object], repeats: int, device: torch.device
) -> list[float]:
    """Returns median seconds of ours and of the bare loop, and the median ratio, over turns."""
    for work in (ours, bare):
        work()  # once for caches and code paths
    times = [(timed(ours, device), timed(bare, device)) for _ in range(repeats)]
    return [
        *(statistics.median(seconds) for seconds in zip(*times, strict=True)),
        statistics.median(a / b for a, b in times),
    ]


def resident() -> float:
    """Returns the memory of this process in MB."""
    return (
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        * os.sysconf("SC_PAGE_SIZE")
        / 1e6
    )


def peak(work: Callable[[], object], device: torch.device) -> float:
    """Returns the most memory in MB that something needs above what was in use before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before, highest, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return highest[0] - before


def growth(bench: Bench, count: int) -> float:
    """Returns the memory in MB by which the process has grown between a tenth of many evaluations and the end."""
    space = bench.graph.space()
    draws = np.random.default_rng(0)
    used = (
        (lambda: torch.cuda.memory_allocated() / 1e6) if bench.device.type == "cuda" else resident
    )
    before = 0.0
    for number in range(count):
        bench.evaluator(space.sample(draws), number)
        if number == count // 10:
            before = used()
    return used() - before


_WORKER: list[Bench] = []


def _start(name: str, device: str, precision: str) -> None:
    torch.set_num_threads(1)
    _WORKER.append(prepare(name, device, precision))
    _WORKER[0].evaluator(_WORKER[0].candidate, 0)


def _work(count: int) -> None:
    for number in range(count):
        _WORKER[0].evaluator(_WORKER[0].candidate, number)


def throughput(name: str, device: str, precision: str, workers: int, each: int = 4) -> float:
    """Returns evaluations per second of several processes on one device, start-up not counted."""
    given = (name, device, precision)
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start, initargs=given
    ) as pool:
        list(pool.map(_work, [1] * 4 * workers))  # all of them are up
        start = time.perf_counter()
        list(pool.map(_work, [1] * each * workers))
        return each * workers / (time.perf_counter() - start)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=None, help="default 1 2, on CUDA 1 2 4 8 16"
    )
    parser.add_argument(
        "--evaluations", type=int, default=500, help="for what is left after them; 0 leaves it out"
    )
    parser.add_argument(
        "--precision", default="float32", help="of AdaptiveBN and train; bare loops stay in float32"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = find_device(arguments.device)
    speed: list[list[str]] = []
    for name in arguments.networks:
        sys.stderr.write(f"{name}\n")
        bench = prepare(name, arguments.device, arguments.precision)
        split = images(bench.case.images[2], bench.case.size)
        evaluation, bare = (lambda b=bench: b.evaluator(b.candidate, 0)), bare_evaluation(bench)
        memory = [peak(work, device) for work in (bare, evaluation)]
        a = compared(evaluation, bare, arguments.repeats, device)
        b = compared(
            our_training(bench, split), bare_training(bench, split), arguments.repeats, device
        )
        numbers = [
            f"{a[1]:.2f}",
            f"{a[0]:.2f}",
            f"{a[2]:.2f}",
            f"{b[1]:.2f}",
            f"{b[0]:.2f}",
            f"{b[2]:.2f}",
        ]
        speed.append(
            [name, "/".join(map(str, bench.case.images)), *numbers, *(f"{m:.0f}" for m in memory)]
        )
    header = [
        "network",
        "images",
        "bare passes, s",
        "AdaptiveBN, s",
        "ratio",
        "bare epoch, s",
        "train, s",
        "ratio",
    ]
    parts = [table([*header, "bare peak, MB", "AdaptiveBN peak, MB"], speed)]
    if arguments.evaluations:
        grown = growth(prepare_small(arguments.device, arguments.precision), arguments.evaluations)
        parts.append(
            f"Memory after {arguments.evaluations} evaluations against a tenth of them: {grown:+.1f} MB."
        )
    counts = (
        arguments.workers
        if arguments.workers is not None
        else ([1, 2, 4, 8, 16] if device.type == "cuda" else [1, 2])
    )
    name = arguments.networks[0]
    if counts:
        rates = {
            count: throughput(name, arguments.device, arguments.precision, count)
            for count in counts
        }
        rows = [
            [str(c), f"{rate:.2f}", f"{rate / rates[counts[0]]:.2f}"] for c, rate in rates.items()
        ]
        parts.append(
            table([f"workers ({name})", "evaluations per second", "against the first"], rows)
        )
    what = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    )
    parts.append(f"{what}; Python {platform.python_version()}, {versions('torch')}.")
    sys.stdout.write("\n\n".join(parts) + "\n")


def prepare_small(device: str, precision: str) -> Bench:
    """Returns a small case, for many evaluations."""
    CASES["small"] = Case(build=resnet56, size=8, images=(32, 32, 32), batch=32)
    return prepare("small", device, precision)


if __name__ == "__main__":
    main()
