"""Does a fitness rank structures as fine-tuning would? Kendall's tau and top-5 recall of each, and what it costs.

    python -m experiments.benchmarks.fitness [--config experiments/digits/config.toml] [--seeds 0 1 2]
        [--structures 40] [--macs 0.05 0.4] [--fitness NAME ...] [--turns 2] [--workers 2] [--runs runs/bench-fitness]
        [--set key=value ...] [--results FILE]
    python -m experiments.benchmarks.fitness --redraw --results FILE   # the tables again, from the file of results
        [--truth FILE]   # of the first of the same structures, fine-tuned in another way, e.g. for longer

The base network of a config is trained (or loaded), random structures of some share of its MACs are fine-tuned with the
config's recipe, twice with different seeds, and scored on the test images: the mean is the truth. Every fitness sees
search-validation only, with the config's criterion. Criteria: the same structures, sliced, scored by the default
fitness and fine-tuned (once) with each. Where the config prepares something (`--set prepare=slimmable --criteria`), the
same structures are cut out of what is prepared, scored and fine-tuned from there.
Chosen: the truth of the structure of highest fitness.
± is the spread over seeds; of one seed, parentheses have 95 % intervals: the structures drawn anew with replacement.
Finished structures are kept in --runs; a stopped call goes on, also with more of them. What was found is written to
--results.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from abcsearch import (
    AdaptiveBN,
    AdaptiveBNOptions,
    Budget,
    Data,
    Sliced,
    Source,
    finetune,
    rank_channels,
    score,
    trace_channels,
    train,
)
from abcsearch.channels.criteria import CRITERIA as KNOWN_CRITERIA
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError, ConfigError, differences, unknown_name
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.files import replace_file
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.rng import numpy_stream, torch_stream
from abcsearch.runs.config_run import load_run_data
from abcsearch.runs.disk.weights import load_checkpoint
from abcsearch.runs.preparing import preparation_of
from abcsearch.runs.settings import RunConfig, to_plain
from abcsearch.runs.task import Task
from experiments.benchmarks.fitness_tables import METRICS, SCREEN, judged_by, report
from experiments.processes import at_least_one, side_by_side
from experiments.tables import processors, versions

DRAWS = 1000  # for each structure wanted, before the band is said to hold too few
CRITERIA = ("l1", "random", "l2", "bn_gamma", "fpgm", "taylor")
SCORED: dict[str, tuple[str, dict[str, Any]]] = {
    "as sliced": ("adaptive_bn", {"calibration_images": 0}),
    "AdaptiveBN, 128 images": ("adaptive_bn", {"calibration_images": 128, "batch_size": 128}),
    "AdaptiveBN, 512 images": ("adaptive_bn", {"calibration_images": 512, "batch_size": 128}),
    "AdaptiveBN, 512 images, not repaired": (
        "adaptive_bn",
        {"calibration_images": 512, "batch_size": 128, "repair": "none"},
    ),
    "AdaptiveBN, 512 images, repaired layer by layer": (
        "adaptive_bn",
        {"calibration_images": 512, "batch_size": 128, "repair": "sequential"},
    ),
    "AdaptiveBN, 1024 images": ("adaptive_bn", {"calibration_images": 1024, "batch_size": 128}),
    "AdaptiveBN, 1024 images, batch 32": (
        "adaptive_bn",
        {"calibration_images": 1024, "batch_size": 32},
    ),
    "short training, 20 steps": ("short_training", {"steps": 20, "batch_size": 64}),
    "short training, 1 epoch": ("short_training", {"epochs": 1, "batch_size": 64}),
    "short training, 2 epochs": ("short_training", {"epochs": 2, "batch_size": 64}),
    "short training, 2 epochs, lr 0.005": (
        "short_training",
        {"epochs": 2, "batch_size": 64, "lr": 0.005},
    ),
    "short training, 2 epochs, lr 0.05": (
        "short_training",
        {"epochs": 2, "batch_size": 64, "lr": 0.05},
    ),
    "short training, 4 epochs": ("short_training", {"epochs": 4, "batch_size": 64}),
}


@dataclass(frozen=True, eq=False, kw_only=True)  # equal to itself alone: a config has no hash
class Part:
    """The structures of one seed with one criterion.

    Attributes:
        config: network, data, space and recipe.
        seed: of the base network, the split, the structures and the fine-tuning.
        criterion: ranks channels; fitnesses other than `AdaptiveBN` are for the config's alone.
        structures: how many.
        macs: lowest and highest share of the full network's.
        turns: how often each is fine-tuned.
        scored: names in `SCORED`.
    """

    config: RunConfig
    seed: int
    criterion: str
    structures: int
    macs: tuple[float, float]
    turns: int
    scored: tuple[str, ...]


class Bench:
    """What all structures of a part are built from, and scored with."""

    def __init__(self, section: Part) -> None:
        """Loads the data, and trains or loads the base network."""
        self.config = config = replace(section.config, seed=section.seed)
        self.data = load_run_data(config)
        self.model = config.model.build(section.seed).eval()
        graph = trace_channels(self.model, self.data.example)
        self.candidates = structures(section, graph)  # before training, for there may be too few
        if config.model.checkpoint is not None:
            load_checkpoint(self.model, config.model.checkpoint)
        elif config.pretrain is not None:
            train(
                self.model, self.data.train, config.pretrain, seed=section.seed, stream="pretrain"
            )
        self.model.eval()
        order = torch.randperm(
            len(self.data.train), generator=torch_stream(section.seed, "ranking images")
        )
        chosen = self.data.train.part(order[:256]).loaded()
        ranking = rank_channels(
            self.model,
            graph,
            section.criterion,
            data=(chosen.images, chosen.labels),
            seed=section.seed,
        )
        self.costs = graph.costs
        source = Sliced(self.model, graph, ranking)
        if config.prepare is not None:
            source = prepared_source(
                replace(config, criterion=section.criterion), source, self.data
            )
        self.builder = AdaptiveBN(source, self.data, AdaptiveBNOptions(calibration_images=1024))
        # neg_kl as the metric: the others come with it.
        common = {
            "metric": "neg_kl",
            "precision": config.evaluator.options.get("precision", "float32"),
        }
        self.evaluators = {
            name: make_evaluator(SCORED[name][0], source, self.data, **common, **SCORED[name][1])
            for name in section.scored
        }
        self.full = score(self.model, self.data.test)["top1"]


def prepared_source(config: RunConfig, source: Sliced, data: Data) -> Source:
    """Returns where candidates come from after a config's preparation, with its weights trained now."""
    space = config.space.of(source.graph, config.criteria)
    constraint = config.budget.bind(space, source.graph.costs)
    task = Task(source=source, data=data, space=space, constraint=constraint, settings=config)
    preparation = preparation_of(config)
    preparation.check(task)
    return run_preparation(preparation, task, Trainer(data.train, config.seed)).source


