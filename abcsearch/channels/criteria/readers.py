"""Criteria that look at the weights of what reads a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abcsearch.channels.criteria.base import Tensors, words
from abcsearch.channels.criteria.weights import WeightCriterion, bn_gamma, l2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.channels.group import ChannelGroup


def reader_l2(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Euclidean norm of the weights that read a channel, summed over all that reads it; None where nothing does.

    Norms are added as they are: no reader is weighed against another one, nor by the batch norm behind it.

    Of a linear layer behind flattened maps all entries of the channel count. A depthwise convolution makes channels:
    what counts is what reads them behind it.

    Source: how FastNAS of NVIDIA's Model Optimizer sorts channels.

    Differences from the source:
        - Convolutions with conv_groups, transposed ones and functions that read count as well.
    """
    scores = np.zeros(group.channels)
    readers = [m for m in group.members if m.sums]
    for member in readers:
        # In one layout: it decides the order of summation.
        weight = tensors[member.parameter].double().movedim(member.axis, 0).contiguous()
        squares = weight.reshape(len(weight), -1).square().sum(dim=1).cpu().numpy()
        total = np.zeros(group.channels)
        np.add.at(total, member.channels, squares[member.entries])
        scores += np.sqrt(total)
    return scores if readers else None


def reader_l2_gamma(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """`reader_l2` times `bn_gamma`: how strong a channel is, times how strongly it is read."""
    return _product(reader_l2(tensors, group), bn_gamma(tensors, group))


def reader_l2_filters(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """`reader_l2` times `l2`, the norm of the filters that make the channel."""
    return _product(reader_l2(tensors, group), l2(tensors, group))


def _product(
    a: NDArray[np.float64] | None, b: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    return None if a is None or b is None else a * b


READER_L2 = WeightCriterion(reader_l2, **words("reader_l2"))
READER_L2_GAMMA = WeightCriterion(reader_l2_gamma, **words("reader_l2_gamma"))
READER_L2_FILTERS = WeightCriterion(reader_l2_filters, **words("reader_l2_filters"))
