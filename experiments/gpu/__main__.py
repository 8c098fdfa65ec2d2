"""What only a GPU shows, in ten minutes: results are written after every step, and a stopped call goes on.

    python -m experiments.gpu --data FOLDER --weights FILE [--minutes 10] [--only STEP ...] [--set key=value ...]
        [--runs runs/gpu] [--results experiments/gpu]
    python -m experiments.gpu --redraw   # the page again, from the file of results
    python -m experiments.gpu --tiny     # a rehearsal on the CPU, small and short, all of it in runs/gpu-tiny

In this order: tests that need a GPU; evaluations per second with 1, 2, 4 and 8 workers on one device, in float32 and
bf16; ABCPruner's published setting for ResNet-56, with the time of search and fine-tuning; searchers on ResNet-56. A
step that takes longer than its share of the time is stopped as by Ctrl-C, keeps what it has, and goes on with the next
call; what is left of a share is the next step's. A step that fails says why in its table, and the next one begins.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from abcsearch.errors import AbcSearchError, ConfigError
from experiments.gpu.limits import Limit
from experiments.gpu.page import page
from experiments.gpu.results import Results, common
from experiments.gpu.steps import STEPS, Setting
from experiments.tables import into_page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
REHEARSED = Path("runs/gpu-tiny")  # where rehearsals leave runs and results: no rows of the page
TINY = Setting(
    device="cpu",
    workers=(1, 2),
    evaluations=4,
    network="resnet20",
    tests=("tests/channels/test_gates.py", "-m", "gpu"),
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="images of CIFAR-10: a folder, or an npz file")
    parser.add_argument("--weights", type=Path, help="weights of ResNet-56 for them")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all steps together")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--runs", type=Path, help="default: runs/gpu, with --tiny runs/gpu-tiny")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of results and page; default: experiments/gpu, with --tiny runs/gpu-tiny",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="of configs of searches"
    )
    parser.add_argument("--redraw", action="store_true", help="only writes the page")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU")
    arguments = parser.parse_args()
    arguments.runs = arguments.runs or (REHEARSED if arguments.tiny else Path("runs/gpu"))
    arguments.results = arguments.results or (REHEARSED if arguments.tiny else HERE)
    return arguments


def _setting(arguments: argparse.Namespace) -> Setting:
    """Returns what is measured, after a look at whether it can be.

    Raises:
        ConfigError: if there is no GPU, or a file is missing.
    """
    if not arguments.tiny and not torch.cuda.is_available():
        msg = "this machine has no GPU of CUDA; --tiny rehearses on the CPU"
        raise ConfigError(msg)
    for option in ("data", "weights"):
        path = getattr(arguments, option)
        if path is not None and not path.exists():
            msg = f"--{option} {path} is not there"
            raise ConfigError(msg)
    changed = {
        "data": arguments.data,
        "weights": arguments.weights,
        "runs": arguments.runs,
        "given": tuple(arguments.set),
    }
    return Setting(**{**vars(TINY), **changed}) if arguments.tiny else Setting(**changed)


def measure(
    setting: Setting,
    results: Results,
    seconds: float,
    only: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Goes through the steps that are not complete, and keeps every row as soon as it is known.

    Args:
        setting: what is measured.
        results: takes the rows.
        seconds: for all steps together.
        only: names of steps; all, if empty.
        clock: returns seconds.

    Raises:
        ConfigError: if results of other settings or machines are there.
    """
    results.begin(common(setting))
    due = [step for step in only or STEPS if not results.complete(step)]
    whole = Limit(clock() + seconds, clock)
    for step in due:
        share, run = STEPS[step]
        # A step that is asked for alone has all the time
        limit = whole.within(seconds * share) if len(due) > 1 else whole
        if limit.over:
            sys.stderr.write(f"{step}: no time is left; the same command goes on\n")
            continue
        try:
            for row in run(setting, limit, results.known(step)):
                results.add(step, row)
                sys.stderr.write(f"{step}: {row}\n")
        except Exception as error:  # noqa: BLE001 - whatever it is, the other steps go on
            cause = " ".join(str(error).split()) or repr(error)
            sys.stderr.write(f"{step}: failed: {cause}\n")


def main() -> None:
    """Measures what is missing, and writes the page."""
    arguments = _arguments()
    try:
        results = Results(arguments.results / "results.json")
        if not arguments.redraw:
            measure(_setting(arguments), results, 60 * arguments.minutes, arguments.only or ())
        text = page(results)
        into_page(arguments.results / "README.md", "results", text)
        sys.stdout.write(f"{text}\n")
    except AbcSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
