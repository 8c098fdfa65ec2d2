"""Is the winner of a search for half the time inside half the time, measured again?

    make bench-latency-winners                           # the table of what there is, then what is missing
    python -m experiments.benchmarks.latency_winners [--models resnet20 ...] [--runtimes torch onnxruntime]
        [--batches 1 64] [--seeds 0 1 2] [--trials 60] [--repeats 20] [--out FILE] [--only-table]

For every network, runtime, batch and seed: a whole search with `latency_ms = 0.5`, as users start it, whose best five
are measured before one wins. Then the winner is measured again, in turns with the full network, by a process of its
own: the median of five calls counts, since processes differ by more than calls do.
Fitness is made up, since time does not depend on it: a weight for every layer, drawn with the seed, times the square
root of what is kept of it. Networks are untrained. One thread. Every line of FILE is one search: a stopped call goes
on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch import Budget, Data, Split, search, trace_channels
from abcsearch.channels.latency import LatencyOptions, measured_structures
from abcsearch.errors import AbcSearchError, BudgetError, RunError
from abcsearch.models.registry import INPUT_SHAPES, Constructor
from abcsearch.rng import numpy_stream
from experiments.benchmarks.latency import parser_of
from experiments.processes import at_least_one
from experiments.tables import check_onnx, processors, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from abcsearch.channels.graph import ChannelGraph

SHARE, AGAIN = 0.5, 5
OUT = Path("experiments/benchmarks/latency_winners.jsonl")
_KEY = ("network", "runtime", "batch", "seed")
_HEAD = (
    "network", "runtime", "batch", "searches", "a winner", "median", "at most 0.5", "at most 0.51", "largest",
)  # fmt: skip


def made_up_fitness(graph: ChannelGraph, seed: int) -> Callable[[Sequence[int], int], float]:
    """Returns a function (candidate, seed) -> fitness that prefers other layers with every seed."""
    channels = np.array([group.channels for group in graph.prunable])
    weights = numpy_stream(seed, "bench-latency-winners").random(len(channels))

    def fitness(candidate: Sequence[int], seed: int) -> float:
        del seed
        return float(weights @ np.sqrt(np.array(candidate) / channels))

    return fitness


def random_data(shape: Sequence[int]) -> Data:
    """Returns a few random images in every split: what a network takes does not depend on what they show."""
    images = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(20) % 10)
    return Data(name="random", train=split, validation=split, test=split)


def winner(
    name: str, options: LatencyOptions, seed: int, trials: int, folder: Path
) -> dict[str, Any]:
    """Returns what is measured of the winner of one search."""
    model, data = Constructor(name=name).build().eval(), random_data(INPUT_SHAPES[name])
    graph = trace_channels(model, data.example)
    line: dict[str, Any] = {
        "network": name, "runtime": options.runtime, "batch": options.batch, "seed": seed, "trials": trials
    }  # fmt: skip
    try:
        best = search(
            model,
            data,
            budget=Budget(latency_ms=SHARE),
            n_trials=trials,
            run_dir=folder,
            evaluator=made_up_fitness(graph, seed),
            seed=seed,
            latency=options,
        ).best
    except (BudgetError, RunError) as error:  # nothing is inside, or none of the best
        return line | {"none": str(error), "share": None}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        again = pool.submit(measured_again, name, options, list(best.candidate)).result()
    return line | {"candidate": list(best.candidate), "share": again}


def measured_again(name: str, options: LatencyOptions, candidate: list[int]) -> float:
    """Returns the share of the full network's time that a structure takes: the median of a few calls."""
    torch.set_num_threads(1)
    model, data = Constructor(name=name).build().eval(), random_data(INPUT_SHAPES[name])
    graph, structure = trace_channels(model, data.example), np.array([candidate])
    calls = [
        measured_structures(model, graph, data.example, structure, options) for _ in range(AGAIN)
    ]
    return float(np.median([turns.shares[0] for turns in calls]))


def cells(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a row of the table: all searches of one network, runtime and batch."""
    first = lines[0]
    shares = np.array([line["share"] for line in lines if line["share"] is not None])
    head = [first["network"], first["runtime"], str(first["batch"]), str(len(lines))]
    if not len(shares):
        return [*head, "0", "", "", "", ""]
    return [
        *head, str(len(shares)), f"{np.median(shares):.3f}", str(np.sum(shares <= SHARE)),
        str(np.sum(shares <= 1.02 * SHARE)), f"{shares.max():.3f}",
    ]  # fmt: skip


def main() -> None:
    """Measures what the file lacks, and prints the table."""
    parser = parser_of(__doc__, OUT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=at_least_one, default=60)
    arguments = parser.parse_args()
    there = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    lines = [json.loads(line) for line in there]
    known = {tuple(line[key] for key in _KEY) for line in lines}
    wanted = [] if arguments.only_table else [
        (m, r, b, s) for s in arguments.seeds for m in arguments.models
        for r in arguments.runtimes for b in arguments.batches
    ]  # fmt: skip
    try:
        if set(wanted) - known:
            check_onnx()
        for key in wanted:
            if key in known:
                continue
            name, runtime, batch, seed = key
            options = LatencyOptions(runtime=runtime, batch=batch, repeats=arguments.repeats)
            with tempfile.TemporaryDirectory() as folder:
                lines.append(winner(name, options, seed, arguments.trials, Path(folder, "run")))
            with arguments.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    except AbcSearchError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write("| " + " | ".join(_HEAD) + " |\n|" + " --- |" * len(_HEAD) + "\n")
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        rows.setdefault(tuple(line[key] for key in _KEY[:3]), []).append(line)
    for row in rows.values():
        sys.stdout.write("| " + " | ".join(cells(row)) + " |\n")
    sys.stdout.write(f"\n{processors()}, one thread; {versions('torch', 'onnxruntime')}.\n")


if __name__ == "__main__":
    main()
