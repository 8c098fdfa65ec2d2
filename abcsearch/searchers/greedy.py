"""Greedy slimming as in AutoSlim."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST, Searcher
from abcsearch.searchers.variation import redrawn_criteria

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

_PATIENCE = (
    4  # neighbours that turn out to be known before the next ones are drawn from farther away
)
# Steps of a way that is too long to be looked at whole, and looks at it
_LONG, _MARKS = (10_000, 100)


@dataclass(frozen=True, kw_only=True)
class GreedyOptions:
    """Options of `Greedy`.

    Attributes:
        taken: share in [0, 1] of the steps tried in a round that are taken, the least harmful first, at least one. 0 is
            the paper's: one step per round. A round costs as many trials as there are dimensions to step in, so the
            default reaches half the MACs of ResNet-50 (49 dimensions) within about 300 trials.
        to_bottom: whether slimming goes on inside the budget to the smallest structure that it allows, for the whole
            curve of fitness over cost; otherwise it stops as soon as it is inside. Without a budget it always goes on,
            and so it does under one that excludes nothing: a run needs a budget, `budget.macs = 1.0` will do.
        batch: structures proposed at once in the local search that follows, 1 to 10,000.

    Raises:
        SearcherError: if an option is out of range.
    """

    taken: float = setting(0.15, at_least=0, at_most=1)
    to_bottom: bool = False
    batch: int = setting(16, at_least=1, at_most=MOST)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "greedy", SearcherError)


@final
class Greedy(Searcher):
    """Slims the largest structure by its least harmful steps, then searches around the best structure found.

    Each round tries one step down, to the next smaller choice, in every dimension; the least harmful steps are taken.
    When the structure is inside the budget (or nothing can step down), local search follows without end: neighbours
    of the best structure so far, some dimensions a step up, some a step down; farther ones where the near are known.

    Source: Yu and Huang, AutoSlim: Towards One-Shot Architecture Search for Channel Numbers (2019), section 3.

    Differences from the paper:
        - Every proposal is inside the budget, also while the structure being slimmed is not: what a step would leave is
          first shrunk into the budget, all widths by the same share (blocks only if that does not suffice), and the
          fitness of that stands for the step. So steps are compared at equal cost: a step that saves more leaves more
          to all other layers.
        - About one in seven steps of a round is taken; the paper takes one. See `taken`.
        - There is a local search afterwards, so that the search can go on; the paper ends inside the budget.
        - Of steps that do equal harm the one that saves most is taken; in the published code the earliest layer's.
        - Steps whose stand-in is known cost no trial. Failed trials are the most harmful steps.
        - Criteria, where they are searched, are the first ones until local search tries others.
        - Fitness is what the evaluator finds; the paper trains one slimmable network for all structures.
    """

    name: ClassVar[str] = "greedy"
    Options: ClassVar[type] = GreedyOptions
    options: GreedyOptions

    def _begin(self) -> None:
        self._slimming = True
        # Choice positions of the structure that is slimmed
        self._here = self.space.largest_indices.copy()
        self._steps: list[int] = []  # dimensions in which this round tries a step
        self._stand_ins: list[
            Candidate
        ] = []  # what is evaluated for `_here` itself, then for every step
        self._scores: dict[Candidate, float] = {}  # of everything told

    def _propose(self) -> list[Candidate]:
        """Returns what is not known of the next round of slimming that has something new; later, neighbours."""
        while self._slimming:
            if batch := self._round():
                return batch
            self._take()
        return self._neighbours()

    def _round(self) -> list[Candidate]:
        """Plans a round: the structure as it is, and a step in every dimension; returns what of it is new."""
        self._steps = self._possible()
        after = self._here - np.eye(len(self._here), dtype=np.int64)[self._steps]
        offsets = self.rng.random(len(self._here))
        self._stand_ins = [self._shrunk(row, offsets) for row in [self._here, *after]]
        proposals: list[Candidate | None] = []
        while self._warm:
            proposals.append(self._fresh(lambda: self._stand_ins[0]))
        proposals += [
            self._fresh(lambda c=c: c)
            for c in dict.fromkeys(self._stand_ins)
            if c not in self._known
        ]
        return [candidate for candidate in proposals if candidate is not None]

    def _possible(self) -> list[int]:
        """Returns the dimensions that can step down; none when slimming is over."""
        goes_on = self.options.to_bottom or self.constraint.allows(
            self.space.at(self.space.largest_indices)
        )
        if not goes_on and self.constraint.allows(self.space.at(self._here)):
            return []
        steps = np.flatnonzero(self._here)
        return [step for step in steps.tolist() if not self._too_low(step)]

    def _too_low(self, step: int) -> bool:
        """Returns whether a step down leaves the budget at the lower end of a band."""
        after = self._here.copy()
        after[step] -= 1
        row = self.space.values(after)[None]
        return any(limit.cost(row)[0] < limit.low for limit in self.constraint.limits if limit.low)

    def _shrunk(self, here: NDArray[np.int64], offsets: NDArray[np.float64]) -> Candidate:
        """Returns a structure inside the budget: all widths shrunk by the same share.

        Args:
            here: choice positions, (n_dims,).
            offsets: numbers in [0, 1), (n_dims,): which dimensions step first. The same ones for all structures that
                are compared, so that these differ in nothing else.
        """
        if not here.any() or self.constraint.allows(self.space.at(here)):
            return self.space.at(here)
        is_block = np.array([d.kind == "block" for d in self.space.dimensions])
        count = np.arange(1, int(here.max()) + 1)
        share = (count - offsets[:, None]) / np.maximum(here, 1)[:, None] + is_block[:, None]
        share[count > here[:, None]] = np.inf
        order = np.argsort(share, axis=None, kind="stable")[: int(here.sum())] // len(count)
        if len(order) > _LONG:  # where the budget is met is looked for in one stretch of the way
            marks = np.linspace(0, len(order), _MARKS + 1).round().astype(np.int64)
            rows = here - np.stack(
                [np.bincount(order[:mark], minlength=len(here)) for mark in marks[1:]]
            )
            stretch = int(np.argmin(self.constraint.violation(self.space.values(rows))))
            here = here - np.bincount(order[: marks[stretch]], minlength=len(here))
            order = order[marks[stretch] : marks[stretch + 1]]
        rows = here - np.cumsum(np.eye(len(here), dtype=np.int64)[order], axis=0)
        first = int(np.argmin(self.constraint.violation(self.space.values(rows))))
        return self.constraint.repair(self.space.at(rows[first]), self.rng)

    def _take(self) -> None:
        """Takes the least harmful steps of the round, until inside the budget; ends slimming when there are none."""
        self._slimming = bool(self._steps)
        harm = [-self._scores[stand_in] for stand_in in self._stand_ins[1:]]
        saved = self._savings()
        ties = self.rng.permutation(
            len(harm)
        ).tolist()  # equal harm and saving: no layer is favoured
        ranked = sorted(range(len(harm)), key=lambda i: (harm[i], -saved[i], ties[i]))
        for index in ranked[: max(1, round(self.options.taken * len(harm)))]:
            if self._steps[index] in self._possible():
                self._here[self._steps[index]] -= 1

    def _savings(self) -> list[float]:
        """Returns what each step of the round saves: the sum of shares of the budget's bounds; 0 without a budget."""
        after = self._here - np.eye(len(self._here), dtype=np.int64)[self._steps]
        rows = self.space.values(np.concatenate([self._here[None], after]))
        costs = [limit.cost(rows) / max(limit.high, 1e-12) for limit in self.constraint.limits]
        total = np.sum(costs, axis=0) if costs else np.zeros(len(rows))
        return (total[0] - total[1:]).tolist()

    def _neighbours(self) -> list[Candidate]:
        """Returns new structures around the best one; random ones if every trial has failed."""
        best = self._best()
        failed = self._scores[best] == -np.inf
        batch: list[Candidate] = []
        while len(batch) < self.options.batch:
            tries = itertools.count(_PATIENCE)
            candidate = self._fresh(
                lambda tries=tries: (
                    self._random() if failed else self._moved(best, next(tries) // _PATIENCE)
                )
            )
            if candidate is None:
                break
            batch.append(candidate)
        return batch

    def _best(self) -> Candidate:
        """Returns the best structure so far."""
        return max(self._scores, key=lambda c: self._scores[c])

    def _moved(self, best: Candidate, reach: int) -> Candidate:
        """Returns a structure with some dimensions moved, in turns up and down: at least one, at most `reach` + 3.

        Of those that are criteria, another choice is drawn instead.

        Up comes first: repair makes room for it, where a step down alone would only leave room unused.

        Args:
            best: the structure to start from.
            reach: the most steps that a dimension moves, from 1.
        """
        movable = np.flatnonzero(self.space.last_indices > 0)
        genes = self.rng.permutation(movable)[: int(self.rng.integers(1, reach + 4))]
        moved = self.space.indices(best)
        moved[genes] += self.rng.integers(1, reach + 1, size=len(genes)) * (
            1 - 2 * (np.arange(len(genes)) % 2)
        )
        moved = np.clip(moved, 0, self.space.last_indices)
        return self.space.at(
            redrawn_criteria(self.space, self.space.indices(best), moved, self.rng)
        )

    def _learn(self, batch: list[Trial]) -> None:
        """Remembers every fitness; a round of slimming ends by taking its best steps."""
        self._scores.update((trial.candidate, trial.fitness) for trial in batch)
        if self._slimming:
            self._take()

    def population(self) -> list[Candidate]:
        """Returns the structure that is slimmed, be it inside the budget or not; later, the best so far."""
        return [self.space.at(self._here) if self._slimming else self._best()]

    def _state(self) -> dict[str, Any]:
        return {
            "slimming": self._slimming,
            "here": self._here.copy(),
            "steps": np.array(self._steps, dtype=np.int64),
            "stand_ins": self._rows(self._stand_ins),
            "scored": self._rows(self._scores),
            "scores": np.array(list(self._scores.values()), dtype=np.float64),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._slimming = bool(state["slimming"])
        self._here = state["here"].copy()
        self._steps = state["steps"].tolist()
        self._stand_ins = self._candidates(state["stand_ins"])
        self._scores = dict(
            zip(self._candidates(state["scored"]), state["scores"].tolist(), strict=True)
        )
