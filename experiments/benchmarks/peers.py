"""Searches beside ModelOpt's FastNAS: the same network, widths, images, number of evaluations and fine-tuning.

    python -m experiments.benchmarks.peers --name NETWORK --config CONFIG [--set key=value ...]
        [--methods fastnas response_surface ...] [--macs 0.5 0.3 0.2] [--seeds 0 1 2] [--images 8000] [--scored 2000]
        [--runs runs/bench-peers] [--results experiments/benchmarks/peers.json]
    python -m experiments.benchmarks.peers --redraw   # the table again, from the file of results

Each method gets `--evaluations` evaluations for a budget, those of a map among them. FastNAS needs its map once for
all budgets, so it has them all in each of its rows. Other methods are searchers of ours; with `+repair` what reads
channels is solved anew for those that stay, in the fitness and in the winner. "before" is accuracy on test images
after batch-norm statistics are estimated anew, "after" that after the config's recipe for one epoch of `--images`
training images, without a warm-up. The seed draws the images that fitness sees and everything random in a searcher.
What is in the file of results is not measured again: a stopped call goes on.

FastNAS: pip install nvidia-modelopt torchprofile==0.0.4 omegaconf pulp huggingface_hub regex
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch import (
    AdaptiveBN,
    AdaptiveBNOptions,
    Budget,
    Data,
    Sliced,
    finetune,
    make_searcher,
    rank_channels,
    score,
    search,
    trace_channels,
)
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError
from abcsearch.files import replace_file
from abcsearch.rng import torch_stream
from experiments.benchmarks.criteria import Bench, Loaded, loaded
from experiments.processes import at_least_one, side_by_side
from experiments.tables import cell, processors, versions

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).parent
KEY = ("name", "method", "evaluations", "macs", "seed")  # what a row is of
# Images that fitness is measured on, and that statistics are estimated on
VALIDATION, CALIBRATION = (1000, 512)
Row = dict[str, Any]


def fastnas(bench: Bench, row: Row) -> Row:
    """Returns the row of ModelOpt's FastNAS, with the widths of our space."""
    import modelopt.torch.prune as mtp  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    it = loaded(bench)
    data = replace(it.data, seed=row["seed"])
    validation = _drawn(data, "validation", VALIDATION)
    calibration = _drawn(data, "train", CALIBRATION)
    scores = [0]

    def top1(network: nn.Module) -> float:
        scores[0] += 1
        with torch.inference_mode():
            outputs = torch.cat([network(images) for images in validation.images.split(250)])
        return float((outputs.argmax(1) == validation.labels).float().mean())

    bench.runs.mkdir(parents=True, exist_ok=True)
    ratios = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))
    features = {"*": {"features_ratio": ratios, "feature_divisor": 1}}
    rules = {
        "nn.Conv2d": {"*": {"channels_ratio": ratios, "kernel_size": (), "channel_divisor": 1}},
        "nn.Linear": features,
        "nn.BatchNorm2d": features,
    }
    start = time.process_time()
    network, _ = mtp.prune(
        copy.deepcopy(it.model),
        mode=[("fastnas", rules)],
        constraints={"flops": f"{100 * row['macs']}%"},
        dummy_input=it.data.example,
        config={
            "data_loader": list(calibration.images.split(128)),
            "collect_func": lambda images: images,
            "score_func": top1,
            "checkpoint": str(bench.runs / f"{row['name']}-fastnas-{row['seed']}.pt"),
            "verbose": False,
        },
    )
    return {
        **row,
        "scored": scores[0],
        "seconds": time.process_time() - start,
        **_worth(bench, it, network),
    }


def ours(bench: Bench, row: Row) -> Row:
    """Returns the row of a searcher of ours."""
    torch.set_num_threads(1)
    it = loaded(bench)
    searcher, _, repaired = row["method"].partition("+")
    options = bench.config.space
    space = it.graph.space(
        options.alpha, options.step, options.levels, options.divisor, options.lowest
    )
    probes = len(make_searcher(searcher, space).probes())
    start = time.process_time()
    result = search(
        it.model,
        replace(it.data, seed=row["seed"]),
        budget=Budget(macs=row["macs"]),
        n_trials=row["evaluations"] - probes,
        searcher=searcher,
        evaluator={
            "name": "adaptive_bn",
            "repair": "one_shot" if repaired else "none",
            "finalists": 0,
            "validation_images": VALIDATION,
            "calibration_images": CALIBRATION,
        },
        criterion="reader_l2",
        space=bench.config.space,
        seed=row["seed"],
        run_dir=bench.runs / "-".join(str(row[key]) for key in KEY),
    )
    seconds = time.process_time() - start
    return {
        **row,
        "scored": probes + len(result.trials),
        "seconds": seconds,
        **_worth(bench, it, result.model()),
    }


