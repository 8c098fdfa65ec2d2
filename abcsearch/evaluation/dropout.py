"""Dropout: a network learns while channels of all its layers are silent by chance, more and more of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.gates import gated
from abcsearch.training.lesson import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph


class Dropout(Supervised):
    """A network learns the labels while channels are silent by chance; those that are not are read 1 / (1 - rate) times.

    The rate grows evenly with the steps and with the depth, up to `rate` of the last layer at the end: of layer i of n,
    counted from 1, it is `rate` * (share of the training that is done) * i / n.

    Source: the training of Chen et al., Network Adjustment (CVPR 2020).

    Differences from the paper:
        - The channels of a whole batch are silent together; published: of every image others.
        - Channels are silent for whatever reads them, those that are tied together at once: a residual stream has one
          rate, that of the place where it begins. Published: after each convolution of a block, before the addition.
        - That rates grow evenly with the depth is as remembered.

    Attributes:
        progress: share of the training that is done.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        *,
        rate: float,
        objective: str = "classification",
    ) -> None:
        """Takes what is learned.

        Args:
            model: the network.
            graph: its own channel groups.
            rate: in [0, 1), of the last layer at the end.
            objective: of `OBJECTIVES`.
        """
        super().__init__(model, objective=objective)
        self._graph, self._rate, self.progress = graph, rate, 0.0

    def rates(self) -> list[float]:
        """Returns the share of channels of each prunable group that is silent now."""
        count = len(self._graph.prunable)
        return [self._rate * self.progress * (index + 1) / count for index in range(count)]

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch, of which some channels are silent."""
        gates = [
            (torch.rand(group.channels, generator=draws) >= rate).float() / (1 - rate)
            for group, rate in zip(self._graph.prunable, self.rates(), strict=True)
        ]
        with gated(self.model, self._graph, gates):
            return super().step(images, labels, draws)

    def after_step(self, progress: float) -> None:
        """Notes how far the training is."""
        self.progress = progress

    def same(self) -> Mapping[str, Any]:
        """Returns what is learned, and how many channels are silent."""
        return {**super().same(), "rate": self._rate}

    def state_dict(self) -> Mapping[str, Any]:
        """Returns how far the training is."""
        return {"progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes that up."""
        self.progress = float(state["progress"])
