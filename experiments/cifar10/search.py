"""Runs the searches behind the tables of experiments/cifar10, fine-tunes what they find, and prints a table.

    python -m experiments.cifar10.search searchers [--network resnet20] [--seeds 0 1 2] [--workers 2]
        [--runs runs/cifar10] [--set key=value ...]
    python -m experiments.cifar10.search ways
    python -m experiments.cifar10.search divisors
    python -m experiments.cifar10.search searchers --redraw   # the table again, from the file of results

`searchers`: one fitness, every searcher. `ways`: as ABCPruner was published, and step by step as it is by default here.
`divisors`: any widths, and multiples of 8.
What was found is added to NETWORK.json beside this file as soon as it is known, and not searched again; `--results
FOLDER` begins another such file. Every search is a run folder of its own, so that a stopped call goes on where it was;
`abcsearch status FOLDER --watch` shows one that is under way, `abcsearch report` one that has ended. `random`
fine-tunes the full network and uniform widths as well, which all others are compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from scipy.stats import kendalltau

from abcsearch import rank_channels, slice_model, trace_channels
from abcsearch.channels.latency import forward_times
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError, ConfigError, unknown_name
from abcsearch.files import replace_file
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.forward import BATCHES, measure_forward
from abcsearch.results.open_run import FinishedRun, Structure, open_run
from abcsearch.runs.config_run import LoadedOnce, run_config
from abcsearch.runs.settings import RunConfig
from experiments.processes import at_least_one, side_by_side
from experiments.tables import (
    cell,
    check_onnx,
    in_onnxruntime,
    machine_of,
    processors,
    versions,
    with_base,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import nn

HERE = Path(__file__).parent
PUBLISHED = (
    "criterion=random",
    "evaluator=short_training",
    "evaluator.repair=none",
    "evaluator.scoring=full",
    "evaluator.epochs=2",
    "evaluator.lr=0.01",
    "evaluator.shift=4",
    "evaluator.flip=true",
    "evaluator.fresh_norms=true",
)
BEES, FILTER = "searcher=bee_colony", 'space.levels=["filter"]'
FEW = (
    "n_trials=10"  # as published, 200 would take half a day on a core; on a GPU: --set n_trials=200
)
# By table: what each run changes in the config. What is in both is searched once.
# Chooses among the structures that the published ways have
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "searchers": {
        "random": ("searcher=random",),
        "bee_colony": (BEES,),
        "evolution": ("searcher=evolution",),
        "ddpg": ("searcher=ddpg",),
        "optuna_tpe": ("searcher=optuna",),
        "greedy": ("searcher=greedy",),
        "response_surface": (),
    },
    "ways": {
        "published": (BEES, *PUBLISHED, FILTER, FEW),
        "published_inherited": (BEES, *PUBLISHED, "evaluator.fresh_norms=false", FILTER, FEW),
        "adaptive_bn_filter_few": (BEES, FILTER, FEW),
        "adaptive_bn_filter": (BEES, FILTER),
        "bee_colony": (BEES,),
        "response_surface": (),
    },
    "divisors": {
        "response_surface": (),
        "divisor_8": ("space.divisor=8",),
    },
}
ALWAYS = ("full", "uniform")  # what all are compared with
DIFFERENCES = ("uniform", "random")  # columns: how much better a network of the same seed is
COMPARED = {"random": ALWAYS}  # which run fine-tunes it
# Of a row
EXPECTED = {"name", "seed", "changes", "machine", "candidate", "macs", "params", "before", "after"}
ORDER = list(dict.fromkeys([*ALWAYS, *(name for variants in TABLES.values() for name in variants)]))
CHANGES = {
    change for variants in TABLES.values() for changes in variants.values() for change in changes
}
_SECONDS = 20.0  # for timing all networks with one size of batch
Row = dict[str, Any]  # what is known of one network of one seed


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


def run(job: Job) -> list[Row]:
    """Searches and fine-tunes, and returns what came of it; what is in the run folder already is left alone."""
    load = _loader(job.seed)
    run_config(
        with_base(job.config(), job.folder.with_name(f"base-{job.seed}"), load),
        job.folder,
        load=load,
    )
    finished = open_run(job.folder, load=load)
    finetune_run(finished, only=[finished.winner.name, *COMPARED.get(job.name, ())])
    common = {
        "seed": job.seed,
        "changes": list(job.changes),
        "machine": "; ".join(machine_of(job.folder)),
    }
    rows = []
    for structure in finished.structures:
        scores = finished.scores(structure)
        if scores is not None:
            mine = structure == finished.winner
            result = _searched(finished) if mine else {}
            name = job.name if mine else structure.name
            rows.append({"name": name, **common, **_network(finished, structure, scores), **result})
    return rows


@functools.lru_cache(maxsize=1)
def _loader(_seed: int) -> LoadedOnce:
    """Returns what loads data; searches with one seed share them."""
    return LoadedOnce()


def _network(finished: FinishedRun, structure: Structure, scores: dict[str, Any]) -> Row:
    """Returns what is known of a network that was fine-tuned."""
    costs = finished.result.task.graph.costs
    return {
        "candidate": list(structure.candidate),
        "macs": int(costs.macs([structure.candidate])[0]),
        "params": int(costs.params([structure.candidate])[0]),
        "before": scores["before"]["top1"],
        "after": scores["after"]["top1"],
        "losses": scores["losses"],
    }


def _searched(finished: FinishedRun) -> Row:
    """Returns what is known of a search."""
    best, trials = finished.result.best, finished.result.trials
    seconds = statistics.median(trial.evaluation.seconds for trial in trials)
    return {
        "trials": len(trials),
        "fitness": best.fitness,
        "best_trial": best.number,
        "seconds": seconds,
    }


class Results:
    """The networks that are known, in a file: each is a row."""

    def __init__(self, file: Path) -> None:
        """Reads the file, if it is there.

        Raises:
            ConfigError: if it holds something else.
        """
        self._file = file
        self.timed_on: str = ""
        self.rows: list[Row] = []
        self._read()

    def missing(self, jobs: list[Job]) -> list[Job]:
        """Returns the jobs whose network is not known.

        Raises:
            ConfigError: if it is, and was searched with other settings.
        """
        known = {(row["name"], row["seed"]): row["changes"] for row in self.rows}
        for job in jobs:
            changes = known.get((job.name, job.seed), list(job.changes))
            if sorted(changes) != sorted(job.changes):
                was, now = (" ".join(texts) or "no changes" for texts in (changes, job.changes))
                msg = (
                    f"{self._file} has {job.name} with seed {job.seed}, searched with {was}, now {now}: "
                    "begin other results with --results and --runs"
                )
                raise ConfigError(msg)
        return [job for job in jobs if (job.name, job.seed) not in known]

    def add(self, rows: list[Row]) -> None:
        """Adds networks and writes the file; they replace those of the same name and seed.

        Raises:
            ConfigError: if the file cannot be written, or was damaged meanwhile.
        """
        new = {(row["name"], row["seed"]) for row in rows}
        with self._changed():
            self.rows = sorted(
                [*(row for row in self.rows if (row["name"], row["seed"]) not in new), *rows],
                key=lambda row: (row["seed"], ORDER.index(row["name"])),
            )

    def measure(self, config: RunConfig) -> None:
        """Measures the forward times of all networks, which take turns, and writes the file."""
        model, example = config.model.build(config.seed).eval(), torch.zeros(1, 3, 32, 32)
        graph = trace_channels(model, example)
        ranking = rank_channels(model, graph)
        known = {tuple(row["candidate"]) for row in self.rows}
        networks = [slice_model(model, graph, candidate, ranking) for candidate in known]
        times = dict(zip(known, _times(networks, example), strict=True))
        with self._changed():
            for row in self.rows:
                # All but what another call has added meanwhile
                if tuple(row["candidate"]) in times:
                    row["ms"] = times[tuple(row["candidate"])]
            self.timed_on = f"{processors()}, {versions('torch', 'onnxruntime')}"

    @contextlib.contextmanager
    def _changed(self) -> Iterator[None]:
        """Reads the file, for other calls may have added to it, and writes it after the block."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._file.with_name(f".{self._file.name}.lock")):
                self._read()
                yield
                text = json.dumps({"timed on": self.timed_on, "rows": self.rows}, indent=1) + "\n"
                replace_file(self._file, lambda path: path.write_text(text))
        except OSError as error:
            msg = f"{self._file} cannot be written: {error}"
            raise ConfigError(msg) from error

    def _read(self) -> None:
        if not self._file.exists():
            return
        try:
            read = json.loads(self._file.read_text())
            self.timed_on, self.rows = read["timed on"], read["rows"]
            if not all(row.keys() >= EXPECTED and row["name"] in ORDER for row in self.rows):
                msg = "a row is not that of a network"
                raise ValueError(msg)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{self._file} is damaged ({error!r}); restore it, or begin other results with --results"
            raise ConfigError(msg) from error


