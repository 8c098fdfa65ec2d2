"""Artificial bee colony."""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class BeeColonyOptions:
    """Options of `BeeColony`; the defaults are those of ABCPruner's published code.

    Attributes:
        n_sources: number of food sources, 2 to 10,000; also the batch size of the employed and the onlooker phase.
        abandonment_limit: a source that has not improved in this many tries is drawn anew, at least 1.
        genes_changed: dimensions that a neighbour differs in before repair, at least 1.

    Raises:
        SearcherError: if an option is out of range.
    """

    n_sources: int = setting(10, at_least=2, at_most=MOST)
    abandonment_limit: int = setting(5, at_least=1)
    genes_changed: int = setting(2, at_least=1)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "bee_colony", SearcherError)


@final
class BeeColony(Searcher):
    """Food sources improved by employed bees, onlookers and scouts.

    Each cycle: one neighbour of every source (employed phase); as many neighbours of sources chosen with probability
    proportional to 0.9 * fit / max(fit) + 0.1 (onlooker phase); every source whose stagnation reached the limit is
    drawn anew (scout phase). A neighbour moves some dimensions x_j by R * (x_j - x_kj), R ~ U(-1, 1), k another
    source, in units of choices; it replaces its source if it is strictly better.

    Source: Karaboga, An idea based on honey bee swarm for numerical optimization (2005); Lin et al., Channel Pruning
    via Automatic Structure Search (IJCAI 2020), algorithm 1.

    Differences from the paper:
        - Moves are rounded stochastically, so that growing and shrinking are equally likely, and always change
          something; in the published code truncation makes 51 % of the moves shrink and 26 % grow, and the last
          dimension never moves.
        - Scouts and first sources come from the same uniform distribution over the choices.
        - A criterion that a move would change is drawn anew, as it has no order to move along.
        - No structure is evaluated twice; a neighbour that is known is drawn again, after that at random.
        - Every structure is repaired into the budget and, under an upper bound, grown to spend most of it. The papers
          bound widths by alpha only.
        - Whole phases are proposed at once, so that as many workers as there are sources have work. Within the
          onlooker phase all neighbours therefore start from the sources as they were when the phase began.
        - Asked ahead, a phase begins before the last one is over: neighbours compare with what their source is by then,
          sources with a scout on its way get no second one, and a source that has improved meanwhile only leaves for a
          better scout. Until there are sources, further random structures are proposed; they take a free place, or
          compare with a source as neighbours do.
        - Where a fitness is negative (a loss), Karaboga's transform comes first: 1 + f for f >= 0, else 1 / (1 + |f|).
    """

    name: ClassVar[str] = "bee_colony"
    Options: ClassVar[type] = BeeColonyOptions
    options: BeeColonyOptions
    overlaps: ClassVar[bool] = True

    def _begin(self) -> None:
        self._phase = "first"  # of the last batch
        self._sources: list[Candidate] = []
        self._fitness: list[float] = []
        self._stagnation: list[int] = []
        # The source that each open structure stands for, and whether it is a scout of it.
        self._targets: dict[Candidate, tuple[int, bool]] = {}

    def _propose(self) -> list[Candidate]:
        """Returns the batch of the next phase."""
        self._phase = self._next_phase()
        match self._phase:
            case "first":
                targets = list(range(self.options.n_sources))
            case "employed":
                targets = list(range(len(self._sources)))
            case "onlooker":
                chances = self._chances()
                targets = self.rng.choice(len(chances), size=len(chances), p=chances).tolist()
            case _:
                targets = self._abandoned()
        batch: list[Candidate] = []
        for target in targets:
            candidate = self._fresh(lambda t=target: self._draw(t))
            if candidate is None:
                break
            batch.append(candidate)
            self._targets[candidate] = (target, self._phase == "scout")
        return batch

    def _next_phase(self) -> str:
        """Returns the phase that follows the last one."""
        if not self._sources:
            return "first"
        after_onlookers = "scout" if self._abandoned() else "employed"
        return {"employed": "onlooker", "onlooker": after_onlookers}.get(self._phase, "employed")

    def _draw(self, target: int) -> Candidate:
        """Returns a random structure, or in the employed and onlooker phase a neighbour of a source."""
        return self._grown(self._neighbour(target)) if self._phase in ("employed", "onlooker") else self._random()

    def _chances(self) -> NDArray[np.float64]:
        """Returns the probability of every source in the onlooker phase, (n_sources,) float64, sum 1."""
        fitness = np.array(self._fitness)
        found = np.isfinite(fitness)
        if (fitness[found] < 0).any():
            fitness[found] = [1 + f if f >= 0 else 1 / (1 + abs(f)) for f in fitness[found].tolist()]
        fitness[~found] = 0
        best = fitness.max()
        weights = 0.9 * (fitness / best if best > 0 else np.zeros_like(fitness)) + 0.1
        return weights / weights.sum()

    def _neighbour(self, target: int) -> Candidate:
        """Returns a source moved in some dimensions towards or away from another one."""
        movable = np.flatnonzero(self.space.last_indices > 0)
        here = self.space.indices(self._sources[target])
        if not len(movable) or len(self._sources) < 2:
            return self._random()
        partner = (target + int(self.rng.integers(1, len(self._sources)))) % len(self._sources)
        genes = self.rng.choice(movable, size=min(self.options.genes_changed, len(movable)), replace=False)
        distance = (here - self.space.indices(self._sources[partner]))[genes]
        step = self.rng.uniform(-1, 1, size=len(genes)) * distance
        moved = here.copy()
        moved[genes] += np.floor(step + self.rng.random(len(genes))).astype(np.int64)
        moved = np.clip(moved, 0, self.space.last_indices)
        if (moved == here).all():
            gene = int(self.rng.choice(genes))
            up = here[gene] == 0 or (here[gene] < self.space.last_indices[gene] and self.rng.random() < 0.5)
            moved[gene] += 1 if up else -1
        return self.space.at(redrawn_criteria(self.space, here, moved, self.rng))

    def _abandoned(self) -> list[int]:
        """Returns the sources whose stagnation has reached the limit, without those that a scout is out for."""
        scouted = {target for target, scout in self._targets.values() if scout}
        return [i for i in range(len(self._sources)) if self._is_stagnant(i) and i not in scouted]

    def _is_stagnant(self, target: int) -> bool:
        """Returns whether the stagnation of a source has reached the limit."""
        return self._stagnation[target] >= self.options.abandonment_limit

    def _learn(self, batch: list[Trial]) -> None:
        """First sources, then greedy replacement; a scout replaces a source as long as that is stagnant."""
        for trial in batch:
            target, scout = self._targets.pop(trial.candidate)
            if target == len(self._sources):
                self._sources.append(trial.candidate)
                self._fitness.append(trial.fitness)
                self._stagnation.append(0)
            elif trial.fitness > self._fitness[target] or (scout and self._is_stagnant(target)):
                self._sources[target], self._fitness[target] = trial.candidate, trial.fitness
                self._stagnation[target] = 0
            else:
                self._stagnation[target] += 1

    def population(self) -> list[Candidate]:
        """Returns the food sources, best first."""
        order = sorted(range(len(self._sources)), key=lambda i: -self._fitness[i])
        return [self._sources[i] for i in order]

    def _state(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "sources": self._rows(self._sources),
            "fitness": np.array(self._fitness, dtype=np.float64),
            "stagnation": np.array(self._stagnation, dtype=np.int64),
            "flying": self._rows(self._targets),
            "targets": np.array(list(self._targets.values()), dtype=np.int64).reshape(-1, 2),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._phase = str(state["phase"])
        self._sources = self._candidates(state["sources"])
        self._fitness = state["fitness"].tolist()
        self._stagnation = state["stagnation"].tolist()
        targets = [(target, bool(scout)) for target, scout in state["targets"].tolist()]
        self._targets = dict(zip(self._candidates(state["flying"]), targets, strict=True))
