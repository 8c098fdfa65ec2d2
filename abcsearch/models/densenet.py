"""DenseNet for small images."""

from __future__ import annotations

import torch
from torch import nn

from abcsearch.errors import ModelError
from abcsearch.models.layers import check_counts, init_convolutions

_BLOCKS = 3


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 3x3 convolution; its new channels are appended to the input's."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, in_channels, h, w) to (batch, in_channels + growth, h, w)."""
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


class DenseNet(nn.Module):
    """DenseNet for CIFAR without bottlenecks or compression: a 3x3 stem, three dense blocks, one linear layer.

    Source: Huang et al., Densely connected convolutional networks (CVPR 2017), the basic form, in the version of the
    pruning papers (Liu et al., Network slimming, ICCV 2017; Lin et al., ABCPruner, IJCAI 2020): the stem has twice the
    growth in channels, where the original has 16.
    """

    def __init__(
        self, depth: int = 40, growth: int = 12, classes: int = 10, in_channels: int = 3
    ) -> None:
        """Builds the network.

        Args:
            depth: convolutions and the linear layer together; 4 more than a multiple of 3.
            growth: channels that each layer appends.
            classes: number of outputs.
            in_channels: channels of the images.

        Raises:
            ModelError: if a number is not at least 1, or the depth does not fit three equal blocks.
        """
        super().__init__()
        check_counts(
            "DenseNet", depth=depth, growth=growth, classes=classes, in_channels=in_channels
        )
        layers_each, rest = divmod(depth - 4, _BLOCKS)
        if rest or layers_each < 1:
            near = 4 + _BLOCKS * max(1, layers_each)
            msg = f"DenseNet: depth is 4 more than a multiple of 3 (7, 10 ... 40), found {depth}; the nearest is {near}"
            raise ModelError(msg)
        channels = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)]
        for block in range(_BLOCKS):
            if block:
                conv = nn.Conv2d(channels, channels, 1, bias=False)
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), conv, nn.AvgPool2d(2)]
            for _ in range(layers_each):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.linear = nn.Linear(channels, classes)
        init_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, in_channels, h, w) to logits (batch, classes)."""
        return self.linear(self.features(x).mean(dim=(2, 3)))
