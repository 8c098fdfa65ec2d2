"""Which divisor should widths have by default? Accuracy at equal measured forward time, on three networks.

    python -m experiments.benchmarks.divisors --cifar FOLDER --weights FOLDER [--networks small_resnet ...]
        [--divisors 1 4 8 0] [--latency 0.5] [--runtime onnxruntime] [--structures 12] [--seeds 0]
        [--out experiments/benchmarks/divisors.jsonl]
    python -m experiments.benchmarks.divisors --only-table

For every network and divisor (0: `hardware = true`): random structures, grown into `latency_ms` as searchers do it, are
scored by AdaptiveBN with one-shot repair; the best of those that measure inside, in turns with the full network, is
fine-tuned for one epoch and scored on test images. One thread, one image per pass. small_resnet is trained on
scikit-learn's digits first; the others come with weights for CIFAR-10 as JPEG. FILE has a line for every row: a stopped
call goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch import AdaptiveBN, AdaptiveBNOptions, Budget, Recipe, Sliced, finetune, rank_channels
from abcsearch.channels.fast_widths import fast_widths
from abcsearch.channels.latency import LatencyModel, LatencyOptions, measured_structures
from abcsearch.channels.options import SpaceOptions
from abcsearch.data.registry import load_data
from abcsearch.errors import AbcSearchError
from abcsearch.models.registry import Constructor
from abcsearch.rng import numpy_stream
from abcsearch.runs.disk.weights import load_checkpoint
from abcsearch.training.loop import train
from experiments.processes import at_least_one
from experiments.tables import check_onnx, processors, versions

if TYPE_CHECKING:
    from torch import nn

    from abcsearch import Data
    from abcsearch.channels.graph import ChannelGraph

OUT = Path("experiments/benchmarks/divisors.jsonl")
FILES = {
    "small_resnet": "",
    "resnet20": "jpeg-adapted/resnet20-jpeg.pt",
    "shufflenet_v2_x0_5_cifar": "chenyaofo/cifar10_shufflenetv2_x0_5-1308b4e9.pt",
}
MEANS = {"resnet20": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}
CIFAR = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
_HEAD = (
    "network",
    "divisor",
    "seed",
    "widths",
    "MACs",
    "time",
    "inside",
    "fitness",
    "test, %",
    "fine-tuned, %",
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, its data, and what its structures take."""

    model: nn.Module
    data: Data
    graph: ChannelGraph
    costs: LatencyModel


def trained(name: str, arguments: argparse.Namespace) -> Trained:
    """Returns a network with its weights, and measures its structures."""
    if not FILES[name]:
        data = load_data("digits")
        model = Constructor(
            name=name, options={"widths": [16, 32, 64], "depths": [2, 2, 2]}
        ).build()
        recipe = Recipe(epochs=15, lr=0.1, shift=1, threads=1)
        train(model, data.train, recipe)
    else:
        mean, std = MEANS.get(name, CIFAR)
        data = load_data(
            "image_folder", path=str(arguments.cifar), validation=0.1, mean=mean, std=std
        )
        model = Constructor(name=name).build()
        load_checkpoint(model, arguments.weights / FILES[name])
    model.eval()
    graph = SpaceOptions().traced(model, data.example)
    options = LatencyOptions(runtime=arguments.runtime)
    costs = LatencyModel.measure(model, graph, data.example, options)
    return Trained(model=model, data=data, graph=graph, costs=costs)


def row(
    name: str, of: Trained, divisor: int, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Returns what is found with one divisor."""
    options = SpaceOptions(alpha=1.0, divisor=max(1, divisor), hardware=not divisor)
    fast = None if divisor else fast_widths(of.costs, of.graph, options)
    space = options.of(of.graph, (), fast)
    constraint = Budget(latency_ms=arguments.latency).bind(space, of.costs)
    draws = numpy_stream(seed, "divisors")
    drawn = [constraint.fill(constraint.repair(space.sample(draws), draws), draws)
             for _ in range(arguments.structures)]  # fmt: skip
    candidates = list(dict.fromkeys(drawn))
    source = Sliced(of.model, of.graph, rank_channels(of.model, of.graph, "reader_l2"))
    scoring = AdaptiveBNOptions(
        metric="top1", calibration_images=512, validation_images=500, finalists=0
    )
    evaluator = AdaptiveBN(source, of.data, scoring)
    fitness = np.array([evaluator(candidate, 0).fitness or 0.0 for candidate in candidates])
    latency = LatencyOptions(runtime=arguments.runtime)
    turns = measured_structures(of.model, of.graph, of.data.example, np.array(candidates), latency)
    inside = turns.shares <= arguments.latency
    best = int(np.argmax(np.where(inside, fitness, -1.0)))
    recipe = Recipe(epochs=arguments.epochs if FILES[name] else 5, lr=0.02, threads=1,
                    batch_size=128 if FILES[name] else 64, shift=4 if FILES[name] else 1)  # fmt: skip
    tuned = finetune(evaluator.build(candidates[best]), of.data, recipe)
    macs = of.graph.costs.macs([candidates[best], space.full])
    return {
        "network": name,
        "divisor": divisor,
        "seed": seed,
        "latency_ms": arguments.latency,
        "choices": int(np.median([len(d.choices) for d in space.dimensions])),
        "macs": float(macs[0] / macs[1]),
        "time": float(turns.shares[best]),
        "inside": int(inside.sum()),
        "of": len(candidates),
        "fitness": float(fitness[best]),
        "before": float(tuned.before["top1"]),
        "after": float(tuned.after["top1"]),
    }


def cells(record: dict[str, Any]) -> list[str]:
    """Returns a row of the table."""
    return [
        record["network"],
        str(record["divisor"]) if record["divisor"] else "hardware",
        str(record["seed"]),
        str(record["choices"]),
        f"{record['macs']:.3f}",
        f"{record['time']:.3f} of {record['latency_ms']}",
        f"{record['inside']} of {record['of']}",
        f"{record['fitness']:.3f}",
        f"{100 * record['before']:.2f}",
        f"{100 * record['after']:.2f}",
    ]


def main() -> None:
    """Measures what the file lacks, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--weights", type=Path, help="folder with the files of weights")
    parser.add_argument("--networks", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--divisors", type=int, nargs="+", default=[1, 4, 8, 0])
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--structures", type=at_least_one, default=12)
    parser.add_argument("--epochs", type=at_least_one, default=1, help="of fine-tuning on CIFAR-10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only-table", action="store_true", help="measures nothing")
    arguments = parser.parse_args()
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    records = [json.loads(line) for line in lines]
    known = {(old["network"], old["divisor"], old["seed"], old["latency_ms"]) for old in records}
    torch.set_num_threads(1)
    try:
        check_onnx()
        for name in () if arguments.only_table else arguments.networks:
            wanted = [(divisor, seed) for seed in arguments.seeds for divisor in arguments.divisors]
            lacking = [pair for pair in wanted if (name, *pair, arguments.latency) not in known]
            network = trained(name, arguments) if lacking else None
            for divisor, seed in lacking:
                assert network is not None
                records.append(row(name, network, divisor, seed, arguments))
                with arguments.out.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    except AbcSearchError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write("| " + " | ".join(_HEAD) + " |\n|" + " --- |" * len(_HEAD) + "\n")
    for record in records:
        sys.stdout.write("| " + " | ".join(cells(record)) + " |\n")
    sys.stdout.write(f"\n{processors()}, one thread; {versions('torch', 'onnxruntime')}.\n")


if __name__ == "__main__":
    main()
