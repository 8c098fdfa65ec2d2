"""Which channels to keep, and whether to repair what reads them: what each criterion is worth on one network.

    python -m experiments.benchmarks.criteria --name NETWORK --config CONFIG [--set key=value ...]
        [--criteria l1 reader_l2 ...] [--repairs none one_shot sequential] [--macs 0.5 0.3] [--structures 20]
        [--tuned 0] [--searches] [--seeds 0] [--trials 100] [--images 8000] [--scored 2000] [--workers 2]
        [--runs runs/bench-criteria] [--results experiments/benchmarks/criteria.json]
    python -m experiments.benchmarks.criteria --redraw   # the tables again, from the file of results

For each share of the MACs: random structures, the same for all criteria, scored on test images as AdaptiveBN leaves
them ("before"); the first `--tuned` of them also after the config's recipe for one epoch of `--images` training images
("after"), without a warm-up. With `--searches`: the winner of a search by response_surface with each criterion and
repair, likewise. What is in the file of results is not measured again: a stopped call goes on. Rows of structures, or
of searches, of a network that were measured by other settings or versions are refused with the difference (`--anew`
drops those of what is asked for). ± is the spread over structures, of winners over seeds; tau is Kendall's, of accuracy
before with accuracy after.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import kendalltau

from abcsearch import (
    AdaptiveBN,
    AdaptiveBNOptions,
    Budget,
    Data,
    Ranking,
    Sliced,
    finetune,
    rank_channels,
    score,
    search,
    trace_channels,
    train,
)
from abcsearch.channels.criteria import CRITERIA
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError
from abcsearch.evaluation.options import REPAIRS
from abcsearch.rng import numpy_stream, torch_stream
from abcsearch.runs.config_run import load_run_data
from abcsearch.runs.disk.weights import load_checkpoint
from abcsearch.runs.settings import RunConfig
from experiments.benchmarks.kept import PACKAGES, Kept, decided, installed, measured_with, stamped
from experiments.processes import at_least_one, side_by_side
from experiments.tables import cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.benchmarks.kept import Row

HERE = Path(__file__).parent
FULL = {"scoring": "full", "finalists": 0}  # what the tables were measured with
KEY = ("name", "kind", "macs", "criterion", "repair", "seed", "number")  # what a row is of
KINDS = {"common": "structures", "search": "searches"}  # of rows, in the page's words


@dataclass(frozen=True, eq=False, kw_only=True)
class Bench:
    """One network, and how its structures are scored.

    Attributes:
        config: network, data, space, recipe.
        images: training images of the recipe's epoch.
        scored: test images.
        trials: of a search.
        runs: folder of searches.
    """

    config: RunConfig
    images: int
    scored: int
    trials: int
    runs: Path


class Loaded:
    """What the structures of a bench are built from."""

    def __init__(self, bench: Bench) -> None:
        """Loads the data, and trains or loads the network."""
        config = bench.config
        data = load_run_data(config)
        self.model = config.model.build(config.seed).eval()
        if config.model.checkpoint is not None:
            load_checkpoint(self.model, config.model.checkpoint)
        elif config.pretrain is not None:
            train(self.model, data.train, config.pretrain, seed=config.seed, stream="pretrain")
        self.model.eval()
        self.graph = trace_channels(self.model, data.example)
        test = torch.randperm(len(data.test), generator=torch_stream(0, "scored"))[: bench.scored]
        self.data: Data = replace(data, test=data.test.part(test.sort().values).loaded())
        order = torch.randperm(len(data.train), generator=torch_stream(0, "tuned"))[: bench.images]
        self.few: Data = replace(self.data, train=data.train.part(order.sort().values).loaded())
        self.full = score(self.model, self.data.test)["top1"]
        self._rankings: dict[str, tuple[Ranking, float]] = {}

    def ranking(self, criterion: str) -> tuple[Ranking, float]:
        """Returns the ranking by a criterion, and the seconds that it took."""
        if criterion not in self._rankings:
            order = torch.randperm(
                len(self.data.train), generator=torch_stream(0, "ranking images")
            )
            chosen = self.data.train.part(order[:256]).loaded()
            start = time.process_time()
            ranking = rank_channels(
                self.model, self.graph, criterion, data=(chosen.images, chosen.labels)
            )
            self._rankings[criterion] = ranking, time.process_time() - start
        return self._rankings[criterion]


_loaded: dict[str, Loaded] = {}  # the last one of this process


def loaded(bench: Bench) -> Loaded:
    """Returns what a bench needs, made once per process."""
    key = repr(bench)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = Loaded(bench)
    return _loaded[key]


def marked(bench: Bench, row: Row, packages: Sequence[str]) -> str:
    """Returns the name of the folder of a row's runs: another one for other settings, weights, images or versions."""
    config = bench.config
    records = (config.model, config.data, config.pretrain, config.space, config.finetune)
    deciding = (*records, config.seed, bench.images, bench.scored, installed(packages))
    return f"{row['name']}-{zlib.crc32(repr(deciding).encode()):08x}"


