"""Criteria that keep one channel of each cluster of similar ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.cluster.hierarchy import ward
from scipy.spatial.distance import pdist

from abcsearch.channels.criteria.base import Tensors, words
from abcsearch.channels.criteria.weights import WeightCriterion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.channels.group import ChannelGroup


def scsp(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """The place in an order whose first k channels are one of each of k clusters, for every k: channels - 1 ... 0.

    A channel is its filters in all layers that compute it, one after the other. Two are as similar as
    exp(-||a - b||^2 / (2 s^2)), s the median of the distances that are not 0. Clusters are merged by Ward's method, so
    that those of every number nest; of each, the channel with the largest norm stands for it, and where a cluster is
    split, the part without one gets its own.

    Source: Zhuo et al., SCSP: Spectral Clustering Filter Pruning with Soft Self-adaption Manners (2018).

    Differences from the paper:
        - Ward's method, on the distances that belong to the similarities (those of the feature space of the kernel),
          takes the place of k-means on eigenvectors, whose clusters do not nest and depend on a draw.
        - One channel of each cluster is kept; the paper removes the weakest clusters whole, softly, while it trains.
        - Filters of coupled layers are clustered together.
    """
    filters = _filters(tensors, group)
    if filters is None or not np.isfinite(filters).all():
        return None if filters is None else np.full(group.channels, np.nan)
    distances = pdist(filters)
    scale = np.median(distances[distances > 0]) if distances.any() else 1.0
    # ||a - b||^2 = 2 - 2 exp(...) in the feature space; expm1 keeps small ones.
    tree = (
        ward(np.sqrt(-2 * np.expm1(-0.5 * (distances / scale) ** 2)))
        if len(filters) > 1
        else np.empty((0, 4))
    )
    return _order_of(tree, np.linalg.norm(filters, axis=1))


def _filters(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Returns all weights that compute each channel as (channels, n) float64, or None if there are none."""
    makers = [m for m in group.members if not m.reads and tensors[m.parameter].ndim > 1]
    rows: list[torch.Tensor] = []
    for m in makers:
        entries = torch.from_numpy(m.entries[np.argsort(m.channels, kind="stable")])
        weight = tensors[m.parameter].double().movedim(m.axis, 0).cpu()
        rows.append(weight[entries].reshape(group.channels, -1))
    return torch.cat(rows, dim=1).numpy() if rows else None


def _order_of(tree: NDArray[np.float64], norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns channels - 1 for the channel that stands for all of them, and so on down to 0.

    Args:
        tree: (channels - 1, 4) merges, as scipy has them.
        norms: (channels,); the largest of a cluster stands for it, of equal ones the first.
    """
    channels = len(norms)
    standing = list(range(channels))
    last: list[int] = []  # what stands for a cluster no longer, once it is merged
    for a, b in tree[:, :2].astype(int).tolist():
        winner, loser = sorted(
            (standing[a], standing[b]), key=lambda channel: (-norms[channel], channel)
        )
        standing.append(winner)
        last.append(loser)
    scores = np.empty(channels)
    scores[[*last, standing[-1]]] = np.arange(channels)
    return scores


SCSP = WeightCriterion(scsp, **words("scsp"))
