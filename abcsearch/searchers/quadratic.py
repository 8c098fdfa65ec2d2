"""Bayesian quadratic surfaces over the widths and block switches of a space."""

# pyright: basic
# scipy.linalg has no complete types.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy  # whose submodules are imported when they are first used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.space import Dimension, SearchSpace

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

# Kinds of columns, each with a prior variance of its own.
(
    _LINEAR,
    _SQUARE,
    _PAIR,
    _NEIGHBOURS,
    _COMMON,
    _COMMON_SQUARE,
    _COMMON_NEIGHBOURS,
    _KNOWN,
    _NOISE,
) = range(9)
# What a dimension's own curvature, and pairs of their own, are made of
SINGLE = (_SQUARE, _PAIR, _NEIGHBOURS)
_CONSTANT_VARIANCE = 10.0  # of the constant, in units of the fitness' variance: nearly free
_SPREAD = 2.0  # standard deviation of a log variance around its prior: a factor of 7 up or down
_SUBSET = 400  # trials that variances are estimated from, at most
_STEPS = 8  # of the estimation


@dataclass(frozen=True, kw_only=True)
class Form:
    """A quadratic form of structures, ready to be evaluated many times: a number per choice and one per pair.

    Attributes:
        constant: of all structures.
        table: what every choice adds, (n_dims, most choices).
        scale: the choices as numbers t, (n_dims, most choices).
        pairs: what t_i * t_j adds, (n_dims, n_dims), symmetric, each pair half above and half below the diagonal.
    """

    constant: float
    table: Floats
    scale: Floats
    pairs: Floats

    def __call__(self, indices: Ints) -> Floats:
        """Returns the form's values: choice positions (n, n_dims) to (n,)."""
        every = np.arange(len(self.table))
        t = self.scale[every, indices]
        return (
            self.constant
            + self.table[every, indices].sum(axis=1)
            + ((t @ self.pairs) * t).sum(axis=1)
        )


