"""The winner, its structure with other weights, and other structures, at equal epochs: rows in a file, and a table.

    python -m experiments.controls digits [--seeds 0 1 2 3 4] [--set key=value ...] [--runs runs/controls]
        [--results experiments/controls] [--anew]
    python -m experiments.controls digits --redraw     # table again, from the file of results

A run folder for each seed: base network, search, fine-tuning of every arm. What is in NETWORK.json is not run again, and
a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError, ConfigError
from abcsearch.files import replace_file
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.intervals import wilson
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import run_config
from experiments.controls.arms import ARMS, NEW_WEIGHTS, WINNER
from experiments.survey.results import Results, decided
from experiments.tables import cell, processors

if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = dict[str, Any]

HERE = Path(__file__).parent
NETWORKS = ("digits", "resnet20")
HELD = {"candidate", "macs", "params", "before", "after", "images", "epochs", "base_epochs"}
_HEAD = (
    "network",
    "what",
    "seeds",
    "MACs, %",
    "before, %",
    "after, %",
    "- winner",
    "epochs",
    "of training",
)


def measure(network: str, seed: int, given: Sequence[str], runs: Path, results: Results) -> None:
    """Runs a seed, or what is left of it, and adds its rows as soon as they are known."""
    file = HERE / f"{network}.toml"
    mark = zlib.crc32(repr(decided(file, given)).encode())
    folder = runs / network / f"{seed}-{mark:08x}"
    config = read_config(file, [*given, f"seed={seed}"])
    torch.set_num_threads(config.finetune.threads)
    run_config(config, folder)
    run = open_run(folder)
    costs, pretrained = run.result.task.graph.costs, config.pretrain
    (full,) = costs.macs([run.result.task.space.full])
    for structure in run.structures:
        finetune_run(run, only=[structure.name])
        scores = run.scores(structure)
        assert scores is not None
        candidate = [structure.candidate]
        row = {
            "method": WINNER if structure is run.winner else structure.name,
            "kind": "control",
            "budget": config.budget.macs,
            "seed": seed,
            "changes": [],
            "candidate": list(structure.candidate),
            "macs": int(costs.macs(candidate)[0]) / int(full),
            "params": int(costs.params(candidate)[0]),
            "before": scores["before"][run.metric],
            "after": scores["after"][run.metric],
            "images": len(run.result.task.data.test),
            "epochs": int(scores["recipe"]["epochs"]),
            "base_epochs": 0 if pretrained is None else pretrained.epochs,
            "machine": processors(),
        }
        results.add(row)
        sys.stderr.write(f"seed {seed}, {row['method']}: {100 * row['after']:.1f} %\n")


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the cells of the table: a line for every arm, its differences those of the same seeds."""
    winners = {row["seed"]: row["after"] for row in rows if row["method"] == WINNER}
    made: list[list[str]] = [[*_HEAD]]
    for name, words in ARMS.items():
        mine = [row for row in rows if row["method"] == name]
        if not mine:
            continue
        apart = [100 * (r["after"] - winners[r["seed"]]) for r in mine if r["seed"] in winners]
        ends = wilson(statistics.mean(r["after"] for r in mine), mine[0]["images"])
        epochs = mine[0]["epochs"]
        base = 0 if name in NEW_WEIGHTS else mine[0]["base_epochs"]
        work = statistics.mean(r["epochs"] * r["macs"] for r in mine) + base
        made.append(
            [
                name,
                words,
                str(len(mine)),
                cell([100 * r["macs"] for r in mine], 1),
                cell([100 * r["before"] for r in mine], 1),
                f"{cell([100 * r['after'] for r in mine], 1)} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]",
                "" if name == WINNER else cell(apart, 1),
                f"{base} + {epochs}" if base else str(epochs),
                f"{work:.0f}",
            ]
        )
    return made


def written(rows: Sequence[Row], network: str, readme: Path) -> str:
    """Returns the table as Markdown, and puts it into a README between the marks of the network."""
    head, *lines = ["| " + " | ".join(row) + " |" for row in table(rows)]
    text = "\n".join([head, "|" + " --- |" * len(_HEAD), *lines])
    start, end = f"<!-- {network} -->\n", f"<!-- end of {network} -->"
    if readme.exists():
        before, _, rest = readme.read_text().partition(start)
        inside, mark, after = rest.partition(end)
        if not mark:
            msg = f"{readme} has no lines {start.strip()} and {end}, between which the table goes"
            raise ConfigError(msg)
        del inside
        replace_file(readme, lambda path: path.write_text(f"{before}{start}{text}\n{end}{after}"))
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes what is missing, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS, nargs="?", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/controls"), help="folder of the runs"
    )
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results and table")
    parser.add_argument(
        "--anew", action="store_true", help="drops rows of other settings or versions"
    )
    parser.add_argument("--redraw", action="store_true", help="only makes the table")
    asked = parser.parse_args(arguments)
    try:
        results = Results(asked.results / f"{asked.network}.json", HELD)
        if not asked.redraw:
            results.begin(decided(HERE / f"{asked.network}.toml", asked.set), anew=asked.anew)
            for seed in asked.seeds:
                known = {row["method"] for row in results.rows if row["seed"] == seed}
                if not known >= {*ARMS}:
                    measure(asked.network, seed, asked.set, asked.runs, results)
        if not results.rows:
            msg = f"{results.file} has no rows yet; without --redraw they are made"
            raise ConfigError(msg)
        sys.stdout.write(f"{written(results.rows, asked.network, asked.results / 'README.md')}\n")
    except AbcSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
