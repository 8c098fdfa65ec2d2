"""The criteria by which channels are kept, by name; all give scores per channel, higher is more worth keeping.

A criterion of your own is an entry of `CRITERIA`; whoever names it then gets it, a config file too:

    CRITERIA["strength"] = ActivationCriterion(lambda maps: maps.abs().mean(dim=(2, 3)))

`WeightCriterion` sees weights only, `ActivationCriterion` the feature maps that the next layers get,
`GradientCriterion` weights and their gradients; a subclass of `Criterion` sees everything. So does a function of one
argument, the `Subject`, that returns the scores of every prunable group; one of two, (tensors, group), is what a
`WeightCriterion` calls. All of these are also taken by import path, package.module:name, or as they are.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from abcsearch.channels import named
from abcsearch.channels.responses import (
    OverImages,
    PerImage,
    PerWeight,
    gradient_scores,
    mean_over_images,
    response_scores,
)
from abcsearch.errors import RankingError, option_problems
from abcsearch.registry import Registry
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph, ChannelGroup, Member

Tensors = dict[str, torch.Tensor]
Needs = Literal["", "images", "images and labels"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What criteria look at.

    Attributes:
        model: the trained network; a criterion that runs it runs a copy.
        graph: its channel groups.
        tensors: its parameters and buffers by name, detached.
        data: what the caller gave, not None where the criterion needs it.
        seed: of everything random.
    """

    model: nn.Module = field(repr=False)
    graph: ChannelGraph
    tensors: Tensors = field(repr=False)
    data: Any = field(repr=False)
    seed: int


@dataclass(frozen=True)
class Criterion(ABC):
    """A way to score channels.

    Attributes:
        needs: the data that it looks at.
        description: one line.
        source: paper.
    """

    needs: ClassVar[Needs] = ""
    description: str = field(default="", kw_only=True)
    source: str = field(default="", kw_only=True)

    @abstractmethod
    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Returns per prunable group (channels,) scores, None where the criterion does not apply to the group."""


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


@dataclass(frozen=True)
class ActivationCriterion(Criterion):
    """Scores from the feature maps that the layers which read a channel get; see `response_scores`.

    Attributes:
        per_image: (images, channels, height, width) feature maps of one batch -> (images, channels).
        over_images: (images, channels) float64, all images -> (channels,); the mean needs no memory for them.
    """

    needs: ClassVar[Needs] = "images"
    per_image: PerImage
    over_images: OverImages = mean_over_images

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Runs the network once over the data."""
        s = subject
        return response_scores(s.model, s.graph, s.data, s.seed, self.per_image, self.over_images)


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
            _summed(group, [(m, sums[m.parameter, m.axis]) for m in group.members if (m.parameter, m.axis) in sums])
            for group in s.graph.prunable
        ]


@dataclass(frozen=True)
class RandomCriterion(Criterion):
    """A random order per group, drawn from the seed: what every other criterion should beat."""

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Returns a permutation of 0 ... channels - 1 per group."""
        groups = subject.graph.prunable
        streams = [numpy_stream(subject.seed, "ranking", index) for index in range(len(groups))]
        return [s.permutation(g.channels).astype(np.float64) for s, g in zip(streams, groups, strict=True)]


@dataclass(frozen=True)
class FunctionCriterion(Criterion):
    """Scores that a function of the user's own finds, which sees everything; data are what the caller has given.

    Attributes:
        whole: takes the `Subject`; returns per prunable group (channels,) scores, or None where it has none.
    """

    whole: Callable[[Subject], Any]

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Returns what the function finds."""
        found: Any = self.whole(subject)
        wanted = len(subject.graph.prunable)
        if not isinstance(found, list | tuple) or len(found) != wanted:
            msg = (
                f"a criterion that is a function of the subject returns a list with the scores of each of the {wanted} "
                f"prunable groups, found {found!r:.80}"
            )
            raise RankingError(msg)
        return list(found)


def as_criterion(name: str, value: Any) -> Criterion:  # noqa: ANN401 - whatever a name leads to
    """Returns the criterion for what a name leads to.

    Args:
        name: for messages.
        value: a criterion; a class of them; or a function of the `Subject`, or of (tensors, group).

    Raises:
        RankingError: if it is nothing of these.
    """
    if (
        isinstance(value, type)
        and issubclass(value, Criterion)
        and not (inspect.isabstract(value) or option_problems(value, ()))
    ):
        value = value()
    if isinstance(value, Criterion):
        return value
    function: Any = value
    takes = _arguments(function)
    if takes == 1:
        return FunctionCriterion(function)
    if takes == 2:
        return WeightCriterion(function)
    msg = (
        f"criterion {name!r} is a Criterion, a function of the subject that returns the scores of all groups, or one "
        f"of (tensors, group), found {value!r:.80}"
    )
    raise RankingError(msg)


