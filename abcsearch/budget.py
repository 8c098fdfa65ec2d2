"""How small the network must get: bounds on costs, and the repair that moves a structure inside them.

A `Budget` is what the user states (fractions of the full network or absolute numbers). Bound to a space and its costs
it becomes a `Constraint`, which is all that searchers see: it measures violations and repairs candidates. Costs must
grow with every width, block and rank (more kept channels never cost less), as macs, flops and params do, and peak
activation but for ranks, and not depend on criteria, which no repair therefore changes. What comes of a repair is
checked: costs that fall here and there only make it longer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from abcsearch.bounds import Bound, absolute, amount, check_bound, how_to_get, meant, plain_bound
from abcsearch.errors import BudgetError, TooSmallError
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from abcsearch.space import Candidate, SearchSpace

    Cost = Callable[[ArrayLike], NDArray[np.int64] | NDArray[np.float64]]
    Test = Callable[[NDArray[np.int64]], NDArray[np.bool_]]

# Random structures lie far below an upper bound (on ResNet-50 the average one has 30 % of the MACs), and unspent budget
# is mostly lost accuracy. So proposals are grown, each to a share of the bound that is drawn anew: the largest of eight
# uniform numbers, 0.89 on average, so that every structure inside stays possible.
_FILL = 8
_ATTEMPTS = 50  # walks that repair takes before it gives up, or looks at all of a small space
_DESCENTS = 4  # from the nearest structure of all walks, then from random ones
_PAIRS = 4096  # exchanges that are looked at for one step of a descent
_BRANCHES = 64  # structures whose cost is computed at once in the search along a walk
_ENUMERABLE = 2**16  # spaces up to this size can be looked at whole


class Costs(Protocol):
    """Closed-form costs of many structures at once; every method maps (n, n_dims) integers to (n,) int64."""

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns multiply-accumulates, batch 1, of structures, (n, n_dims) to (n,)."""
        ...

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns floating-point operations by the survey's count, batch 1, (n, n_dims) to (n,)."""
        ...

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the number of parameters, (n, n_dims) to (n,)."""
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
        peak_activation: bound on the bytes of activations that are needed at the same time, per image.
        latency_ms: bound on the forward time. Here floats above 1 are milliseconds.

    Raises:
        BudgetError: if no bound is given, or if one is not positive, a float above 1, or a band with low > high.
    """

    macs: Bound | None = None
    params: Bound | None = None
    flops: Bound | None = None
    peak_activation: Bound | None = None
    latency_ms: Bound | None = None

    def __post_init__(self) -> None:
        """Checks every bound."""
        for entry in fields(self):
            object.__setattr__(self, entry.name, plain_bound(getattr(self, entry.name)))
        if not self.bounds:
            msg = f"a budget needs at least one bound; set one of: {', '.join(e.name for e in fields(self))}"
            raise BudgetError(msg)
        for name, bound in self.bounds.items():
            check_bound(name, bound)

    @property
    def bounds(self) -> dict[str, Bound]:
        """The bounds that are set, by cost name."""
        return {
            e.name: getattr(self, e.name) for e in fields(self) if getattr(self, e.name) is not None
        }

    def bind(self, space: SearchSpace, costs: Costs) -> Constraint:
        """Returns the budget in absolute numbers for one space.

        Args:
            space: the structures.
            costs: a method (n, n_dims) -> (n,) for every bound of the budget.

        Raises:
            BudgetError: if `costs` lacks one, or if no structure of the space meets all bounds; the message names the
                reachable range.
        """
        ends = np.array(
            [space.at(np.zeros_like(space.last_indices)), space.at(space.last_indices), space.full]
        )
        limits: list[Limit] = []
        for name, bound in self.bounds.items():
            cost: Cost | None = getattr(costs, name, None)
            if cost is None:
                msg = f"budget {name} = {bound}: these costs ({type(costs).__name__}) have no {name}; {how_to_get(name)}"
                raise BudgetError(msg)
            smallest, largest, full = cost(ends).tolist()
            low, high = absolute(name, bound, full)
            if low > high:
                low, high, full = (amount(name, cost) for cost in (low, high, full))
                msg = f"budget {name} = {bound} is empty: it asks for at least {low} and at most {high} of {full}"
                raise BudgetError(msg)
            if high < smallest or low > largest:
                share = f"{smallest / (full or 1):.3f} to {largest / (full or 1):.3f}"
                msg = (
                    f"budget {name} = {bound} cannot be reached: it asks for {amount(name, low, high)}, but structures "
                    f"of this space have {amount(name, smallest, largest)} ({share} of the full network's "
                    f"{amount(name, full)}); change the budget, or "
                )
                if high < smallest:
                    raise TooSmallError(f"{msg}step and lowest{_percents(name, bound)}", name)
                msg += f"alpha{_percents(name, bound)}"
                raise BudgetError(msg)
            # What excludes nothing is like 1.0; only forward times that are measured may exceed what is expected.
            most = 2**62 if name == "latency_ms" else max(full, largest)
            limits.append(Limit(name, low, min(high, most), cost))
        constraint = Constraint(space, tuple(limits), costs)
        # Bounds that can be met one by one may exclude each other, and a narrow band may hold no structure at all.
        constraint.repair(space.at(space.last_indices), numpy_stream(0, "feasible"))
        return constraint


