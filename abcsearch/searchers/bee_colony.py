"""Artificial bee colony, guided by its best sources, or as Karaboga has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST, Searcher
from abcsearch.searchers.variation import redrawn_criteria

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]

_JITTER = 0.15  # standard deviation of first sources around uniform width, as a share of a dimension's choices
_FILL = 32  # neighbours of the guided colony spend a share of the budget like the largest of so many uniform numbers
# Random walks away from a neighbour that is known already, and how far they go
_WALKS, _STEPS = (64, 8)


@dataclass(frozen=True)
class _Guide:
    """The better sources.

    Attributes:
        rows: choice positions, (n, n_dims), best first.
        weights: (n,), sum 1.
    """

    rows: Ints
    weights: Floats

    @cached_property
    def mean(self) -> Floats:
        """Their weighted mean, (n_dims,) float64."""
        # In an order that no library decides
        return (self.weights[:, None] * self.rows).sum(axis=0)

    def draw(self, rng: np.random.Generator) -> Ints:
        """Returns for every dimension the choice of one of them, drawn by its weight, (n_dims,)."""
        n_dims = self.rows.shape[1]
        return self.rows[rng.choice(len(self.rows), size=n_dims, p=self.weights), np.arange(n_dims)]


@dataclass(frozen=True, kw_only=True)
class BeeColonyOptions:
    """Options of `BeeColony`; the defaults of the first two are those of ABCPruner's published code.

    With `guide = 0, rate = 0, scale = 1, decay = 0` it is the colony of Karaboga and of ABCPruner's paper.

    Attributes:
        n_sources: number of food sources, 2 to 10,000; also the batch size of the employed and the onlooker phase.
        abandonment_limit: a source that has not improved in this many tries is drawn anew, at least 1.
        guide: how far a neighbour is pulled towards the mean of the best sources, as a factor from 0 to 10 of the
            distance: each dimension by a share drawn from 0 to `guide`. 0: not at all; then first sources, growth into
            the budget and the choice of onlookers are Karaboga's and ABCPruner's as well.
        rate: probability from 0 to 1 that a dimension moves; 0: as many dimensions move as `genes_changed` says.
        genes_changed: dimensions that a neighbour differs in before repair where `rate` is 0, at least 1.
        scale: a neighbour moves towards or away from another source by at most this factor of the distance, 0 to 10.
        elite: share of the sources, above 0 and at most 1, whose mean is the guide; one at least.
        decay: share, from 0 to 1, by which the remembered fitness of a source moves to that of a neighbour that lost.

    Raises:
        SearcherError: if an option is out of range.
    """

    n_sources: int = setting(10, at_least=2, at_most=MOST)
    abandonment_limit: int = setting(5, at_least=1)
    guide: float = setting(1.5, at_least=0, at_most=10)
    rate: float = setting(1.0, at_least=0, at_most=1)
    genes_changed: int = setting(2, at_least=1)
    scale: float = setting(0.5, at_least=0, at_most=10)
    elite: float = setting(0.5, above=0, at_most=1)
    decay: float = setting(0.2, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "bee_colony", SearcherError)


@final
class BeeColony(Searcher):
    """Food sources improved by employed bees, onlookers and scouts, all of them guided by the best sources.

    Each cycle: one neighbour of every source (employed phase); as many neighbours of sources that onlookers choose by
    their rank (onlooker phase); every source whose stagnation reached the limit is drawn anew (scout phase). A
    neighbour replaces its source if it is better. It is, in units of choices and rounded stochastically,

        v_j = x_j + R * (x_j - x_kj) + P * (m_j - x_j)        R ~ U(-scale, scale), P ~ U(0, guide)

    with k another source and m the mean of the better half of the sources, weighted by ln(n + 1) - ln(rank).

    Source: Karaboga, An idea based on honey bee swarm for numerical optimization (2005); Lin et al., Channel Pruning
    via Automatic Structure Search (IJCAI 2020), algorithm 1; the pull towards a guide: Zhu and Kwong, Gbest-guided
    artificial bee colony algorithm (Applied Mathematics and Computation, 2010); `rate` and `scale`: Akay and Karaboga,
    A modified artificial bee colony algorithm for real-parameter optimization (Information Sciences, 2012); the weights
    of the mean: Hansen and Ostermeier, CMA-ES (2001).

    Differences from the paper:
        - The guide is a mean of the better half of the sources; Zhu and Kwong's is the best one, which noise chooses.
        - Every dimension moves; in Karaboga's and Zhu and Kwong's colony one does, in ABCPruner's two. `scale` is 0.5
          and fixed; Akay and Karaboga adapt theirs.
        - Onlookers choose by rank: n for the best source, 1 for the worst; the papers' chances depend on the scale of
          the fitness. Failed sources rank last, and are never part of the guide.
        - Under an upper bound the first source is the largest uniform width inside, and of the others every second
          lies around it (normal, 0.15 of a dimension's choices); the rest is random. Without one all are random.
        - A source that wins takes over a share of the distance to the loser (`decay`), so that luck is forgotten.
        - Neighbours spend nearly all of an upper bound: a share like the largest of 32 uniform numbers.
        - A neighbour that is known goes on from there by random steps, a choice up, one down, or both, until it is new.
        - Criteria have no order to move along, and no mean: one becomes that of one of the better sources, drawn by its
          weight, with probability P, that of the other source with probability abs(R). Without a guide one that a move
          would change is drawn anew.

    Differences from the paper, whatever the options:
        - Moves are rounded stochastically, so that growing and shrinking are equally likely, and always change
          something; in the published code truncation makes 51 % of the moves shrink and 26 % grow, and the last
          dimension never moves.
        - Scouts come from the uniform distribution over the choices that random first sources come from.
        - No structure is evaluated twice; a neighbour that is known is drawn again, after that at random.
        - Every structure is repaired into the budget and, under an upper bound, grown to spend most of it. The papers
          bound widths by alpha only.
        - Whole phases are proposed at once, so that as many workers as there are sources have work. Within the
          onlooker phase all neighbours therefore start from the sources as they were when the phase began.
        - Asked ahead, a phase begins before the last one is over: neighbours compare with what their source is by then,
          sources with a scout on its way get no second one, and a source that has improved meanwhile only leaves for a
          better scout. Until there are sources, further first ones are proposed; they take a free place, or
          compare with a source as neighbours do.

    With `guide = 0` onlookers choose a source with a probability proportional to 0.9 * fit / max(fit) + 0.1; where a
    fitness is negative (a loss), Karaboga's transform comes first: 1 + f for f >= 0, else 1 / (1 + abs(f)).
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
        self._movable = np.flatnonzero(self.space.last_indices > 0)

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
        rows = np.array([self.space.indices(source) for source in self._sources])
        guide = self._better(rows) if self._phase in ("employed", "onlooker") else None
        starts = self._starts()
        batch: list[Candidate] = []
        for target in targets:
            candidate = self._fresh(lambda t=target: self._draw(t, rows, guide, starts))
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

    def _draw(
        self, target: int, rows: Ints, guide: _Guide | None, starts: Iterator[Candidate]
    ) -> Candidate:
        """Returns a first source, a random structure or, in the employed and onlooker phase, a neighbour of a source.

        Args:
            target: number of the source.
            rows: choice positions of all sources, (n_sources, n_dims).
            guide: what neighbours are pulled to; None: they are not.
            starts: first sources.
        """
        if self._phase == "first":
            return next(starts)
        if self._phase == "scout":
            return self._random()
        neighbour = self._neighbour(target, rows, guide) if self._can_move(rows) else self._random()
        if not self.options.guide:
            return self._grown(neighbour)
        grown = self.constraint.fill(self.constraint.repair(neighbour, self.rng), self.rng, _FILL)
        return self._onward(grown) if self.space.canonical(grown) in self._known else grown

    def _starts(self) -> Iterator[Candidate]:
        """Yields first sources: where a budget binds uniform width, then in turn neighbours of it and random ones."""
        while not (self.options.guide and self.constraint.caps):
            yield self._random()
        last = self.space.last_indices
        widths = np.array([self.space.uniform(ratio) for ratio in np.arange(1, 101) / 100])
        inside = np.flatnonzero(self.constraint.violation(widths) == 0)
        center = self.space.indices(widths[inside[-1]].tolist() if len(inside) else self._random())
        if self.space.canonical(self.space.at(center)) not in self._known:
            yield self.space.at(center)
        while True:
            moved = center + self.rng.normal(scale=_JITTER, size=len(center)) * last
            moved = np.clip(
                np.floor(moved + self.rng.random(len(center))).astype(np.int64), 0, last
            )
            yield self._grown(self.space.at(redrawn_criteria(self.space, center, moved, self.rng)))
            yield self._random()

    def _can_move(self, rows: Ints) -> bool:
        """Returns whether sources have neighbours: a dimension with a choice, and another source."""
        return len(self._movable) > 0 and len(rows) > 1

    def _chances(self) -> Floats:
        """Returns the probability of every source in the onlooker phase, (n_sources,) float64, sum 1."""
        fitness = np.array(self._fitness)
        if self.options.guide:
            ranks = np.empty(len(fitness))
            ranks[np.argsort(-fitness, kind="stable")] = np.arange(len(fitness), 0, -1)
            return ranks / ranks.sum()
        finite = np.isfinite(fitness)
        if (fitness[finite] < 0).any():
            fitness[finite] = [
                1 + f if f >= 0 else 1 / (1 + abs(f)) for f in fitness[finite].tolist()
            ]
        fitness[~finite] = 0
        best = fitness.max()
        weights = 0.9 * (fitness / best if best > 0 else np.zeros_like(fitness)) + 0.1
        return weights / weights.sum()

    def _better(self, rows: Ints) -> _Guide | None:
        """Returns the better sources, (n_sources, n_dims) choice positions; None without a guide or a success."""
        fitness = np.array(self._fitness)
        count = min(max(1, round(self.options.elite * len(rows))), int(np.isfinite(fitness).sum()))
        if not self.options.guide or not count:
            return None
        best = np.argsort(-fitness, kind="stable")[:count]
        weights = np.log(count + 1) - np.log(np.arange(1, count + 1))
        return _Guide(rows[best], weights / weights.sum())

    def _neighbour(self, target: int, rows: Ints, guide: _Guide | None) -> Candidate:
        """Returns a source moved in some dimensions towards or away from another one, and towards the guide."""
        here, last, scale = rows[target], self.space.last_indices, self.options.scale
        other = rows[(target + int(self.rng.integers(1, len(rows)))) % len(rows)]
        genes = self._genes()
        push, pull = np.zeros(len(here)), np.zeros(len(here))
        push[genes] = self.rng.uniform(-scale, scale, size=len(genes))
        step = push * (here - other)
        if guide is not None:
            pull[genes] = self.rng.uniform(0, self.options.guide, size=len(genes))
            step += pull * (guide.mean - here)
        moved = here.copy()
        moved[genes] += np.floor(step[genes] + self.rng.random(len(genes))).astype(np.int64)
        moved, before = np.clip(moved, 0, last), here
        if guide is not None and not self.space.ordered.all():
            criteria = ~self.space.ordered
            moved[criteria] = here[criteria]
            for chances, theirs in ((np.abs(push), other), (pull, guide.draw(self.rng))):
                taken = criteria & (self.rng.random(len(here)) < chances)
                moved[taken] = theirs[taken]
            before = moved.copy()
        if (moved == here).all():
            gene = int(self.rng.choice(genes))
            up = here[gene] == 0 or (here[gene] < last[gene] and self.rng.random() < 0.5)
            moved[gene] += 1 if up else -1
        return self.space.at(redrawn_criteria(self.space, before, moved, self.rng))

    def _genes(self) -> Ints:
        """Returns the dimensions that a neighbour moves in, one at least."""
        if self.options.rate:
            genes = self._movable[self.rng.random(len(self._movable)) < self.options.rate]
            return genes if len(genes) else self.rng.choice(self._movable, size=1)
        return self.rng.choice(
            self._movable, size=min(self.options.genes_changed, len(self._movable)), replace=False
        )

    def _onward(self, candidate: Candidate) -> Candidate:
        """Returns a new structure inside the budget a few random steps away, the fewest that lead to one.

        A step is a choice up in one dimension, one down in another, or both. After some steps it gives up, and returns
        the structure itself.
        """
        n_dims = len(self.space)
        unit = np.eye(n_dims + 1, n_dims, dtype=np.int64)  # the last row moves nothing
        rows = np.tile(self.space.indices(candidate), (_WALKS, 1))
        for _ in range(_STEPS):
            up, down = self.rng.integers(n_dims + 1, size=(2, _WALKS))
            rows = np.clip(rows + unit[up] - unit[down], 0, self.space.last_indices)
            values = self.space.values(rows)
            inside = values[self.constraint.violation(values) == 0]
            for row in inside.tolist():
                if (reached := self.space.canonical(tuple(row))) not in self._known:
                    return reached
        return candidate

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
                if not scout:
                    self._fade(target, trial.fitness)

    def _fade(self, target: int, fitness: float) -> None:
        """Moves what is remembered of a source's fitness towards that of a neighbour that lost to it."""
        share, before = self.options.decay, self._fitness[target]
        if share and np.isfinite(fitness):
            self._fitness[target] = (1 - share) * before + share * fitness

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
