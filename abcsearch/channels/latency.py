"""Measured forward time of modules on a device, and a model of it for budgets.

A machine's speed drifts by tens of per cent while it is measured, and all networks with it. So times are shares of the
full network's, which takes its turn before every few others; a share is as exact as passes are alike, about one per cent.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.runtimes import check_runtime, prepared_pass
from abcsearch.channels.slicing import slice_model
from abcsearch.channels.timed import LayerTimes, TimedCosts
from abcsearch.channels.work import MULTIPLES, LayerWork
from abcsearch.errors import ModelError
from abcsearch.example import repeated, run_on
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.runtimes import Pass
    from abcsearch.example import Inputs

_STRUCTURES = 80  # that are measured for a model; half as many more make its errors smaller by a tenth
_SECONDS = 120.0  # after this time a model is measured with as few turns as there must be
_LEAST = 3  # turns, in any case
_EVERY = 4  # networks are timed between two passes of the full network
_SHORT, _PASSES = 0.005, 5  # a turn is the shortest of so many passes, or as many as take so many seconds
# Networks that take turns: as torch keeps the code that it makes for 1024 layers, more would have to be made anew
_TOGETHER = 12
_BYTES = 2**30  # of weights that are in memory at once while a model is measured
# Of the coefficients, each in units of the largest amount: the one that predicts best what was not fitted is taken
_RIDGES = (0.02, 0.1, 0.3, 1.0)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs a block with `count` torch threads and puts the number back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_latency(
    models: Sequence[nn.Module],
    example_input: Inputs,
    *,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
) -> list[float]:
    """Returns the median forward time of each model in milliseconds; see `forward_times`.

    Raises:
        ModelError: if threads or repeats are below 1, or warmup below 0.
    """
    times = forward_times(models, example_input, threads=threads, repeats=repeats, warmup=warmup)
    return [statistics.median(passes) for passes in times]


def forward_times(
    models: Sequence[nn.Module],
    example_input: Inputs,
    *,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
    seconds: float = math.inf,
) -> list[list[float]]:
    """Returns the forward times of each model in milliseconds, in the order of measuring.

    The models take turns, so that drift of the machine's speed hits all of them alike. They run in evaluation mode
    without gradients, on the device and at the batch size of `example_input`, and are left in the mode they were in.

    Args:
        models: networks on the device of the input.
        example_input: one batch.
        threads: torch threads (CPU).
        repeats: timed passes per model.
        warmup: passes before them that do not count; one is enough where they take longer than a tenth of `seconds`.
        seconds: after this time no new turn begins, once three have been timed.

    Raises:
        ModelError: if threads or repeats are below 1, or warmup below 0.
    """
    if min(threads, repeats) < 1 or warmup < 0:
        msg = f"latency needs at least 1 thread, 1 repeat and 0 warm-up passes, found {threads=}, {repeats=}, {warmup=}"
        raise ModelError(msg)
    modes = [(module, module.training) for model in models for module in model.modules()]
    times: list[list[float]] = [[] for _ in models]
    try:
        with torch.inference_mode(), torch_threads(threads):
            for counts in _turns(warmup, repeats, seconds):
                for model, passes in zip(models, times, strict=True):
                    passed = _timed(model.eval(), example_input)
                    passes += [1000 * passed] if counts else []
    finally:
        for module, mode in modes:
            module.training = mode
    return times


def _turns(warmup: int, repeats: int, seconds: float) -> Iterator[bool]:
    """Yields once per turn, whether it counts; as many as are wanted, or as fit into a time."""
    begun = time.perf_counter()
    for turn in range(warmup):
        if turn == 0 or time.perf_counter() - begun < seconds / 10:
            yield False
    for turn in range(repeats):
        if turn < 3 or time.perf_counter() - begun < seconds:
            yield True


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Forward times that were measured in turns with the full network's.

    Attributes:
        shares: of every network the median, over turns, of its time as a share of the full network's, (n,) float64.
        full_ms: median forward time of the full network meanwhile, in milliseconds.
    """

    shares: NDArray[np.float64]
    full_ms: float


