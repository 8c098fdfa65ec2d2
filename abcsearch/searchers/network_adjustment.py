"""Network adjustment: layers that make more of their MACs get channels from those that make less of theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST, Searcher
from abcsearch.searchers.variation import redrawn_criteria

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.trial import Trial

    Floats = NDArray[np.float64]

_HALVINGS = 40  # of the factor that widths are scaled by


@dataclass(frozen=True, kw_only=True)
class NetworkAdjustmentOptions:
    """Options of `NetworkAdjustment`.

    Attributes:
        moved: layers that get channels in a round, and that lose some, from 0; no more than half of them.
        fewer: by so many fewer with every round, down to 1.
        step: share of its full width that the first of them gets or loses, in (0, 1].
        less: by so much less for every next one, down to none.
        batch: structures of a round, 1 to 10,000, of which the next one goes on from the fittest; published: 1. The
            second moves channels twice as far, and so on.

    Raises:
        SearcherError: if an option is out of range.
    """

    moved: int = setting(6, at_least=0)
    fewer: float = setting(0.5, at_least=0)
    step: float = setting(0.15, above=0, at_most=1)
    less: float = setting(0.01, at_least=0, at_most=1)
    batch: int = setting(1, at_least=1, at_most=MOST)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "network_adjustment", SearcherError)


@final
class NetworkAdjustment(Searcher):
    """Moves channels from layers that make least of their MACs to those that make most, and scales to the budget.

    What the layers of a structure make of them is measured by its evaluation, which says so in its diagnostics: how
    much the loss rises where channels worth the same MACs are silent in one layer (`evaluator.utilisation = 5`). So
    every round is an evaluation. It begins with all widths at one share of the full ones, as the budget allows.

    Source: Chen et al., Network Adjustment: Channel Search Guided by FLOPs Utilization Ratio (CVPR 2020).

    Differences from the paper:
        - What is evaluated is cut out of the trained network, and trained for a moment (`short_training`) or not at all
          (`adaptive_bn`); published: trained from the beginning in every round, `evaluator.fresh_weights = true`, with
          channels that are silent by chance, `evaluator.dropout = 0.05`.
        - No layer gets wider than that network's; there it would, at the cost of others.
        - Widths are those of the space. What a move is short of a choice adds up over the rounds.
        - Blocks, where they are searched, are moved as widths are; so one goes, or comes back, that was among the last,
          or the first, for several rounds. Of what nothing is known, as of blocks that are dropped, it is drawn.
        - Where a round leads to nothing new, or an evaluation has failed, draws decide what moves, and how far.
        - Criteria, where they are searched, are those of the fittest structure, but for one.
    """

    name: ClassVar[str] = "network_adjustment"
    Options: ClassVar[type] = NetworkAdjustmentOptions
    options: NetworkAdjustmentOptions

    def _begin(self) -> None:
        # Wide as wanted, not as allowed
        self._here = self.space.values(self.space.largest_indices).astype(np.float64)
        # Of each dimension of the structure there; nan: not known
        self._worth = np.full(len(self.space), np.nan)
        self._rounds = 0
        self._targets: list[Floats] = []  # of the batch that is evaluated: what `_here` would be
        self._best: Candidate | None = None
        self._fitness = -math.inf

    def _propose(self) -> list[Candidate]:
        """Returns the structures of a round."""
        self._targets.clear()
        batch: list[Candidate] = []
        for number in range(self.options.batch):
            drawn: dict[Candidate, Floats] = {}
            candidate = self._fresh(lambda number=number, drawn=drawn: self._drawn(number, drawn))
            if candidate is None:
                break
            batch.append(candidate)
            self._targets.append(drawn.get(candidate, np.array(candidate, dtype=np.float64)))
        return batch

    def _drawn(self, number: int, drawn: dict[Candidate, Floats]) -> Candidate:
        """Returns a structure of a round, moved farther, and more by chance, the more of it are known already.

        Args:
            number: of the structure in the round.
            drawn: of those that were tried, what `_here` would be; this one is added.
        """
        far, worth = number + len(drawn), self._worth.copy()
        unknown = np.isnan(worth)
        ends = (0.0, 1.0) if unknown.all() else (float(np.nanmin(worth)), float(np.nanmax(worth)))
        worth[unknown] = self.rng.uniform(*ends, size=int(unknown.sum()))
        if drawn:
            worth += self.rng.normal(0, len(drawn) / 4, len(worth)) * (worth.std() or 1.0)
        target = self._here
        if self._rounds or far:
            most = min(self.options.moved, len(self.space))
            count = min(most, max(1, round(self.options.moved - self._rounds * self.options.fewer)))
            steps = self.options.step - self.options.less * np.arange(count)
            target = adjusted(self.space, target, worth, (1 + far / 2) * steps.clip(0))
        target = scaled(self.constraint, target)
        candidate = self.space.canonical(
            self.constraint.repair(self._with_criteria(target, far), self.rng)
        )
        drawn.setdefault(candidate, target)
        return candidate

    def _with_criteria(self, target: Floats, far: int) -> Candidate:
        """Returns the structure nearest to wanted values, with the criteria of the fittest one but for one.

        Args:
            target: values of all dimensions, (n_dims,).
            far: 0 for the first structure of a round.
        """
        here = self.space.indices(self.space.nearest(target.tolist()))
        settled = (
            self.space.largest_indices if self._best is None else self.space.indices(self._best)
        )
        here = np.where(self.space.ordered, here, settled)
        free = np.flatnonzero(~self.space.ordered & (self.space.last_indices > 0))
        if len(free) and (self._rounds or far):
            moved = here.copy()
            moved[self.rng.choice(free)] += 1
            here = redrawn_criteria(self.space, here, moved, self.rng)
        return self.space.at(here)

    def _learn(self, batch: list[Trial]) -> None:
        """Goes on from the fittest structure of the round; from where it was if all of them have failed."""
        self._rounds += 1
        number = max(range(len(batch)), key=lambda i: batch[i].fitness)
        trial = batch[number]
        if trial.evaluation.failure is not None:
            self._worth = np.full(len(self.space), np.nan)
            return
        if trial.fitness > self._fitness:
            self._best, self._fitness = trial.candidate, trial.fitness
        self._here = self._targets[number].copy()
        diagnostics = trial.evaluation.diagnostics
        worth = np.array(
            [diagnostics.get(dimension.name, np.nan) for dimension in self.space.dimensions],
            dtype=np.float64,
        )
        self._worth = np.where(np.isfinite(worth), worth, np.nan)

    def population(self) -> list[Candidate]:
        """Returns the structure that channels are moved in."""
        here = self.space.indices(self.space.nearest(self._here.tolist()))
        settled = (
            self.space.largest_indices if self._best is None else self.space.indices(self._best)
        )
        return [self.space.at(np.where(self.space.ordered, here, settled))]

    def _state(self) -> dict[str, Any]:
        return {
            "here": self._here.copy(),
            "worth": self._worth.copy(),
            "rounds": self._rounds,
            "targets": np.array(self._targets, dtype=np.float64).reshape(-1, len(self.space)),
            "best": self._rows([] if self._best is None else [self._best]),
            "fitness": np.array([self._fitness]),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._here, self._worth = state["here"].copy(), state["worth"].copy()
        self._rounds = int(state["rounds"])
        self._targets = list(state["targets"].copy())
        self._best = next(iter(self._candidates(state["best"])), None)
        self._fitness = float(state["fitness"][0])


def adjusted(space: SearchSpace, here: Floats, worth: Floats, steps: Floats) -> Floats:
    """Returns widths after a move: those worth most are wider by steps, those worth least as much narrower.

    What is as wide as it can be gets nothing, what is as narrow as it can be loses nothing; the next one does instead.
    Nothing does both. Criteria stay.

    Args:
        space: the structures.
        here: values of all dimensions, (n_dims,); they need not be choices.
        worth: what a unit of cost is worth there, (n_dims,).
        steps: shares of the full width, of the first to move and of those that follow.
    """
    after, order = here.copy(), np.argsort(-worth, kind="stable")
    movable = space.ordered & (space.last_indices > 0)
    low, high = space.values(np.zeros_like(space.last_indices)), space.values(space.last_indices)
    full = np.array([dimension.full for dimension in space.dimensions])
    count = min(len(steps), int(movable.sum()) // 2)
    up = [i for i in order.tolist() if movable[i] and here[i] < high[i]][:count]
    down = [i for i in order[::-1].tolist() if movable[i] and here[i] > low[i] and i not in up][
        :count
    ]
    for sign, moving in ((1, up), (-1, down)):
        for step, i in zip(steps.tolist(), moving, strict=False):
            after[i] = np.clip(here[i] + sign * step * full[i], low[i], high[i])
    return after


def scaled(constraint: Constraint, here: Floats) -> Floats:
    """Returns widths times one factor: the largest whose nearest structure exceeds no upper bound.

    None is narrower or wider than the space has it; blocks and criteria stay.

    Args:
        constraint: the budget.
        here: values of all dimensions, (n_dims,).
    """
    space = constraint.space
    widths = np.array([dimension.kind == "width" for dimension in space.dimensions])
    ends = space.values(np.zeros_like(space.last_indices)), space.values(space.last_indices)

    def times(factor: float) -> Floats:
        return np.where(widths, np.clip(factor * here, *ends), here)

    def fits(factor: float) -> bool:
        row = np.array([space.nearest(times(factor).tolist())])
        return all(limit.cost(row)[0] <= limit.high for limit in constraint.limits)

    low, high = (
        0.0,
        float((ends[1] / np.maximum(here, 1e-9))[widths].max()) if widths.any() else 1.0,
    )
    if fits(high):
        return times(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return times(low)
