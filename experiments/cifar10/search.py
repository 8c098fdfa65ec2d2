"""Runs the searches behind the tables of experiments/cifar10, fine-tunes what they find, and prints a table.

    python -m experiments.cifar10.search searchers [--network resnet20] [--seeds 0 1 2] [--workers 2]
        [--runs runs/cifar10] [--set key=value ...]
    python -m experiments.cifar10.search ways
    python -m experiments.cifar10.search searchers --redraw   # the table again, from the file of results

`searchers`: one fitness, every searcher. `ways`: one searcher; as ABCPruner was published, and step by step as it is by
default here. Every search is a run folder of its own, so that a stopped call goes on where it was; `abcsearch report`
shows each. What was found is written to NETWORK-TABLE.json beside this file.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError, unknown_name
from abcsearch.files import replace_file
from abcsearch.runs.configured import LoadedOnce, run_config
from abcsearch.runs.finetuning import finetune_run
from abcsearch.runs.finished import FinishedRun, open_run
from abcsearch.runs.forward import measure_forward
from abcsearch.runs.settings import RunConfig
from experiments.tables import cell, machine_of

HERE = Path(__file__).parent
PUBLISHED = (
    "criterion=random",
    "evaluator=short_training",
    "evaluator.epochs=2",
    "evaluator.lr=0.01",
    "evaluator.shift=4",
    "evaluator.flip=true",
    "evaluator.fresh_norms=true",
    "evaluator.precision=bf16",
)
FILTER = 'space.levels=["filter"]'
# As published, an evaluation trains for two epochs: 200 would take half a day on a core. On a GPU: --set n_trials=200.
FEW = "n_trials=10"
# By table: what each run changes in the config. `bee_colony` is in both, and searched once.
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "searchers": {
        "random": ("searcher=random",),
        "bee_colony": (),
        "evolution": ("searcher=evolution",),
        "ddpg": ("searcher=ddpg",),
        "optuna_tpe": ("searcher=optuna",),
        "greedy": ("searcher=greedy",),
        "response_surface": ("searcher=response_surface",),
    },
    "ways": {
        "published": (*PUBLISHED, FILTER, FEW),
        "published_inherited": (*PUBLISHED, "evaluator.fresh_norms=false", FILTER, FEW),
        "adaptive_bn_filter": (FILTER,),
        "bee_colony": (),
    },
}
COMPARED = {"random": ("full", "uniform")}  # which run fine-tunes what all are compared with


@dataclass(frozen=True)
class Job:
    """One search with one seed."""

    network: str
    name: str
    seed: int
    changes: tuple[str, ...]
    runs: Path

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.runs / self.network / f"{self.name}-{self.seed}"

    def config(self) -> RunConfig:
        """Returns its settings."""
        baselines = json.dumps(["uniform"] if self.name in COMPARED else [])
        changes = [f"seed={self.seed}", f"baselines={baselines}", *self.changes]
        return read_config(HERE / f"{self.network}.toml", changes)


def run(job: Job) -> Path:
    """Searches and fine-tunes; what is done already is left alone."""
    run_config(job.config(), job.folder, load=_loader(job.seed))
    found = open_run(job.folder, load=_loader(job.seed))
    finetune_run(found, only=[found.winner.name, *COMPARED.get(job.name, ())])
    return job.folder


@functools.lru_cache(maxsize=1)
def _loader(_seed: int) -> LoadedOnce:
    """Returns what loads data; searches with one seed share them."""
    return LoadedOnce()


def measured(jobs: list[Job]) -> dict[str, dict[str, Any]]:
    """Returns the networks of one seed by name; forward times are measured in turns."""
    rows: dict[str, dict[str, Any]] = {}
    networks = []
    for job in jobs:
        found = open_run(job.folder, load=_loader(job.seed))
        for structure in found.structures:
            scores = found.scores(structure)
            if scores is None:
                continue
            own = structure == found.winner
            rows[job.name if own else structure.name] = _row(found, structure.candidate, scores, searched=own)
            networks.append(found.network(structure, tuned=False))
    times = measure_forward(networks, found.result.task.data.example, threads=1)
    for row, own in zip(rows.values(), times, strict=True):
        row["ms"] = {time.where: time.median_ms for time in own}
    return rows


def _row(found: FinishedRun, candidate: tuple[int, ...], scores: dict[str, Any], *, searched: bool) -> dict[str, Any]:
    """Returns what is known of one network."""
    task, trials = found.result.task, found.result.trials
    row = {
        "candidate": list(candidate),
        "macs": int(task.graph.costs.macs([candidate])[0]),
        "params": int(task.graph.costs.params([candidate])[0]),
        "before": scores["before"]["top1"],
        "after": scores["after"]["top1"],
        "losses": scores["losses"],
    }
    if searched:
        best, seconds = found.result.best, statistics.median(trial.evaluation.seconds for trial in trials)
        row |= {"trials": len(trials), "fitness": best.fitness, "best_trial": best.number, "seconds": seconds}
    return row


def table(seeds: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Returns the table in Markdown: mean and standard deviation over seeds."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for own in seeds.values():
        for name, row in own.items():
            rows[name].append(row)
    batches = list(dict.fromkeys(batch for many in rows.values() for row in many for batch in row["ms"]))
    head = ["network", "seeds", "MACs, M", "params, k", *(f"ms, {batch}" for batch in batches)]
    head += ["trials", "s per trial", "search, min", "fitness, %", "test before, %", "test after, %", "after - uniform"]
    lines = [head, ["---"] * len(head)]
    order = ("full", "uniform")
    for name in sorted(rows, key=lambda name: order.index(name) if name in order else len(order)):
        many = rows[name]
        cells = [
            name,
            str(len(many)),
            _cell([r["macs"] / 1e6 for r in many]),
            _cell([r["params"] / 1e3 for r in many], 0),
        ]
        cells += [_cell([row["ms"][batch] for row in many]) for batch in batches]
        if name in order:
            cells += [""] * 4
        else:
            # Medians, also over seeds: a search that was stopped, or shared its machine, has trials that waited.
            seconds, trials = statistics.median_low(row["seconds"] for row in many), many[0]["trials"]
            cells += [str(trials), f"{seconds:.2f}", f"{trials * seconds / 60:.1f}"]
            cells.append(_cell([100 * row["fitness"] for row in many]))
        cells += [_cell([100 * row[when] for row in many]) for when in ("before", "after")]
        gains = [
            100 * (own[name]["after"] - own["uniform"]["after"])
            for own in seeds.values()
            if {name, "uniform"} <= set(own)
        ]
        cells.append(_cell(gains) if gains and name not in order else "")
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(values: list[float], digits: int = 2) -> str:
    """Returns mean and standard deviation; where all are equal, the value."""
    return cell(values if len(set(values)) > 1 else values[:1], digits)


def main() -> None:
    """Makes what is missing, writes the results and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--only", nargs="+", help="names of searches; default: all of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="searches side by side, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--results", type=Path, default=HERE, help="folder of the file of results")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="of the config")
    parser.add_argument("--redraw", action="store_true", help="only print the table of the results that are there")
    arguments = parser.parse_args()
    file = arguments.results / f"{arguments.network}-{arguments.table}.json"
    if not arguments.redraw:
        variants = TABLES[arguments.table]
        try:
            jobs = [
                Job(arguments.network, name, seed, (*variants[name], *arguments.set), arguments.runs)
                for seed in arguments.seeds
                for name in arguments.only or variants
            ]
            for job in jobs:
                job.config()  # a mistake is said before anything is searched
        except KeyError as error:
            parser.error(unknown_name("search", error.args[0], variants))
        except AbcSearchError as error:
            sys.exit(f"error: {error}")
        with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
            tasks = {pool.submit(run, job): job for job in jobs}
            for task in as_completed(tasks):
                sys.stderr.write(f"{tasks[task].folder}: {task.exception() or 'done'}\n")
        if any(task.exception() for task in tasks):
            sys.exit("what failed is named above; the same command goes on")
        seeds = {str(seed): measured([job for job in jobs if job.seed == seed]) for seed in arguments.seeds}
        machine = "; ".join(machine_of(jobs[0].folder))
        text = json.dumps({"machine": machine, "seeds": seeds}, indent=1) + "\n"
        replace_file(file, lambda path: path.write_text(text))
    if not file.exists():
        sys.exit(f"{file} does not exist; without --redraw it is made")
    found = json.loads(file.read_text())
    sys.stdout.write(f"{table(found['seeds'])}\n\n{found['machine']}; seeds {', '.join(found['seeds'])}.\n")


if __name__ == "__main__":
    main()
