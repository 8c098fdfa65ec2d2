"""Response surface: quadratic models of fitness over log widths, maximised inside the budget."""

# pyright: basic
# Fancy indexing of numpy arrays has no complete types.

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from threadpoolctl import threadpool_limits

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST, MOST_MODELLED, Searcher
from abcsearch.searchers.climbing import Climb
from abcsearch.searchers.quadratic import Quadratic, Surface
from abcsearch.searchers.sensitivity_map import RULES, linear_costs, probes, sensitivity_map, solved
from abcsearch.searchers.transfer import known_quadratic, standardised

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from abcsearch.searchers.quadratic import Form
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_POWERS = (0.0, 0.5, 1.0)  # of the width scale: log, square root, linear
_GROWTH = 1.25  # variances are estimated anew when there are this many times more trials
# Columns of all structures of a space are kept if they are at most so many numbers
_NUMBERS = 2**22
_JITTER = 0.15  # standard deviation of starts around uniform width, as a share of the choices of a dimension
_RANKED = 400  # of the structures that are best on a surface, how many are looked at for a new one


@dataclass(frozen=True, kw_only=True)
class ResponseSurfaceOptions:
    """Options of `ResponseSurface`.

    Attributes:
        batch: structures proposed at once, 1 to 1,000; more give more workers work, fewer learn sooner.
        first: structures before the first surface: uniform width, neighbours of it, and random ones, up to 10,000; 0
            stands for 8 and one more for every two dimensions.
        explore: share of proposals that maximise a surface drawn at random from those that the trials leave possible
            (Thompson sampling) instead of the most probable one, 0 to 1.
        levels: choices of every dimension that a map of sensitivities tries before the search (see `sensitivity`), 0 to
            1,000; 0 is no map. These evaluations come on top of the trials, once for all budgets.

    Raises:
        SearcherError: if an option is out of range.
    """

    batch: int = setting(8, at_least=1, at_most=MOST_MODELLED)
    first: int = setting(0, at_least=0, at_most=MOST)
    explore: float = setting(0.5, at_least=0, at_most=1)
    levels: int = setting(0, at_least=0, at_most=MOST_MODELLED)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "response_surface", SearcherError)


