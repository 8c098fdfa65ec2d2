"""What `alpha` of [space] is worth: searches in which layers may keep all their channels, and in which they may not.

    python -m experiments.benchmarks.alpha --name NETWORK --config CONFIG [--set key=value ...] [--alphas 0.9 1.0]
        [--macs 0.5 0.3] [--seeds 0 1 2 3 4] [--trials 40] [--epochs 10] [--results experiments/benchmarks/alpha.json]
    python -m experiments.benchmarks.alpha --redraw   # the table again, from the file of results

For each seed the config's network is trained or loaded once, and searched with each alpha and each share of the MACs by
the default searcher; winners are fine-tuned by the config's recipe in so many epochs, with the seed. The table has
means over seeds, and the difference of the last alpha to the first one, seed by seed, with its 95 % interval (Student's
t). What is in the file of results is not measured again: a stopped call goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import nn

from abcsearch import Budget, finetune, score, search, train
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError
from abcsearch.files import replace_file
from abcsearch.runs.config_run import load_run_data
from abcsearch.runs.disk.weights import load_checkpoint
from experiments.processes import at_least_one
from experiments.tables import processors, versions

RESULTS = Path(__file__).with_suffix(".json")
KEY = ("name", "macs", "alpha", "seed")  # what a row is of
SHOWN = {"fitness": "fitness of the winner, %", "after": "test after, %"}
Row = dict[str, Any]


def convnet() -> nn.Module:
    """Returns a plain network for digits: four convolutions, no shortcut, two linear layers."""
    layers: list[nn.Module] = []
    for inputs, outputs, pooled in (
        (1, 16, False),
        (16, 32, True),
        (32, 32, False),
        (32, 64, True),
    ):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    head = [nn.Flatten(), nn.Linear(64 * 4, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *head)


def measured(arguments: argparse.Namespace, seed: int, missing: list[tuple[float, float]]) -> Any:  # noqa: ANN401
    """Yields a row for each (macs, alpha) that is missing, of one seed."""
    torch.set_num_threads(1)
    config = replace(read_config(arguments.config, arguments.set), seed=seed)
    data = load_run_data(config)
    model = config.model.build(seed).eval()
    if config.model.checkpoint is not None:
        load_checkpoint(model, config.model.checkpoint)
    elif config.pretrain is not None:
        train(model, data.train, config.pretrain, seed=seed, stream="pretrain")
    full = score(model.eval(), data.test)["top1"]
    for macs, alpha in missing:
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            result = search(
                model,
                data,
                budget=Budget(macs=macs),
                n_trials=arguments.trials,
                evaluator={"name": "adaptive_bn", "scoring": "full", "finalists": 0},
                space=replace(config.space, alpha=alpha),
                seed=seed,
                run_dir=folder,
            )
            recipe = replace(config.finetune, epochs=arguments.epochs)
            tuned = finetune(result.model(), data, recipe, seed=seed)
        at_full = sum(kept == of for kept, of in result.widths.values())
        yield {
            **dict(zip(KEY, (arguments.name, macs, alpha, seed), strict=True)),
            "trials": arguments.trials,
            "epochs": arguments.epochs,
            "full": full,
            "layers": [at_full, len(result.widths)],
            "share": result.best.evaluation.macs / int(result.task.graph.costs.macs([result.task.space.full])[0]),
            "fitness": result.best.fitness,
            "before": tuned.before["top1"],
            "after": tuned.after["top1"],
            "seconds": time.process_time() - start,
        }  # fmt: skip


def difference(first: list[float], second: list[float]) -> str:
    """Returns the mean of second - first in points, pair by pair, with its 95 % interval; "" of fewer than two."""
    changes = [100 * (b - a) for a, b in zip(first, second, strict=True)]
    if len(changes) < 2:
        return ""
    mean, error = statistics.mean(changes), statistics.stdev(changes) / len(changes) ** 0.5
    half = float(student.ppf(0.975, len(changes) - 1)) * error
    return f"{mean:+.2f} ± {half:.2f}"


def table(rows: list[Row]) -> str:
    """Returns the table in Markdown: a line for each network, share and alpha."""
    head = ["network", "MACs", "alpha", "seeds", "layers at full width"]
    head += [text for name in SHOWN.values() for text in (name, "difference")]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, macs in dict.fromkeys((row["name"], row["macs"]) for row in rows):
        mine = [row for row in rows if (row["name"], row["macs"]) == (name, macs)]
        alphas = sorted({row["alpha"] for row in mine})
        by = {
            alpha: {row["seed"]: row for row in mine if row["alpha"] == alpha} for alpha in alphas
        }
        seeds = sorted(set.intersection(*(set(each) for each in by.values())))
        for alpha in alphas if seeds else ():
            each = [by[alpha][seed] for seed in seeds]
            first = [by[alphas[0]][seed] for seed in seeds]
            widths = statistics.mean(row["layers"][0] for row in each)
            cells = [name, f"{macs:.0%}", f"{alpha:g}", str(len(seeds))]
            cells.append(f"{widths:.1f} of {each[0]['layers'][1]}")
            for metric in SHOWN:
                values = [row[metric] for row in each]
                cells.append(f"{100 * statistics.mean(values):.2f}")
                change = difference([row[metric] for row in first], values)
                cells.append("" if alpha == alphas[0] else change)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def known(file: Path) -> dict[str, Any]:
    """Returns what the file of results holds."""
    return json.loads(file.read_text()) if file.exists() else {"machine": "", "rows": []}


def measure(arguments: argparse.Namespace) -> None:
    """Measures what is asked for and not in the file of results, which gets every row as it is known."""
    rows = {tuple(row[key] for key in KEY): row for row in known(arguments.results)["rows"]}
    for seed in arguments.seeds:
        wanted = [(macs, alpha) for macs in arguments.macs for alpha in arguments.alphas]
        missing = [one for one in wanted if (arguments.name, *one, seed) not in rows]
        for row in measured(arguments, seed, missing) if missing else ():
            rows[tuple(row[key] for key in KEY)] = row
            machine = f"{processors()}, one thread; {versions('torch')}"
            text = json.dumps({"machine": machine, "rows": list(rows.values())}, indent=0)
            replace_file(arguments.results, lambda path, text=text: path.write_text(text + "\n"))


def main() -> None:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", help="of the network, in the table")
    parser.add_argument("--config", default="experiments/digits/config.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config"
    )
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.9, 1.0])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=at_least_one, default=40)
    parser.add_argument("--epochs", type=at_least_one, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--redraw", action="store_true", help="nothing is measured")
    arguments = parser.parse_args()
    if not arguments.redraw and arguments.name is None:
        parser.error("--name is needed, unless --redraw")
    try:
        if not arguments.redraw:
            measure(arguments)
    except AbcSearchError as error:
        sys.exit(f"error: {error}")
    there = known(arguments.results)
    sys.stdout.write(f"{table(there['rows'])}\n\n{there['machine']}.\n")


if __name__ == "__main__":
    main()
