"""One threshold of harm on a map of sensitivities, as FastNAS has it, and what can be learned from there."""

# pyright: basic
# Fancy indexing of numpy arrays has no complete types.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST_MODELLED, Searcher
from abcsearch.searchers.sensitivity_map import (
    RULES,
    SensitivityMap,
    even_map,
    linear_costs,
    probes,
    sensitivity_map,
    solved,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_ELITE = 6  # best trials, one of which the next weights are drawn around
_FREE = 0.5  # share of the structures with one dimension that is drawn
_CHANGED = 4  # dimensions, at most, whose weights differ from those of the trial that they are drawn around,
_SPREAD = 1.0  # and the standard deviation of the logarithms' differences


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions:
    """Options of `Sensitivity`.

    Attributes:
        levels: choices below the largest that the map tries of every dimension, spread evenly, the smallest among
            them, 1 to 1,000; all where a dimension has no more. The map costs the sum of these, and one, evaluations.
        batch: structures proposed at once, 1 to 1,000.

    Raises:
        SearcherError: if an option is out of range.
    """

    levels: int = setting(4, at_least=1, at_most=MOST_MODELLED)
    batch: int = setting(8, at_least=1, at_most=MOST_MODELLED)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "sensitivity", SearcherError)


@final
class Sensitivity(Searcher):
    """Narrows every layer as far as its harm, tried alone, stays below one threshold; then refines what harm counts.

    The map is made of probes: every dimension alone at a few of its choices, everything else as large as can be. It is
    the same for all budgets, so that several of them, or another run (`known`), share one. The first proposal for a
    budget is that of the lowest threshold that meets it, filled up by what takes away most loss per cost; the next ones
    have the least sum of losses instead, and of their squares. All later ones do the same with every dimension's losses
    weighted: as in one of the best trials so far, a few weights changed. In every other one of them, one dimension is
    at a choice of its own, whatever the map says.

    Without any map (no probe was evaluated), a layer's loss is the share of its channels that is gone: the first
    proposal is uniform width, and weights are learned from there.

    Source: NVIDIA ModelOpt, FastNAS: a map of sensitivities, and one threshold per budget by bisection, as its
    documentation describes it.

    Differences from the paper:
        - There is no paper, and the documentation has no formulas. Losses are cleaned of noise (no layer is better when
          it is narrower) and interpolated between the choices that were tried; a failed probe counts as the worst of
          the map.
        - The lowest threshold is found by looking at all of them, not by bisection: costs are closed form.
        - Block switches are probed as widths are. What is left of a budget is filled up.
        - The search goes on after the first structure: other sums than the threshold, and weights, are ours.
    """

    name: ClassVar[str] = "sensitivity"
    Options: ClassVar[type] = SensitivityOptions
    options: SensitivityOptions
    overlaps: ClassVar[bool] = True

    def _begin(self) -> None:
        self._drawn: dict[
            Candidate, tuple[float, ...]
        ] = {}  # rule, log weights and choices until told
        self._told: list[tuple[float, ...]] = []  # fitness, rule, log weights, choices
        self._map: SensitivityMap = even_map(self.space)
        self._read = 0  # trials of the knowledge that the map was made of
        self._first = 0  # rules that have been proposed

    def probes(self) -> list[Candidate]:
        """Returns the structures of the map."""
        return probes(self.space, self.options.levels)

    def map(self) -> SensitivityMap:
        """Returns the map of what is known by now."""
        if self._read != len(self.knowledge):
            self._read = len(self.knowledge)
            self._map = sensitivity_map(self.space, self.knowledge) or even_map(self.space)
        return self._map

    def _propose(self) -> list[Candidate]:
        loss = self.map().relative
        costs = linear_costs(self.constraint, self.space.largest_indices)
        batch: list[Candidate] = []
        while len(batch) < self.options.batch:
            made: dict[Candidate, tuple[float, ...]] = {}

            def draw(made: dict[Candidate, tuple[float, ...]] = made) -> Candidate:
                rule, weights, near = self._draw()
                candidate = solved(
                    self.constraint, np.exp(weights)[:, None] * loss, costs, rule, self.rng
                )
                row = self.space.indices(candidate)
                # The map says nothing of criteria
                row[~self.space.ordered] = near[~self.space.ordered]
                if weights.any() and self.rng.random() < _FREE:
                    row = self._with_one_free(row)
                candidate = self.space.canonical(self.space.at(row))
                made[candidate] = (rule, *weights.tolist(), *row.tolist())
                return candidate

            candidate = self._fresh(draw)
            if candidate is None:
                break
            if candidate in made:  # not a warm start, nor a random one where nothing else was new
                self._drawn[candidate] = made[candidate]
            batch.append(candidate)
        return batch

    def _draw(self) -> tuple[float, Floats, Ints]:
        """Returns a rule, the log weights of all dimensions, and the choices of a structure to take criteria from."""
        n = len(self.space)
        if self._first < len(RULES):
            self._first += 1
            return RULES[self._first - 1], np.zeros(n), np.zeros(n, dtype=np.int64)
        told = np.zeros(1 + 2 * n)
        best = sorted(self._told, key=lambda told: -told[0])[:_ELITE]
        if best:
            told[:] = best[int(self.rng.integers(len(best)))][1:]
        weights = told[1 : n + 1]
        changed = self.rng.permutation(np.flatnonzero(self.space.last_indices))[
            : self.rng.integers(1, _CHANGED + 1)
        ]
        weights[changed] += self.rng.normal(scale=_SPREAD, size=len(changed))
        return float(told[0]), weights, told[n + 1 :].astype(np.int64)

    def _with_one_free(self, row: Ints) -> Ints:
        """Returns choice positions, (n_dims,), inside the budget, with one dimension at any of its choices."""
        row = row.copy()
        dimension = int(self.rng.choice(np.flatnonzero(self.space.last_indices)))
        row[dimension] = self.rng.integers(self.space.last_indices[dimension] + 1)
        return self.space.indices(self._grown(self.space.at(row)))

    def _learn(self, batch: list[Trial]) -> None:
        for trial in batch:
            drawn = self._drawn.pop(trial.candidate, None)
            if drawn is not None and np.isfinite(trial.fitness):
                self._told.append((trial.fitness, *drawn))

    def _state(self) -> dict[str, Any]:
        width = 1 + 2 * len(self.space)
        return {
            "first": self._first,
            "drawn": self._rows(self._drawn),
            "weights": np.array(list(self._drawn.values()), dtype=np.float64).reshape(-1, width),
            "told": np.array(self._told, dtype=np.float64).reshape(-1, width + 1),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._first = int(state["first"])
        weights = [tuple(row) for row in state["weights"].tolist()]
        self._drawn = dict(zip(self._candidates(state["drawn"]), weights, strict=True))
        self._told = [tuple(row) for row in state["told"].tolist()]
        self._read, self._map = 0, even_map(self.space)