@final
class ResponseSurface(Searcher):
    """A Bayesian quadratic model of fitness, refitted after every batch; proposals are its maximisers in the budget.

    The surface is quadratic in log widths and block switches, with all pairs of them, and additive in the criteria of
    layers, where these are searched; each kind of coefficient has a normal prior around what all layers have in common,
    whose variances, with the noise's, are estimated from the trials (empirical Bayes). An ensemble of three such
    surfaces, over log widths, their square roots and the widths themselves, takes turns with the probability that the
    trials give each. Half of the proposals maximise the mean of a surface, half one drawn from its posterior (Thompson
    sampling), so that batches differ.

    Costs are closed form, so maximising costs no evaluation: where all structures can be listed (five layers of eight
    widths, say), all that are inside the budget are compared; elsewhere every surface is climbed from the best trial by
    exchanges between layers.

    What it has been told of others (`know`) makes more columns: a map of sensitivities (`levels`: its own probes; or
    that of a run that it knows), and a surface of the trials of other budgets. The first batch then is what these say.

    Source: Box and Wilson, On the experimental attainment of optimum conditions (1951), for the surface; MacKay,
    Bayesian interpolation (1992), for the variances; Thompson (1933) and Wilson et al., Efficiently sampling functions
    from Gaussian process posteriors (ICML 2020), for drawing surfaces. The combination is ours.

    Differences from the paper:
        - Box and Wilson fit by least squares to a designed experiment, and follow the gradient; here trials are where
          the search has been, and priors stand in for the missing ones.
        - The fitness is cut off far below the median: structures that are broken anyway must not bend the surface.
          Failed trials count as the worst.
    """

    name: ClassVar[str] = "response_surface"
    Options: ClassVar[type] = ResponseSurfaceOptions
    options: ResponseSurfaceOptions
    overlaps: ClassVar[bool] = True

    def _begin(self) -> None:
        self._first = self.options.first or 8 + len(self.space) // 2
        self._told: list[Ints] = []  # choice positions
        self._fitness: list[float] = []
        self._estimated = 0  # trials that the variances were last estimated from
        self._read = 0  # trials of the knowledge that the surfaces have been told
        self._surfaces: list[Surface] = [
            Surface(quadratic, quadratic.prior()) for quadratic in self._quadratics()
        ]
        self._inside: Ints | None = (
            None  # all structures inside the budget, where they can be listed,
        )
        # Their numbers in the order of the whole space,
        self._numbers: Ints = np.zeros(0, dtype=np.int64)
        self._columns: dict[Quadratic, Floats] = {}  # and their columns

    def _quadratics(self) -> list[Quadratic]:
        """Returns the columns for every power, with forms of what is known by now."""
        return [
            known_quadratic(self.space, power, self.knowledge[: self._read]) for power in _POWERS
        ]

    def probes(self) -> list[Candidate]:
        """Returns the structures of the map, if it has one."""
        return probes(self.space, self.options.levels) if self.options.levels else []

    def _learn(self, batch: list[Trial]) -> None:
        self._told += [self.space.indices(trial.candidate) for trial in batch]
        self._fitness += [trial.fitness for trial in batch]

    def _propose(self) -> list[Candidate]:
        # The order of sums, and so the last bit, must not depend on the machine
        with threadpool_limits(1):
            if self._read != len(self.knowledge):
                self._read = len(self.knowledge)
                self._surfaces = [
                    Surface(quadratic, surface.log_variances)
                    for quadratic, surface in zip(self._quadratics(), self._surfaces, strict=True)
                ]
                self._inside, self._estimated = None, 0
            fitness = self._targets()
            return self._batch(self._starts() if fitness is None else self._maximisers(fitness))

    def _starts(self) -> Iterator[Iterator[Candidate]]:
        """Yields structures to begin with: what is known to be good, the largest uniform one, random ones around it."""
        # Ahead of the first results, no more than a batch goes to what no surface has chosen.
        ahead = len(self._known) > len(self._told)
        count = min(self._least(), self.options.batch) if ahead else self._least()
        rows = np.array([self.space.uniform(ratio) for ratio in np.arange(1, 101) / 100])
        inside = np.flatnonzero(self.constraint.violation(rows) == 0)
        center = self.space.indices(
            tuple(rows[inside[-1]].tolist()) if len(inside) else self._random()
        )
        known = 0
        yield iter([self.space.at(center)])
        if not ahead and not self._told and self._surfaces[0].quadratic.known:
            rankings = itertools.chain(self._solved(), self._maximisers(np.zeros(0), center))
            for known, ranking in enumerate(itertools.islice(rankings, count - 1), start=1):  # noqa: B007
                yield ranking
        for number in range(1 + known, count):
            yield iter([self._grown(self._around(center)) if number % 2 else self._random()])

    def _least(self) -> int:
        """Returns how many trials there are before the first surface."""
        return min(self._first, self.options.batch) if self._read else self._first

    def _solved(self) -> Iterator[Iterator[Candidate]]:
        """Yields the structures that the map makes of the budget, if there is one."""
        known = sensitivity_map(self.space, self.knowledge[: self._read])
        if known is not None:
            costs = linear_costs(self.constraint, self.space.largest_indices)
            for power in RULES:
                yield iter([solved(self.constraint, known.relative, costs, power, self.rng)])

    def _around(self, center: Ints) -> Candidate:
        """Returns a structure whose choices lie around those of another one, (n_dims,) choice positions."""
        last = self.space.last_indices
        moved = center + self.rng.normal(scale=_JITTER, size=len(center)) * last
        near = np.clip(np.rint(moved), 0, last).astype(np.int64)
        if not self.space.ordered.all():  # nothing lies around a criterion
            near = np.where(self.space.ordered, near, self.rng.integers(last + 1))
        return self.space.at(near)

    def _batch(self, rankings: Iterator[Iterator[Candidate]]) -> list[Candidate]:
        """Returns the first new structure of every ranking; where a ranking has none, a random one."""
        batch: list[Candidate] = []
        for ranking in rankings:
            candidate = self._fresh(lambda ranking=ranking: next(ranking, None) or self._random())
            if candidate is None:
                break
            batch.append(candidate)
        return batch

    def _targets(self) -> Floats | None:
        """Returns the fitness of all trials with mean 0 and standard deviation 1; None if they tell nothing yet."""
        return (
            standardised(np.array(self._fitness)) if len(self._fitness) >= self._least() else None
        )

    def _maximisers(
        self, fitness: Floats, start: Ints | None = None
    ) -> Iterator[Iterator[Candidate]]:
        """Yields, for every proposal of a batch, structures inside the budget, the best of a surface first.

        Args:
            fitness: of the trials told, (n,); of none while surfaces say no more than what was known before.
            start: choice positions inside the budget, (n_dims,), where no trial was told.
        """
        told = np.array(self._told, dtype=np.int64).reshape(-1, len(self.space))
        self._estimate(told, fitness)
        surfaces, weights = self._drawn_surfaces(told, fitness)
        pairs = list(zip(surfaces, weights, strict=True))
        if self._listable():
            rows, scores = self._listed(_Scores([(s.quadratic, w) for s, w in pairs]))
            yield from self._best_of(itertools.repeat(rows), scores)
        else:
            forms = [s.quadratic.form(w) for s, w in pairs]
            yield from self._best_of(*self._climbed(forms, told if start is None else start[None]))

    def _estimate(self, told: Ints, fitness: Floats) -> None:
        """Estimates all surfaces anew if there are enough more trials, (n, n_dims), than the last time."""
        if len(told) and len(told) >= _GROWTH * self._estimated:
            self._estimated = len(told)
            for surface in self._surfaces:
                surface.estimate(told, fitness)

    def _drawn_surfaces(self, told: Ints, fitness: Floats) -> tuple[list[Surface], list[Floats]]:
        """Returns for every proposal of a batch a surface, as likely as it is, and its weights: the mean, or drawn.

        Args:
            told: trials, (n, n_dims) choice positions.
            fitness: of these, (n,).
        """
        evidence = np.array([surface.evidence for surface in self._surfaces])
        chances = np.exp(evidence - evidence.max())
        chosen = self.rng.choice(len(_POWERS), size=self.options.batch, p=chances / chances.sum())
        # Without a trial, a drawn surface would be mostly chance.
        drawn = (self.rng.random(self.options.batch) < self.options.explore) & (len(told) > 0)
        for index in np.unique(chosen):
            self._surfaces[index].condition(told, fitness)
        surfaces = [self._surfaces[index] for index in chosen]
        weights = [
            surface.draw(self.rng) if by_chance else surface.mean
            for surface, by_chance in zip(surfaces, drawn, strict=True)
        ]
        return surfaces, weights

    def _best_of(self, rows: Iterable[Ints], scores: Floats) -> Iterator[Iterator[Candidate]]:
        """Yields, for every proposal, the structures of highest score, best first; (n, n_dims) and (n,) each."""
        for near, score in zip(rows, scores, strict=False):
            yield self._ranked(near, score)

    def _ranked(self, rows: Ints, score: Floats) -> Iterator[Candidate]:
        """Yields structures, (n, n_dims) choice positions, of the highest score first, none of minus infinity."""
        count = min(_RANKED, len(rows))
        best = np.argpartition(-score, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
        best = best[np.lexsort((best, -score[best]))]
        seen: set[Candidate] = set()
        for i in best[np.isfinite(score[best])].tolist():
            candidate = self.space.at(rows[i])
            if candidate not in seen and candidate not in self._known:
                yield candidate
            seen.add(candidate)

    def _listable(self) -> bool:
        """Returns whether all structures and their columns fit into memory."""
        return self.space.size * (len(self._surfaces[0].quadratic.kinds) + 1) <= _NUMBERS

    def _listed(self, score: _Scores) -> tuple[Ints, Floats]:
        """Returns choice positions of all structures inside the budget, (n, n_dims), and their scores, (batch, n).

        What has been proposed already scores minus infinity.
        """
        shape = tuple((self.space.last_indices + 1).tolist())
        if self._inside is None:
            every = np.stack(np.unravel_index(np.arange(self.space.size), shape), axis=1).astype(
                np.int64
            )
            inside = np.flatnonzero(self.constraint.violation(self.space.values(every)) == 0)
            self._inside, self._numbers = every[inside], inside
            self._columns = {s.quadratic: s.quadratic.columns(self._inside) for s in self._surfaces}
        scores = score.of(self._columns)
        known = np.array([self.space.indices(candidate) for candidate in self._known])
        positions = np.searchsorted(self._numbers, np.ravel_multi_index(tuple(known.T), shape))
        scores[:, positions] = -np.inf
        return self._inside, scores

    def _climbed(self, forms: list[Form], rows: Ints) -> tuple[Ints, Floats]:
        """Returns structures inside the budget where forms are large, (batch, n, n_dims), and their values.

        Each climb starts from the best for its form of some structures inside, (n, n_dims) choice positions.
        """
        values = np.stack([form(rows) for form in forms])
        return Climb(forms, self.constraint, self.rng)(rows[values.argmax(axis=1)])

    def _state(self) -> dict[str, Any]:
        return {
            "told": np.array(self._told, dtype=np.int64).reshape(-1, len(self.space)),
            "fitness": np.array(self._fitness, dtype=np.float64),
            "estimated": self._estimated,
            "log_variances": np.stack([surface.log_variances for surface in self._surfaces]),
            "evidence": np.array([surface.evidence for surface in self._surfaces]),
            "read": self._read,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._inside = None  # its columns are those of the surfaces before
        self._told = list(state["told"].copy())
        self._fitness = state["fitness"].tolist()
        self._estimated = int(state["estimated"])
        self._read = int(state.get("read", 0))
        self._surfaces = [
            Surface(quadratic, variances.copy(), float(evidence))
            for quadratic, variances, evidence in zip(
                self._quadratics(), state["log_variances"], state["evidence"], strict=True
            )
        ]


class _Scores:
    """What the surfaces of a batch say about structures."""

    def __init__(self, members: list[tuple[Quadratic, Floats]]) -> None:
        """Takes a quadratic and its coefficients for every proposal of the batch."""
        self._members = members

    def __call__(self, indices: Ints) -> Floats:
        """Returns the score of every structure for every proposal: (n, n_dims) to (batch, n)."""
        return self.of(
            {
                quadratic: quadratic.columns(indices)
                for quadratic in {surface for surface, _ in self._members}
            }
        )

    def of(self, columns: dict[Quadratic, Floats]) -> Floats:
        """Returns the same from columns, (n, n_columns) per quadratic."""
        return np.stack([columns[quadratic] @ weights for quadratic, weights in self._members])
