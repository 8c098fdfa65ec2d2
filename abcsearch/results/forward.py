"""Forward time of networks on the devices of this machine, at batch 1 and in a large batch."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from abcsearch.channels.latency import forward_times
from abcsearch.channels.layout import laid_out
from abcsearch.example import laid, repeated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.example import Inputs

BATCHES = (1, 64)
_SECONDS = 20.0  # for all networks together, per device and batch


@dataclass(frozen=True, kw_only=True)
class ForwardTime:
    """How long one forward pass of a network takes.

    Attributes:
        device: "CPU", or the name of the GPU.
        batch: images per pass.
        threads: of torch on the CPU; 0 on a GPU.
        median_ms: of all passes that were timed, in milliseconds, for the whole batch.
        low_ms: a quarter of the passes were faster.
        high_ms: a quarter of them were slower.
        passes: how many were timed.
    """

    device: str
    batch: int
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    passes: int

    @property
    def where(self) -> str:
        """Device and batch in words."""
        return f"{self.device}, batch {self.batch}"

    def apart(self, other: ForwardTime) -> bool:
        """Returns whether the middle halves of both do not overlap; else the difference may be chance."""
        return self.high_ms < other.low_ms or other.high_ms < self.low_ms


def measure_forward(
    networks: Sequence[nn.Module], example: Inputs, *, threads: int
) -> list[tuple[ForwardTime, ...]]:
    """Returns the forward times of networks, one tuple for each: on the CPU and, where there is one, on a GPU.

    The networks take turns, so that a busy machine slows all of them alike. Weights and images are channels_last, as
    evaluations have them, in float32.

    Args:
        networks: on the CPU, in evaluation mode; they are left there, with weights that are channels_last.
        example: one image or more, on the CPU.
        threads: of torch on the CPU.
    """
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    times_of: list[tuple[ForwardTime, ...]] = [() for _ in networks]
    for device in devices:
        for network in networks:
            laid_out(network, device)
        try:
            for batch in BATCHES:
                times = _measured(networks, example, device, batch, threads)
                times_of = [(*before, new) for before, new in zip(times_of, times, strict=True)]
        finally:
            for network in networks:
                network.to("cpu")
    return times_of


def _measured(
    networks: Sequence[nn.Module], example: Inputs, device: torch.device, batch: int, threads: int
) -> list[ForwardTime]:
    """Returns the time of each network on one device in one batch."""
    images = laid(repeated(example, batch).to(device))
    times = forward_times(networks, images, threads=threads, seconds=_SECONDS)
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    return [
        _summary(time, device=name, batch=batch, threads=0 if cuda else threads) for time in times
    ]


def _summary(times: Sequence[float], *, device: str, batch: int, threads: int) -> ForwardTime:
    """Returns median and quartiles of one network's times."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return ForwardTime(
        device=device,
        batch=batch,
        threads=threads,
        median_ms=median,
        low_ms=low,
        high_ms=high,
        passes=len(times),
    )
