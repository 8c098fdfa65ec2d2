"""NSGA-II: fitness against a cost, a whole front in one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.bounds import COSTS, how_to_get
from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST, Searcher
from abcsearch.searchers.variation import cross, mutate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

_LEAN = (
    4.0  # random structures are U(0, 1) to a power from 1 / 4 to 4, as positions among the choices
)


@dataclass(frozen=True, kw_only=True)
class NSGA2Options:
    """Options of `NSGA2`; the defaults of the rates are the paper's.

    Attributes:
        against: the cost that is minimised while fitness is maximised: "macs", "params", "flops", "peak_activation" or
            "latency_ms"; the last one only where the budget bounds it as well, as it has to be measured.
        population: survivors per generation, 2 to 10,000; also the batch size. The paper's is 100.
        crossover_rate: probability in [0, 1] that a child has two parents.
        genes_changed: expected number of dimensions that mutation changes in a child, at least 0.

    Raises:
        SearcherError: if an option is out of range.
    """

    against: str = "macs"
    population: int = setting(50, at_least=2, at_most=MOST)
    crossover_rate: float = setting(0.9, at_least=0, at_most=1)
    genes_changed: float = setting(1.0, at_least=0)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.against not in COSTS:
            msg = f"nsga2: against is one of {', '.join(COSTS)}, found {self.against!r}"
            raise SearcherError(msg)
        check(self, "nsga2", SearcherError)


@final
class NSGA2(Searcher):
    """Finds structures of which none is both fitter and cheaper than another, spread over the whole range of costs.

    Parents and children of a generation are sorted into fronts: the first is dominated by nobody, the next only by
    earlier ones. The best fronts survive; of the front that does not fit in, those with the widest gaps around them
    (crowding distance) do. Children have parents from binary tournaments by front, then gap, uniform crossover, and a
    mutation that changes one dimension on average.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (IEEE TEC 2002), section III.

    Differences from the paper:
        - Crossover is uniform and mutation draws another choice; the paper uses simulated binary crossover and
          polynomial mutation on real numbers, or one point and bit flips.
        - The population is 50, not 100, as a run has some hundred trials.
        - Every structure is repaired into the budget; the paper ranks the infeasible behind the feasible. Random
          structures are spread over the whole range of costs, so that the first front spans it.
        - No structure is evaluated twice. The paper keeps copies, which crowd the front.
        - Failed trials are behind all others: they never enter the population.
        - Asked ahead, a generation begins from the survivors by then; until there are any, all children are random.
        - Costs are closed formulas (`Constraint.costs`); without them macs and params are what evaluations report.
    """

    name: ClassVar[str] = "nsga2"
    Options: ClassVar[type] = NSGA2Options
    options: NSGA2Options
    overlaps: ClassVar[bool] = True
    seeks_front: ClassVar[bool] = True

    def _begin(self) -> None:
        """Sets up an empty population.

        Raises:
            SearcherError: if nothing tells the cost that the search is against.
        """
        against, costs = self.options.against, self.constraint.costs
        if costs is not None and not hasattr(costs, against):
            msg = f"nsga2: against = {against!r}, but these costs ({type(costs).__name__}) have no {against}; "
            msg += how_to_get(against)
            raise SearcherError(msg)
        if costs is None and against not in ("macs", "params"):
            msg = f"nsga2: against = {against!r} needs a constraint with costs (Budget.bind); without, macs or params"
            raise SearcherError(msg)
        self._members: list[Candidate] = []
        # Of the members: minus fitness and cost, both to be minimised
        self._losses = np.zeros((0, 2))
        self._ranks = np.zeros(0, dtype=np.int64)  # their fronts
        self._gaps = np.zeros(0)  # their crowding distances

    def _propose(self) -> list[Candidate]:
        """Returns one generation of children."""
        batch: list[Candidate] = []
        while len(batch) < self.options.population:
            candidate = self._fresh(self._child)
            if candidate is None:
                break
            batch.append(candidate)
        return batch

    def _child(self) -> Candidate:
        """Returns a child of tournament winners; a random structure while there is no population."""
        if not self._members:
            return self._random()
        child = self._winner()
        if self.rng.random() < self.options.crossover_rate:
            child = cross(child, self._winner(), self.rng)
        movable = int((self.space.last_indices > 0).sum())
        return mutate(self.space, child, self.options.genes_changed / max(movable, 1), self.rng)

    def _random(self) -> Candidate:
        """Returns a structure somewhere between the smallest and the largest, not grown towards the budget.

        Uniform draws of many dimensions all cost about the same; so each one leans to smaller or larger choices.
        """
        lean = _LEAN ** self.rng.uniform(-1, 1)
        drawn = self.rng.random(len(self.space))
        point = np.where(self.space.ordered, drawn**lean, drawn)
        return self.space.at(np.floor(point * (self.space.last_indices + 1)).astype(np.int64))

    def _winner(self) -> Candidate:
        """Returns the better of two random members: of an earlier front, or of the same with more room around it."""
        pair: list[int] = self.rng.integers(len(self._members), size=2).tolist()
        return self._members[min(pair, key=lambda index: (self._ranks[index], -self._gaps[index]))]

    def _learn(self, batch: list[Trial]) -> None:
        """Keeps the best fronts of parents and children."""
        successes = [trial for trial in batch if trial.evaluation.failure is None]
        if not successes:
            return
        fitness = np.array([trial.fitness for trial in successes], dtype=np.float64)
        members = [*self._members, *(trial.candidate for trial in successes)]
        losses = np.concatenate(
            [self._losses, np.stack([-fitness, self._costs(successes)], axis=1)]
        )
        ranks = fronts(losses)
        gaps = np.zeros(len(members))
        for rank in np.unique(ranks):
            gaps[ranks == rank] = crowding(losses[ranks == rank])
        kept = np.lexsort((-gaps, ranks))[: self.options.population]
        self._members = [members[index] for index in kept.tolist()]
        self._losses, self._ranks, self._gaps = losses[kept], ranks[kept], gaps[kept]

    def _costs(self, trials: list[Trial]) -> NDArray[np.float64]:
        """Returns what trials cost, (n,) float64."""
        against, costs = self.options.against, self.constraint.costs
        if costs is None:
            return np.array(
                [getattr(trial.evaluation, against) for trial in trials], dtype=np.float64
            )
        return np.asarray(
            getattr(costs, against)(self._rows(trial.candidate for trial in trials)),
            dtype=np.float64,
        )

    def population(self) -> list[Candidate]:
        """Returns the survivors, the first front first."""
        return list(self._members)

    def _state(self) -> dict[str, Any]:
        rows = self._rows(self._members)
        return {"members": rows, "losses": self._losses, "ranks": self._ranks, "gaps": self._gaps}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._members = self._candidates(state["members"])
        self._losses, self._ranks, self._gaps = (
            state[name].copy() for name in ("losses", "ranks", "gaps")
        )


def fronts(losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the number of the front of every point, (n,) int64 from 0: fast non-dominated sort.

    Args:
        losses: (n, n_objectives) numbers, all to be minimised. A point dominates another if it is nowhere larger and
            somewhere smaller.
    """
    least = np.asarray((losses[:, None] <= losses[None]).all(axis=2))
    dominates = np.logical_and(least, ~least.T)
    # How many points of no front yet dominate a point
    pending: NDArray[np.int64] = dominates.sum(axis=0)
    ranks = np.full(len(losses), -1, dtype=np.int64)
    rank = 0
    while (ranks < 0).any():
        front = np.flatnonzero((ranks < 0) & (pending == 0))
        ranks[front] = rank
        pending -= dominates[front].sum(axis=0)
        rank += 1
    return ranks


def crowding(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the crowding distance of every point of one front, (n,) float64.

    It is the sum over all objectives of the gap between the two neighbours, as a share of the front's range; infinite
    at both ends of an objective.

    Args:
        losses: (n, n_objectives) finite numbers.
    """
    total = np.zeros(len(losses))
    for values in losses.T:
        order = np.argsort(values, kind="stable")
        ranked = values[order] / 2  # so that the range of the largest numbers there are is one, too
        span = ranked[-1] - ranked[0]
        gaps = np.full(len(values), np.inf)
        gaps[1:-1] = (ranked[2:] - ranked[:-2]) / (span if span > 0 else 1)
        total[order] += gaps
    return total
