"""Measured forward time of modules on a device."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING

import torch

from abcsearch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn


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
    models: Sequence[nn.Module], example_input: torch.Tensor, *, threads: int = 1, repeats: int = 30, warmup: int = 5
) -> list[float]:
    """Returns the median forward time of each model in milliseconds.

    The models take turns, so that drift of the machine's speed hits all of them alike. They run in evaluation mode
    without gradients, on the device and at the batch size of `example_input`, and are left in the mode they were in.

    Args:
        models: networks on the device of the input.
        example_input: one batch.
        threads: torch threads (CPU).
        repeats: timed passes per model.
        warmup: passes before them that do not count.

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
            for turn in range(warmup + repeats):
                for model, own in zip(models, times, strict=True):
                    seconds = _timed(model.eval(), example_input)
                    own += [seconds] if turn >= warmup else []
    finally:
        for module, mode in modes:
            module.training = mode
    return [1000 * statistics.median(own) for own in times]


def _timed(model: nn.Module, example_input: torch.Tensor) -> float:
    """Returns the wall-clock seconds of one forward pass, the device idle before and after."""
    cuda = example_input.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(example_input.device)
    start = time.perf_counter()
    model(example_input)
    if cuda:
        torch.cuda.synchronize(example_input.device)
    return time.perf_counter() - start
