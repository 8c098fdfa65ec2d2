"""The best accuracy that a long search finds on a landscape: nobody knows the optimum, so regret is against this."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.rng import numpy_stream
from experiments.benchmarks.searchers.problems import problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.benchmarks.searchers.problems import Problem

_POPULATION = 300


def oracle(task: str, data: Path, restarts: int = 3, generations: int = 500) -> float:
    """Returns the best accuracy without noise that was found, in [0, 1].

    It sees what no searcher sees: the truth, as often as it likes (about half a million times). Evolution (uniform
    crossover, mutation of every place with probability 2 / n_dims, the better half survives, structures outside the
    budget behind all that are inside), then steepest ascent over all single steps and all pairs of steps, one up and
    one down by one or two choices, until none helps; the best of some restarts.

    Args:
        task: a landscape of problems.
        data: not used by landscapes.
        restarts: independent populations.
        generations: of each.
    """
    solved = problem(task, data)
    rng = numpy_stream(zlib.crc32(task.encode()), "oracle")
    return max(_ascent(solved, _evolution(solved, generations, rng)) for _ in range(restarts))


def _score(solved: Problem, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns what evolution ranks by: accuracy inside the budget, minus the violation outside; (n,) float64.

    Args:
        solved: the problem.
        rows: (n, n_dims) choice positions.
    """
    values = solved.space.values(rows)
    violation = solved.constraint.violation(values)
    return np.where(violation > 0, -violation, solved.truths(values))


def _evolution(solved: Problem, generations: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns the choice positions of the best structure of a long evolution, (n_dims,)."""
    last = solved.space.last_indices
    shape = (_POPULATION, len(last))
    rows = rng.integers(last + 1, size=shape)
    scores = _score(solved, rows)
    for _ in range(generations):
        # A small space has fewer structures
        fathers, mothers = rows[rng.integers(len(rows), size=(2, _POPULATION))]
        children = np.where(rng.random(shape) < 0.5, fathers, mothers)
        drawn = np.where(
            rng.random(shape) < 0.5,
            rng.integers(last + 1, size=shape),
            children + rng.choice([-1, 1], shape),
        )
        children = np.where(rng.random(shape) < 2 / len(last), np.clip(drawn, 0, last), children)
        rows = np.concatenate([rows, children])
        scores = np.concatenate([scores, _score(solved, children)])
        _, first = np.unique(rows, axis=0, return_index=True)  # copies would soon be all there is
        best = first[np.argsort(-scores[first], kind="stable")[:_POPULATION]]
        rows, scores = rows[best], scores[best]
    return rows[0]


def _ascent(solved: Problem, here: NDArray[np.int64]) -> float:
    """Returns the accuracy of the local optimum that steepest ascent reaches from some choice positions."""
    value = float(_score(solved, here[None])[0])
    unit = np.eye(len(here), dtype=np.int64)
    ups, downs = np.nonzero(~unit.astype(bool))
    steps = [up * unit[ups] - down * unit[downs] for up, down in ((1, 1), (1, 2), (2, 1))]
    moves = np.concatenate([unit, -unit, *steps])
    while True:
        rows = here + moves
        rows = rows[((rows >= 0) & (rows <= solved.space.last_indices)).all(axis=1)]
        scores = _score(solved, rows)
        if scores.max() <= value:
            return value
        here, value = rows[int(scores.argmax())], float(scores.max())
