"""Our search beside its peers, Torch-Pruning and ModelOpt's FastNAS: one network, one calibration, one fine-tuning.

    python -m experiments.benchmarks.peers --name NETWORK --config CONFIG [--set key=value ...]
        [--methods fastnas torch_pruning-global-l2 ...] [--macs 0.5 0.3 0.2] [--seeds 0 1 2] [--images 8000]
        [--scored 2000] [--runs runs/bench-peers] [--results experiments/benchmarks/peers.json] [--anew]
    python -m experiments.benchmarks.peers --redraw   # the tables again, from the file of results

Methods are `fastnas` (with the widths of our space), `fastnas-default` (multiples of 32 channels, its own default),
`torch_pruning-SCOPE-CRITERION` (uniform or global; l1, l2 or group) and searchers of ours, with `+repair` or without.
A search of ours gets `--evaluations` evaluations for a budget, those of a map among them; FastNAS takes what its map
takes, once for all budgets, which stands in each of its rows; Torch-Pruning evaluates nothing. "before" is accuracy on
test images after batch-norm statistics are estimated anew, "after" that after the config's recipe for one epoch of
`--images` training images, without a warm-up. The seed draws the images that fitness sees, and everything random in
search and training. What is in the file of results is not measured again: a stopped call goes on. Rows of a network that
were measured by other settings or versions are refused with the difference (`--anew` drops them). A peer that is not
installed, or fails, is named with the reason.

    pip install torch-pruning nvidia-modelopt torchprofile==0.0.4 omegaconf pulp huggingface_hub regex
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scipy.stats import t as student

from abcsearch import SEARCHERS
from abcsearch.config import read_config
from abcsearch.errors import AbcSearchError, ConfigError
from experiments.benchmarks.criteria import Bench
from experiments.benchmarks.kept import Kept, decided, measured_with
from experiments.benchmarks.peer_methods import DEFAULT, KEY, measured, packages
from experiments.processes import at_least_one, side_by_side
from experiments.tables import cell, into_page

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from experiments.benchmarks.kept import Row

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
METHODS = (
    DEFAULT,
    "response_surface",
    "fastnas",
    "fastnas-default",
    *(
        f"torch_pruning-{scope}-{criterion}"
        for scope in ("uniform", "global")
        for criterion in ("l1", "l2", "group")
    ),
)
METHOD = re.compile(
    r"fastnas(-default)?|torch_pruning-(uniform|global)-(l1|l2|group)|"
    rf"({'|'.join(map(re.escape, SEARCHERS))})([+]repair)?"
)


def tables(rows: Sequence[Row]) -> str:
    """Returns the tables in Markdown, one for each network and budget."""
    lines: list[str] = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        whole = [row for row in mine if "skipped" not in row]
        of = f", full network {100 * whole[0]['full']:.1f} %" if whole else ""
        for macs in sorted({row["macs"] for row in mine}, reverse=True):
            lines += ["", f"**{name}, {macs:.0%} of the MACs**{of}", ""]
            lines += _table([row for row in mine if row["macs"] == macs])
    return "\n".join(lines).strip()


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of the table of one network and budget, and what could not be measured."""
    yield "| method | seeds | evaluations | search, CPU s | MACs, % | before, % | after, % | - ours |"
    yield "|---|---|---|---|---|---|---|---|"
    whole = [row for row in rows if "skipped" not in row]
    ours = {_paired(row): row["after"] for row in whole if row["method"] == DEFAULT}
    by_method: dict[tuple[str, int], list[Row]] = {}
    for row in whole:
        by_method.setdefault((row["method"], row["evaluations"]), []).append(row)
    for (method, _), mine in sorted(by_method.items(), key=lambda item: -_mean(item[1], "after")):
        paired = [row for row in mine if _paired(row) in ours]
        changes = [100 * (row["after"] - ours[_paired(row)]) for row in paired]
        cells = [
            f"`{method}`",
            str(len(mine)),
            f"{_mean(mine, 'scored'):.0f}",
            f"{_mean(mine, 'seconds'):.0f}",
            cell([100 * row["cost"] / row["of"] for row in mine], 1),
            cell([100 * row["before"] for row in mine], 1),
            cell([100 * row["after"] for row in mine], 1),
            "" if method == DEFAULT else _difference(changes),
        ]
        yield f"| {' | '.join(cells)} |"
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "skipped" in row:
            reasons.setdefault(row["skipped"], []).append(f"`{row['method']}`")
    for reason, methods in reasons.items():
        yield f"\n{', '.join(dict.fromkeys(methods))}: {reason}"


