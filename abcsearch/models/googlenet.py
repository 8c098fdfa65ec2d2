"""GoogLeNet for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from abcsearch.models.layers import check_counts, conv_norm, init_convolutions

if TYPE_CHECKING:
    from collections.abc import Sequence

# Per inception block: channels of the 1x1 branch, the 3x3 branch (reduced, out), the 5x5 branch (reduced, out) and the
# pooled branch: Szegedy et al., table 1. Pooling halves the image between the tuples.
_BLOCKS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
_STEM = 192


class Inception(nn.Module):
    """Four branches on the same input, concatenated; two 3x3 convolutions in place of the 5x5 one."""

    def __init__(self, in_channels: int, sizes: Sequence[int]) -> None:
        """Builds the block; `sizes` as in the table above."""
        super().__init__()
        one, three_in, three, five_in, five, pooled = sizes
        self.branch1 = conv_norm(in_channels, one, 1)
        self.branch2 = nn.Sequential(
            *conv_norm(in_channels, three_in, 1), *conv_norm(three_in, three, 3)
        )
        self.branch3 = nn.Sequential(
            *conv_norm(in_channels, five_in, 1),
            *conv_norm(five_in, five, 3),
            *conv_norm(five, five, 3),
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv_norm(in_channels, pooled, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, in_channels, h, w) to (batch, sum of the branches' channels, h, w)."""
        return torch.cat(
            [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1
        )


class GoogLeNet(nn.Module):
    """GoogLeNet with batch norm for CIFAR: a 3x3 stem, nine inception blocks, the mean over space, one linear layer.

    Source: Szegedy et al., Going deeper with convolutions (CVPR 2015), in the form that the pruning papers measure on
    CIFAR (Lin et al., HRank, CVPR 2020; ABCPruner, IJCAI 2020): one stem convolution, no auxiliary classifiers, no
    dropout. Convolutions have no bias: the batch norm behind each has one.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3) -> None:
        """Builds the network.

        Args:
            classes: number of outputs.
            in_channels: channels of the images.

        Raises:
            ModelError: if a number is not at least 1.
        """
        super().__init__()
        check_counts("GoogLeNet", classes=classes, in_channels=in_channels)
        layers: list[nn.Module] = [conv_norm(in_channels, _STEM, 3)]
        channels = _STEM
        for index, stage in enumerate(_BLOCKS):
            if index:
                layers.append(nn.MaxPool2d(3, 2, 1))
            for sizes in stage:
                layers.append(Inception(channels, sizes))
                one, _, three, _, five, pooled = sizes
                channels = one + three + five + pooled
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)
        init_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, in_channels, h, w) to logits (batch, classes)."""
        return self.linear(self.features(x).mean(dim=(2, 3)))
