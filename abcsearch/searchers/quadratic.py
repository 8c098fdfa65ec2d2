"""Bayesian quadratic surfaces over the widths and block switches of a space."""

# pyright: basic
# scipy.linalg has no complete types.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy  # whose submodules are imported when they are first used

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.space import Dimension, SearchSpace

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

# Kinds of columns, each with a prior variance of its own.
_LINEAR, _SQUARE, _PAIR, _NEIGHBOURS, _COMMON, _COMMON_SQUARE, _COMMON_NEIGHBOURS, _NOISE = range(8)
_CONSTANT_VARIANCE = 10.0  # of the constant, in units of the fitness' variance: nearly free
_SPREAD = 2.0  # standard deviation of a log variance around its prior: a factor of 7 up or down
_SUBSET = 400  # trials that variances are estimated from, at most
_STEPS = 8  # of the estimation


class Quadratic:
    """The columns of a quadratic surface: structures -> numbers that it is linear in.

    A width w becomes t in [-1, 1], linear in log w (power 0) or in w ** power; a block switch is -1 or 1. Columns are
    the constant, t, t * t, and t_i * t_j. Three more are sums of these over all dimensions: what the layers have in
    common (slope, saturation, coupling of neighbours) is learnt from few trials, and each layer's own coefficients
    are deviations from it. Of criteria, which have no order, there is a column for every choice, whether it is the one,
    less what it is on average; and again one for every criterion that sums these over all layers.

    Attributes:
        kinds: kind of every column after the constant, shape (n_columns - 1,), int64.
    """

    def __init__(self, space: SearchSpace, power: float) -> None:
        """Lays out the columns for a space; dimensions with one choice have none."""
        self._used = np.flatnonzero((space.last_indices > 0) & space.ordered)
        most = int(space.last_indices.max()) + 1
        self._table = np.zeros((len(self._used), most))
        for row, index in enumerate(self._used):
            scaled = _scaled(space.dimensions[index], power)
            self._table[row, : len(scaled)] = scaled
        n = len(self._used)
        self._scale = 1 / np.sqrt(max(n, 1))
        self._first, self._second = np.triu_indices(n, 1)
        pairs = np.where(self._second - self._first == 1, _NEIGHBOURS, _PAIR)
        common = [_COMMON, _COMMON_SQUARE, _COMMON_NEIGHBOURS]
        # Every choice of a criterion: which one it is of, its number, and the share that chance gives it.
        free = np.flatnonzero((space.last_indices > 0) & ~space.ordered)
        counts = space.last_indices[free] + 1
        self._criterion, self._chance = np.repeat(free, counts), np.repeat(1 / counts, counts)
        self._number = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        self._common = np.eye(counts.max(initial=0))[self._number] / np.sqrt(max(len(free), 1))
        chosen = [np.full(len(self._number), _LINEAR), np.full(self._common.shape[1], _COMMON)]
        kinds = [np.full(n, _LINEAR), np.full(n, _SQUARE), pairs, *chosen, common]
        self.kinds = np.concatenate(kinds).astype(np.int64)

    def columns(self, indices: Ints) -> Floats:
        """Returns the columns of structures: choice positions (n, n_dims) to (n, n_columns), float64."""
        t = self._table[np.arange(len(self._used)), indices[:, self._used]]
        squares, pairs = t * t, t[:, self._first] * t[:, self._second]
        neighbours = (t[:, 1:] * t[:, :-1]).sum(axis=1)
        common = np.stack([t.sum(axis=1), squares.sum(axis=1), neighbours], axis=1) * self._scale
        return np.concatenate([np.ones((len(t), 1)), t, squares, pairs, *self._chosen(indices), common], axis=1)

    def _chosen(self, indices: Ints) -> tuple[Floats, Floats]:
        """Returns the columns of criteria, (n, choices of all), and of what layers have in common, (n, criteria)."""
        chosen = (indices[:, self._criterion] == self._number) - self._chance
        return chosen, chosen @ self._common

    def prior(self) -> Floats:
        """Returns the prior's log variances: one per kind of column and the noise's, (8,) float64."""
        n = max(len(self._used), 1)
        return np.log([0.5 / n, 0.5 / n, 0.5 / n**2, 1.0 / n, 0.5, 0.5, 0.5, 0.3])


def _scaled(dimension: Dimension, power: float) -> Floats:
    """Returns the choices of a dimension on a scale from -1 to 1: linear in log w, or in w ** power."""
    values = np.array(dimension.choices, dtype=np.float64)
    if dimension.kind == "width":
        values = values**power if power else np.log(values)
    return 2 * (values - values[0]) / (values[-1] - values[0] or 1.0) - 1