def _arguments(value: object) -> int:
    """Returns how many arguments a function needs by position; 0 of what is none."""
    if not callable(value) or isinstance(value, type):
        return 0
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # some builtins have none
        return 0
    return sum(p.kind in by_position and p.default is p.empty for p in parameters)


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


def apoz(maps: torch.Tensor) -> torch.Tensor:
    """Share of entries that are not exactly zero, in [0, 1]: 1 - APoZ.

    Source: Hu et al., Network Trimming (2016), section 2.

    Differences from the paper:
        - Counted where the next layers read, after whatever lies between (ReLU, pooling, an addition), so that branches
          that are added are counted as one channel. Without a ReLU on the way all scores are 1.
    """
    return torch.count_nonzero(maps, dim=(2, 3)).double() / maps[0, 0].numel()


def hrank(maps: torch.Tensor) -> torch.Tensor:
    """Rank of the feature map as a matrix, in 0 ... min(height, width); numerical, at float32 precision.

    Source: Lin et al., HRank (CVPR 2020), section 3.

    Differences from the paper:
        - Maps are taken where the next layers read, see `apoz`: pooling on the way bounds the rank.
        - Where a linear layer reads flattened maps, the most square height and width are assumed; after global pooling
          the rank is 1 where the response is not zero.
    """
    matrices = maps.float().flatten(0, 1)
    # A decomposition needs several copies: a bounded number of matrices at a time.
    ranks = [torch.linalg.matrix_rank(part) for part in matrices.split(4096)]
    return torch.cat(ranks).reshape(maps.shape[:2]).double()


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """Mean over height and width."""
    return maps.mean(dim=(2, 3), dtype=torch.float64)


def entropy(responses: torch.Tensor) -> torch.Tensor:
    """Entropy of a channel's responses over images, in nats, in 0 ... log(bins).

    Each channel's own range is cut into as many equal bins as the square root of the number of images, rounded up, at
    most 100. A channel that responds alike to all images (to a relative 1e-6, the precision of float32) has entropy 0.

    Source: Luo and Wu, An Entropy-based Pruning Method for CNN Compression (2017), section 3.

    Differences from the paper:
        - The number of bins follows the number of images. With more bins than images can fill, every channel would
          have about the same entropy.
    """
    images, channels = responses.shape
    bins = min(100, int(np.ceil(np.sqrt(images))))
    low, high = responses.aminmax(dim=0)
    spread = high - low
    constant = spread <= 1e-6 * torch.maximum(low.abs(), high.abs())
    share = (responses - low) / spread.masked_fill(constant, 1.0)
    index = (share * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(bins, channels, dtype=torch.float64)
    counts.scatter_add_(0, index, torch.ones_like(responses))
    found = counts / images
    return -torch.xlogy(found, found).sum(dim=0).masked_fill(constant, 0.0)


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


CRITERIA: Registry[Criterion] = named.CRITERIA


def _words(name: str) -> dict[str, Any]:
    return named.CRITERIA.homes[name].words


# What `CRITERIA` names: descriptions and sources are there.
RANDOM = RandomCriterion(**_words("random"))
L1 = WeightCriterion(l1, **_words("l1"))
L2 = WeightCriterion(l2, **_words("l2"))
BN_GAMMA = WeightCriterion(bn_gamma, **_words("bn_gamma"))
FPGM = WeightCriterion(fpgm, **_words("fpgm"))
APOZ = ActivationCriterion(apoz, **_words("apoz"))
HRANK = ActivationCriterion(hrank, **_words("hrank"))
ENTROPY = ActivationCriterion(pooled, entropy, **_words("entropy"))
TAYLOR = GradientCriterion(taylor, **_words("taylor"))


def _over_filters(
    tensors: Tensors, group: ChannelGroup, norm: Callable[[torch.Tensor], torch.Tensor]
) -> NDArray[np.float64] | None:
    """Applies a norm to the rows of every weight that computes the group's channels, and sums over the weights."""
    weights = [m for m in group.members if not m.reads and tensors[m.parameter].ndim > 1]
    found = [(m, tensors[m.parameter].double().movedim(m.axis, 0).flatten(1)) for m in weights]
    return _summed(group, [(m, norm(filters)) for m, filters in found])


def _summed(group: ChannelGroup, parts: list[tuple[Member, torch.Tensor]]) -> NDArray[np.float64] | None:
    """Adds up per-entry scores of members into (channels,) float64; None if there is no member."""
    if not parts:
        return None
    scores = np.zeros(group.channels)
    for member, values in parts:
        np.add.at(scores, member.channels, values.double().cpu().numpy()[member.entries])
    return scores
