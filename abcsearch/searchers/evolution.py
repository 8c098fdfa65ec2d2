"""Evolution as in MetaPruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST, Searcher
from abcsearch.searchers.variation import cross, mutate

if TYPE_CHECKING:
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial


@dataclass(frozen=True, kw_only=True)
class EvolutionOptions:
    """Options of `Evolution`; the defaults are MetaPruning's.

    Attributes:
        population: structures per generation, 1 to 10,000; also the batch size.
        archive: how many of the best structures of all generations are remembered, at least 1.
        parents: how many of the best are parents, 1 to `archive`.
        mutations: structures per generation that are mutations of a parent, 0 to `population`.
        crossovers: structures per generation that are crossovers of two parents; with the mutations at most
            `population`. The rest is random.
        mutation_rate: probability in [0, 1] that a dimension changes in a mutation.

    Raises:
        SearcherError: if an option is out of range.
    """

    population: int = setting(50, at_least=1, at_most=MOST)
    archive: int = setting(50, at_least=1)
    parents: int = setting(10, at_least=1, at_most="archive")
    mutations: int = setting(25, at_least=0, at_most="population")
    crossovers: int = setting(25, at_least=0)
    mutation_rate: float = setting(0.1, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "evolution", SearcherError)
        most = self.population - self.mutations
        if self.crossovers > most:
            msg = f"evolution: crossovers is from 0 to {most}, found {self.crossovers}"
            raise SearcherError(msg)


@final
class Evolution(Searcher):
    """The best structures found so far are mutated and crossed.

    The first generation is random. Each later one has 25 mutations, each of a random one of the 10 best structures of
    all generations, and 25 uniform crossovers of two different ones of them; the rest is random.

    Source: Liu et al., MetaPruning (ICCV 2019), algorithm 1.

    Differences from the paper:
        - Structures outside the budget are repaired, not drawn again; all are grown to spend most of it.
        - No structure is evaluated twice. What mutation and crossover do not find in 50 tries (10 in small spaces) is
          replaced by random ones at once, where the published code tries longer.
        - There is no number of generations: the run ends after its number of trials.
        - Warm starts take the first places of the first generation.
        - Asked ahead, a generation begins from the best of those that are whole; until one is, all are random.
    """

    name: ClassVar[str] = "evolution"
    Options: ClassVar[type] = EvolutionOptions
    options: EvolutionOptions
    overlaps: ClassVar[bool] = True

    def _begin(self) -> None:
        self._archive: list[tuple[Candidate, float]] = []  # best first, the earlier of equals first

    def _propose(self) -> list[Candidate]:
        """Returns one generation."""
        batch: list[Candidate] = []
        for position in range(self.options.population):
            candidate = self._fresh(lambda position=position: self._child(position))
            if candidate is None:
                break
            batch.append(candidate)
        return batch

    def _child(self, position: int) -> Candidate:
        """Returns a structure for a place of the generation: first mutations, then crossovers, then random ones."""
        parents = self.population()
        crossing = position >= self.options.mutations
        if (
            len(parents) < 1 + crossing
            or position >= self.options.mutations + self.options.crossovers
        ):
            return self._random()
        chosen: list[int] = self.rng.permutation(len(parents)).tolist()
        if crossing:
            return self._grown(cross(parents[chosen[0]], parents[chosen[1]], self.rng))
        return self._grown(
            mutate(self.space, parents[chosen[0]], self.options.mutation_rate, self.rng)
        )

    def _learn(self, batch: list[Trial]) -> None:
        """Keeps the best of all generations; failed trials never enter."""
        successes = [
            (trial.candidate, trial.fitness) for trial in batch if trial.evaluation.failure is None
        ]
        ranked = sorted([*self._archive, *successes], key=lambda entry: -entry[1])
        self._archive = ranked[: self.options.archive]

    def population(self) -> list[Candidate]:
        """Returns the parents, best first."""
        return [candidate for candidate, _ in self._archive[: self.options.parents]]

    def _state(self) -> dict[str, Any]:
        return {
            "archive": self._rows(candidate for candidate, _ in self._archive),
            "fitness": np.array([fitness for _, fitness in self._archive], dtype=np.float64),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._archive = list(
            zip(self._candidates(state["archive"]), state["fitness"].tolist(), strict=True)
        )
