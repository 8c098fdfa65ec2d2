"""VGG for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from abcsearch.models.layers import check_counts, conv_norm, init_convolutions

if TYPE_CHECKING:
    import torch

# Output channels of each convolution; pooling halves the image between the tuples.
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG-16 with batch norm for CIFAR: 13 convolutions, the mean over space, one linear layer.

    Source: Simonyan and Zisserman, Very deep convolutional networks (ICLR 2015), configuration D; one linear layer in
    place of three is what the pruning papers measure on CIFAR (Liu et al., Network slimming, ICCV 2017; Lin et al.,
    ABCPruner, IJCAI 2020). Convolutions have no bias: the batch norm behind each has one.
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
        check_counts("VGG-16", classes=classes, in_channels=in_channels)
        layers: list[nn.Module] = []
        channels = in_channels
        for index, stage in enumerate(_VGG16):
            if index:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers.extend(conv_norm(channels, width, 3))
                channels = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)
        init_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, in_channels, h, w), at least 16x16, to logits (batch, classes)."""
        return self.linear(self.features(x).mean(dim=(2, 3)))