def common(bench: Bench, row: Row, *, tuned: bool) -> Row:
    """Returns a row of one of the structures that all criteria share."""
    torch.set_num_threads(1)
    it = loaded(bench)
    options = bench.config.space
    space = it.graph.space(
        options.alpha, options.step, options.levels, options.divisor, options.lowest
    )
    constraint = Budget(macs=(0.9 * row["macs"], row["macs"])).bind(space, it.graph.costs)
    draws = numpy_stream(row["seed"], "structures", row["number"])
    candidate = constraint.repair(space.sample(draws), draws)
    ranking, seconds = it.ranking(row["criterion"])
    options = AdaptiveBNOptions(repair=row["repair"])
    network = AdaptiveBN(Sliced(it.model, it.graph, ranking), it.data, options).build(candidate)
    worth = _scored(bench, it, network, candidate, tuned=tuned)
    return stamped({**row, "seconds": seconds, **worth})


def searched(bench: Bench, row: Row) -> Row:
    """Returns a row of the winner of a search."""
    torch.set_num_threads(1)
    it = loaded(bench)
    folder = "-".join(str(row[key]) for key in ("name", "macs", "criterion", "repair", "seed"))
    result = search(
        it.model,
        it.data,
        budget=Budget(macs=row["macs"]),
        n_trials=bench.trials,
        searcher="response_surface",
        evaluator={
            "name": "adaptive_bn",
            "repair": row["repair"],
            "validation_images": 1000,
            **FULL,
        },
        criterion=row["criterion"],
        space=bench.config.space,
        seed=row["seed"],
        run_dir=bench.runs / marked(bench, row, PACKAGES) / folder,
    )
    worth = _scored(bench, it, result.model(), result.best.candidate, tuned=True)
    return stamped({**row, "fitness": result.best.fitness, **worth})


def _scored(
    bench: Bench,
    it: Loaded,
    network: Any,  # noqa: ANN401
    candidate: tuple[int, ...],
    *,
    tuned: bool,
) -> Row:
    """Returns accuracy before and after training, and what else is known of a network."""
    recipe = replace(bench.config.finetune, epochs=1, warmup_epochs=0.0)
    after = finetune(network, it.few, recipe, seed=0).after["top1"] if tuned else None
    macs = int(it.graph.costs.macs([candidate])[0])
    before = score(network, it.data.test)["top1"]
    return {
        "candidate": list(candidate),
        "cost": macs,
        "full": it.full,
        "before": before,
        "after": after,
    }


def _full(rows: Sequence[Row]) -> str:
    """Returns the accuracy of the full network in words, on the test images that rows of each kind are scored on."""
    shares = {row["kind"]: f"{100 * row['full']:.1f} %" for row in rows}
    return ", ".join(f"{shares[kind]} ({KINDS[kind]})" for kind in KINDS if kind in shares)


def table(rows: Sequence[Row]) -> str:
    """Returns the tables in Markdown: of every network and share."""
    lines: list[str] = []
    for name, macs in dict.fromkeys((row["name"], row["macs"]) for row in rows):
        mine = [row for row in rows if (row["name"], row["macs"]) == (name, macs)]
        lines += [
            "",
            f"**{name}**, {macs:.0%} of the MACs, full network {_full(mine)}",
            "",
        ]
        lines += [
            "| criterion | repair | before | after | tau | winner before | winner after | seconds |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        kinds: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(
            lambda: {"common": [], "search": []}
        )
        for row in mine:
            kinds[row["criterion"], row["repair"]][row["kind"]].append(row)
        order = sorted(kinds, key=lambda key: (REPAIRS.index(key[1]), list(CRITERIA).index(key[0])))
        lines += [f"| {' | '.join((*key, *_cells(**kinds[key])))} |" for key in order]
    return "\n".join(lines)


