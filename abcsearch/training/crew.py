"""Several processes that train one network: each takes its share of every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import distributed, nn

from abcsearch.example import Example
from abcsearch.training.objectives import output_of
from abcsearch.training.recipe import check_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path


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
        check_shared(batch_size, self.size)

    def joined(self, model: nn.Module) -> nn.Module:
        """Returns the network as it is called in training; of several processes it returns its output alone.

        Parameters without a gradient in a step, such as those of a head that the loss does not see or of a branch that
        is not taken, keep none, as with one process. Looking for them takes 0.8 ms of a step of 9 ms of a small
        residual network (two processes on CPUs), and what cannot be measured of one of 300 ms.
        """
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(_Output(model), find_unused_parameters=True)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the mean of a number over all processes."""
        if self.size > 1:
            distributed.all_reduce(value)
            value /= self.size
        return value

    def average(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replaces gradients by their means over all processes, in one exchange; what has none in any keeps none.

        For weights that are used past the forward pass of their module, which `joined` does not see.
        """
        if self.size == 1:
            return
        there = torch.tensor(
            [p.grad is not None for p in parameters], dtype=torch.int64, device=parameters[0].device
        )
        distributed.all_reduce(there)
        used = [p for p, count in zip(parameters, there.tolist(), strict=True) if count]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        means = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, gradient, mean in zip(
            used, gradients, means.split([p.numel() for p in used]), strict=True
        ):
            parameter.grad = gradient.copy_(mean.view_as(gradient))

    def picked(self, count: int, total: int, draws: torch.Generator) -> torch.Tensor:
        """Returns numbers of images that a lesson draws besides its batch, with replacement, (count,) int64.

        All processes together draw those that one alone would draw for the whole batch.

        Args:
            count: this process's.
            total: of images.
            draws: on the CPU, in the same state in all processes.
        """
        every = torch.randint(total, (count * self.size,), generator=draws)
        return every[self.rank * count : (self.rank + 1) * count]

    def agree(self, tensors: Iterable[torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
        """Gives every process the first one's tensors, in place; returns the first one's plain values."""
        if self.size == 1:
            return plain
        with torch.no_grad():
            for tensor in tensors:
                first = tensor.contiguous()
                distributed.broadcast(first, 0)
                tensor.copy_(first)
        values = [plain]
        distributed.broadcast_object_list(values)
        return values[0]


class _Output(nn.Module):
    """A network without what else it returns: what gets no gradient is looked for from its output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401 - what the network takes
        return output_of(self.network, Example(args, kwargs).run(self.network))


ALONE = Crew()


class Workers(Protocol):
    """Who can run one function in several processes that torch.distributed connects, as `RayTraining` does."""

    @property
    def workers(self) -> int:
        """The number of processes."""
        ...

    def run(
        self,
        task: Callable[[int, int], None],
        folder: Path,
        *,
        gpu: bool,
        setup: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        """Calls task(rank, size) in every process and waits for all; what one of them raises is raised.

        Args:
            task: may be pickled.
            folder: that all processes can write to.
            gpu: whether each may have a GPU of its own, where there are any.
            setup: calls that every process makes before, by what they are called in messages.
        """
        ...
