"""How small the network must get: bounds on costs, and the repair that moves a structure inside them.

A `Budget` is what the user states (fractions of the full network or absolute numbers). Bound to a space and its costs
it becomes a `Constraint`, which is all that searchers see: it measures violations and repairs candidates. Costs must
grow with every dimension (more kept channels never cost less), as macs, flops and params do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np

from abcsearch.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from abcsearch.space import Candidate, SearchSpace

    Cost = Callable[[ArrayLike], NDArray[np.int64]]

# With an upper bound only, repair grows structures to at least this share of it: a random structure lies far below a
# cap (on ResNet-50 the average random one has 30 % of the MACs), and unspent budget is lost accuracy.
FILL = 0.95
_ATTEMPTS = 100  # walks that repair takes before it gives up


class Costs(Protocol):
    """Closed-form costs of many structures at once; every method maps (n, n_dims) integers to (n,) int64."""

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns multiply-accumulates, batch 1."""
        ...

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns floating-point operations by the survey's count, batch 1."""
        ...

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the number of parameters."""
        ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds, or bands (low, high), on the costs of a structure; all of them hold at once.

    A float in (0, 1] is a fraction of the full network, an int is an absolute number. `Budget(macs=0.5)` allows
    structures of at most half the MACs; `Budget(macs=(0.48, 0.5))` demands at least 48 % as well.

    Attributes:
        macs: bound on multiply-accumulates.
        params: bound on the number of parameters.
        flops: bound on the survey's floating-point operations.

    Raises:
        BudgetError: if no bound is given, or if one is not positive, a float above 1, or a band with low > high.
    """

    macs: float | int | tuple[float | int, float | int] | None = None
    params: float | int | tuple[float | int, float | int] | None = None
    flops: float | int | tuple[float | int, float | int] | None = None

    def __post_init__(self) -> None:
        """Checks every bound."""
        for entry in fields(self):
            if isinstance(getattr(self, entry.name), list):  # TOML and JSON know no tuples
                object.__setattr__(self, entry.name, tuple(getattr(self, entry.name)))
        if not self.bounds:
            msg = f"a budget needs at least one bound; set one of: {', '.join(e.name for e in fields(self))}"
            raise BudgetError(msg)
        for name, bound in self.bounds.items():
            _check_bound(name, bound)

    @property
    def bounds(self) -> dict[str, float | int | tuple[float | int, float | int]]:
        """The bounds that are set, by cost name."""
        return {e.name: getattr(self, e.name) for e in fields(self) if getattr(self, e.name) is not None}

    def bind(self, space: SearchSpace, costs: Costs) -> Constraint:
        """Returns the budget in absolute numbers for one space.

        Raises:
            BudgetError: if no structure of the space can meet a bound; the message names the reachable range.
        """
        ends = np.array([space.at(np.zeros_like(space.last_indices)), space.at(space.last_indices), space.full])
        limits: list[Limit] = []
        for name, bound in self.bounds.items():
            cost: Cost = getattr(costs, name)
            smallest, largest, full = (int(value) for value in cost(ends))
            low, high = _absolute(bound, full)
            if low > high:
                msg = f"budget {name} = {bound} is empty: it asks for at least {low:,} and at most {high:,} of {full:,}"
                raise BudgetError(msg)
            if high < smallest or low > largest:
                share = f"{smallest / max(full, 1):.3f} to {largest / max(full, 1):.3f} of the full network's {full:,}"
                msg = (
                    f"budget {name} = {bound} cannot be reached: it asks for {low:,} to {high:,}, but structures of "
                    f"this space have {smallest:,} to {largest:,} ({share}); change the budget, or alpha and step"
                )
                raise BudgetError(msg)
            high = min(high, 2**62)  # more than any network costs, and still within 64 bits
            floor = low if isinstance(bound, tuple) else int(FILL * min(high, largest))
            limits.append(Limit(name, low, high, floor, cost))
        return Constraint(space, tuple(limits))


@dataclass(frozen=True)
class Limit:
    """One bound in absolute numbers: low <= cost <= high; repair grows structures that lie below `floor`."""

    name: str
    low: int
    high: int
    floor: int
    cost: Cost