@dataclass
class Surface:
    """A quadratic with normal priors on its coefficients and normal noise, and what a set of trials says about it.

    Attributes:
        quadratic: its columns.
        log_variances: one per kind of column and the noise's, shape (8,).
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
        columns, targets = self.quadratic.columns(indices[every]), fitness[every]
        parts = _Parts(columns, targets, self.quadratic.kinds)
        prior = self.quadratic.prior()

        def loss(log_variances: Floats) -> tuple[float, Floats]:
            likelihood, slope = parts.loss(log_variances)
            away = (log_variances - prior) / _SPREAD
            return likelihood + float(away @ away) / 2, slope + away / _SPREAD

        bounds = [(value - 4 * _SPREAD, value + 4 * _SPREAD) for value in prior]
        options = {"maxiter": _STEPS}
        found = scipy.optimize.minimize(
            loss, self.log_variances, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        self.log_variances, self.evidence = np.array(found.x), -float(found.fun)

    def condition(self, indices: Ints, fitness: Floats) -> None:
        """Takes trials as all that is known; arguments as in `estimate`."""
        self._columns, self._targets = self.quadratic.columns(indices), fitness
        self._prior = _spread(self.log_variances, self.quadratic.kinds)
        self._noise = float(np.exp(self.log_variances[_NOISE]))
        n, p = self._columns.shape
        if p <= n:
            precision = self._columns.T @ self._columns / self._noise + np.diag(1 / self._prior)
            self._factor = scipy.linalg.cho_factor(precision, lower=True)
            self.mean = scipy.linalg.cho_solve(self._factor, self._columns.T @ fitness / self._noise)
        else:
            covariance = (self._columns * self._prior) @ self._columns.T + self._noise * np.eye(n)
            self._factor = scipy.linalg.cho_factor(covariance, lower=True)
            self.mean = self._explain(fitness)

    def _explain(self, targets: Floats) -> Floats:
        """Returns the expected coefficients given targets at the trials' structures, (n_columns,)."""
        return self._prior * (self._columns.T @ scipy.linalg.cho_solve(self._factor, targets))

    def draw(self, rng: np.random.Generator) -> Floats:
        """Returns coefficients drawn from what the trials leave possible, (n_columns,)."""
        n, p = self._columns.shape
        if p <= n:
            return self.mean + scipy.linalg.solve_triangular(self._factor[0], rng.normal(size=p), lower=True, trans=1)
        # Matheron's rule: a draw from the prior, corrected by what the trials say about it.
        drawn = rng.normal(size=p) * np.sqrt(self._prior)
        noise = rng.normal(size=n) * np.sqrt(self._noise)
        return drawn + self._explain(self._targets - self._columns @ drawn - noise)


def _spread(log_variances: Floats, kinds: Ints) -> Floats:
    """Returns the prior variance of every column."""
    return np.concatenate([[_CONSTANT_VARIANCE], np.exp(log_variances)[kinds]])


class _Parts:
    """The likelihood of variances, with all that does not depend on them computed once."""

    def __init__(self, columns: Floats, targets: Floats, kinds: Ints) -> None:
        """Takes columns (n, n_columns), targets (n,) and the kind of every column but the first."""
        self._targets, self._kinds = targets, kinds
        self._few = columns.shape[1] <= len(targets)
        if self._few:
            self._gram, self._seen = columns.T @ columns, columns.T @ targets
        else:
            own = [columns[:, 1:][:, kinds == kind] for kind in range(_NOISE)]
            self._kernels = np.stack([part @ part.T for part in own])

    def loss(self, log_variances: Floats) -> tuple[float, Floats]:
        """Returns the negative log marginal likelihood, up to a constant, and its slope, (8,)."""
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
        own = 1 - (np.diag(covariance) + mean**2) / spread
        left = squares - 2 * mean @ self._seen + mean @ self._gram @ mean + (covariance * self._gram).sum()
        slope = np.append(np.bincount(self._kinds, weights=own[1:], minlength=_NOISE), n - left / noise)
        return float(value) / 2, slope / 2

    def _from_trials(self, log_variances: Floats) -> tuple[float, Floats]:
        """The loss by way of the trials' covariance, (n, n)."""
        variances, noise = np.exp(log_variances[:_NOISE]), float(np.exp(log_variances[_NOISE]))
        covariance = np.tensordot(variances, self._kernels, axes=1)
        covariance += _CONSTANT_VARIANCE + noise * np.eye(len(covariance))
        factor = np.linalg.cholesky(covariance)
        precision = scipy.linalg.cho_solve((factor, True), np.eye(len(factor)))
        rest = precision @ self._targets
        value = self._targets @ rest + 2 * np.log(np.diag(factor)).sum()
        gap = precision - np.outer(rest, rest)
        slope: Floats = np.append(variances * np.tensordot(self._kernels, gap, axes=2), noise * float(np.trace(gap)))
        return float(value) / 2, slope / 2