_benches: dict[tuple[int, str, int], Bench] = {}  # the last one of this process


def bench(section: Part) -> Bench:
    """Returns what a part needs, made once per process."""
    key = section.seed, section.criterion, section.structures
    if key not in _benches:
        _benches.clear()
        _benches[key] = Bench(section)
    return _benches[key]


def structures(section: Part, graph: Any) -> list[tuple[int, ...]]:  # noqa: ANN401 - a graph
    """Returns random structures inside the shares of MACs, the same for every criterion; of more, these come first.

    Raises:
        ConfigError: if the network has too few of them.
    """
    options = section.config.space
    space = graph.space(
        options.alpha, options.step, options.levels, options.divisor, options.lowest
    )
    constraint = Budget(macs=section.macs).bind(space, graph.costs)
    draws = numpy_stream(section.seed, "structures")
    drawn: dict[tuple[int, ...], None] = {}
    for _ in range(DRAWS * section.structures):
        drawn[constraint.repair(space.sample(draws), draws)] = None
        if len(drawn) == section.structures:
            return list(drawn)
    msg = f"--structures {section.structures}: {len(drawn)} found with --macs {section.macs[0]} {section.macs[1]}; widen it"
    raise ConfigError(msg)


def measured(section: Part, number: int) -> dict[str, Any]:
    """Returns truth (turns,), macs, and metrics and seconds by fitness, of one structure; also `full`'s score."""
    torch.set_num_threads(1)
    prepared = bench(section)
    candidate = prepared.candidates[number]
    record: dict[str, Any] = {
        "full": prepared.full,
        "macs": int(prepared.costs.macs([candidate])[0]),
        "fitness": {},
    }
    for name, evaluate in prepared.evaluators.items():
        start = time.process_time()
        metrics = evaluate(candidate, number).metrics
        record["fitness"][name] = {"metrics": dict(metrics), "seconds": time.process_time() - start}
    record["truth"] = [
        finetune(
            prepared.builder.build(candidate),
            prepared.data,
            prepared.config.finetune,
            seed=section.seed + 1000 * turn,
        ).after["top1"]
        for turn in range(section.turns)
    ]
    return record


def keep(section: Part, number: int, file: Path) -> None:
    """Measures a structure, and writes what was found."""
    text = json.dumps(measured(section, number))
    replace_file(file, lambda path: path.write_text(text))


def gathered(files: list[Path]) -> dict[str, Any]:
    """Returns a part: truth (structures, turns), macs, and (values, seconds per structure) of every fitness."""
    each = [_read(file) for file in files]
    fitness = {
        f"{name}: {metric}": (
            [record["fitness"][name]["metrics"][metric] for record in each],
            statistics.mean(record["fitness"][name]["seconds"] for record in each),
        )
        for name in each[0]["fitness"]
        for metric in METRICS
    }
    return {key: [record[key] for record in each] for key in ("macs", "truth")} | {
        "full": each[0]["full"],
        "fitness": fitness,
    }