class Quadratic:
    """The columns of a quadratic surface: structures -> numbers that it is linear in.

    A width w becomes t in [-1, 1], linear in log w (power 0) or in w ** power; a block switch is -1 or 1. Columns are
    the constant, t, t * t, and t_i * t_j. Three more are sums of these over all dimensions: what the layers have in
    common (slope, saturation, coupling of neighbours) is learnt from few trials, and each layer's own coefficients
    are deviations from it. Of criteria, which have no order, there is a column for every choice, whether it is the one,
    less what it is on average; and again one for every criterion that sums these over all layers. The last ones are
    what is known already: forms whose weight is 1 until trials say otherwise.

    Attributes:
        kinds: kind of every column after the constant, shape (n_columns - 1,), int64.
        known: the forms that are known.
        expected: the coefficient that every column has on average before any trial, (n_columns,).
    """

    def __init__(self, space: SearchSpace, power: float, known: Sequence[Form] = ()) -> None:
        """Lays out the columns for a space; dimensions with one choice have none."""
        self._used = np.flatnonzero((space.last_indices > 0) & space.ordered)
        most = int(space.last_indices.max()) + 1
        self.scale = np.zeros((len(space), most))
        for index in self._used:
            scaled = _scaled(space.dimensions[index], power)
            self.scale[index, : len(scaled)] = scaled
        n = len(self._used)
        self._scale = 1 / np.sqrt(max(n, 1))
        self._first, self._second = np.triu_indices(n, 1)
        pairs = np.where(self._second - self._first == 1, _NEIGHBOURS, _PAIR)
        # Every choice of a criterion: which one it is of, its number, and the share that chance gives it.
        free = np.flatnonzero((space.last_indices > 0) & ~space.ordered)
        counts = space.last_indices[free] + 1
        self._criterion, self._chance = np.repeat(free, counts), np.repeat(1 / counts, counts)
        self._number = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        self._common = np.eye(counts.max(initial=0))[self._number] / np.sqrt(max(len(free), 1))
        chosen = [np.full(len(self._number), _LINEAR), np.full(self._common.shape[1], _COMMON)]
        common = [_COMMON, _COMMON_SQUARE, _COMMON_NEIGHBOURS, *[_KNOWN] * len(known)]
        kinds = [np.full(n, _LINEAR), np.full(n, _SQUARE), pairs, *chosen, common]
        self.kinds = np.concatenate(kinds).astype(np.int64)
        self.known = list(known)
        unknown = np.zeros(1 + len(self.kinds) - len(known))
        self.expected = np.append(unknown, np.full(len(known), 1 / max(len(known), 1)))

    def points(self, indices: Ints) -> Floats:
        """Returns t of the dimensions that have a choice: choice positions (n, n_dims) to (n, n_used)."""
        return self.scale[self._used, indices[:, self._used]]

    def columns(self, indices: Ints) -> Floats:
        """Returns the columns of structures: choice positions (n, n_dims) to (n, n_columns), float64."""
        t = self.points(indices)
        squares, pairs = t * t, t[:, self._first] * t[:, self._second]
        return np.concatenate(
            [
                np.ones((len(t), 1)),
                t,
                squares,
                pairs,
                *self._chosen(indices),
                self._shared(indices, t).T,
            ],
            axis=1,
        )

    def _chosen(self, indices: Ints) -> tuple[Floats, Floats]:
        """Returns the columns of criteria, (n, choices of all), and of what layers have in common, (n, criteria)."""
        chosen = (indices[:, self._criterion] == self._number) - self._chance
        return chosen, chosen @ self._common

    def _shared(self, indices: Ints, t: Floats) -> Floats:
        """Returns the columns that are not a dimension's or a pair's, each a row, (3 + n_known, n)."""
        sums = (
            np.stack([t.sum(axis=1), (t * t).sum(axis=1), (t[:, 1:] * t[:, :-1]).sum(axis=1)])
            * self._scale
        )
        return np.concatenate([sums, *(form(indices)[None] for form in self.known)])

    def kernels(self, indices: Ints) -> Floats:
        """Returns for every kind its columns times themselves, summed: (n, n_dims) to (8, n, n), without the columns.

        Time grows with n * n * n_dims, where columns alone are n * n_dims * n_dims numbers.
        """
        t = self.points(indices)
        near = t[:, 1:] * t[:, :-1]
        linear, squares, neighbours = t @ t.T, (t * t) @ (t * t).T, near @ near.T
        shared = self._shared(indices, t)
        chosen, chosen_common = self._chosen(indices)
        common = shared[:3, :, None] * shared[:3, None, :]
        common[0] += chosen_common @ chosen_common.T
        pairs = (linear * linear - squares) / 2 - neighbours
        known = shared[3:].T @ shared[3:]
        return np.stack([linear + chosen @ chosen.T, squares, pairs, neighbours, *common, known])

    def weighted(self, indices: Ints, weights: Floats) -> Floats:
        """Returns the columns of structures summed with weights, (n_columns,): columns(indices).T @ weights."""
        t = self.points(indices)
        pairs = (t * weights[:, None]).T @ t
        sums = [t.T @ weights, (t * t).T @ weights, pairs[self._first, self._second]]
        sums += [chosen.T @ weights for chosen in self._chosen(indices)]
        return np.concatenate([[weights.sum()], *sums, self._shared(indices, t) @ weights])

    def form(self, weights: Floats) -> Form:
        """Returns the surface with these coefficients, (n_columns,), as a form: columns @ weights."""
        n, n_dims = len(self._used), len(self.scale)
        sizes = [1, n, n, len(self._first), *self._common.shape, 3]
        constant, linear, square, paired, chosen, chosen_common, common, known = np.split(
            weights, np.cumsum(sizes)
        )
        common = common * self._scale
        scale = self.scale[self._used]
        upper = np.zeros((n, n))
        upper[self._first, self._second] = paired / 2
        upper[np.arange(n - 1), np.arange(1, n)] += common[2] / 2
        table, pairs = np.zeros_like(self.scale), np.zeros((n_dims, n_dims))
        table[self._used] = (linear + common[0])[:, None] * scale + (square + common[1])[
            :, None
        ] * scale * scale
        pairs[np.ix_(self._used, self._used)] = upper + upper.T
        chosen = chosen + self._common @ chosen_common
        table[self._criterion, self._number] = chosen
        total = float(constant[0] - chosen @ self._chance)
        for weight, form in zip(known, self.known, strict=True):
            total += float(weight) * form.constant
            table += weight * form.table
            pairs += weight * form.pairs
        return Form(constant=total, table=table, scale=self.scale, pairs=pairs)

    def prior(self) -> Floats:
        """Returns the prior's log variances: one per kind of column and the noise's, (9,) float64."""
        n = max(len(self._used), 1)
        return np.log([0.5 / n, 0.5 / n, 0.5 / n**2, 1.0 / n, 0.5, 0.5, 0.5, 0.5, 0.3])


