"""Artificial bee colony with the defects of ABCPruner's published code, for comparison only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST, Searcher

if TYPE_CHECKING:
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

_IDLE = 30  # phases in a row without anything new, after which a random structure keeps the search alive


@dataclass(frozen=True, kw_only=True)
class BeeColonyOfficialOptions:
    """Options of `BeeColonyOfficial`; the defaults are those of the published code.

    Attributes:
        n_sources: number of food sources, 2 to 10,000.
        abandonment_limit: a source that has not improved in this many tries is drawn anew, at least 1.
        genes_changed: dimensions that a move may change, at least 1.

    Raises:
        SearcherError: if an option is out of range.
    """

    n_sources: int = setting(10, at_least=2, at_most=MOST)
    abandonment_limit: int = setting(5, at_least=1)
    genes_changed: int = setting(2, at_least=1)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "bee_colony_official", SearcherError)


@final
class BeeColonyOfficial(Searcher):
    """The bee colony of ABCPruner's published code, defects included. Search with `bee_colony` instead.

    As `BeeColony`, with these defects, rebuilt from a description of the code's behaviour:
        - The last dimension is never moved.
        - Moves are truncated, so that about twice as many shrink as grow, and many change nothing.
        - A scout takes the smallest choice with twice the chance of any other, and never the largest.
        - Structures are evaluated again although they are known.

    A searcher proposes nothing twice, so a structure that is known costs no proposal here: its fitness is looked up,
    and `repeats` counts it. A fair comparison charges these as evaluations: stop when proposals and `repeats` together
    reach the budget.

    Source: Lin et al., Channel Pruning via Automatic Structure Search (IJCAI 2020), algorithm 1 and its published code.

    Differences from the paper:
        - The paper's own algorithm has none of these defects but the rounding.
        - One scout per cycle, the most stagnant source, and onlookers by acceptance in turns, are Karaboga's; the
          published counts of evaluations (217 to 219 in 10 cycles, 1 057 to 1 059 in 50) allow no more than one.
        - All moves of a phase start from the sources as they were when it began.
        - Structures are repaired into the budget, which may also change the last dimension, but for a criterion.
        - Criteria are moved as if they had an order.
        - When 30 phases in a row bring nothing new, one random structure is proposed; the published code would repeat
          itself until its cycles are over.
        - Where no fitness is positive, all onlookers' chances are equal.

    Attributes:
        repeats: how often a structure that was known has come up again.
    """

    name: ClassVar[str] = "bee_colony_official"
    Options: ClassVar[type] = BeeColonyOfficialOptions
    options: BeeColonyOfficialOptions
    repeats: int

    def _begin(self) -> None:
        self.repeats = 0
        self._phase = "first"
        self._sources: list[Candidate] = []
        self._stagnation: list[int] = []
        self._scores: dict[Candidate, float] = {}  # of everything told
        self._targets: list[int] = []  # the source that each structure of the open phase stands for
        self._moved: list[Candidate] = []  # these structures, known ones among them

    def _propose(self) -> list[Candidate]:
        """Returns what is new in the next phase that has something new."""
        if self._phase == "first":
            return self._first()
        for _ in range(_IDLE):
            if batch := self._plan():
                return batch
            self._settle()
        self._targets, self._moved = [], []
        candidate = self._fresh(self._uniform)
        return [] if candidate is None else [candidate]

    def _first(self) -> list[Candidate]:
        """Returns the first sources: warm starts, then uniform draws."""
        batch: list[Candidate] = []
        while len(batch) < self.options.n_sources:
            candidate = self._fresh(self._uniform)
            if candidate is None:
                break
            batch.append(candidate)
        self._targets, self._moved = list(range(len(batch))), list(batch)
        return batch

    def _uniform(self) -> Candidate:
        """Returns a structure drawn uniformly, as the first sources are, unlike scouts."""
        return self.space.sample(self.rng)

    def _plan(self) -> list[Candidate]:
        """Plans the current phase and returns what of it is new; all else counts as repeated."""
        draw = self._scout if self._phase == "scout" else self._neighbour
        self._targets = self._chosen()
        moved = [self.constraint.repair(draw(target), self.rng) for target in self._targets]
        self._moved = [self.space.canonical(candidate) for candidate in moved]
        batch: list[Candidate] = []
        for moved in self._moved:
            new = None if moved in self._known else self._fresh(lambda c=moved: c)
            if new is None:
                self.repeats += 1
            else:
                batch.append(new)
        return batch

    def _chosen(self) -> list[int]:
        """Returns the sources whose turn it is in the current phase."""
        if self._phase == "employed":
            return list(range(len(self._sources)))
        if self._phase == "scout":
            worst = int(np.argmax(self._stagnation))
            return [worst] if self._stagnation[worst] >= self.options.abandonment_limit else []
        fitness = np.array([self._scores[source] for source in self._sources])
        best = fitness.max()
        chances = (
            0.9 * np.maximum(fitness, 0) / best + 0.1 if best > 0 else np.full(len(fitness), 0.1)
        )
        chosen: list[int] = []
        turn = 0
        while len(chosen) < len(self._sources):  # a chance is at least 0.1, so this ends
            if self.rng.random() < chances[turn]:
                chosen.append(turn)
            turn = (turn + 1) % len(self._sources)
        return chosen

    def _neighbour(self, target: int) -> Candidate:
        """Returns a source moved in some dimensions, never the last, and truncated."""
        partner = (target + int(self.rng.integers(1, max(len(self._sources), 2)))) % len(
            self._sources
        )
        here = self.space.indices(self._sources[target])
        movable = len(here) - 1  # the defect: the last one is left out
        genes = self.rng.choice(
            movable, size=min(self.options.genes_changed, movable), replace=False
        )
        distance = (here - self.space.indices(self._sources[partner]))[genes]
        moved = here.copy()
        moved[genes] = np.floor(here[genes] + self.rng.uniform(-1, 1, size=len(genes)) * distance)
        return self.space.at(np.clip(moved, 0, self.space.last_indices))

    def _scout(self, target: int) -> Candidate:  # noqa: ARG002 - drawn as a neighbour is, whatever the source
        """Returns a random structure: choice numbers from 1, truncated from U(0, 1) * n_choices, 0 becoming 1."""
        numbers = np.floor(self.rng.random(len(self.space)) * (self.space.last_indices + 1)).astype(
            np.int64
        )
        return self.space.at(np.maximum(numbers - 1, 0))

    def _learn(self, batch: list[Trial]) -> None:
        """Remembers the fitness of every structure, then replaces sources."""
        self._scores.update((trial.candidate, trial.fitness) for trial in batch)
        if self._moved:
            self._settle()
        else:  # the random structure of a search that had come to rest
            worst = min(range(len(self._sources)), key=lambda i: self._scores[self._sources[i]])
            self._sources[worst], self._stagnation[worst] = batch[0].candidate, 0

    def _settle(self) -> None:
        """Greedy replacement, then the next phase."""
        if self._phase == "first":
            self._sources, self._stagnation = list(self._moved), [0] * len(self._moved)
        else:
            for target, moved in zip(self._targets, self._moved, strict=True):
                better = self._scores[moved] > self._scores[self._sources[target]]
                if better or self._phase == "scout":
                    self._sources[target], self._stagnation[target] = moved, 0
                else:
                    self._stagnation[target] += 1
        self._phase = {"employed": "onlooker", "onlooker": "scout"}.get(self._phase, "employed")

    def population(self) -> list[Candidate]:
        """Returns the food sources, best first."""
        return sorted(self._sources, key=lambda source: -self._scores[source])

    def _state(self) -> dict[str, Any]:
        return {
            "repeats": self.repeats,
            "phase": self._phase,
            "sources": self._rows(self._sources),
            "stagnation": np.array(self._stagnation, dtype=np.int64),
            "scored": self._rows(self._scores),
            "scores": np.array(list(self._scores.values()), dtype=np.float64),
            "targets": np.array(self._targets, dtype=np.int64),
            "moved": self._rows(self._moved),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self.repeats = int(state["repeats"])
        self._phase = str(state["phase"])
        self._sources = self._candidates(state["sources"])
        self._stagnation = state["stagnation"].tolist()
        self._scores = dict(
            zip(self._candidates(state["scored"]), state["scores"].tolist(), strict=True)
        )
        self._targets = state["targets"].tolist()
        self._moved = self._candidates(state["moved"])
