"""The likeliest structures inside a budget, where every dimension has its own distribution over choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abcsearch.searchers.sensitivity_map import linear_costs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.space import Candidate

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_LISTED = 2**17  # structures of a space that are all looked at
_DRAWN = 128  # of a larger one, repaired: where climbs may begin,
# And the likeliest where the whole budget costs so much, in logarithms
_PRICES = np.geomspace(0.01, 1000, 64)
_CLIMBS, _ROUNDS = 16, 200  # from the likeliest of these, and how far at most
_FACTORS = np.geomspace(0.05, 4, 400)  # of expected widths
_SPENT = 0.8  # of every upper bound, at least, as long as there are structures that do
_NEVER = 1e-30  # stands for a probability of 0


def likeliest(
    probabilities: Sequence[Floats], constraint: Constraint, count: int, rng: np.random.Generator
) -> list[tuple[Candidate, float]]:
    """Returns structures inside a budget, the likeliest first, with the logarithms of their probabilities.

    Those that spend less than four fifths of an upper bound come last: a distribution that misses the budget is
    likeliest far below it. Small spaces are listed; in larger ones many draws are repaired into the budget and climb,
    a choice up in one dimension and down in another, as long as that is likelier. Draws are never thrown away until one
    fits: a distribution may be certain of a structure outside.

    Args:
        probabilities: per dimension of the space, (n_choices,).
        constraint: the budget bound to the space.
        count: how many, at most.
        rng: draws.
    """
    space = constraint.space
    logs = np.full((len(space), int(space.last_indices.max()) + 1), -np.inf)
    for index, each in enumerate(probabilities):
        logs[index, : len(each)] = np.log(np.maximum(each, _NEVER))
    if space.size <= _LISTED:
        shape = tuple((space.last_indices + 1).tolist())
        every = np.stack(np.unravel_index(np.arange(space.size), shape), axis=1).astype(np.int64)
        rows = every[constraint.violation(space.values(every)) == 0]
    else:
        rows = _climbed(logs, constraint, rng)
    scores = _score(logs, rows)
    spent = _spends(space.values(rows), constraint)
    order = np.lexsort((-scores, ~spent))
    chosen: dict[Candidate, float] = {}
    for index in order.tolist():
        chosen.setdefault(space.at(rows[index]), float(scores[index]))
        if len(chosen) == count:
            break
    return list(chosen.items())


def expected_structure(probabilities: Sequence[Floats], constraint: Constraint) -> Candidate:
    """Returns the largest structure inside the budget whose widths are in proportion to those that are expected.

    Where none is inside, the one that misses the budget least. Other dimensions have their likeliest choice.

    Args:
        probabilities: per dimension of the space, (n_choices,).
        constraint: the budget bound to the space.
    """
    rows: list[Ints] = []
    for factor in _FACTORS:
        row = [int(each.argmax()) for each in probabilities]
        for index, (dimension, each) in enumerate(
            zip(constraint.space.dimensions, probabilities, strict=True)
        ):
            if dimension.kind == "width":
                choices = np.array(dimension.choices)
                row[index] = int(np.abs(choices - factor * (choices @ each)).argmin())
        rows.append(np.array(row, dtype=np.int64))
    values = constraint.space.values(np.stack(rows))
    violation = constraint.violation(values)
    return tuple(values[np.flatnonzero(violation == violation.min())[-1]].tolist())


def _score(logs: Floats, rows: Ints) -> Floats:
    """Returns log probabilities of structures, choice positions (n, n_dims) to (n,)."""
    return logs[np.arange(len(logs)), rows].sum(axis=1)


def _spends(values: Ints, constraint: Constraint) -> NDArray[np.bool_]:
    """Returns which structures, (n, n_dims), spend most of every upper bound."""
    spent = np.ones(len(values), dtype=np.bool_)
    for limit in constraint.limits:
        if np.isfinite(limit.high):
            spent &= limit.cost(values) >= _SPENT * limit.high
    return spent


def _climbed(logs: Floats, constraint: Constraint, rng: np.random.Generator) -> Ints:
    """Returns structures inside the budget, (n, n_dims) choice positions; some that no change makes likelier."""
    space = constraint.space
    shares = np.exp(logs)
    drawn = [
        np.array([rng.choice(len(row), p=row / row.sum()) for row in shares]) for _ in range(_DRAWN)
    ]
    costs = linear_costs(constraint, drawn[0])
    drawn += [(logs - price * costs).argmax(axis=1) for price in _PRICES]
    repaired = [constraint.repair(space.at(row.astype(np.int64)), rng) for row in drawn]
    inside = repaired + [constraint.fill(structure, rng) for structure in repaired]
    rows = np.unique(np.array([space.indices(structure) for structure in inside]), axis=0)
    spent = _spends(space.values(rows), constraint)
    best = np.lexsort((-_score(logs, rows), ~spent))[:_CLIMBS]
    return np.concatenate([rows, *(_climb(row, logs, constraint) for row in rows[best])])


def _climb(here: Ints, logs: Floats, constraint: Constraint) -> Ints:
    """Returns what a structure became on the way up, (n, n_dims); one that spends the budget still does so then."""
    space, seen = constraint.space, [here]
    for _ in range(_ROUNDS):
        near = _near(here, space.last_indices)
        fits = constraint.violation(space.values(near)) == 0
        if _spends(space.values(here[None]), constraint)[0]:
            fits &= _spends(space.values(near), constraint)
        scores = np.where(fits, _score(logs, near), -np.inf)
        if not len(near) or scores.max() <= _score(logs, here[None])[0]:
            break
        here = near[int(scores.argmax())]
        seen.append(here)
    return np.stack(seen)


def _near(here: Ints, last: Ints) -> Ints:
    """Returns a structure's neighbours: another choice of one dimension, or a step up of one, a step down of one."""
    unit = np.eye(len(here), dtype=np.int64)
    single = [
        here + (choice - here[i]) * unit[i]
        for i in range(len(here))
        for choice in range(last[i] + 1)
    ]
    steps = (unit[:, None] - unit[None]).reshape(-1, len(here))
    near = np.concatenate([np.array(single), here + steps])
    return near[((near >= 0) & (near <= last)).all(axis=1) & (near != here).any(axis=1)]
