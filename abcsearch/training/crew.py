"""Several processes that train one network: each takes its share of every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import distributed

from abcsearch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Crew:
    """A process among those that train together; torch.distributed connects them where there are several.

    Gradients are averaged over all, so that a step is that of the whole batch. Batch norms see the share of their
    process; the running statistics that are kept are those of the first one.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that scores and writes."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """This process's part of every batch, see `Images.shuffled`."""
        return self.rank, self.size

    def check(self, batch_size: int) -> None:
        """Raises ConfigError unless all get the same number of images."""
        if self.size < 1 or batch_size % self.size:
            msg = f"workers share a batch equally: batch_size {batch_size} is no multiple of {self.size} workers"
            raise ConfigError(msg)

    def joined(self, model: nn.Module) -> nn.Module:
        """Returns the network as it is called in training."""
        if self.size == 1:
            return model
        return torch.nn.parallel.DistributedDataParallel(model)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the mean of a number over all processes."""
        if self.size > 1:
            distributed.all_reduce(value)
            value /= self.size
        return value


ALONE = Crew()


class Workers(Protocol):
    """Who can run one function in several processes that torch.distributed connects, as `RayTraining` does."""

    @property
    def workers(self) -> int:
        """The number of processes."""
        ...

    def run(self, task: Callable[[int, int], None], folder: Path, *, gpu: bool) -> None:
        """Calls task(rank, size) in every process and waits for all; what one of them raises is raised.

        Args:
            task: may be pickled.
            folder: that all processes can write to.
            gpu: whether each may have a GPU of its own, where there are any.
        """
        ...