def _paired(row: Row) -> tuple[int, int]:
    """Returns what two rows have in common whose difference counts."""
    return row["evaluations"], row["seed"]


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _difference(changes: Sequence[float]) -> str:
    """Returns the mean of differences in points, seed by seed, with half of its 95 % interval by Student's t."""
    if not changes:
        return ""
    mean, count = statistics.mean(changes), len(changes)
    if count == 1:
        return f"{mean:+.1f}"
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(changes) / count**0.5
    return f"{mean:+.1f} ± {half:.1f}"


def read(file: Path) -> Kept:
    """Returns the rows of a file of results, none if it is not there.

    Raises:
        ConfigError: if it holds something else.
    """
    return Kept(
        file, KEY, ("name",), {"scored", "seconds", "cost", "of", "full", "before", "after"}
    )


def written(results: Kept) -> str:
    """Returns the tables and what they were measured with.

    Raises:
        ConfigError: if there are no rows.
    """
    rows = results.known()
    legend = f"Means over seeds ± standard deviation; difference to ours (`{DEFAULT}`), seed by seed, ± half of its 95"
    return (
        f"{tables(rows)}\n\n{legend} % interval (Student's t). One thread; {measured_with(rows)}."
    )


def _measure(arguments: argparse.Namespace, results: Kept) -> None:
    """Measures what is asked for and not in the file of results, which gets every row as it is known."""
    if wrong := [method for method in arguments.methods if not METHOD.fullmatch(method)]:
        msg = f"there is no method {wrong[0]!r}: fastnas, fastnas-default, torch_pruning-global-l1 and so on, or a searcher"
        raise ConfigError(f"{msg} of ours, with or without +repair")
    bench = Bench(
        config=read_config(arguments.config, arguments.set),
        images=arguments.images,
        scored=arguments.scored,
        trials=0,
        runs=arguments.runs,
    )
    shared = decided(arguments.config, arguments.set)
    shared |= {"images": arguments.images, "scored": arguments.scored}
    used = {package for method in arguments.methods for package in packages(method)}
    results.begin(arguments.name, shared, used, anew=arguments.anew)
    pieces = {}
    for seed in arguments.seeds:
        for macs in arguments.macs:
            for method in arguments.methods:
                key = (arguments.name, method, arguments.evaluations, macs, seed)
                if "skipped" in results.rows.get(key, {"skipped": ""}):
                    row: Row = dict(zip(KEY, key, strict=True))
                    pieces[" ".join(map(str, key))] = functools.partial(measured, bench, row)
    if pieces:
        side_by_side(pieces, arguments.workers, results.add)


def main() -> None:
    """Measures what is missing and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", help="of the network, in the table")
    parser.add_argument("--config", default="experiments/cifar10/resnet20.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of the config"
    )
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--evaluations", type=at_least_one, default=86)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=at_least_one, default=8000)
    parser.add_argument("--scored", type=at_least_one, default=2000)
    parser.add_argument("--workers", type=at_least_one, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-peers"))
    parser.add_argument("--results", type=Path, default=HERE / "peers.json")
    parser.add_argument("--anew", action="store_true", help="drops the network's rows first")
    parser.add_argument(
        "--redraw", action="store_true", help="only the tables of the results that are there"
    )
    arguments = parser.parse_args()
    try:
        results = read(arguments.results)
        if not arguments.redraw:
            if arguments.name is None:
                parser.error("--name says what the network is called in the table")
            _measure(arguments, results)
        text = written(results)
        sys.stdout.write(f"{text}\n")
        if arguments.results == HERE / "peers.json":
            into_page(PAGE, "peers", text)
    except AbcSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
