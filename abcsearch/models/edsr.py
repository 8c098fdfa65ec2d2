"""Networks that enlarge images."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from abcsearch.errors import ModelError


class ResidualPair(nn.Module):
    """Two 3x3 convolutions without norms, added to what comes in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, h, w) to the same."""
        return x + self.conv2(self.relu(self.conv1(x)))


class SmallEDSR(nn.Module):
    """EDSR of few channels and blocks: residual pairs at the size of the input, then pixel shuffle; no batch norm.

    It begins as bicubic interpolation and learns what that lacks, so that a few hundred patches teach it.

    Source: Lim et al., Enhanced deep residual networks for single image super-resolution (CVPR Workshops 2017), which
    has no interpolation beside the network; 64 channels and 16 blocks are its baseline.
    """

    def __init__(
        self, in_channels: int = 3, channels: int = 24, blocks: int = 4, scale: int = 2
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the images, the same before and after.
            channels: between the first and the last convolution.
            blocks: residual pairs.
            scale: how many times higher and wider images become; 3 in one step, 4 and 8 in steps of 2.

        Raises:
            ModelError: if the scale is none of 2, 3, 4 and 8, or another number is below 1.
        """
        super().__init__()
        steps = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}.get(scale)
        if steps is None or min(in_channels, channels, blocks) < 1:
            msg = "small_edsr enlarges 2, 3, 4 or 8 times, with at least 1 channel and 1 block; found scale = "
            msg += f"{scale}, in_channels = {in_channels}, channels = {channels}, blocks = {blocks}"
            raise ModelError(msg)
        self.scale = scale
        self.head = nn.Conv2d(in_channels, channels, 3, 1, 1)
        self.body = nn.Sequential(
            *(ResidualPair(channels) for _ in range(blocks)), nn.Conv2d(channels, channels, 3, 1, 1)
        )
        grow = [
            (nn.Conv2d(channels, channels * step**2, 3, 1, 1), nn.PixelShuffle(step))
            for step in steps
        ]
        self.upsample = nn.Sequential(*(layer for pair in grow for layer in pair))
        self.tail = nn.Conv2d(channels, in_channels, 3, 1, 1)
        nn.init.zeros_(self.tail.weight)
        if self.tail.bias is not None:
            nn.init.zeros_(self.tail.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, in_channels, h, w) in [0, 1] to (batch, in_channels, scale * h, scale * w)."""
        first = self.head(x)
        detail = self.tail(self.upsample(first + self.body(first)))
        return (
            F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False) + detail
        )