@dataclass(frozen=True)
class Constraint:
    """A budget bound to a space: what searchers see of costs. Without limits everything is allowed."""

    space: SearchSpace
    limits: tuple[Limit, ...] = ()

    def violation(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns how far candidates lie outside the budget.

        Args:
            candidates: (n, n_dims) integers.

        Returns:
            (n,) float64: the sum over all bounds of the relative distance to the allowed range; 0 inside.
        """
        rows = np.asarray(candidates, dtype=np.int64)
        total = np.zeros(len(rows))
        for limit in self.limits:
            cost = limit.cost(rows)
            total += np.maximum(cost - limit.high, 0) / max(limit.high, 1)
            total += np.maximum(limit.low - cost, 0) / max(limit.low, 1)
        return total

    def allows(self, candidate: Candidate) -> bool:
        """Returns whether one candidate is inside the budget."""
        return not self.violation([candidate])[0]

    def repair(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """Returns a structure inside the budget, near the given one.

        Above a bound, random dimensions step down one choice at a time; below the floor (a band's lower end, or 95 %
        of an upper bound), random dimensions step up as long as they fit. Every dimension that helps is equally
        likely at every step, so no layer is favoured.

        Args:
            candidate: a structure of the space.
            rng: decides which dimensions change.

        Raises:
            BudgetError: if the band is so narrow that the walk finds no structure inside.
        """
        if not self.limits:
            return candidate
        indices = self.space.indices(candidate)
        nearest = candidate
        for attempt in range(_ATTEMPTS):
            indices = self._shrink(indices, rng)
            indices = self._grow(indices, rng)
            found = self.space.at(indices)
            if self.allows(found):
                return found
            nearest = min(nearest, found, key=lambda c: float(self.violation([c])[0]))
            # Stuck just below a band: random steps down, more at every attempt, leave room for another way up.
            np.subtract.at(indices, rng.integers(len(indices), size=2 + attempt), 1)
            indices = np.maximum(indices, 0)
        wanted = ", ".join(f"{limit.name} {limit.low:,} to {limit.high:,}" for limit in self.limits)
        costs = ", ".join(f"{limit.name} {int(limit.cost([nearest])[0]):,}" for limit in self.limits)
        msg = f"no structure found with {wanted}; the nearest had {costs}; widen the band"
        raise BudgetError(msg)

    def _neighbours(self, indices: NDArray[np.int64], step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns all structures one choice up (or down) in one dimension: indices and values, (m, n_dims) each."""
        moved = indices + step * np.eye(len(indices), dtype=np.int64)
        inside = ((moved >= 0) & (moved <= self.space.last_indices)).all(axis=1)
        return moved[inside], self.space.values(moved[inside])

    def _shrink(self, indices: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Steps random dimensions down until no upper bound is exceeded; (n_dims,) choice positions."""
        while True:
            here = np.array([self.space.at(indices)])
            over = [limit for limit in self.limits if limit.cost(here)[0] > limit.high]
            if not over:
                return indices
            moved, values = self._neighbours(indices, -1)
            if not len(moved):
                return indices
            helps = np.any([limit.cost(values) < limit.cost(here) for limit in over], axis=0)
            # On a plateau no single step helps, but several may.
            indices = moved[rng.choice(np.flatnonzero(helps) if helps.any() else len(moved))]

    def _grow(self, indices: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Steps random dimensions up while a cost is below its floor and every upper bound still holds."""
        while any(limit.cost([self.space.at(indices)])[0] < limit.floor for limit in self.limits):
            moved, values = self._neighbours(indices, +1)
            if not len(moved):
                return indices
            fits = np.all([limit.cost(values) <= limit.high for limit in self.limits], axis=0)
            if not fits.any():
                return indices
            indices = moved[rng.choice(np.flatnonzero(fits))]
        return indices


def _check_bound(name: str, bound: float | int | tuple[float | int, float | int]) -> None:
    """Raises BudgetError unless the bound is positive, a float at most 1, and a band ascending."""
    ends = bound if isinstance(bound, tuple) else (bound,)
    if len(ends) not in (1, 2):
        msg = f"budget {name} = {bound}: a band has two ends (low, high)"
        raise BudgetError(msg)
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, float | int) or not end > 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"budget {name} = {bound}: a bound is a positive number, found {end!r}"
            raise BudgetError(msg)
        if isinstance(end, float) and end > 1:
            msg = f"budget {name} = {bound}: a float is a fraction in (0, 1]; write an int for an absolute number"
            raise BudgetError(msg)
    if len(ends) == 2 and isinstance(ends[0], float) == isinstance(ends[1], float) and ends[0] > ends[1]:
        msg = f"budget {name} = {bound}: the lower end of a band comes first"
        raise BudgetError(msg)


def _absolute(bound: float | int | tuple[float | int, float | int], full: int) -> tuple[int, int]:
    """Returns (low, high) in absolute numbers; floats are fractions of `full`, rounded into the band.

    The simplest fraction near a float is the number that was meant: 0.29 of 100 is 29, not 28.
    """
    low, high = (
        Fraction(end).limit_denominator(10**6) * full if isinstance(end, float) else end
        for end in (bound if isinstance(bound, tuple) else (0, bound))
    )
    return math.ceil(low), math.floor(high)
