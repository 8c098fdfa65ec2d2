"""Residual networks of basic blocks for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from abcsearch.errors import ModelError, unknown_name
from abcsearch.models.layers import init_convolutions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

SHORTCUTS = ("projection", "pad")


class PadShortcut(nn.Module):
    """Every `stride`-th place of the image, with channels of zeros before and after; it has no weights.

    The zeros are a layer's own padding and no number in forward, so that they can follow the channels of a sliced
    network.

    Source: He et al., Deep residual learning (CVPR 2016), shortcut option A.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        before = (out_channels - in_channels) // 2
        # Of (batch, channels, h, w) this layer takes the last three for space: its last pair pads channels.
        self.pad = nn.ZeroPad3d((0, 0, 0, 0, before, out_channels - in_channels - before))
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, in_channels, h, w) to (batch, out_channels, h / stride, w / stride)."""
        return self.pad(x[:, :, :: self.stride, :: self.stride])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which changes where sizes do.

    Source: He et al., Deep residual learning (CVPR 2016); shortcut "pad" is option A, "projection" option B.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PadShortcut(in_channels, out_channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
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
        shortcut: str = "projection",
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the images.
            classes: number of outputs.
            widths: channels per stage.
            depths: blocks per stage.
            shortcut: where a stage halves the image: "projection", a 1x1 convolution with batch norm, or "pad",
                every other place and zeros for the new channels.

        Raises:
            ModelError: if widths and depths differ in length or are empty, a number is not at least 1, the shortcut is
                unknown, or it is "pad" and widths shrink.
        """
        super().__init__()
        if (
            len(widths) != len(depths)
            or min([in_channels, classes, len(widths), *widths, *depths]) < 1
        ):
            msg = (
                f"a residual network needs one width and one depth per stage, all numbers at least 1; found "
                f"in_channels={in_channels}, classes={classes}, widths={list(widths)}, depths={list(depths)}"
            )
            raise ModelError(msg)
        if shortcut not in SHORTCUTS:
            raise ModelError(unknown_name("shortcut", str(shortcut), SHORTCUTS))
        if shortcut == "pad" and list(widths) != sorted(widths):
            msg = f"shortcut 'pad' adds channels, widths must not shrink, found {list(widths)}; use 'projection'"
            raise ModelError(msg)
        self.conv = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        sizes = [widths[0], *widths]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        BasicBlock(
                            sizes[s] if b == 0 else width,
                            width,
                            2 if s > 0 and b == 0 else 1,
                            shortcut,
                        )
                        for b in range(depth)
                    )
                )
                for s, (width, depth) in enumerate(zip(widths, depths, strict=True))
            )
        )
        self.linear = nn.Linear(widths[-1], classes)
        init_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, in_channels, h, w) to logits (batch, classes)."""
        out = self.stages(self.relu(self.bn(self.conv(x))))
        return self.linear(out.mean(dim=(2, 3)))


def _cifar(blocks: int, classes: int, in_channels: int, shortcut: str) -> SmallResNet:
    """Returns the network of He et al., section 4.2, with that many blocks in each of its three stages."""
    return SmallResNet(
        in_channels=in_channels, classes=classes, depths=(blocks,) * 3, shortcut=shortcut
    )


def resnet20(classes: int = 10, in_channels: int = 3, shortcut: str = "pad") -> SmallResNet:
    """Returns ResNet-20 for CIFAR (He et al., CVPR 2016, section 4.2); arguments as in `SmallResNet`."""
    return _cifar(3, classes, in_channels, shortcut)


def resnet32(classes: int = 10, in_channels: int = 3, shortcut: str = "pad") -> SmallResNet:
    """Returns ResNet-32 for CIFAR (He et al., CVPR 2016, section 4.2); arguments as in `SmallResNet`."""
    return _cifar(5, classes, in_channels, shortcut)


def resnet44(classes: int = 10, in_channels: int = 3, shortcut: str = "pad") -> SmallResNet:
    """Returns ResNet-44 for CIFAR (He et al., CVPR 2016, section 4.2); arguments as in `SmallResNet`."""
    return _cifar(7, classes, in_channels, shortcut)


def resnet56(classes: int = 10, in_channels: int = 3, shortcut: str = "pad") -> SmallResNet:
    """Returns ResNet-56 for CIFAR (He et al., CVPR 2016, section 4.2); arguments as in `SmallResNet`."""
    return _cifar(9, classes, in_channels, shortcut)


def resnet110(classes: int = 10, in_channels: int = 3, shortcut: str = "pad") -> SmallResNet:
    """Returns ResNet-110 for CIFAR (He et al., CVPR 2016, section 4.2); arguments as in `SmallResNet`."""
    return _cifar(18, classes, in_channels, shortcut)