def _read(file: Path) -> Any:  # noqa: ANN401 - whatever it holds
    """Returns what a file of this benchmark holds.

    Raises:
        ConfigError: if it is damaged.
    """
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        msg = f"{file} is damaged ({error}); restore it, or delete it and it is made again"
        raise ConfigError(msg) from error


def _machine(seeds: list[int]) -> str:
    """Returns what it was measured with."""
    made_with = f"Python {platform.python_version()}, {versions('torch')}"
    return (
        f"Seeds {', '.join(map(str, seeds))}; {processors()}, one thread per process; {made_with}"
    )


def main() -> None:
    """Makes what is missing, writes the results and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="experiments/digits/config.toml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--criterion-seeds",
        type=int,
        default=2,
        help="how many of the seeds criteria get besides the config's",
    )
    parser.add_argument("--structures", type=at_least_one, default=40)
    parser.add_argument(
        "--macs", type=float, nargs=2, default=[0.05, 0.4], help="lowest and highest share"
    )
    parser.add_argument(
        "--turns", type=at_least_one, default=2, help="how often each structure is fine-tuned"
    )
    parser.add_argument(
        "--fitness", nargs="+", choices=SCORED, default=list(SCORED), metavar="NAME"
    )
    parser.add_argument(
        "--criteria", nargs="*", default=list(CRITERIA), help="besides the config's"
    )
    parser.add_argument("--workers", type=at_least_one, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-fitness"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config"
    )
    parser.add_argument(
        "--results", type=Path, help="file of results; default: results.json in --runs"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="only print the tables of the results that are there"
    )
    parser.add_argument(
        "--truth", type=Path, help="other results, whose fine-tuning is taken for the truth"
    )
    arguments = parser.parse_args()
    file = arguments.results or arguments.runs / "results.json"
    if file.is_dir():
        parser.error(f"--results is a file, found the folder {file}")
    try:
        # What is wrong with it is said first
        truth = None if arguments.truth is None else results(arguments.truth)
        if not arguments.redraw:
            criteria = measure(arguments)
            record = {"machine": _machine(arguments.seeds), "criteria": criteria}
            replace_file(file, lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
        record = results(file)
        if truth is not None:
            record = judged_by(record, truth)
        sys.stdout.write(report(record) + "\n")
    except AbcSearchError as error:
        sys.exit(f"error: {error}")


def results(file: Path) -> dict[str, Any]:
    """Returns what a file of results holds.

    Raises:
        ConfigError: if it is missing or damaged, or holds something else.
    """
    if not file.is_file():
        msg = f"{file} does not exist, or is a folder; a call without --redraw makes it"
        raise ConfigError(msg)
    record = _read(file)
    criteria = record.get("criteria") if isinstance(record, dict) else None
    if not (isinstance(criteria, dict) and criteria and "machine" in record):
        msg = f"{file} holds something else than results of this benchmark"
        raise ConfigError(msg)
    return record


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Makes what is missing; returns by criterion what was found with each seed.

    Raises:
        AbcSearchError: if an argument or a file is wrong.
    """
    config = read_config(arguments.config, arguments.set)
    # Says what is wrong with it before a base network is trained
    Budget(macs=tuple(arguments.macs))
    for name in arguments.criteria:
        if name not in KNOWN_CRITERIA:
            raise ConfigError(unknown_name("criterion", name, KNOWN_CRITERIA))
    # The first one is what criteria are compared by
    scored = list(dict.fromkeys([SCREEN, *arguments.fitness]))
    settings = arguments.runs / "settings.json"
    now = {
        "config": to_plain(config),
        "fitness": scored,
        "macs": arguments.macs,
        "turns": arguments.turns,
    }
    before = _read(settings) if settings.exists() else now
    if others := differences(before, now):
        sys.exit(
            f"{arguments.runs} holds other measurements: {'; '.join(others)}; give another --runs"
        )
    replace_file(settings, lambda path: path.write_text(json.dumps(now)))
    usual = config.criteria[0]
    names = list(dict.fromkeys([usual, *arguments.criteria]))
    parts = [
        Part(
            config=config,
            seed=seed,
            criterion=criterion,
            structures=arguments.structures,
            macs=tuple(arguments.macs),
            turns=arguments.turns if criterion == usual else 1,
            scored=tuple(scored if criterion == usual else (SCREEN,)),
        )
        for criterion in names
        for seed in arguments.seeds[: None if criterion == usual else arguments.criterion_seeds]
    ]
    files = {
        section: [
            arguments.runs / f"{section.seed}-{section.criterion}-{n}.json"
            for n in range(section.structures)
        ]
        for section in parts
    }
    pieces = {
        str(file): functools.partial(keep, section, number, file)
        for section in parts
        for number, file in enumerate(files[section])
        if not file.exists()
    }
    side_by_side(pieces, arguments.workers)
    return {
        name: [gathered(paths) for section, paths in files.items() if section.criterion == name]
        for name in names
    }


if __name__ == "__main__":
    main()
