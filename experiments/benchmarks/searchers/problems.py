"""What is searched: tasks by name, each a space, a budget, an evaluator, and the truth that runs are scored by."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abcsearch.budget import Budget, Constraint
from abcsearch.evaluation.base import Evaluator
from abcsearch.evaluation.tabular import Tabular
from abcsearch.space import Candidate, SearchSpace
from experiments.benchmarks.searchers import landscapes
from experiments.benchmarks.searchers.landscapes import LAYOUTS, Landscape

TABLE = "nats_sss.csv.gz"
DATASETS = ("cifar10", "cifar100", "imagenet16")
TUNING = "cifar10"  # the data set that searchers may be tuned on
SHARES = {"free": None, "75": 0.75, "50": 0.5, "25": 0.25}  # of the largest network's MACs
LANDSCAPE_SHARES = ("50", "25")
_FINAL, _TUNING = 0, 1000  # seeds of the landscapes of the final table, and of those for tuning

TABLE_TASKS = tuple(f"{dataset}-{share}" for dataset in DATASETS for share in SHARES)
LANDSCAPE_TASKS = tuple(f"landscape{n}-{share}" for n in LAYOUTS for share in LANDSCAPE_SHARES)
TUNING_TASKS = (
    *(task for task in TABLE_TASKS if task.startswith(f"{TUNING}-")),
    *(f"tuning-{task}" for task in LANDSCAPE_TASKS),
)


@dataclass(frozen=True)
class Problem:
    """One task.

    Attributes:
        space: the structures.
        constraint: the budget.
        evaluator: what a searcher sees.
        truth: accuracy without noise, in [0, 1]: what a run is scored by.
        optimum: the best truth inside the budget, in [0, 1]; None where only a long search can tell (landscapes).
        landscape: the landscape; None for a table.
    """

    space: SearchSpace
    constraint: Constraint
    evaluator: Evaluator
    truth: Callable[[Candidate], float]
    optimum: float | None = None
    landscape: Landscape | None = None


def is_table(task: str) -> bool:
    """Returns whether a task looks accuracies up in the table."""
    return task.partition("-")[0] in DATASETS


@functools.lru_cache(maxsize=None)
def problem(task: str, data: Path) -> Problem:
    """Returns a task by name.

    Args:
        task: of TABLE_TASKS, LANDSCAPE_TASKS or TUNING_TASKS.
        data: the folder with the table.

    Raises:
        DataError: if the table cannot be read.
    """
    name, _, share = task.removeprefix("tuning-").rpartition("-")
    if is_table(task):
        table = _table(data / TABLE, name)
        constraint = _constraint(table.space, table.costs, SHARES[share])
        return Problem(
            table.space, constraint, table, lambda c: table(c, 0).fitness or 0.0, optimum=table.optimum(constraint)
        )
    landscape = _landscape(int(name.removeprefix("landscape")), _TUNING if task.startswith("tuning-") else _FINAL)
    constraint = _constraint(landscape.space, landscape, SHARES[share])
    return Problem(
        landscape.space, constraint, landscape, lambda c: float(landscape.truth([c])[0]), landscape=landscape
    )


_table = functools.lru_cache(maxsize=None)(Tabular.read)
_landscape = functools.lru_cache(maxsize=None)(Landscape)


def _constraint(space: SearchSpace, costs: object, share: float | None) -> Constraint:
    """Returns the budget of a share of the MACs; without one, everything is allowed, and costs are known all the same."""
    if share is None:
        return Constraint(space, (), costs)
    return Budget(macs=share).bind(space, costs)


@functools.lru_cache(maxsize=None)
def fingerprint(task: str, data: Path) -> int:
    """Returns a number that changes when the table or the formula of the landscapes does."""
    source = data / TABLE if is_table(task) else Path(landscapes.__file__)
    return zlib.crc32(source.read_bytes())


def climb(task: str, data: Path, restarts: int = 4, kicks: int = 40) -> float:
    """Returns the best accuracy without noise that a long search finds on a landscape; nobody knows the optimum.

    Iterated local search that sees the truth and the costs: the best single change or pair of changes (one up, one
    down, by any number of choices for the first) until none helps; then some random changes and again, kept if it is
    no worse; from several starts.

    Args:
        task: of LANDSCAPE_TASKS or their tuning variants.
        data: not used.
        restarts: random starts.
        kicks: random changes after each.
    """
    found = problem(task, data)
    rng = np.random.default_rng(zlib.crc32(task.encode()))
    best = 0.0
    for _ in range(restarts):
        here = found.space.indices(found.constraint.repair(found.space.sample(rng), rng))
        here, value = _local(found, here)
        for _ in range(kicks):
            there = here.copy()
            for dimension in rng.choice(len(there), size=4, replace=False):
                there[dimension] = rng.integers(found.space.last_indices[dimension] + 1)
            repaired = found.constraint.repair(found.space.at(there), rng)
            there, reached = _local(found, found.space.indices(repaired))
            if reached >= value:
                here, value = there, reached
        best = max(best, value)
    return best


def _local(found: Problem, here: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the local optimum that steepest ascent reaches from choice positions, and its truth."""
    value = found.truth(found.space.at(here))
    n = len(here)
    unit = np.eye(n, dtype=np.int64)
    singles = np.concatenate([unit, -unit])
    ups, downs = np.nonzero(~np.eye(n, dtype=bool))
    pairs = unit[ups] - unit[downs]
    moves = np.concatenate([singles, pairs, unit[ups] - 2 * unit[downs], 2 * unit[ups] - unit[downs]])
    while True:
        rows = here + moves
        rows = rows[((rows >= 0) & (rows <= found.space.last_indices)).all(axis=1)]
        values = found.space.values(rows)
        inside = found.constraint.violation(values) == 0
        rows, truths = rows[inside], found.landscape.truth(values[inside])
        if not len(rows) or truths.max() <= value:
            return here, value
        here, value = rows[int(truths.argmax())], float(truths.max())