def _times(networks: list[nn.Module], example: torch.Tensor) -> list[dict[str, float]]:
    """Returns the median forward times of networks in milliseconds: in PyTorch, and as ONNX files on a CPU."""
    by_network = [
        {time.where: time.median_ms for time in measured}
        for measured in measure_forward(networks, example, threads=1)
    ]
    files = in_onnxruntime(networks, example)
    for batch in BATCHES:
        times = forward_times(files, example.repeat(batch, 1, 1, 1), threads=1, seconds=_SECONDS)
        for known, new in zip(by_network, times, strict=True):
            known[f"ONNX, batch {batch}"] = statistics.median(new)
    return by_network


def table(rows: list[Row], names: Iterable[str]) -> str:
    """Returns the table of some networks in Markdown: mean and standard deviation over seeds."""
    known: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        known[row["name"]][row["seed"]] = row
    batches = list(dict.fromkeys(batch for row in rows for batch in row.get("ms", ())))
    head = ["network", "seeds", "MACs, M", "params, k", *(f"ms, {batch}" for batch in batches)]
    head += [
        "trials",
        "s per trial",
        "search, min",
        "fitness, %",
        "test before, %",
        "test after, %",
    ]
    baselines = [name for name in DIFFERENCES if name in known]
    head += [f"after - {baseline}" for baseline in baselines]
    lines = [head, ["---"] * len(head)]
    for name in (name for name in names if name in known):
        many = list(known[name].values())
        cells = [name, str(len(many))]
        cells += [
            _cell([row["macs"] / 1e6 for row in many]),
            _cell([row["params"] / 1e3 for row in many], 0),
        ]
        cells += [_cell([row["ms"][batch] for row in many if "ms" in row]) for batch in batches]
        cells += _costs(many) if "trials" in many[0] else [""] * 4
        cells += [_cell([100 * row[when] for row in many]) for when in ("before", "after")]
        for baseline in baselines:
            compared = known[baseline] if name not in (*ALWAYS, baseline) else {}
            cells.append(
                _cell(
                    [
                        100 * (row["after"] - compared[row["seed"]]["after"])
                        for row in many
                        if row["seed"] in compared
                    ]
                )
            )
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _costs(many: list[Row]) -> list[str]:
    """Returns the cells of a searcher's searches: trials, seconds, minutes, fitness."""
    # Medians, also over seeds: a search that was stopped, or shared its machine, has trials that waited.
    seconds, trials = statistics.median_low(row["seconds"] for row in many), many[0]["trials"]
    return [
        str(trials),
        f"{seconds:.2f}",
        f"{trials * seconds / 60:.1f}",
        _cell([100 * row["fitness"] for row in many]),
    ]


