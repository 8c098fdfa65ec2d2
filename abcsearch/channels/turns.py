"""Measured forward time of modules, in turns: each network's, and as a share of the full network's.

A machine's speed drifts by tens of per cent while it is measured, and all networks with it. So times are shares of the
full network's, which takes its turn before every few others; a share is as exact as passes are alike.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.channels.kept_memory import kept_memory
from abcsearch.channels.layout import fitting
from abcsearch.channels.runtimes import prepared_pass
from abcsearch.errors import ModelError
from abcsearch.example import repeated, run_on
from abcsearch.rng import numpy_stream

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:  # Linux alone has both

    def _waits() -> float:
        """Returns no number: nothing says how often this thread has waited."""
        return math.nan
else:

    def _waits() -> float:
        """Returns how often this thread has waited for anything but a processor."""
        return getrusage(RUSAGE_THREAD).ru_nvcsw


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.options import LatencyOptions
    from abcsearch.channels.runtimes import Pass
    from abcsearch.example import Inputs

_EVERY = 4  # networks are timed between two passes of the full network
# A turn is the shortest of so many passes, or as many as take so many seconds
_PASSES, _SHORT = 5, 0.02
_ALONE = 1.1  # processor time of all threads over that of one, at most, if that one computes alone
# Networks that take turns: as torch keeps the code that it makes for 1024 layers, more would have to be made anew.
# All get their turns in so many rounds: in a bad half minute the shares of a dozen were off by 8 % in one direction.
_TOGETHER, _ROUNDS = 12, 4


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
    batches = [fitting(model, example_input) for model in models]
    try:
        with kept_memory(), torch.inference_mode(), torch_threads(threads):
            for counts in _turns(warmup, repeats, seconds):
                for model, batch, passes in zip(models, batches, times, strict=True):
                    passed = _timed(model.eval(), batch)
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
        seconds: after this time every network has one turn more in each of the rounds that are left.

    Raises:
        ModelError: if the runtime is not there, cannot run a network, or is a function that does not keep its word.
    """
    batch = repeated(example, options.batch)
    with kept_memory(), torch_threads(options.threads):
        reference, *passes = (
            prepared_pass(network.eval(), batch, options) for network in (full, *networks)
        )
        times = _rounds(reference, passes, options.repeats, seconds)
    shares = np.array(
        [np.median([duration / whole for duration, whole in pairs]) for pairs in times]
    )
    wholes = [whole for pairs in times for _, whole in pairs]
    return Turns(shares=shares, full_ms=1000 * float(np.median(wholes)))


def _rounds(
    reference: Pass, passes: Sequence[Pass], turns: int, seconds: float
) -> list[list[tuple[float, float]]]:
    """Returns the times of each pass, and of the reference just before, in seconds: a pair for every turn."""
    times: list[list[tuple[float, float]]] = [[] for _ in passes]
    draws = numpy_stream(0, "turns of forward times")
    begun = time.perf_counter()
    rounds = min(_ROUNDS, turns)
    for number in range(rounds):
        for start in range(0, len(passes), _TOGETHER):
            some = range(start, min(start + _TOGETHER, len(passes)))
            for warm in (reference, *(passes[index] for index in some)):
                warm()
            for _ in range(turns // rounds + (number < turns % rounds)):
                whole = math.nan
                for position, index in enumerate(draws.permutation(some)):
                    if position % _EVERY == 0:
                        whole = _shortest(reference)
                    times[index].append((_shortest(passes[index]), whole))
                if number and time.perf_counter() - begun > seconds:
                    break  # one turn of every round is enough
    return times


def _shortest(run: Pass) -> float:
    """Returns the shortest of some passes in a row, in seconds: a pass of a millisecond is disturbed by anything."""
    times = [run()]
    while len(times) < _PASSES and sum(times) < _SHORT:
        times.append(run())
    return min(times)


def _timed(model: nn.Module, example_input: Inputs) -> float:
    """Returns the seconds of one forward pass, the device idle before and after.

    A pass in one thread of the CPU takes as long as that computes: what it waits for other processes does not count.
    Where other threads compute as well (torch's, or a runtime's), where it waits for anything else, and on a GPU, the
    clock on the wall counts.
    """
    device = example_input.device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    before = _reading()
    run_on(model, example_input)
    if cuda:
        torch.cuda.synchronize(device)
    after = _reading()
    wall, process, thread, waits = (now - then for now, then in zip(after, before, strict=True))
    alone = device.type == "cpu" and waits == 0 and process <= _ALONE * thread
    return thread if alone else wall


def _reading() -> tuple[float, float, float, float]:
    """Returns seconds on the wall, of this process and of this thread, and how often this thread has waited."""
    return time.perf_counter(), time.process_time(), time.thread_time(), _waits()
