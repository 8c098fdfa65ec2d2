"""What the charts of fitness, costs and widths show."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.reporting.history import SearchHistory
    from abcsearch.trial import Trial

SHOWN = 3000  # points of one search that a chart shows at most
_SHARE, _LEAST, _MOST = 0.05, 10, 100  # of the trials, in the chart of the best


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One width or block of the structures.

    Attributes:
        name: of the channel group or block.
        level: "filter", "stage", "block", "rank", or "" where it is not known.
        full: its value in the full network; where that is not known the largest that a trial had.
    """

    name: str
    level: str
    full: int


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Fitness of one search over its trials.

    Attributes:
        name: of the search.
        numbers: of the trials, ascending.
        fitness: of each; None for a failed one.
        best: the highest fitness so far; None before the first success.
    """

    name: str
    numbers: tuple[int, ...] = field(repr=False)
    fitness: tuple[float | None, ...] = field(repr=False)
    best: tuple[float | None, ...] = field(repr=False)


def fitness_curve(search: SearchHistory) -> Curve:
    """Returns the fitness of a search over its trials, with the best so far."""
    fitness = [trial.fitness for trial in search.trials]
    best = np.maximum.accumulate(np.array(fitness)).tolist() if fitness else []
    return Curve(
        name=search.name,
        numbers=tuple(trial.number for trial in search.trials),
        fitness=tuple(map(_known, fitness)),
        best=tuple(map(_known, best)),
    )


def _known(value: float) -> float | None:
    """Returns a fitness, or None for that of a failed trial."""
    return None if math.isinf(value) else value


def thinned(count: int, always: Sequence[int] = ()) -> list[int]:
    """Returns which places of a sequence are drawn: all if they are few, else evenly spread ones and some for certain.

    Args:
        count: length of the sequence.
        always: places that stay.
    """
    if count <= SHOWN:
        return list(range(count))
    spread = np.linspace(0, count - 1, SHOWN).round().astype(int).tolist()
    return sorted({*spread, *always})


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A network that is named in the chart of costs.

    Attributes:
        name: full, uniform, random, or the searcher's.
        fitness: on search-validation.
        costs: by name.
    """

    name: str
    fitness: float
    costs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Fitness of succeeded trials against one cost.

    Attributes:
        cost: its name.
        numbers: of the trials, ascending.
        costs: of each.
        fitness: of each.
        front: numbers of the trials that no other one beats in both, by ascending cost.
        bound: (low, high) of the budget in absolute numbers, or None.
    """

    cost: str
    numbers: tuple[int, ...] = field(repr=False)
    costs: tuple[float, ...] = field(repr=False)
    fitness: tuple[float, ...] = field(repr=False)
    front: tuple[int, ...]
    bound: tuple[float, float] | None = None

    @property
    def front_places(self) -> list[int]:
        """Places of the front's trials among all of them."""
        index = {number: position for position, number in enumerate(self.numbers)}
        return [index[number] for number in self.front]

    def is_far(self, cost: float) -> bool:
        """Returns whether a network costs so much more than every trial that drawing it would squeeze them."""
        return cost > 1.5 * max(self.costs)


def cost_cloud(
    cost: str,
    trials: Sequence[Trial],
    costs: Sequence[float],
    bound: tuple[float, float] | None = None,
) -> Cloud:
    """Returns fitness against a cost, and the front.

    Args:
        cost: its name.
        trials: succeeded ones, in order of number.
        costs: of each.
        bound: of the budget.
    """
    order = sorted(
        range(len(trials)), key=lambda i: (costs[i], -trials[i].fitness, trials[i].number)
    )
    front: list[int] = []
    best = -math.inf
    for index in order:
        if trials[index].fitness > best:
            best = trials[index].fitness
            front.append(trials[index].number)
    return Cloud(
        cost=cost,
        numbers=tuple(trial.number for trial in trials),
        costs=tuple(map(float, costs)),
        fitness=tuple(trial.fitness for trial in trials),
        front=tuple(front),
        bound=bound,
    )


@dataclass(frozen=True, kw_only=True)
class BestTrials:
    """The best trials, layer by layer.

    Attributes:
        share: of all succeeded trials that they are.
        numbers: of the trials, the best first.
        fitness: of each.
        widths: of each: kept / full per layer (1 or 0 of a block).
        median: of all succeeded trials, per layer.
    """

    share: float
    numbers: tuple[int, ...]
    fitness: tuple[float, ...] = field(repr=False)
    widths: tuple[tuple[float, ...], ...] = field(repr=False)
    median: tuple[float, ...] = field(repr=False)


def best_trials(trials: Sequence[Trial], layers: Sequence[Layer]) -> BestTrials:
    """Returns the best 5 % of the trials, but 10 at least and 100 at most.

    Args:
        trials: succeeded ones, at least one.
        layers: the widths and blocks, which come first in every structure.
    """
    count = min(len(trials), max(_LEAST, min(_MOST, math.ceil(_SHARE * len(trials)))))
    ranked = sorted(trials, key=lambda trial: (-trial.fitness, trial.number))[:count]
    full = np.array([layer.full for layer in layers], dtype=float)
    kept = np.array([trial.candidate[: len(full)] for trial in trials]) / full
    return BestTrials(
        share=count / len(trials),
        numbers=tuple(trial.number for trial in ranked),
        fitness=tuple(trial.fitness for trial in ranked),
        widths=tuple(
            tuple((np.array(trial.candidate[: len(full)]) / full).tolist()) for trial in ranked
        ),
        median=tuple(np.median(kept, axis=0).tolist()),
    )
