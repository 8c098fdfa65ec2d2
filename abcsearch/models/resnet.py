"""Residual networks of basic blocks for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from abcsearch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution on the shortcut where sizes change.

    Source: He et al., Deep residual learning (CVPR 2016), shortcut option B.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, in_channels, h, w) to (batch, out_channels, h / stride, w / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, the mean over space, one linear layer.

    Every stage but the first halves the image. With depths (9, 9, 9) and three input channels this is ResNet-56.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        depths: Sequence[int] = (2, 2, 2),
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the images.
            classes: number of outputs.
            widths: channels per stage.
            depths: blocks per stage.

        Raises:
            ModelError: if widths and depths differ in length or are empty, or a number is not at least 1.
        """
        super().__init__()
        if len(widths) != len(depths) or min([in_channels, classes, len(widths), *widths, *depths]) < 1:
            msg = (
                f"a residual network needs one width and one depth per stage, all numbers at least 1; found "
                f"in_channels={in_channels}, classes={classes}, widths={list(widths)}, depths={list(depths)}"
            )
            raise ModelError(msg)
        self.conv = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        sizes = [widths[0], *widths]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        BasicBlock(sizes[s] if b == 0 else width, width, 2 if s > 0 and b == 0 else 1)
                        for b in range(depth)
                    )
                )
                for s, (width, depth) in enumerate(zip(widths, depths, strict=True))
            )
        )
        self.linear = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, in_channels, h, w) to logits (batch, classes)."""
        out = self.stages(self.relu(self.bn(self.conv(x))))
        return self.linear(out.mean(dim=(2, 3)))
