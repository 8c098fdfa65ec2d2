"""What searchers cost in a space of 300 dimensions with 1000 choices each: `make bench-wide`."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

import numpy as np

from abcsearch import Budget, Dimension, Evaluation, SearchSpace, Trial, make_searcher
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.testing import ToyCosts


def row(name: str, space: SearchSpace, trials: int, seconds: float) -> str:
    """Returns a line of the table: processor times of one searcher, one structure at a time, at half the MACs."""
    searcher = make_searcher(name, space, Budget(macs=0.5).bind(space, ToyCosts()), seed=0)
    asking: list[float] = []
    telling: list[float] = []
    stop = time.monotonic() + seconds
    while len(asking) < trials and (not asking or time.monotonic() < stop):
        start = time.process_time()
        (candidate,) = searcher.ask(1)
        asked = time.process_time()
        # A hidden structure whose layers all keep 300 of 1000 channels: the searcher's work does not depend on it.
        fitness = -float(np.abs(np.array(candidate) - 300).mean())
        trial = Trial(len(asking), candidate, Evaluation(fitness=fitness))
        told = time.process_time()
        searcher.tell([trial])
        asking.append(asked - start)
        telling.append(time.process_time() - told)
    mean, longest, tell = (
        1000 * sum(asking) / len(asking),
        max(asking),
        1000 * sum(telling) / len(telling),
    )
    return f"| `{name}` | {len(asking)} | {mean:.0f} | {longest:.1f} | {tell:.1f} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimensions", type=int, default=300)
    parser.add_argument("--choices", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=100, help="of each searcher, at most")
    parser.add_argument(
        "--seconds", type=float, default=60, help="for each searcher, but one trial at least"
    )
    parser.add_argument(
        "searchers",
        nargs="*",
        default=[name for name in SEARCHERS if name not in ("given", "network_adjustment")],
    )
    given = parser.parse_args()
    choices = tuple(range(1, given.choices + 1))
    space = SearchSpace(
        tuple(Dimension(f"layer{i}", "width", choices) for i in range(given.dimensions))
    )
    head = (
        "| searcher | trials | ask, ms | longest ask, s | tell, ms |",
        "| --- | --- | --- | --- | --- |",
    )
    rows = (row(name, space, given.trials, given.seconds) for name in given.searchers)
    for line in itertools.chain(head, rows):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
