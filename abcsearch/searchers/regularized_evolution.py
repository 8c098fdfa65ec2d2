"""Regularised (aging) evolution."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST, Searcher
from abcsearch.searchers.variation import mutate_one

if TYPE_CHECKING:
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial


@dataclass(frozen=True, kw_only=True)
class RegularizedEvolutionOptions:
    """Options of `RegularizedEvolution`; population and sample are the paper's.

    Attributes:
        population: structures alive, 2 to 10,000; also the size of the first, random batch.
        sample_size: structures drawn into a tournament, 1 to `population`; 1 selects at random.
        batch: children proposed at once, 1 to `population`; 1 is the paper's, more keep more workers busy.

    Raises:
        SearcherError: if an option is out of range.
    """

    population: int = setting(100, at_least=2, at_most=MOST)
    sample_size: int = setting(25, at_least=1, at_most="population")
    batch: int = setting(10, at_least=1, at_most="population")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "regularized_evolution", SearcherError)


@final
class RegularizedEvolution(Searcher):
    """Tournaments choose parents, children are one mutation away, and the oldest dies, however good it is.

    The first population is random. For each child, `sample_size` members are drawn with replacement; the best of them
    is the parent, and one of its dimensions changes to another choice. The child joins the population and the oldest
    member leaves it, so that only what proves itself again and again lasts.

    Source: Real et al., Regularized Evolution for Image Classifier Architecture Search (AAAI 2019), algorithm 1.

    Differences from the paper:
        - Children come in batches, all from the population as it stood when the batch began; there each child is
          evaluated and added before the next tournament. `batch=1` restores that. Asked ahead, a batch begins from
          the population as it is by then, at random while nobody is alive.
        - A mutation draws another choice of one dimension; there it changes an operation or an edge of a cell.
        - Every structure is repaired into the budget, and grown to spend most of it, which may change more
          dimensions.
        - No structure is evaluated twice; a child that is known is drawn again, after that at random.
        - A failed trial does not enter, so nothing dies for it. There training a model never fails.
    """

    name: ClassVar[str] = "regularized_evolution"
    Options: ClassVar[type] = RegularizedEvolutionOptions
    options: RegularizedEvolutionOptions
    overlaps: ClassVar[bool] = True

    def _begin(self) -> None:
        self._first = True  # until the first population is proposed
        # Oldest first
        self._alive: deque[tuple[Candidate, float]] = deque(maxlen=self.options.population)

    def _propose(self) -> list[Candidate]:
        """Returns the first population, later a batch of children."""
        batch: list[Candidate] = []
        for _ in range(self.options.population if self._first else self.options.batch):
            candidate = self._fresh(self._child)
            if candidate is None:
                break
            batch.append(candidate)
        self._first = False
        return batch

    def _child(self) -> Candidate:
        """Returns a mutation of the winner of a tournament; a random structure while nobody is alive."""
        if not self._alive:
            return self._random()
        drawn = self.rng.integers(len(self._alive), size=self.options.sample_size).tolist()
        winner = max(drawn, key=lambda index: self._alive[index][1])
        return self._grown(mutate_one(self.space, self._alive[winner][0], self.rng))

    def _learn(self, batch: list[Trial]) -> None:
        """Lets the children join; the oldest leave as they come in."""
        self._alive.extend(
            (trial.candidate, trial.fitness) for trial in batch if trial.evaluation.failure is None
        )

    def population(self) -> list[Candidate]:
        """Returns those alive, best first."""
        return [candidate for candidate, _ in sorted(self._alive, key=lambda member: -member[1])]

    def _state(self) -> dict[str, Any]:
        return {
            "first": self._first,
            "alive": self._rows(candidate for candidate, _ in self._alive),
            "fitness": np.array([fitness for _, fitness in self._alive], dtype=np.float64),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._first = bool(state["first"])
        alive = zip(self._candidates(state["alive"]), state["fitness"].tolist(), strict=True)
        self._alive = deque(alive, maxlen=self.options.population)
