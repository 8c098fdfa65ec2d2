"""Every method of the survey on one network: equal epochs, one recipe; rows are kept, and drawn as table and picture.

    python -m experiments.survey digits [--budgets 0.5 0.3] [--seeds 0 1 2] [--only METHOD ...] [--set key=value ...]
        [--runs runs/survey] [--results experiments/survey] [--anew]
    python -m experiments.survey digits --controls   # scratch_e, scratch_b and rewound of the three best
    python -m experiments.survey digits --times      # forward times in ONNX Runtime of the rows of the first seed
    python -m experiments.survey digits --redraw     # table and picture again, from the file of results
    python -m experiments.survey --list

Every row is a search in a run folder of its own, whose winner is fine-tuned; of all methods, epochs before the search
and after it add up to those of the config. What is in NETWORK.json is not run again: a stopped call goes on. Methods
that do not apply are named with the reason. `experiments/survey/methods.py` says what each method changes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from abcsearch.errors import AbcSearchError, ConfigError
from abcsearch.runs.config_run import LoadedOnce
from experiments.survey.drawing import best_three, draw, written
from experiments.survey.measuring import Job, forward_shares, measured
from experiments.survey.methods import CONTROLS, METHODS, named
from experiments.survey.results import Results, decided
from experiments.tables import check_onnx, with_base

HERE = Path(__file__).parent
NETWORKS = ("digits", "resnet20")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS, nargs="?", default="digits")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.5, 0.3], help="shares of the MACs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--only", nargs="+", metavar="METHOD", help="names of methods; default: all"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="of the config, for all rows",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/survey"))
    parser.add_argument(
        "--results", type=Path, default=HERE, help="folder of results, table and picture"
    )
    parser.add_argument(
        "--anew", action="store_true", help="drops rows of other settings or versions"
    )
    parser.add_argument(
        "--controls", action="store_true", help="also the controls of the three best methods"
    )
    parser.add_argument(
        "--times", action="store_true", help="also forward times of the first seed's rows"
    )
    parser.add_argument("--redraw", action="store_true", help="only draws what is there")
    parser.add_argument("--list", action="store_true", help="names the methods")
    return parser.parse_args()


def run_missing(results: Results, jobs: list[Job]) -> None:
    """Runs the jobs that are missing, one after the other."""
    due = results.missing(jobs)
    for number, job in enumerate(due, 1):
        row = measured(job)
        results.add(row)
        said = row.get("skipped") or f"{100 * row['before']:.1f} -> {100 * row['after']:.1f} %"
        sys.stderr.write(f"{number}/{len(due)} {job.name}: {said}\n")


def _jobs(
    arguments: argparse.Namespace, names: list[str], budgets: list[float], seeds: list[int]
) -> list[Job]:
    """Returns a job for each name, budget and seed; all of a seed together."""
    file, given = HERE / f"{arguments.network}.toml", tuple(arguments.set)
    return [
        Job(file, named(name), budget, seed, given, arguments.runs)
        for seed in seeds
        for budget in budgets
        for name in names
    ]


def _measure(arguments: argparse.Namespace, results: Results) -> None:
    """Runs what is asked for."""
    results.begin(decided(HERE / f"{arguments.network}.toml", arguments.set), anew=arguments.anew)
    names = arguments.only or [method.name for method in METHODS]
    run_missing(results, _jobs(arguments, names, arguments.budgets, arguments.seeds))
    if arguments.controls:
        for budget in arguments.budgets:
            controls = [
                f"{control} of {name}"
                for name in best_three(results.rows, budget)
                for control in CONTROLS
            ]
            run_missing(results, _jobs(arguments, controls, [budget], arguments.seeds))
    if arguments.times:
        check_onnx()
        _times(arguments, results)


def _times(arguments: argparse.Namespace, results: Results) -> None:
    """Measures forward times of the first seed's rows that have none."""
    seed = min(arguments.seeds)
    rows = [
        row for row in results.rows if row["seed"] == seed and row["budget"] in arguments.budgets
    ]
    rows = [row for row in rows if not {"skipped", "forward"} & {*row}]
    candidates = list(dict.fromkeys(tuple(row["candidate"]) for row in rows))
    (job,), load = _jobs(arguments, ["uniform"], [max(arguments.budgets)], [seed]), LoadedOnce()
    config = with_base(job.config(), job.folder.with_name(f"base-{seed}"), load)
    for shares in forward_shares(config, load, candidates):
        for row in rows:
            if tuple(row["candidate"]) in shares:
                results.add({**row, "forward": shares[tuple(row["candidate"])]})


def main() -> None:
    """Makes what is missing, then the table and the picture."""
    arguments = _arguments()
    if arguments.list:
        sys.stdout.writelines(
            f"{m.name} ({m.kind}): {' '.join(m.changes)} {m.lacking}\n" for m in METHODS
        )
        return
    try:
        results = Results(arguments.results / f"{arguments.network}.json")
        if not arguments.redraw:
            _measure(arguments, results)
        if not results.rows:
            msg = f"{results.file} has no rows yet; without --redraw they are made"
            raise ConfigError(msg)
        sys.stdout.write(f"{written(results, arguments.results / 'README.md')}\n")
        draw(results, results.file.with_suffix(".png"))
    except AbcSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