def agreement(rows: list[Row]) -> list[str]:
    """Returns a line on how far fitness ranks what the searchers found as fine-tuning does; none if there are few."""
    pairs: dict[int, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        if row["name"] in TABLES["searchers"] and "fitness" in row:
            pairs[row["seed"]][row["name"]] = row["fitness"], row["after"]
    pairs = {seed: by_name for seed, by_name in sorted(pairs.items()) if len(by_name) > 2}
    if not pairs:
        return []
    taus, seeds = (
        ", ".join(f"{_tau(by_name):.2f}" for by_name in pairs.values()),
        ", ".join(map(str, pairs)),
    )
    line = f"Kendall's tau of the searchers' fitness with test accuracy after fine-tuning: {taus} (seed {seeds})"
    common = set.intersection(*map(set, pairs.values()))
    if len(pairs) > 1 and len(common) > 2:
        means = {
            name: tuple(np.mean([by_name[name] for by_name in pairs.values()], axis=0))
            for name in common
        }
        line += f"; of their means over seeds: {_tau(means):.2f}"
    return [f"{line}."]


def _tau(pairs: Mapping[str, tuple[float, ...]]) -> float:
    """Returns Kendall's tau of what is known of networks by name, as pairs."""
    return kendalltau(*zip(*pairs.values(), strict=True)).statistic


def footer(rows: list[Row], timed_on: str) -> str:
    """Returns how far fitness agrees with what it stands for, and where and with what the searches of a table ran."""
    lines = [*agreement(rows), *([f"Forward times: {timed_on}."] if timed_on else [])]
    machines: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in rows:
        given = [change for change in row["changes"] if change not in CHANGES]
        machines[row["machine"], f" with {' '.join(given)}" if given else ""].add(row["seed"])
    for (machine, given), seeds in machines.items():
        lines.append(f"Searches, seed {', '.join(map(str, sorted(seeds)))}{given}: {machine}.")
    return "\n".join(lines)


def _cell(values: list[float], digits: int = 2) -> str:
    """Returns mean and standard deviation; where all are equal, the value; of none, nothing."""
    return cell(values if len(set(values)) > 1 else values[:1], digits) if values else ""


def main() -> None:
    """Makes what is missing, writes the results and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--only", nargs="+", help="names of searches; default: all of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--workers", type=at_least_one, default=2, help="searches side by side, one thread each"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--results", type=Path, default=HERE, help="folder of the file of results")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="only print the table, of what is there"
    )
    arguments = parser.parse_args()
    file = arguments.results / f"{arguments.network}.json"
    variants = TABLES[arguments.table]
    names = arguments.only or list(variants)
    if unknown := [name for name in names if name not in variants]:
        parser.error(unknown_name("search", unknown[0], variants))
    try:
        results = Results(file)
        jobs = [
            Job(arguments.network, name, seed, (*variants[name], *arguments.set), arguments.runs)
            for seed in arguments.seeds
            for name in names
        ]
        configs = [job.config() for job in jobs]  # a mistake is said before anything is searched
        jobs = [] if arguments.redraw else results.missing(jobs)
        if not arguments.redraw:
            check_onnx()
            results.add([])  # a file that cannot be written is said now
            for job in jobs:
                sys.stderr.write(f"to do: {job.folder}\n")
            side_by_side(
                {str(job.folder): functools.partial(run, job) for job in jobs},
                arguments.workers,
                results.add,
            )
            results.measure(configs[0])
    except AbcSearchError as error:
        sys.exit(f"error: {error}")
    names = [*ALWAYS, *names]
    rows = [row for row in results.rows if row["seed"] in arguments.seeds and row["name"] in names]
    if not rows:
        sys.exit(f"{file} has no such networks yet; without --redraw they are searched")
    sys.stdout.write(f"{table(rows, names)}\n\n{footer(rows, results.timed_on)}\n")


if __name__ == "__main__":
    main()
