"""Criteria that look at weights and gradients of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from abcsearch.channels.criteria.base import Criterion, Needs, Subject, summed, words
from abcsearch.channels.gates import gated
from abcsearch.channels.onednn import pointwise_safely
from abcsearch.channels.responses import (
    Batch,
    PerWeight,
    gradient_scores,
    mean_loss,
    run_batches,
    twin_of,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class GradientCriterion(Criterion):
    """Scores from weights and gradients of the loss, summed over all that computes a channel; see `gradient_scores`.

    Attributes:
        per_weight: a weight and its gradient on one batch, both float64 -> one number per element.
    """

    needs: ClassVar[Needs] = "images and labels"
    per_weight: PerWeight

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Runs the network once over the data, forward and backward."""
        s = subject
        sums = gradient_scores(s.model, s.graph, s.data, s.seed, self.per_weight)
        return [
            summed(
                group,
                [
                    (m, sums[m.parameter, m.axis])
                    for m in group.members
                    if (m.parameter, m.axis) in sums
                ],
            )
            for group in s.graph.prunable
        ]


def taylor(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """(gradient * weight)^2 of every weight: the squared first-order change of the loss if it were zero.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019), section 3.

    Differences from the paper:
        - Of its two scores of a filter, this is the sum of the squares; the paper's gates are the square of the sum.
        - Summed over all that computes a channel: filters, biases, batch-norm scale and shift, of all coupled layers.
        - The plain average over batches, each by its number of images, on the finished network, once; the paper
          averages with a momentum while it trains and prunes in turn.
    """
    return (weight * gradient) ** 2


@dataclass(frozen=True)
class TaylorGateCriterion(Criterion):
    """The squared gradient of the loss with respect to a gate of 1 on each channel, averaged over batches.

    That is the square of the sum of (gradient * weight) over all weights that read the channel: the squared first-order
    change of the loss if the channel were removed. `taylor` sums squares of single weights that make it.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019), section 3.

    Differences from the paper:
        - Gates stand where channels are read (`gate`), not behind the batch norm: what lies between is passed, so that
          a gate of 0 is removal whatever the activation.
        - All layers that read a channel have one gate; nothing is divided by their number.
        - The plain average over batches, as in `taylor`.
    """

    needs: ClassVar[Needs] = "images and labels"

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Runs the network once over the data, forward and backward."""
        groups, twin = subject.graph.prunable, twin_of(subject.model)
        gates = [
            torch.ones(group.channels, dtype=torch.float64, requires_grad=True) for group in groups
        ]
        totals = [torch.zeros(group.channels, dtype=torch.float64) for group in groups]
        count = 0

        def step(batch: Batch) -> None:
            nonlocal count
            with torch.enable_grad(), gated(twin, subject.graph, gates):
                gradients = torch.autograd.grad(
                    mean_loss(batch.run(twin), batch), gates, allow_unused=True
                )
            images = len(batch)
            count += images
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total += images * gradient.square()

        with pointwise_safely(twin):
            run_batches(twin, subject.data, subject.seed, step)
        return [
            (total / count).numpy() if any(m.sums for m in group.members) else None
            for group, total in zip(groups, totals, strict=True)
        ]


TAYLOR = GradientCriterion(taylor, **words("taylor"))
TAYLOR_GATE = TaylorGateCriterion(**words("taylor_gate"))
