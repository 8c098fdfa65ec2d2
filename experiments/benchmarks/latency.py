"""How well is forward time predicted, and do networks said to be inside a budget of it measure inside?

    make bench-latency                                   # the table of what there is, then what is missing
    python -m experiments.benchmarks.latency [--models resnet20 ...] [--runtimes torch onnxruntime] [--batches 1 64]
        [--structures 20] [--repeats 20] [--out FILE] [--only-table]

For every network, runtime and batch: a `LatencyModel` as a run makes it; then structures that it has not seen, in turns
with the full network: random ones, random ones of half the MACs, and random ones that are grown into `latency_ms = 0.5`
as searchers do it. One thread. Every line of FILE is one network at one runtime and batch: a stopped call goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abcsearch import Budget, trace_channels
from abcsearch.channels.latency import (
    LatencyModel,
    LatencyOptions,
    fitted,
    measured_structures,
)
from abcsearch.errors import AbcSearchError
from abcsearch.models.registry import INPUT_SHAPES, Constructor
from abcsearch.rng import numpy_stream
from abcsearch.runs.latency import NEAR, near_budget
from experiments.processes import at_least_one
from experiments.tables import check_onnx, processors, versions

MODELS = ("resnet20", "mobilenet_v2_cifar")
RUNTIMES = ("onnxruntime", "torch")
BATCHES = (1, 64)
OUT = Path("experiments/benchmarks/latency.jsonl")
_HEAD = (
    "network", "runtime", "batch", "full, ms", "random, %", "half the MACs, %", "worst, %",
    "by MACs, %", "without multiples, %", "latency_ms = 0.5", "inside", "largest",
)  # fmt: skip


def piece(name: str, options: LatencyOptions, count: int) -> dict[str, Any]:
    """Returns what is measured of one network at one runtime and batch."""
    shape = INPUT_SHAPES[name]
    model, example = Constructor(name=name).build().eval(), torch.zeros(1, *shape)
    graph = trace_channels(model, example)
    costs = LatencyModel.measure(model, graph, example, options)
    budget, space = Budget(latency_ms=0.5), graph.space()
    near = near_budget(budget.bind(space, costs), NEAR)
    costs = costs.near(model, graph, example, near, options)
    assert costs.measured is not None
    draws = numpy_stream(1, "bench-latency")
    random = np.array([space.sample(draws) for _ in range(count)])
    half = near_budget(Budget(macs=0.5).bind(space, costs), count, seed=1)
    inside = near_budget(budget.bind(space, costs), count, seed=1)
    unseen = np.concatenate([random, half, inside])
    turns = measured_structures(model, graph, example, unseen, options)
    full = [[group.channels for group in graph.prunable]]
    plain = np.array(
        ["multiples" not in kind and "rounded" not in kind for kind in costs.work.names]
    )
    amounts = np.concatenate([costs.work(full), costs.work(costs.measured.structures)])[:, plain]
    coefficients = fitted(amounts, np.concatenate([[1.0], costs.measured.turns.shares]))
    macs = graph.costs.macs(np.concatenate([full, unseen]))
    return {
        "network": name,
        "runtime": options.runtime,
        "batch": options.batch,
        "full_ms": turns.full_ms,
        "count": count,
        "measured": turns.shares.tolist(),
        "expected": (costs.latency_ms(unseen) / costs.latency_ms(full)).tolist(),
        "plain": (costs.work(unseen)[:, plain] @ coefficients).tolist(),
        "macs": (macs[1:] / macs[0]).tolist(),
        "cross_validated": costs.error,
    }


def cells(record: dict[str, Any]) -> list[str]:
    """Returns a row of the table."""
    count = record["count"]
    measured, expected = np.array(record["measured"]), np.array(record["expected"])
    macs, plain = np.array(record["macs"]), np.array(record["plain"])
    errors, random = 100 * np.abs(expected / measured - 1), slice(0, 2 * count)
    # MACs with the best factor that there is for these very networks
    factor = np.median(measured[random] / macs[random])
    other = {
        "macs": 100 * np.abs(factor * macs / measured - 1),
        "plain": 100 * np.abs(plain / measured - 1),
    }
    winners = measured[2 * count :]
    return [
        record["network"], record["runtime"], str(record["batch"]), f"{record['full_ms']:.3g}",
        f"{np.median(errors[:count]):.1f}", f"{np.median(errors[count : 2 * count]):.1f}",
        f"{errors[random].max():.0f}", f"{np.median(other['macs'][random]):.1f}",
        f"{np.median(other['plain'][random]):.1f}",
        f"{np.median(winners):.3f}", f"{np.mean(winners <= 0.5):.0%}", f"{winners.max():.3f}",
    ]  # fmt: skip


def parser_of(doc: str | None, out: Path) -> argparse.ArgumentParser:
    """Returns a parser of what is to be measured, and where results go."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(INPUT_SHAPES), default=list(MODELS))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    parser.add_argument("--batches", type=at_least_one, nargs="+", default=list(BATCHES))
    parser.add_argument("--repeats", type=at_least_one, default=20, help="turns")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--only-table", action="store_true", help="measures nothing")
    return parser


def main() -> None:
    """Measures what the file lacks, and prints the table."""
    parser = parser_of(__doc__, OUT)
    parser.add_argument("--structures", type=at_least_one, default=20, help="of each kind")
    arguments = parser.parse_args()
    there = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    records = [json.loads(line) for line in there]
    wanted = [(m, r, b) for m in arguments.models for r in arguments.runtimes
              for b in arguments.batches]  # fmt: skip
    known = {(old["network"], old["runtime"], old["batch"]) for old in records}
    lacking = set(wanted) - known
    try:
        if lacking and not arguments.only_table:
            check_onnx()
        for name, runtime, batch in () if arguments.only_table else wanted:
            if (name, runtime, batch) in lacking:
                options = LatencyOptions(runtime=runtime, batch=batch, repeats=arguments.repeats)
                records.append(piece(name, options, arguments.structures))
                with arguments.out.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    except AbcSearchError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write("| " + " | ".join(_HEAD) + " |\n|" + " --- |" * len(_HEAD) + "\n")
    for record in records:
        sys.stdout.write("| " + " | ".join(cells(record)) + " |\n")
    made_with = f"Python {platform.python_version()}, {versions('torch', 'onnxruntime')}"
    sys.stdout.write(f"\n{processors()}, one thread; {made_with}.\n")


if __name__ == "__main__":
    main()