def _percents(name: str, bound: Bound) -> str:
    """Returns that a number which is too small for a count may have been meant as per cent, or ""."""
    ends = bound if isinstance(bound, tuple) else (bound,)
    return (
        ""
        if name == "latency_ms"
        else "".join(dict.fromkeys(meant(end) for end in ends if isinstance(end, int)))
    )


@dataclass(frozen=True)
class Limit:
    """One bound in absolute numbers: low <= cost <= high."""

    name: str
    low: float
    high: float
    cost: Cost


@dataclass(frozen=True)
class Constraint:
    """A budget bound to a space: what searchers see of costs. Without limits everything is allowed.

    Attributes:
        space: the structures.
        limits: all of them hold at once.
        costs: closed-form costs, for searchers that look at them (`ddpg`, `nsga2`); None where there are none.
    """

    space: SearchSpace
    limits: tuple[Limit, ...] = ()
    costs: Costs | None = None

    @cached_property
    def caps(self) -> tuple[Limit, ...]:
        """The bounds that are to be spent: upper ones alone that exclude something; bands say for themselves."""
        largest = self.space.values(self.space.last_indices)[None]
        return tuple(
            limit for limit in self.limits if not limit.low and limit.cost(largest)[0] > limit.high
        )

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
            total += np.maximum(cost - limit.high, 0) / (limit.high or 1)
            total += np.maximum(limit.low - cost, 0) / (limit.low or 1)
        return total

    def allows(self, candidate: Candidate) -> bool:
        """Returns whether one candidate is inside the budget."""
        return not self.violation([candidate])[0]

    def repair(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """Returns a structure inside the budget, near the given one if walks lead inside; one inside as it is.

        Above a bound, random dimensions step down one choice at a time, every one that can being equally likely at
        every step, so no layer is favoured. Then all steps that turn out not to be needed are taken back in random
        order: none that is left can be undone alone. Below the lower end of a band, the same upwards. Costs along the
        whole walk come from a few calls, as they grow along it.

        Args:
            candidate: a structure of the space.
            rng: decides which dimensions change.

        Raises:
            BudgetError: if no structure inside is found; in spaces up to 65,536 structures there is none, in larger
                ones the band is too narrow for walks and descents.
        """
        start = self.space.indices(candidate)
        # The unpruned network may lie outside of the space: then its nearest structure inside is what is repaired.
        candidate = self.space.at(start) if self.limits else candidate
        if not self.limits or self.allows(candidate):
            return candidate
        here, nearest = start, candidate
        for attempt in range(_ATTEMPTS):
            exchanged = self._exchange(self._into(here, rng), rng)
            if self.allows(self.space.at(exchanged)):
                return self.space.at(exchanged)
            nearest = min(
                nearest, self.space.at(exchanged), key=lambda c: float(self.violation([c])[0])
            )
            # Stuck beside a narrow band: random steps down, more at every attempt, leave room for another way up.
            here = exchanged.copy()
            costly = np.flatnonzero(self.space.ordered)
            np.subtract.at(here, costly[rng.integers(len(costly), size=2 + attempt)], 1)
            here = np.maximum(here, 0)
        if self._enumerable:
            return self._enumerated(start, nearest, rng)
        begin = self.space.indices(nearest)
        for _ in range(_DESCENTS):
            descended = self.space.at(self._descended(begin, rng))
            if self.allows(descended):
                return descended
            nearest = min(nearest, descended, key=lambda c: float(self.violation([c])[0]))
            begin = np.where(self.space.ordered, self.space.indices(self.space.sample(rng)), start)
        raise self._why_none(nearest, rng)

    @cached_property
    def _enumerable(self) -> bool:
        """Whether all structures of the space can be looked at."""
        return math.prod(n + 1 for n in self.space.largest_indices.tolist()) <= _ENUMERABLE

    def fill(
        self, candidate: Candidate, rng: np.random.Generator, power: float = _FILL
    ) -> Candidate:
        """Returns a structure that spends more of the budget: random steps up as long as every upper bound holds.

        It ends when a cost has reached a share of its upper bound that is drawn like the largest of some uniform
        numbers. Of eight it is 0.89 on average, below 0.8 one time in six. Only upper bounds that exclude something
        count; bands do not.

        Args:
            candidate: a structure inside the budget.
            rng: decides the share and which dimensions grow.
            power: of how many uniform numbers the share is the largest.
        """
        if not self.caps:
            return candidate
        share = rng.random() ** (1 / power)

        def full_enough(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            return np.any([limit.cost(rows) >= share * limit.high for limit in self.caps], axis=0)

        start = self.space.indices(candidate)
        room = self.space.last_indices - start
        grown = self.space.at(self._walk(start, room, 1, rng, keep=self._fits, until=full_enough))
        # Measured times need not grow along a walk
        return grown if self.allows(grown) else candidate

    def _fits(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns whether no upper bound is exceeded: (n, n_dims) values to (n,) bool."""
        return np.all([limit.cost(rows) <= limit.high for limit in self.limits], axis=0)

    def _suffices(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns whether every lower bound is reached: (n, n_dims) values to (n,) bool."""
        return np.all([limit.cost(rows) >= limit.low for limit in self.limits if limit.low], axis=0)

    def _into(self, start: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns choice positions after steps down into the upper bounds and up into the lower ones."""
        lower = self._walk(start, start, -1, rng, until=self._fits)
        lower = self._walk(lower, start - lower, 1, rng, keep=self._fits)
        if not any(limit.low for limit in self.limits):
            return lower
        room = self.space.last_indices - lower
        upper = self._walk(lower, room, 1, rng, keep=self._fits, until=self._suffices)
        return self._walk(upper, upper - lower, -1, rng, keep=self._suffices)

    def _walk(
        self,
        start: NDArray[np.int64],
        room: NDArray[np.int64],
        sign: int,
        rng: np.random.Generator,
        *,
        keep: Test | None = None,
        until: Test | None = None,
    ) -> NDArray[np.int64]:
        """Takes random single steps of one sign; every dimension with room is equally likely at every step.

        No criterion has.

        Args:
            start: choice positions, (n_dims,).
            room: steps that every dimension may take, (n_dims,).
            sign: 1 up, -1 down.
            rng: decides the order.
            keep: holds at the start, and no step may break it: one that would is left out.
            until: the walk ends as soon as it holds; without it, when no step is left.
        """
        here, room = start, room * self.space.ordered
        while not (until is not None and until(self.space.values(here)[None])[0]) and room.any():
            walk = _Walk(self.space, here, sign, _order(room, rng))
            last = len(walk.order) if keep is None else walk.last(len(walk.order), keep)
            if until is not None:
                short = walk.last(last, lambda values: ~until(values))
                if short < last:
                    return walk.after([short + 1])[0]
            (after,) = walk.after([last])
            room, here = room - np.abs(after - here), after
            if keep is not None and room.any():
                open_ = np.flatnonzero(room)
                ahead = here + sign * np.eye(len(here), dtype=np.int64)[open_]
                room[open_[~keep(self.space.values(ahead))]] = 0
        return here

    def _exchange(self, here: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns the positions; if they are outside a band, after one step up and one down where that leads inside."""
        if self.allows(self.space.at(here)):
            return here
        unit = np.eye(len(here), dtype=np.int64)[self.space.ordered]
        moved = (here + unit[:, None] - unit[None]).reshape(-1, len(here))
        moved = moved[((moved >= 0) & (moved <= self.space.last_indices)).all(axis=1)]
        inside = np.flatnonzero(self.violation(self.space.values(moved)) == 0)
        return moved[rng.choice(inside)] if len(inside) else here

    def _descended(self, here: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns the positions after steps up, down, or one of each, every time those that leave the least violation.

        Walks meet two bounds that pull in opposite directions only by chance: most parameters at few MACs, say. It ends
        inside, or where no step leads nearer.
        """
        unit = np.eye(len(here), dtype=np.int64)[self.space.ordered]
        pairs = (unit[:, None] - unit[None]).reshape(-1, len(here))
        outside = float(self.violation(self.space.values(here)[None])[0])
        while outside > 0:
            some = rng.choice(len(pairs), size=min(_PAIRS, len(pairs)), replace=False)
            moved = here + np.concatenate([unit, -unit, pairs[some]])
            moved = moved[((moved >= 0) & (moved <= self.space.last_indices)).all(axis=1)]
            left = self.violation(self.space.values(moved))
            best = rng.choice(np.flatnonzero(left == left.min()))
            if left[best] >= outside:
                break
            here, outside = moved[best], float(left[best])
        return here

    def _enumerated(
        self, start: NDArray[np.int64], nearest: Candidate, rng: np.random.Generator
    ) -> Candidate:
        """Returns the structure inside that is the fewest steps away, by looking at all of a small space.

        Criteria stay.

        Raises:
            BudgetError: if there is none.
        """
        counts: list[int] = (self.space.largest_indices + 1).tolist()
        rows = np.array(list(itertools.product(*(range(count) for count in counts))))
        rows = np.where(self.space.ordered, rows, start)
        rows = rows[self.violation(self.space.values(rows)) == 0]
        if not len(rows):
            raise self._why_none(nearest, rng)
        steps = np.abs(rows - start).sum(axis=1)
        return self.space.at(rows[rng.choice(np.flatnonzero(steps == steps.min()))])

    def _why_none(self, nearest: Candidate, rng: np.random.Generator) -> BudgetError:
        """Returns what says that no structure inside was found, and which was nearest.

        Raises:
            BudgetError: if it is one of several bounds alone, which then says so.
        """
        if len(self.limits) > 1:  # if it is one of them alone, this says so
            for limit in self.limits:
                replace(self, limits=(limit,)).repair(nearest, rng)
        ends = self.space.values([np.zeros_like(self.space.last_indices), self.space.last_indices])
        names = [limit.name for limit in self.limits]
        wanted, costs, reach = (
            ", ".join(
                f"{name} {amount(name, *low_high)}"
                for name, low_high in zip(names, numbers, strict=True)
            )
            for numbers in (
                [(limit.low, limit.high) for limit in self.limits],
                [limit.cost([nearest]).tolist() for limit in self.limits],
                [limit.cost(ends).tolist() for limit in self.limits],
            )
        )
        advice = "widen the band"
        if len(self.limits) > 1:
            surely = (
                "they cannot be met together" if self._enumerable else "no search met them together"
            )
            advice = f"{surely}: loosen one or leave it out"
        msg = f"no structure found with {wanted}; the nearest had {costs}; this space reaches {reach}; {advice}"
        return BudgetError(msg)


def _order(room: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns dimensions in the random order in which they step, (room.sum(),), each `room` times.

    At every step all dimensions that have room left are equally likely: they are clocks that tick alike.
    """
    ticks = rng.exponential(size=(len(room), int(room.max()))).cumsum(axis=1)
    ticks[np.arange(ticks.shape[1]) >= room[:, None]] = np.inf
    return np.argsort(ticks, axis=None)[: int(room.sum())] // ticks.shape[1]


@dataclass(frozen=True)
class _Walk:
    """Single steps of one sign from a structure.

    Attributes:
        space: the structures.
        start: choice positions, (n_dims,).
        sign: 1 up, -1 down.
        order: the dimension of every step.
    """

    space: SearchSpace
    start: NDArray[np.int64]
    sign: int
    order: NDArray[np.int64]

    def after(self, counts: ArrayLike) -> NDArray[np.int64]:
        """Returns choice positions after so many steps, (n_counts, n_dims); counts ascend."""
        counts, n = np.asarray(counts), len(self.start)
        taken = self.order[: counts[-1]]
        # The first count that a step is part of
        first = np.searchsorted(counts, np.arange(len(taken)), side="right")
        steps = np.bincount(first * n + taken, minlength=len(counts) * n).reshape(len(counts), n)
        return self.start + self.sign * steps.cumsum(axis=0)

    def last(self, count: int, holds: Test) -> int:
        """Returns how many of the first `count` steps can be taken while a test holds that holds before them."""
        low, high = 0, count + 1
        while high - low > 1:
            probes = np.arange(low + 1, high, max(1, (high - low) // _BRANCHES))
            good = int(np.argmin(np.append(holds(self.space.values(self.after(probes))), False)))
            low, high = (
                (int(probes[good - 1]) if good else low),
                (int(probes[good]) if good < len(probes) else high),
            )
        return low
