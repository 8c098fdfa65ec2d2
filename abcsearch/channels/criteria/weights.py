"""Criteria that look at the weights of what makes a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from abcsearch.channels.criteria.base import Criterion, Subject, Tensors, summed, words

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from abcsearch.channels.group import ChannelGroup


@dataclass(frozen=True)
class WeightCriterion(Criterion):
    """Scores from the trained weights alone.

    Attributes:
        score: takes the network's tensors by name and a group; returns (channels,) float64 scores, or None if the group
            has nothing for it to look at.
    """

    score: Callable[[Tensors, ChannelGroup], NDArray[np.float64] | None]

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Returns what `score` finds per group."""
        return [self.score(subject.tensors, group) for group in subject.graph.prunable]


def l1(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Sum of absolute weights of each filter, summed over all layers that compute the channel (Li 2017)."""
    return _over_filters(tensors, group, lambda filters: filters.abs().sum(dim=1))


def l2(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Euclidean norm of each filter, summed over all layers that compute the channel (He 2018, soft filter pruning)."""
    return _over_filters(tensors, group, lambda filters: filters.norm(dim=1))


def bn_gamma(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Absolute batch-norm scale, summed over the group's batch norms (Liu 2017, network slimming)."""
    norms = [
        m for m in group.members if m.parameter.removesuffix("weight") + "running_mean" in tensors
    ]
    return summed(group, [(m, tensors[m.parameter].abs()) for m in norms])


def fpgm(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Sum of Euclidean distances of each filter to all filters of its layer, summed over the layers that compute it.

    A filter near the geometric median of its layer is replaceable by the others, whatever its norm. The distances
    are to every filter of the layer, those of other groups included.

    Source: He et al., Filter Pruning via Geometric Median (CVPR 2019), section 3.4.

    Differences from the paper:
        - The scores of coupled layers are added, so that the filters of a residual stream are pruned together; the
          paper prunes layer by layer.
    """
    return _over_filters(tensors, group, lambda filters: torch.cdist(filters, filters).sum(dim=1))


def _over_filters(
    tensors: Tensors, group: ChannelGroup, norm: Callable[[torch.Tensor], torch.Tensor]
) -> NDArray[np.float64] | None:
    """Applies a norm to the rows of every weight that computes the group's channels, and sums over the weights."""
    weights = [m for m in group.members if not m.reads and tensors[m.parameter].ndim > 1]
    flattened = [(m, tensors[m.parameter].double().movedim(m.axis, 0).flatten(1)) for m in weights]
    return summed(group, [(m, norm(filters)) for m, filters in flattened])


L1 = WeightCriterion(l1, **words("l1"))
L2 = WeightCriterion(l2, **words("l2"))
BN_GAMMA = WeightCriterion(bn_gamma, **words("bn_gamma"))
FPGM = WeightCriterion(fpgm, **words("fpgm"))
