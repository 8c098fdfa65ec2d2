"""A model of forward time for budgets, fitted to whole networks that were measured where the network will run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.runtimes import check_runtime
from abcsearch.channels.slicing import slice_model
from abcsearch.channels.timed import LayerTimes, TimedCosts
from abcsearch.channels.turns import Turns as Turns
from abcsearch.channels.turns import forward_times as forward_times
from abcsearch.channels.turns import in_turns as in_turns
from abcsearch.channels.turns import measure_latency as measure_latency
from abcsearch.channels.turns import torch_threads as torch_threads
from abcsearch.channels.work import MULTIPLES, LayerWork
from abcsearch.errors import ModelError
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.example import Inputs

_STRUCTURES = 60  # that are measured for a model, of all sizes
_SECONDS = 120.0  # after this time a model is measured with as few turns as there must be
_BYTES = 2**30  # of weights that are in memory at once while a model is measured
# Of the coefficients, each in units of the largest amount: the one that predicts best what was not fitted is taken
_RIDGES = (0.02, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Structures whose forward times have been measured.

    Attributes:
        structures: (n, n_dims) candidates.
        turns: their times.
    """

    structures: NDArray[np.int64]
    turns: Turns

    def and_(self, other: Measured) -> Measured:
        """Returns these structures and others, which have as many dimensions."""
        shares = np.concatenate([self.turns.shares, other.turns.shares])
        return Measured(
            structures=np.concatenate([self.structures, other.structures]),
            turns=Turns(shares=shares, full_ms=self.turns.full_ms),
        )


