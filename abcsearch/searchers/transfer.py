"""What trials that a searcher has not asked for say about others: forms that a quadratic surface begins with."""

# pyright: basic
# Fancy indexing of numpy arrays has no complete types.

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abcsearch.searchers.quadratic import SINGLE, Form, Quadratic, Surface
from abcsearch.searchers.sensitivity_map import sensitivity_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.searchers.sensitivity_map import SensitivityMap
    from abcsearch.space import SearchSpace
    from abcsearch.trial import Trial

    Floats = NDArray[np.float64]

_WORST = 4.0  # fitness further below the best than this many times the median's distance counts as no worse
_NONE = -20.0  # logarithm of a variance that leaves nothing to a coefficient
# Of the losses of a map: their sum, and one in which the greatest count most
_EXPONENTS = (1.0, 2.0)


def standardised(fitness: Floats) -> Floats | None:
    """Returns fitness with mean 0 and standard deviation 1, cut off far below; None if it tells nothing.

    Args:
        fitness: (n,), minus infinity for failed trials, which count as the worst.
    """
    finite = fitness[np.isfinite(fitness)]
    if len(finite) < 2 or finite.max() == finite.min():
        return None
    # By a power of two, which is exact: so that squares neither overflow nor vanish.
    power = -int(np.frexp(np.abs(finite).max())[1])
    fitness, finite = np.ldexp(fitness, power), np.ldexp(finite, power)
    best, median = finite.max(), float(np.median(finite))
    lowest = max(finite.min(), best - _WORST * (best - median)) if median < best else finite.min()
    fitness = np.maximum(fitness, lowest)
    return (fitness - fitness.mean()) / (fitness.std() or 1.0)


def known_quadratic(space: SearchSpace, power: float, trials: Sequence[Trial]) -> Quadratic:
    """Returns the columns of a surface, with forms of what is known among them.

    Known may be a map of sensitivities: then the sum of its losses, and of their squares, are forms. What is known of
    structures with several dimensions narrowed, as of a run with another budget, is one more: a surface of its own, of
    what each layer is worth and of the curvature that all have in common. (A whole quadratic is far off where there are
    no trials, and those of two budgets hardly overlap.) Each has a scale of its own, since the fitness of another
    budget has another; how much it counts here is for the trials of the search to say.

    Source: Kennedy and O'Hagan, Predicting the output from a complex computer code when fast approximations are
    available (Biometrika 2000): one function as a multiple of another and a difference to learn.

    Args:
        space: the structures.
        power: of the width scale, see `Quadratic`.
        trials: whatever is known.
    """
    plain = Quadratic(space, power)
    quadratic = Quadratic(space, power, map_forms(sensitivity_map(space, trials), plain.scale))
    several = [
        trial
        for trial in trials
        if (space.indices(trial.candidate) != space.largest_indices).sum() > 1
    ]
    fitness = standardised(np.array([trial.fitness for trial in several]))
    if fitness is None:
        return quadratic
    rows = np.stack([space.indices(trial.candidate) for trial in several])
    surface = Surface(quadratic, quadratic.prior())
    surface.log_variances[list(SINGLE)] = _NONE
    surface.condition(rows, fitness)
    return Quadratic(space, power, [*quadratic.known, quadratic.form(surface.mean)])


def map_forms(known: SensitivityMap | None, scale: Floats) -> list[Form]:
    """Returns minus the sum of a map's losses, and of their squares, as forms of variance 1 over a whole space.

    Args:
        known: the map; None, or one without any loss, has no forms.
        scale: of the quadratic that they are for, (n_dims, most choices).
    """
    if known is None or not known.loss.max() > 0:
        return []
    loss = np.maximum(known.loss / known.loss.max(), 0.0)
    forms: list[Form] = []
    for exponent in _EXPONENTS:
        table = loss**exponent
        last = known.space.last_indices.tolist()
        variance = sum(float(np.var(row[: end + 1])) for row, end in zip(table, last, strict=True))
        table = -table / (np.sqrt(variance) or 1.0)
        forms.append(
            Form(constant=0.0, table=table, scale=scale, pairs=np.zeros((len(table), len(table))))
        )
    return forms