def _cells(common: list[Row], search: list[Row]) -> list[str]:
    """Returns the cells of a line."""
    tuned = [row for row in common if row["after"] is not None]
    columns = [[row["before"] for row in common], [row["after"] for row in tuned]]
    winners = [[row["before"] for row in search], [row["after"] for row in search]]
    texts = [
        cell([100 * value for value in values], 1) if values else ""
        for values in (*columns, *winners)
    ]
    tau = ""
    if len(tuned) > 2:
        tau = f"{kendalltau([row['before'] for row in tuned], [row['after'] for row in tuned]).statistic:.2f}"
    seconds = [row["seconds"] for row in common]
    return [*texts[:2], tau, *texts[2:], f"{statistics.median(seconds):.1f}" if seconds else ""]


def _wanted(arguments: argparse.Namespace) -> list[tuple[Row, bool]]:
    """Returns what is asked for: rows without results, and whether each is tuned."""
    wanted: list[tuple[Row, bool]] = []
    for macs in arguments.macs:
        for criterion in arguments.criteria:
            for repair in arguments.repairs:
                both = {
                    "name": arguments.name,
                    "macs": macs,
                    "criterion": criterion,
                    "repair": repair,
                }
                for number in range(arguments.structures):
                    row = {**both, "kind": "common", "seed": 0, "number": number}
                    wanted.append((row, number < arguments.tuned))
                if arguments.searches:
                    wanted += [
                        ({**both, "kind": "search", "seed": seed, "number": 0}, True)
                        for seed in arguments.seeds
                    ]
    return wanted


def read(file: Path) -> Kept:
    """Returns the rows of a file of results, none if it is not there.

    Raises:
        ConfigError: if it holds something else.
    """
    return Kept(file, KEY, ("name", "kind"), {"candidate", "cost", "full", "before", "after"})


def written(results: Kept) -> str:
    """Returns the tables and what they were measured with.

    Raises:
        ConfigError: if there are no rows.
    """
    rows = results.known()
    return f"{table(rows)}\n\nOne thread; {measured_with(rows)}."


def measure(arguments: argparse.Namespace, results: Kept) -> None:
    """Measures what is asked for and not in the file of results, which gets every row as it is known.

    Raises:
        ConfigError: if rows by other settings or versions are there, and are not dropped.
    """
    bench = Bench(
        config=read_config(arguments.config, arguments.set),
        images=arguments.images,
        scored=arguments.scored,
        trials=arguments.trials,
        runs=arguments.runs,
    )
    wanted = _wanted(arguments)
    shared = decided(arguments.config, arguments.set)
    shared |= {"images": arguments.images, "scored": arguments.scored}
    more = {"common": {}, "search": {"trials": arguments.trials}}
    for kind, name in {row["kind"]: results.kind(row) for row, _ in wanted}.items():
        results.begin(name, shared | more[kind], PACKAGES, anew=arguments.anew)
    pieces = {}
    for row, tuned in wanted:
        before = results.rows.get(results.key(row))
        if before is None or (tuned and before["after"] is None):
            work = functools.partial(searched, bench, row)
            if row["kind"] == "common":
                work = functools.partial(common, bench, row, tuned=tuned)
            pieces[" ".join(str(value) for value in results.key(row))] = work
    if pieces:
        side_by_side(pieces, arguments.workers, results.add)


def main() -> None:
    """Measures what is missing and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", help="of the network, in the tables")
    parser.add_argument("--config", default="experiments/digits/config.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config"
    )
    parser.add_argument("--criteria", nargs="+", default=["l1", "reader_l2"], choices=CRITERIA)
    parser.add_argument("--repairs", nargs="+", default=["none", "one_shot"], choices=REPAIRS)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--structures", type=int, default=20)
    parser.add_argument(
        "--tuned", type=int, default=0, help="how many of the structures are trained"
    )
    parser.add_argument("--searches", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of searches")
    parser.add_argument("--trials", type=at_least_one, default=100)
    parser.add_argument("--images", type=at_least_one, default=8000)
    parser.add_argument("--scored", type=at_least_one, default=2000)
    parser.add_argument("--workers", type=at_least_one, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-criteria"))
    parser.add_argument("--results", type=Path, default=HERE / "criteria.json")
    parser.add_argument("--anew", action="store_true", help="drops the network's rows first")
    parser.add_argument(
        "--redraw", action="store_true", help="only print the tables of the results that are there"
    )
    arguments = parser.parse_args()
    if not arguments.redraw and arguments.name is None:
        parser.error("--name says what the network is called in the tables")
    try:
        results = read(arguments.results)
        if not arguments.redraw:
            measure(arguments, results)
        sys.stdout.write(f"{written(results)}\n")
    except AbcSearchError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
