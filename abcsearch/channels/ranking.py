"""Which channels of a group to keep: scores per channel, higher is more worth keeping.

Computed once on the trained network and shared by every candidate: a candidate keeps the best k of each group, so
candidates nest and building one is a slice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.errors import RankingError, unknown_name
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph, ChannelGroup, Member

Tensors = dict[str, torch.Tensor]
# A criterion takes the network's tensors by name and a group; it returns (channels,) float64 scores, or None if the
# group has nothing for it to look at (no batch norm, say).
Criterion = Callable[[Tensors, "ChannelGroup"], "NDArray[np.float64] | None"]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The order of channels in every prunable group.

    Attributes:
        criterion: the name of the criterion.
        scores: per prunable group, (channels,) float64, higher is more worth keeping.
    """

    criterion: str
    scores: tuple[NDArray[np.float64], ...] = field(repr=False)

    @cached_property
    def orders(self) -> tuple[NDArray[np.int64], ...]:
        """Per prunable group, the channels from best to worst; equal scores in ascending order of the channel."""
        return tuple(np.argsort(-scores, kind="stable") for scores in self.scores)

    def kept(self, group: int, width: int) -> NDArray[np.int64]:
        """Returns the `width` best channels of a prunable group, in ascending order."""
        return np.sort(self.orders[group][:width])

    def check(self, graph: ChannelGraph) -> None:
        """Raises unless there is one score for every channel of every prunable group.

        Raises:
            RankingError: if the ranking was computed for another graph.
        """
        found, expected = [len(own) for own in self.scores], [group.channels for group in graph.prunable]
        if found != expected:
            msg = f"the ranking is for groups of {found} channels, but the graph has groups of {expected}; rank again"
            raise RankingError(msg)


def l1(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Sum of absolute weights of each filter, summed over all layers that compute the channel (Li 2017)."""
    return _over_filters(tensors, group, lambda filters: filters.abs().sum(dim=1))


def l2(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Euclidean norm of each filter, summed over all layers that compute the channel (He 2018, soft filter pruning)."""
    return _over_filters(tensors, group, lambda filters: filters.norm(dim=1))


def bn_gamma(tensors: Tensors, group: ChannelGroup) -> NDArray[np.float64] | None:
    """Absolute batch-norm scale, summed over the group's batch norms (Liu 2017, network slimming)."""
    norms = [m for m in group.members if m.parameter.removesuffix("weight") + "running_mean" in tensors]
    return _summed(group, [(m, tensors[m.parameter].abs()) for m in norms])


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "bn_gamma": bn_gamma}


def rank_channels(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str = "l1",
    *,
    data: Any = None,  # noqa: ANN401 - for criteria that look at activations
    seed: int = 0,
) -> Ranking:
    """Scores every channel of every prunable group.

    Args:
        model: the trained network that `graph` was traced on; it is not changed.
        graph: its channel groups.
        criterion: "l1", "l2", "bn_gamma" or "random". Where "bn_gamma" finds no batch norm in a group, "l1" stands in,
            with one warning.
        data: for criteria that look at activations; none of today's does.
        seed: of the "random" criterion.

    Raises:
        RankingError: if the criterion is unknown or a score is not finite.
        TraceError: if the graph was traced on a network with other parameters.
    """
    del data
    tensors: Tensors = {name: tensor.detach() for name, tensor in graph.tensors(model).items()}
    if criterion == "random":
        streams = [numpy_stream(seed, "ranking", index) for index in range(len(graph.prunable))]
        permuted = [s.permutation(g.channels) for s, g in zip(streams, graph.prunable, strict=True)]
        return Ranking(criterion=criterion, scores=tuple(order.astype(np.float64) for order in permuted))
    if criterion not in CRITERIA:
        raise RankingError(unknown_name("criterion", criterion, [*CRITERIA, "random"]))
    scores: list[NDArray[np.float64]] = []
    without: list[str] = []
    for group in graph.prunable:
        found = CRITERIA[criterion](tensors, group)
        if found is None:
            without.append(group.name)
            found = l1(tensors, group)
        if found is None or not np.isfinite(found).all():
            msg = f"criterion {criterion!r} finds no finite score in group {group.name!r}; check the trained weights"
            raise RankingError(msg)
        scores.append(found)
    if without:
        warnings.warn(f"criterion {criterion!r} does not apply to {', '.join(without)}; l1 is used there", stacklevel=2)
    return Ranking(criterion=criterion, scores=tuple(scores))


def _over_filters(
    tensors: Tensors, group: ChannelGroup, norm: Callable[[torch.Tensor], torch.Tensor]
) -> NDArray[np.float64] | None:
    """Applies a norm to the rows of every weight that computes the group's channels, and sums over the weights."""
    weights = [m for m in group.members if m.axis == 0 and tensors[m.parameter].ndim > 1]
    return _summed(group, [(m, norm(tensors[m.parameter].double().flatten(1))) for m in weights])


def _summed(group: ChannelGroup, parts: list[tuple[Member, torch.Tensor]]) -> NDArray[np.float64] | None:
    """Adds up per-entry scores of members into (channels,) float64; None if there is no member."""
    if not parts:
        return None
    scores = np.zeros(group.channels)
    for member, values in parts:
        np.add.at(scores, member.channels, values.double().cpu().numpy()[member.entries])
    return scores
