"""Networks that name the class of every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from abcsearch.errors import ModelError
from abcsearch.models.layers import init_convolutions
from abcsearch.models.resnet import BasicBlock

if TYPE_CHECKING:
    from collections.abc import Sequence


class SmallFCN(nn.Module):
    """A fully convolutional network: residual stages, each half as large as the one before, and two heads.

    As torchvision's segmentation networks it returns {"out": logits, "aux": logits}, those of the auxiliary head taken
    one stage earlier; that head helps while the network is trained, and nothing else uses it.

    Source: Long et al., Fully convolutional networks for semantic segmentation (CVPR 2015); the auxiliary head is of
    Zhao et al., PSPNet (CVPR 2017), section 3.3.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 4,
        widths: Sequence[int] = (16, 32, 64),
        *,
        aux: bool = True,
    ) -> None:
        """Builds the network.

        Args:
            in_channels: channels of the images.
            classes: number of classes.
            widths: channels per stage, two at least.
            aux: whether there is an auxiliary head.

        Raises:
            ModelError: if there are fewer than two stages, or a number is not at least 1.
        """
        super().__init__()
        if len(widths) < 2 or min([in_channels, classes, *widths]) < 1:
            msg = "small_fcn has two stages at least, all numbers at least 1; found in_channels = "
            raise ModelError(f"{msg}{in_channels}, classes = {classes}, widths = {list(widths)}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.stages = nn.ModuleList(
            BasicBlock(before, width, 1 if index == 0 else 2, "projection")
            for index, (before, width) in enumerate(pairs)
        )
        self.head = _head(widths[-1], classes)
        self.aux = _head(widths[-2], classes) if aux else None
        init_convolutions(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps (batch, in_channels, h, w) to logits (batch, classes, h, w), those of the auxiliary head beside them."""
        size = x.shape[-2:]
        x = self.stem(x)
        for stage in self.stages[:-1]:
            x = stage(x)
        result = {
            "out": F.interpolate(
                self.head(self.stages[-1](x)), size=size, mode="bilinear", align_corners=False
            )
        }
        if self.aux is not None:
            result["aux"] = F.interpolate(
                self.aux(x), size=size, mode="bilinear", align_corners=False
            )
        return result


def _head(channels: int, classes: int) -> nn.Sequential:
    """Returns the layers from features to logits."""
    middle = max(channels // 2, 1)
    return nn.Sequential(
        nn.Conv2d(channels, middle, 3, 1, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, classes, 1),
    )