def _scaled(dimension: Dimension, power: float) -> Floats:
    """Returns the choices of a dimension on a scale from -1 to 1: linear in log w, or in w ** power."""
    values = np.array(dimension.choices, dtype=np.float64)
    if dimension.kind in ("width", "rank"):
        values = values**power if power else np.log(values)
    return 2 * (values - values[0]) / (values[-1] - values[0] or 1.0) - 1


@dataclass
class Surface:
    """A quadratic with normal priors on its coefficients and normal noise, and what a set of trials says about it.

    Attributes:
        quadratic: its columns.
        log_variances: one per kind of column and the noise's, shape (9,).
        evidence: log probability of the trials, up to a constant that all surfaces share.
    """

    quadratic: Quadratic
    log_variances: Floats
    evidence: float = 0.0

    def estimate(self, indices: Ints, fitness: Floats) -> None:
        """Sets the variances to the most probable ones (empirical Bayes), and the evidence to theirs.

        Args:
            indices: choice positions, (n, n_dims).
            fitness: (n,), mean 0 and standard deviation 1.
        """
        every = np.unique(np.linspace(0, len(fitness) - 1, _SUBSET).astype(np.int64))
        data = _Sums(self.quadratic, indices[every], fitness[every])
        prior = self.quadratic.prior()

        def loss(log_variances: Floats) -> tuple[float, Floats]:
            likelihood, slope = data.loss(log_variances)
            away = (log_variances - prior) / _SPREAD
            return likelihood + float(away @ away) / 2, slope + away / _SPREAD

        bounds = [(value - 4 * _SPREAD, value + 4 * _SPREAD) for value in prior]
        options = {"maxiter": _STEPS}
        optimum = scipy.optimize.minimize(
            loss, self.log_variances, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        self.log_variances, self.evidence = np.array(optimum.x), -float(optimum.fun)

    def condition(self, indices: Ints, fitness: Floats) -> None:
        """Takes trials as all that is known; arguments as in `estimate`."""
        quadratic = self.quadratic
        self._indices = indices
        self._prior = _spread(self.log_variances, quadratic.kinds)
        self._noise = float(np.exp(self.log_variances[_NOISE]))
        self._targets = fitness - quadratic.form(quadratic.expected)(indices)
        if len(quadratic.expected) <= len(fitness):
            columns = quadratic.columns(indices)
            precision = columns.T @ columns / self._noise + np.diag(1 / self._prior)
            self._factor = scipy.linalg.cho_factor(precision, lower=True)
            explained = scipy.linalg.cho_solve(
                self._factor, columns.T @ self._targets / self._noise
            )
        else:
            covariance = _covariance(self.log_variances, quadratic.kernels(indices))
            self._factor = scipy.linalg.cho_factor(covariance, lower=True)
            explained = self._explain(self._targets)
        self.mean = quadratic.expected + explained

    def _explain(self, targets: Floats) -> Floats:
        """Returns the expected coefficients given targets at the trials' structures, (n_columns,)."""
        return self._prior * self.quadratic.weighted(
            self._indices, scipy.linalg.cho_solve(self._factor, targets)
        )

    def draw(self, rng: np.random.Generator) -> Floats:
        """Returns coefficients drawn from what the trials leave possible, (n_columns,)."""
        n, p = len(self._targets), len(self.mean)
        if p <= n:
            return self.mean + scipy.linalg.solve_triangular(
                self._factor[0], rng.normal(size=p), lower=True, trans=1
            )
        # Matheron's rule: a draw from the prior, corrected by what the trials say about it.
        drawn = rng.normal(size=p) * np.sqrt(self._prior)
        noise = rng.normal(size=n) * np.sqrt(self._noise)
        missing = self._targets - self.quadratic.form(drawn)(self._indices) - noise
        return self.quadratic.expected + drawn + self._explain(missing)


def _spread(log_variances: Floats, kinds: Ints) -> Floats:
    """Returns the prior variance of every column."""
    return np.concatenate([[_CONSTANT_VARIANCE], np.exp(log_variances)[kinds]])


def _covariance(log_variances: Floats, kernels: Floats) -> Floats:
    """Returns the covariance of trials' targets, (n, n), from the kernels of all kinds, (8, n, n)."""
    variances, noise = np.exp(log_variances[:_NOISE]), float(np.exp(log_variances[_NOISE]))
    return (
        np.tensordot(variances, kernels, axes=1)
        + _CONSTANT_VARIANCE
        + noise * np.eye(kernels.shape[1])
    )


class _Sums:
    """The likelihood of variances, with all that does not depend on them computed once."""

    def __init__(self, quadratic: Quadratic, indices: Ints, fitness: Floats) -> None:
        """Takes structures (n, n_dims) and their fitness (n,)."""
        self._targets = fitness - quadratic.form(quadratic.expected)(indices)
        self._kinds = quadratic.kinds
        self._few = len(quadratic.expected) <= len(fitness)
        if self._few:
            columns = quadratic.columns(indices)
            self._gram, self._seen = columns.T @ columns, columns.T @ self._targets
        else:
            self._kernels = quadratic.kernels(indices)

    def loss(self, log_variances: Floats) -> tuple[float, Floats]:
        """Returns the negative log marginal likelihood, up to a constant, and its slope, (9,)."""
        return self._from_columns(log_variances) if self._few else self._from_trials(log_variances)

    def _from_columns(self, log_variances: Floats) -> tuple[float, Floats]:
        """The loss by way of the coefficients' precision, (n_columns, n_columns)."""
        noise, n = float(np.exp(log_variances[_NOISE])), len(self._targets)
        spread = _spread(log_variances, self._kinds)
        factor = np.linalg.cholesky(self._gram / noise + np.diag(1 / spread))
        covariance = scipy.linalg.cho_solve((factor, True), np.eye(len(factor)))
        mean = covariance @ self._seen / noise
        squares = self._targets @ self._targets
        fit = (squares - mean @ self._seen) / noise
        value = fit + 2 * np.log(np.diag(factor)).sum() + np.log(spread).sum() + n * np.log(noise)
        known = 1 - (np.diag(covariance) + mean**2) / spread
        left = (
            squares
            - 2 * mean @ self._seen
            + mean @ self._gram @ mean
            + (covariance * self._gram).sum()
        )
        slope = np.append(
            np.bincount(self._kinds, weights=known[1:], minlength=_NOISE), n - left / noise
        )
        return float(value) / 2, slope / 2

    def _from_trials(self, log_variances: Floats) -> tuple[float, Floats]:
        """The loss by way of the trials' covariance, (n, n)."""
        variances, noise = np.exp(log_variances[:_NOISE]), float(np.exp(log_variances[_NOISE]))
        factor = np.linalg.cholesky(_covariance(log_variances, self._kernels))
        precision = scipy.linalg.cho_solve((factor, True), np.eye(len(factor)))
        rest = precision @ self._targets
        value = self._targets @ rest + 2 * np.log(np.diag(factor)).sum()
        gap = precision - np.outer(rest, rest)
        slope: Floats = np.append(
            variances * np.tensordot(self._kernels, gap, axes=2), noise * float(np.trace(gap))
        )
        return float(value) / 2, slope / 2
