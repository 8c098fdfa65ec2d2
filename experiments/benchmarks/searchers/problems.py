"""What is searched: tasks by name, each a space, a budget, an evaluator, and the truth that runs are scored by."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from abcsearch.budget import Budget, Constraint, Costs
from abcsearch.evaluation.base import Evaluator
from abcsearch.evaluation.tabular import Tabular
from abcsearch.space import SearchSpace
from experiments.benchmarks.searchers import landscapes
from experiments.benchmarks.searchers.landscapes import LAYOUTS, Landscape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

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
        truths: (n, n_dims) structures to (n,) accuracies without noise, in [0, 1]: what runs are scored by.
        optimum: the best truth inside the budget, in [0, 1]; None where only a long search can tell (`oracle`).
    """

    space: SearchSpace
    constraint: Constraint
    evaluator: Evaluator
    truths: Callable[[ArrayLike], NDArray[np.float64]]
    optimum: float | None = None


def is_table(task: str) -> bool:
    """Returns whether a task looks accuracies up in the table."""
    return task.partition("-")[0] in DATASETS


@functools.cache
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
        return Problem(table.space, constraint, table, table.fitness, table.optimum(constraint))
    landscape = _landscape(
        int(name.removeprefix("landscape")), _TUNING if task.startswith("tuning-") else _FINAL
    )
    constraint = _constraint(landscape.space, landscape, SHARES[share])
    return Problem(landscape.space, constraint, landscape, landscape.truths)


_table = functools.cache(Tabular.read)
_landscape = functools.cache(Landscape)


def _constraint(space: SearchSpace, costs: Costs, share: float | None) -> Constraint:
    """Returns the budget of a share of the MACs; without one everything is allowed, with costs known all the same."""
    if share is None:
        return Constraint(space, (), costs)
    return Budget(macs=share).bind(space, costs)


@functools.cache
def fingerprint(task: str, data: Path) -> int:
    """Returns a number that changes when the table or the formula of the landscapes does."""
    source = data / TABLE if is_table(task) else Path(landscapes.__file__)
    return zlib.crc32(source.read_bytes())
