"""The weights that make channels, and what depends on each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph


class Makers:
    """What makes the channels of every prunable group: filters, biases, scales and shifts, over all coupled layers."""

    def __init__(self, graph: ChannelGraph, model: nn.Module) -> None:
        """Takes a network and its channels; the weights are looked at as they are at every call."""
        tensors = graph.tensors(model)
        self._channels = [group.channels for group in graph.prunable]
        self._members = [
            [
                (
                    tensors[m.parameter],
                    m.axis,
                    torch.from_numpy(m.entries),
                    torch.from_numpy(m.channels),
                )
                for m in group.members
                if not m.reads and tensors[m.parameter].requires_grad
            ]
            for group in graph.prunable
        ]

    def norms(self) -> list[torch.Tensor]:
        """Returns per group the Euclidean norm of what makes each channel, (channels,)."""
        norms: list[torch.Tensor] = []
        for channels, members in zip(self._channels, self._members, strict=True):
            device = members[0][0].device if members else torch.device("cpu")
            total = torch.zeros(channels, device=device)
            for tensor, axis, entries, numbers in members:
                rows = (
                    tensor.detach()
                    .movedim(axis, 0)
                    .reshape(tensor.shape[axis], -1)
                    .square()
                    .sum(dim=1)
                )
                total.index_add_(0, numbers.to(device), rows.to(total)[entries.to(device)])
            norms.append(total.sqrt())
        return norms

    def scale(self, factors: Sequence[torch.Tensor]) -> None:
        """Multiplies in place what makes each channel.

        Args:
            factors: per group, (channels,).
        """
        with torch.no_grad():
            for members, factor in zip(self._members, factors, strict=True):
                for tensor, axis, entries, channels in members:
                    along = tensor.new_ones(tensor.shape[axis])
                    along[entries.to(tensor.device)] = factor.to(tensor)[channels.to(tensor.device)]
                    tensor.mul_(along.reshape([-1 if a == axis else 1 for a in range(tensor.ndim)]))
