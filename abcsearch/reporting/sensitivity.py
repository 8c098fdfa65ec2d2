"""Which layers matter: how a trial's rank goes with the width of each layer, the others being equal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from abcsearch.errors import plural
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.reporting.curves import Layer
    from abcsearch.trial import Trial

_MOST = 3000  # trials that are used at most
_DRAWS = 200  # of the bootstrap
_PENALTIES = 10.0 ** np.arange(-2, 5)
_LEVEL = (5, 95)  # per cent of the draws within the interval


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one layer does.

    Attributes:
        name: of the layer.
        level: its level.
        effect: share of all trials that a trial overtakes where this layer is wider by one standard deviation of the
            widths that were tried, all others being equal; in [-1, 1], negative where wider is worse.
        low: the effect is larger in 95 % of the bootstrap's draws.
        high: it is smaller in 95 % of them.
    """

    name: str
    level: str
    effect: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Which layers matter, as far as the trials tell.

    Attributes:
        trials: how many it was computed from.
        effects: of all layers that were varied, in network order; empty where it is not shown.
        constant: names of the layers that were not.
        explained: share of the variance of ranks that the linear model predicts of trials that it has not seen (5
            parts, each predicted from the others); None where it is not shown. At 0 or below it predicts nothing.
        reason: why it is not shown, or None.
    """

    trials: int
    effects: tuple[Effect, ...] = field(repr=False)
    constant: tuple[str, ...] = ()
    explained: float | None = None
    reason: str | None = None

    @property
    def method(self) -> str:
        """How it was computed, in words."""
        return (
            f"Ridge regression of the rank of fitness on the widths of all layers, both standardised, over "
            f"{plural(self.trials, 'succeeded trial')}; the penalty by leave-one-out, intervals by {_DRAWS} bootstrap "
            f"draws ({_LEVEL[0]} % to {_LEVEL[1]} %). It holds for the region that the searcher visited, inside the "
            f"budget: there, more of one layer means less of others, and layers that were always changed together "
            f"share their effect."
        )


def least_trials(n_layers: int) -> int:
    """Returns how many trials a sensitivity needs at least."""
    return max(30, 3 * n_layers)


def layer_sensitivity(trials: Sequence[Trial], layers: Sequence[Layer]) -> Sensitivity:
    """Returns which layers matter.

    Args:
        trials: succeeded ones, in order of number; of more than 3000, evenly spread ones count.
        layers: the widths and blocks, which come first in every structure; criteria behind them have no width.
    """
    places = np.linspace(0, len(trials) - 1, min(len(trials), _MOST)).round().astype(int)
    used = [trials[index] for index in places]
    kept = [trial.candidate[: len(layers)] for trial in used]
    widths = np.array(kept, dtype=float).reshape(len(used), len(layers))
    varied = np.flatnonzero(np.ptp(widths, axis=0) > 0) if len(used) else np.array([], dtype=int)
    constant = tuple(
        layer.name for index, layer in enumerate(layers) if index not in set(varied.tolist())
    )
    fitness = np.array([trial.fitness for trial in used])
    reason = _too_little(len(used), len(varied), fitness)
    if reason is not None:
        return Sensitivity(trials=len(used), effects=(), constant=constant, reason=reason)
    x = (widths[:, varied] - widths[:, varied].mean(axis=0)) / widths[:, varied].std(axis=0)
    y = (rankdata(fitness) - 0.5) / len(used)
    model: Any = RidgeCV(alphas=_PENALTIES).fit(x, y)
    penalty = float(model.alpha_)
    draws = _bootstrap(x, y, penalty)
    low, high = np.percentile(draws, _LEVEL, axis=0)
    effects = tuple(
        Effect(
            name=layers[index].name,
            level=layers[index].level,
            effect=float(e),
            low=float(lo),
            high=float(hi),
        )
        for index, e, lo, hi in zip(varied.tolist(), model.coef_, low, high, strict=True)
    )
    return Sensitivity(
        trials=len(used), effects=effects, constant=constant, explained=_explained(x, y)
    )


def _too_little(trials: int, varied: int, fitness: NDArray[np.float64]) -> str | None:
    """Returns why nothing can be said, or None."""
    if not varied:
        return "no layer was varied"
    if trials < least_trials(varied):
        return (
            f"{plural(trials, 'succeeded trial')}: too few for {plural(varied, 'layer')}, with fewer than "
            f"{least_trials(varied)} it would be noise"
        )
    return "all trials have the same fitness" if np.ptp(fitness) == 0 else None


def _bootstrap(
    x: NDArray[np.float64], y: NDArray[np.float64], penalty: float
) -> NDArray[np.float64]:
    """Returns the coefficients of ridge regressions on trials drawn with replacement, (draws, layers)."""
    rng, count = numpy_stream(0, "sensitivity"), len(y)
    draws = np.empty((_DRAWS, x.shape[1]))
    for draw in range(_DRAWS):
        weights = np.bincount(rng.integers(count, size=count), minlength=count).astype(float)
        centred = x - np.average(x, axis=0, weights=weights)
        scaled = centred * weights[:, None]
        normal = scaled.T @ centred + penalty * np.eye(x.shape[1])
        draws[draw] = np.linalg.solve(normal, scaled.T @ (y - np.average(y, weights=weights)))
    return draws


def _explained(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Returns the share of variance that is predicted of trials left out."""
    fold = KFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(RidgeCV(alphas=_PENALTIES), x, y, cv=fold)
    share = 1 - float(((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return share if math.isfinite(share) else 0.0