def _drawn(data: Data, split: str, count: int) -> Any:  # noqa: ANN401 - a Split
    """Returns the images of a split that our evaluators draw by the data's seed."""
    images = getattr(data, split)
    stream = {"validation": "validation images", "train": "calibration"}[split]
    order = torch.randperm(len(images), generator=torch_stream(data.seed, stream))
    return images.part(order[:count].sort().values).loaded()


def _worth(bench: Bench, it: Loaded, network: nn.Module) -> Row:
    """Returns accuracy before and after training, and cost, of a winner of either, its statistics estimated alike."""
    graph = trace_channels(network, it.data.example)
    space = graph.space(1.0)
    source = Sliced(network, graph, rank_channels(network, graph, "l1"))
    network = AdaptiveBN(source, it.data, AdaptiveBNOptions(repair="none")).build(space.full)
    recipe = replace(bench.config.finetune, epochs=1, warmup_epochs=0.0)
    return {
        "cost": int(graph.costs.macs([space.full])[0]),
        "of": int(it.graph.costs.macs([it.graph.space(1.0).full])[0]),
        "full": it.full,
        "before": score(network, it.data.test)["top1"],
        "after": finetune(network, it.few, recipe, seed=0).after["top1"],
    }


def table(rows: list[Row]) -> str:
    """Returns the tables in Markdown: of every network, methods by budgets."""
    lines: list[str] = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        budgets = sorted({row["macs"] for row in mine}, reverse=True)
        lines += ["", f"**{name}**, full network {100 * mine[0]['full']:.1f} %", ""]
        lines += [
            f"| method | evaluations | {' | '.join(f'{macs:.0%}: before, after' for macs in budgets)} |"
        ]
        lines += ["|---|---|" + "---|" * len(budgets)]
        methods: dict[tuple[str, int], dict[float, list[Row]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for row in mine:
            methods[row["method"], row["evaluations"]][row["macs"]].append(row)
        for (method, evaluations), by_budget in methods.items():
            cells = [_cell(by_budget[macs]) for macs in budgets]
            lines += [f"| `{method}` | {evaluations} | {' | '.join(cells)} |"]
    return "\n".join(lines)


def _cell(rows: list[Row]) -> str:
    """Returns accuracies before and after training, in per cent, over seeds."""
    if not rows:
        return ""
    before, after = ([100 * row[key] for row in rows] for key in ("before", "after"))
    return f"{cell(before, 1)}, {cell(after, 1)}"


def measure(arguments: argparse.Namespace) -> None:
    """Measures what is asked for and not in the file of results, which gets every row as it is known."""
    bench = Bench(
        config=read_config(arguments.config, arguments.set),
        images=arguments.images,
        scored=arguments.scored,
        trials=0,
        runs=arguments.runs,
    )
    rows = {_key(row): row for row in _results(arguments.results)["rows"]}

    def keep(row: Row) -> None:
        rows[_key(row)] = row
        packages = ("torch", "nvidia-modelopt") if row["method"] == "fastnas" else ("torch",)
        known = {
            "machine": f"{processors()}, one thread; {versions(*packages)}",
            "rows": list(rows.values()),
        }
        replace_file(arguments.results, lambda path: path.write_text(json.dumps(known) + "\n"))

    pieces = {}
    for seed in arguments.seeds:
        for macs in arguments.macs:
            for method in arguments.methods:
                row = {
                    "name": arguments.name,
                    "method": method,
                    "evaluations": arguments.evaluations,
                }
                row |= {"macs": macs, "seed": seed}
                if _key(row) not in rows:
                    work = fastnas if method == "fastnas" else ours
                    pieces[" ".join(map(str, _key(row)))] = functools.partial(work, bench, row)
    if pieces:
        side_by_side(pieces, arguments.workers, keep)


def _results(file: Path) -> dict[str, Any]:
    """Returns what the file of results holds."""
    return json.loads(file.read_text()) if file.exists() else {"machine": "", "rows": []}


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in KEY)


def main() -> None:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", help="of the network, in the table")
    parser.add_argument("--config", default="experiments/cifar10/resnet20.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config"
    )
    parser.add_argument(
        "--methods", nargs="+", default=["fastnas", "response_surface", "response_surface+repair"]
    )
    parser.add_argument("--evaluations", type=at_least_one, default=110)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=at_least_one, default=8000)
    parser.add_argument("--scored", type=at_least_one, default=2000)
    parser.add_argument("--workers", type=at_least_one, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-peers"))
    parser.add_argument("--results", type=Path, default=HERE / "peers.json")
    parser.add_argument(
        "--redraw", action="store_true", help="only print the table of the results that are there"
    )
    arguments = parser.parse_args()
    try:
        if not arguments.redraw:
            if arguments.name is None:
                parser.error("--name says what the network is called in the table")
            measure(arguments)
        known = _results(arguments.results)
        sys.stdout.write(f"{table(known['rows'])}\n\n{known['machine']}\n")
    except AbcSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
