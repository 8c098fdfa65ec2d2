"""Criteria that look at the feature maps which the next layers get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from abcsearch.channels.criteria.base import Criterion, Needs, Subject, words
from abcsearch.channels.responses import OverImages, PerImage, mean_over_images, response_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    ranks = [torch.linalg.matrix_rank(chunk) for chunk in matrices.split(4096)]
    return torch.cat(ranks).reshape(maps.shape[:2]).double()


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """Mean over height and width, (batch, channels, ...) to (batch, channels)."""
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
    shares = counts / images
    return -torch.xlogy(shares, shares).sum(dim=0).masked_fill(constant, 0.0)


APOZ = ActivationCriterion(apoz, **words("apoz"))
HRANK = ActivationCriterion(hrank, **words("hrank"))
ENTROPY = ActivationCriterion(pooled, entropy, **words("entropy"))
