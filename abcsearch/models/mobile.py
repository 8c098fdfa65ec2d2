"""Networks of depthwise convolutions, for large and small images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from abcsearch.errors import ModelError
from abcsearch.models.layers import check_counts, conv_norm, init_convolutions

if TYPE_CHECKING:
    import torch

# (output channels, stride) of each depthwise separable convolution: Howard et al., table 1.
_MOBILENET_V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *(((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)
# (expansion, output channels, blocks, stride) of each stage: Sandler et al., table 2, the second stage at full size.
_MOBILENET_V2_CIFAR = (
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetV1(nn.Module):
    """A 3x3 stem, 13 depthwise separable convolutions, the mean over space, one linear layer.

    Source: Howard et al., MobileNets (arXiv 1704.04861), table 1.
    """

    def __init__(
        self, classes: int = 1000, in_channels: int = 3, stem_stride: int = 2, width: float = 1.0
    ) -> None:
        """Builds the network.

        Args:
            classes: number of outputs.
            in_channels: channels of the images.
            stem_stride: 2 for ImageNet; 1 for images as small as CIFAR's.
            width: times the usual channels, rounded down.

        Raises:
            ModelError: if a number is not at least 1, or a layer would have no channels.
        """
        super().__init__()
        check_counts(
            "MobileNetV1", classes=classes, in_channels=in_channels, stem_stride=stem_stride
        )
        if not isinstance(width, int | float) or not 1 / 32 <= width < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"MobileNetV1: width is what its 32 to 1024 channels are multiplied by, at least 1/32, found {width!r}"
            raise ModelError(msg)
        channels = int(32 * width)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, stem_stride)]
        for usual, stride in _MOBILENET_V1:
            depthwise = conv_norm(channels, channels, 3, stride, conv_groups=channels)
            layers.append(nn.Sequential(*depthwise, *conv_norm(channels, int(usual * width), 1)))
            channels = int(usual * width)
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)
        init_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, in_channels, h, w) to logits (batch, classes)."""
        return self.linear(self.features(x).mean(dim=(2, 3)))


def mobilenet_v1_cifar(classes: int = 10, in_channels: int = 3) -> MobileNetV1:
    """Returns MobileNetV1 whose stem keeps the size of the image; arguments as in `MobileNetV1`."""
    return MobileNetV1(classes=classes, in_channels=in_channels, stem_stride=1)


def mobilenet_v2_cifar(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Returns torchvision's MobileNetV2 with the strides that are usual for CIFAR: 1 in the stem and the second stage.

    Source: Sandler et al., MobileNetV2 (CVPR 2018), table 2.

    Args:
        classes: number of outputs.
        in_channels: channels of the images.

    Raises:
        ModelError: if a number is not at least 1.
    """
    from torchvision.models import MobileNetV2

    check_counts("MobileNetV2", classes=classes, in_channels=in_channels)
    network = MobileNetV2(
        num_classes=classes, inverted_residual_setting=[list(row) for row in _MOBILENET_V2_CIFAR]
    )
    network.features[0][0] = _stem(in_channels, 32)  # pyright: ignore[reportIndexIssue]
    init_convolutions(network)
    return network


def shufflenet_v2_x0_5_cifar(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Returns torchvision's ShuffleNetV2 of half width with a stem for CIFAR: stride 1 and no pooling.

    Source: Ma et al., ShuffleNet V2 (ECCV 2018), table 5.

    Args:
        classes: number of outputs.
        in_channels: channels of the images.

    Raises:
        ModelError: if a number is not at least 1.
    """
    from torchvision.models import ShuffleNetV2

    check_counts("ShuffleNetV2", classes=classes, in_channels=in_channels)
    network = ShuffleNetV2([4, 8, 4], [24, 48, 96, 192, 1024], num_classes=classes)
    network.conv1[0] = _stem(in_channels, 24)
    network.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    init_convolutions(network)
    return network


def _stem(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Returns the first convolution for small images."""
    return nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False)
