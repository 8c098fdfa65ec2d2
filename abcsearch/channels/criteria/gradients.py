"""Criteria that look at weights and gradients of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from abcsearch.channels.criteria.base import Criterion, Needs, Subject, summed, words
from abcsearch.channels.responses import PerWeight, gradient_scores

if TYPE_CHECKING:
    import numpy as np
    import torch
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
            summed(group, [(m, sums[m.parameter, m.axis]) for m in group.members if (m.parameter, m.axis) in sums])
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


TAYLOR = GradientCriterion(taylor, **words("taylor"))