@dataclass(frozen=True, kw_only=True)
class LatencyModel(TimedCosts):
    """The expected forward time of candidates, from whole networks that were measured in turns with the full one.

    The time of a network is a sum over kinds of layers of what these compute, read and write, by the multiples that
    their widths are of and are rounded up to (`LayerWork`). What each of it takes is fitted to the measured times, as
    relative errors, by least squares without negative times. Where multiples are computed faster, a wider network may
    take less time.

    Attributes:
        costs: closed-form costs of the network.
        work: of every kind of layer.
        shares: of the full network's time that one of each amount takes, (len(work.names),) float64, 0 or more.
        full_ms: median forward time of the full network when it was measured, in milliseconds.
        where: runtime, threads and batch: plain values by name.
        error: median error of shares that were not fitted, relative, each of five parts predicted from the others.
        fast: the widths that a space offers, by group, where those that are fast were asked for; None: it has not been.
        measured: what it was fitted to; None where it was read from a file.
    """

    work: LayerWork
    shares: NDArray[np.float64]
    full_ms: float
    where: Mapping[str, Any]
    error: float
    fast: Mapping[str, tuple[int, ...]] | None = None
    measured: Measured | None = field(default=None, repr=False, compare=False)

    @classmethod
    def measure(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        example: Inputs,
        options: LatencyOptions | None = None,
        *,
        levels: Sequence[str] = ("filter", "stage"),
    ) -> LatencyModel:
        """Measures 60 structures, from tiny to full, in turns with the full network.

        Args:
            model: the network; not changed.
            graph: its channel groups.
            example: one image, (1, channels, height, width), on the device that counts.
            options: how to measure.
            levels: of the groups that vary; with "block" blocks are dropped as well.

        Raises:
            ModelError: if the runtime is not there, cannot run the network, or is a function that does not keep its
                word.
        """
        options = options or LatencyOptions()
        structures = varied_structures(graph, levels)
        turns = measured_structures(model, graph, example, structures, options)
        return cls.fitted_to(graph, Measured(structures=structures, turns=turns), options)

    def near(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example: Inputs,
        structures: NDArray[np.int64],
        options: LatencyOptions,
    ) -> LatencyModel:
        """Returns the model once structures like those that will be asked about have been measured as well.

        A model of all sizes may be off by a tenth in one direction where a budget is, as only some structures are there.

        Args:
            model: the network; not changed.
            graph: its channel groups.
            example: one image.
            structures: (n, n_dims).
            options: as it was measured with.
        """
        turns = measured_structures(model, graph, example, structures, options)
        more = Measured(structures=structures, turns=turns)
        both = more if self.measured is None else self.measured.and_(more)
        return replace(self.fitted_to(graph, both, options), fast=self.fast)

    @classmethod
    def fitted_to(
        cls, graph: ChannelGraph, measured: Measured, options: LatencyOptions
    ) -> LatencyModel:
        """Returns the model that fits structures which have been measured with some options."""
        work = LayerWork(graph)
        full = [group.channels for group in graph.prunable]
        amounts = np.concatenate([work([full]), work(measured.structures)])
        times = np.concatenate([[1.0], measured.turns.shares])
        error, ridge = min((_error(amounts, times, ridge), ridge) for ridge in _RIDGES)
        return cls(
            costs=graph.costs,
            work=work,
            shares=fitted(amounts, times, ridge),
            full_ms=measured.turns.full_ms,
            where=where_of(options),
            error=error,
            measured=measured,
        )

    def latency_ms(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns the expected forward time in milliseconds: (n, n_dims) candidates to (n,) float64.

        That of the full network is what was measured, which fractions in a budget are of.
        """
        amounts = self.work(candidates)
        whole = (amounts[:, self._uses] == self._all).all(axis=1)
        return np.where(whole, 1.0, amounts @ self.shares) * self.full_ms

    @cached_property
    def _uses(self) -> NDArray[np.intp]:
        """Which amounts tell the full network from all others."""
        return np.flatnonzero(
            [name.endswith((": calls", ": products")) for name in self.work.names]
        )

    @cached_property
    def _all(self) -> NDArray[np.float64]:
        """These amounts of the full network."""
        return self.work([self.costs.channels])[0, self._uses]

    def to_plain(self) -> dict[str, Any]:
        """Returns what was measured as plain JSON values; `timed_from_plain` is the inverse."""
        return {
            **self.where,
            "full_ms": self.full_ms,
            "error": self.error,
            "shares": dict(zip(self.work.names, self.shares.tolist(), strict=True)),
            "fast": None if self.fast is None else {n: list(w) for n, w in self.fast.items()},
        }


def where_of(options: LatencyOptions) -> dict[str, Any]:
    """Returns where options have forward time measured, as plain values."""
    return {"runtime": options.runtime, "threads": options.threads, "batch": options.batch}


def timed_from_plain(plain: Mapping[str, Any], graph: ChannelGraph) -> TimedCosts:
    """Returns the costs that `to_plain` of them described, for the same network.

    Raises:
        ModelError: if the times are of a network with other layers, or hold what measuring cannot have found.
    """
    if "shares" not in plain:
        return LayerTimes.from_plain(plain, graph.costs)
    work, shares = LayerWork(graph), plain["shares"]
    if set(shares) != set(work.names):
        other = ", ".join(sorted(set(shares) ^ set(work.names))[:3])
        msg = f"the measured times are of another network; it differs in {other}"
        raise ModelError(msg)
    where = {name: plain[name] for name in where_of(LatencyOptions())}
    LatencyOptions(**where)  # raises what is wrong with it
    return LatencyModel(
        costs=graph.costs,
        work=work,
        shares=np.array([_measured(name, shares[name]) for name in work.names]),
        full_ms=_measured("full_ms", plain["full_ms"], above=True),
        where=where,
        error=_measured("error", plain["error"]),
        fast=_fast(plain["fast"], graph),
    )


def _measured(name: str, value: Any, *, above: bool = False) -> float:  # noqa: ANN401 - any JSON value
    """Returns a number of a file, 0 or more, or above 0; raises ModelError if it is none."""
    if isinstance(value, int | float) and (value > 0 if above else value >= 0) and value < math.inf:
        return float(value)
    least = "above 0" if above else "of 0 or more"
    msg = f"{name} = {value!r:.80}, and what was measured is a number {least}"
    raise ModelError(msg)


def _fast(fast: Any, graph: ChannelGraph) -> dict[str, tuple[int, ...]] | None:  # noqa: ANN401 - any JSON value
    """Returns the widths of a file that are fast; raises ModelError if they are none of the groups of a graph."""
    channels = {group.name: group.channels for group in graph.prunable}
    if fast is None:
        return None
    if not isinstance(fast, dict) or set(fast) - set(channels):
        msg = f"fast = {fast!r:.80}, and fast widths are those of groups of channels, by name"
        raise ModelError(msg)
    for name, widths in fast.items():
        rising = isinstance(widths, list) and all(type(width) is int for width in widths)
        if (
            not rising
            or not widths
            or widths != sorted({*widths})
            or not (1 <= widths[0] <= widths[-1] <= channels[name])
        ):
            msg = f"fast widths of {name} are {widths!r:.80}; they are whole numbers of 1 to {channels[name]}, ascending"
            raise ModelError(msg)
    return {name: tuple(widths) for name, widths in fast.items()}


def measured_structures(
    model: nn.Module,
    graph: ChannelGraph,
    example: Inputs,
    structures: NDArray[np.int64],
    options: LatencyOptions,
) -> Turns:
    """Returns the forward times of structures of a network, in turns with the full one.

    Args:
        model: the network; not changed.
        graph: its channel groups.
        example: one image, on the device that counts.
        structures: (n, n_dims) candidates.
        options: how to measure.

    Raises:
        ModelError: as `in_turns`.
    """
    check_runtime(options)
    ranking = rank_channels(model, graph, "random")
    full = tuple(group.channels for group in graph.prunable)
    weights = int(graph.costs.params([full])[0])
    together = max(1, _BYTES // (4 * max(weights, 1)))
    measured: list[Turns] = []
    for start in range(0, len(structures), together):
        some = structures[start : start + together]
        networks = [
            slice_model(model, graph, structure, ranking) for structure in (full, *some.tolist())
        ]
        seconds = _SECONDS * len(some) / len(structures)
        measured.append(in_turns(networks[1:], networks[0], example, options, seconds=seconds))
    return Turns(
        shares=np.concatenate([turns.shares for turns in measured]),
        full_ms=float(np.median([turns.full_ms for turns in measured])),
    )


def varied_structures(graph: ChannelGraph, levels: Sequence[str]) -> NDArray[np.int64]:
    """Returns the structures that are measured, (n, n_dims): most near some keep ratio, a third with any widths.

    A third has widths as they come, the others multiples of 4, 8, 16, or of another of these in every group.
    """
    draws = numpy_stream(0, "structures whose forward time is measured")
    channels = np.array([group.channels for group in graph.prunable])
    varies = np.array([group.kind in levels for group in graph.prunable])
    near = _STRUCTURES * 2 // 3
    ratios = np.linspace(0.1, 1, near)[:, None] + draws.uniform(-0.25, 0.25, (near, len(channels)))
    anything = draws.uniform(0.05, 1, (_STRUCTURES - near, len(channels)))
    ratios = np.clip(np.concatenate([ratios, anything]), 0.02, 1)
    any_of = draws.choice(MULTIPLES, ratios.shape)
    turns = np.array([1, 8, 0, 1, 16, 0, 1, 8, 4])[np.arange(_STRUCTURES) % 9]
    multiples = np.where(turns[:, None] == 0, any_of, turns[:, None])
    rounded = np.floor(ratios * channels / multiples + 1e-9 + 0.5 * (multiples > 1)) * multiples
    widths = np.minimum(channels, np.maximum(multiples, rounded)).astype(np.int64)
    widths = np.where(varies, widths, channels)
    if "block" not in levels:
        return widths
    # Every other structure has all its blocks
    kept = draws.random((_STRUCTURES, len(graph.blocks))) > 0.4
    kept[::2] = True
    return np.concatenate([widths, kept.astype(np.int64)], axis=1)


def fitted(
    amounts: NDArray[np.float64], times: NDArray[np.float64], ridge: float = _RIDGES[0]
) -> NDArray[np.float64]:
    """Returns what one of each amount takes, (amounts,): 0 or more, of the least relative errors.

    Args:
        amounts: (n, amounts), 0 or more.
        times: (n,), above 0.
        ridge: how much large coefficients cost.
    """
    # Here: half a second to import, which no worker needs
    from scipy.optimize import nnls

    units = np.maximum(amounts.max(axis=0), 1e-12)
    columns = amounts.shape[1]
    rows = np.concatenate([amounts / units / times[:, None], ridge * np.eye(columns)])
    wanted = np.concatenate([np.ones(len(times)), np.zeros(columns)])
    return nnls(rows, wanted, maxiter=100 * columns)[0] / units


def _error(
    amounts: NDArray[np.float64], times: NDArray[np.float64], ridge: float, parts: int = 5
) -> float:
    """Returns the median relative error of times that were predicted from the other parts."""
    errors = np.zeros(len(times))
    for number in range(parts):
        away = np.arange(len(times)) % parts == number
        expected = amounts[away] @ fitted(amounts[~away], times[~away], ridge)
        errors[away] = np.abs(expected / times[away] - 1)
    return float(np.median(errors))