def in_turns(
    networks: Sequence[nn.Module],
    full: nn.Module,
    example: Inputs,
    options: LatencyOptions,
    *,
    seconds: float = math.inf,
) -> Turns:
    """Returns the forward times of networks as shares of the full network's, all measured in turns.

    Args:
        networks: to be measured; they are left in evaluation mode, with weights that are channels_last.
        full: the full network, likewise.
        example: one image, on the device that counts.
        options: how to measure; `repeats` is the number of turns.
        seconds: after this time no new turn begins, once three have been.

    Raises:
        ModelError: if the runtime is not there, cannot run a network, or is a function that does not keep its word.
    """
    batch = repeated(example, options.batch)
    with torch_threads(options.threads):
        reference, *passes = (
            prepared_pass(network.eval(), batch, options) for network in (full, *networks)
        )
        for warm in (reference, *passes):
            warm()
        times = np.zeros((options.repeats, 2, len(passes)))
        draws = numpy_stream(0, "turns of forward times")
        begun = time.perf_counter()
        for turn in range(options.repeats):
            if turn >= _LEAST and time.perf_counter() - begun > seconds:
                times = times[:turn]
                break
            whole = math.nan
            for position, index in enumerate(draws.permutation(len(passes))):
                if position % _EVERY == 0:
                    whole = _shortest(reference)
                times[turn, :, index] = _shortest(passes[index]), whole
    shares = np.median(times[:, 0] / times[:, 1], axis=0)
    return Turns(shares=shares, full_ms=1000 * float(np.median(times[:, 1])))


def _shortest(run: Pass) -> float:
    """Returns the shortest of some passes in a row, in seconds: a pass of a millisecond is disturbed by anything."""
    times = [run()]
    while len(times) < _PASSES and sum(times) < _SHORT:
        times.append(run())
    return min(times)


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
    """

    work: LayerWork
    shares: NDArray[np.float64]
    full_ms: float
    where: Mapping[str, Any]
    error: float
    fast: Mapping[str, tuple[int, ...]] | None = None

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
        """Measures 80 structures, from tiny to full, in turns with the full network.

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
        return cls.fitted_to(graph, structures, turns, options)

    @classmethod
    def fitted_to(
        cls,
        graph: ChannelGraph,
        structures: NDArray[np.int64],
        turns: Turns,
        options: LatencyOptions,
    ) -> LatencyModel:
        """Returns the model that fits structures, (n, n_dims), which have been measured with some options."""
        work = LayerWork(graph)
        full = [group.channels for group in graph.prunable]
        amounts = np.concatenate([work([full]), work(structures)])
        times = np.concatenate([[1.0], turns.shares])
        error, ridge = min((_error(amounts, times, ridge), ridge) for ridge in _RIDGES)
        return cls(
            costs=graph.costs,
            work=work,
            shares=fitted(amounts, times, ridge),
            full_ms=turns.full_ms,
            where=where_of(options),
            error=error,
        )

    @cached_property
    def _full(self) -> float:
        """What is expected of the full network, as a share of what was measured."""
        return float((self.work([self.costs.channels]) @ self.shares)[0])

    def latency_ms(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns the expected forward time in milliseconds: (n, n_dims) candidates to (n,) float64."""
        return self.work(candidates) @ self.shares * (self.full_ms / self._full)

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
        ModelError: if the times are of a network with other layers.
    """
    if "shares" not in plain:
        return LayerTimes.from_plain(plain, graph.costs)
    work, shares = LayerWork(graph), plain["shares"]
    if set(shares) != set(work.names):
        other = ", ".join(sorted(set(shares) ^ set(work.names))[:3])
        msg = f"the measured times are of another network; it differs in {other}"
        raise ModelError(msg)
    fast = plain["fast"]
    return LatencyModel(
        costs=graph.costs,
        work=work,
        shares=np.array([float(shares[name]) for name in work.names]),
        full_ms=float(plain["full_ms"]),
        where={name: plain[name] for name in where_of(LatencyOptions())},
        error=float(plain["error"]),
        fast=None if fast is None else {name: tuple(widths) for name, widths in fast.items()},
    )


def measured_structures(
    model: nn.Module,
    graph: ChannelGraph,
    example: Inputs,
    structures: NDArray[np.int64],
    options: LatencyOptions,
) -> Turns:
    """Returns the forward times of structures of a network, a dozen at a time in turns with the full one.

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
    together = max(1, min(_TOGETHER, _BYTES // (4 * max(weights, 1))))
    measured: list[Turns] = []
    for start in range(0, len(structures), together):
        some = structures[start : start + together]
        networks = [slice_model(model, graph, own, ranking) for own in (full, *some.tolist())]
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


def _timed(model: nn.Module, example_input: Inputs) -> float:
    """Returns the wall-clock seconds of one forward pass, the device idle before and after."""
    cuda = example_input.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(example_input.device)
    start = time.perf_counter()
    run_on(model, example_input)
    if cuda:
        torch.cuda.synchronize(example_input.device)
    return time.perf_counter() - start
