"""A small one-stage detector: boxes and classes at every place of two feature maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.errors import ModelError
from abcsearch.models.layers import check_counts, conv_norm, init_convolutions
from abcsearch.models.resnet import BasicBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

_STRIDES = (8, 16)  # of the two feature maps
# Of the two anchors at every place, in strides: areas double from one to the next
_SIDES = (1.5, 2.1)
_MATCHED, _MISSED = 0.5, 0.4  # overlap of an anchor with an object that it finds, and with none
# What offsets and sizes are divided by, so that all have about the same spread
_SPREAD = (0.1, 0.1, 0.2, 0.2)
_LARGEST = 4.0  # of the logarithm of a size: exp of more is nothing that fits into an image
_RARE = (
    0.01  # share of places with an object that a new network begins with, as focal loss needs it
)
_ALPHA, _GAMMA = 0.25, 2.0  # of focal loss


class TinySSD(nn.Module):
    """A residual network whose two last feature maps, an eighth and a sixteenth of the image, say what is where.

    In evaluation mode it returns boxes and scores of all places, (batch, places, 4 + classes), which the objective
    "detection" then makes detections of (`abcsearch.training.detections`). In training mode, and by `raw`, it returns
    offsets and logits of the same shape, which `losses` takes.

    Source: Liu et al., SSD (ECCV 2016), for anchors, their matching and the coding of boxes; Lin et al., Focal loss for
    dense object detection (ICCV 2017), for the loss on classes and the thresholds.

    Differences from the papers:
        - Two square anchors per place: three shapes do not need more.
        - Every class has a score of its own, by focal loss, and there is none for the background.
    """

    anchors: torch.Tensor

    def __init__(
        self,
        classes: int = 3,
        in_channels: int = 3,
        width: int = 16,
        depth: int = 1,
        size: int = 64,
    ) -> None:
        """Builds the network.

        Args:
            classes: of objects; labels are 1 to this.
            in_channels: channels of the images.
            width: channels of the first stage; the others have two and four times as many.
            depth: residual blocks per stage.
            size: height and width of the images, a multiple of 16.

        Raises:
            ModelError: if a number is not a whole one of at least 1, or the size is none.
        """
        super().__init__()
        check_counts(
            "tiny_ssd",
            classes=classes,
            in_channels=in_channels,
            width=width,
            depth=depth,
            size=size,
        )
        if size % _STRIDES[-1]:
            msg = f"tiny_ssd: size is a multiple of {_STRIDES[-1]} pixels, found {size}"
            raise ModelError(msg)
        self.classes, self.size = classes, size
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.stem = conv_norm(in_channels, width, 3, 2)
        self.low = nn.Sequential(
            _stage(width, widths[1], depth), _stage(widths[1], widths[2], depth)
        )
        self.high = _stage(widths[2], widths[3], depth)
        self.heads = nn.ModuleList(_head(channels, classes) for channels in widths[2:])
        init_convolutions(self)
        for head in self.heads:
            _begin_rare(head)
        self.register_buffer("anchors", make_anchors(size))

    def raw(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, in_channels, size, size) to offsets and logits (batch, places, 4 + classes)."""
        low = self.low(self.stem(x))
        maps = [
            head(features) for head, features in zip(self.heads, (low, self.high(low)), strict=True)
        ]
        every = [
            level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, 4 + self.classes)
            for level in maps
        ]
        return torch.cat(every, dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images to boxes and scores (batch, places, 4 + classes); in training mode as `raw`."""
        raw = self.raw(x)
        if self.training:
            return raw
        return torch.cat([decoded(raw[..., :4], self.anchors), raw[..., 4:].sigmoid()], dim=-1)

    def losses(
        self, raw: torch.Tensor, targets: Sequence[dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Returns the losses of a batch: on boxes and on classes, scalars.

        Args:
            raw: as in training mode, in any floating-point type.
            targets: of every image boxes, (m, 4) float32, and labels, (m,) int64 from 1.
        """
        from torchvision.ops import sigmoid_focal_loss

        raw = raw.float()
        assigned = [assign(self.anchors, target["boxes"]) for target in targets]
        positive = torch.stack([which >= 0 for which in assigned])
        wanted = torch.zeros_like(raw[..., 4:])
        boxes: list[torch.Tensor] = []
        for number, (which, target) in enumerate(zip(assigned, targets, strict=True)):
            chosen = which[positive[number]]
            wanted[number, positive[number], target["labels"][chosen] - 1] = 1
            boxes.append(encoded(target["boxes"][chosen], self.anchors[positive[number]]))
        counted = torch.stack([which > _NEITHER for which in assigned])
        focal: Any = sigmoid_focal_loss(raw[..., 4:], wanted, alpha=_ALPHA, gamma=_GAMMA)
        total = positive.sum().clamp_min(1)
        far = F.smooth_l1_loss(raw[..., :4][positive], torch.cat(boxes), reduction="sum")
        return {"boxes": far / total, "classes": focal[counted].sum() / total}


def _stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """Returns residual blocks, the first of which halves the image."""
    blocks = [
        BasicBlock(in_channels if not b else out_channels, out_channels, 2 - (b > 0), "projection")
        for b in range(depth)
    ]
    return nn.Sequential(*blocks)


def _head(channels: int, classes: int) -> nn.Sequential:
    """Returns what says of every place of a feature map what is there, for each of its anchors."""
    return nn.Sequential(
        conv_norm(channels, channels, 3), nn.Conv2d(channels, len(_SIDES) * (4 + classes), 3, 1, 1)
    )


@torch.no_grad()
def _begin_rare(head: Any) -> None:  # noqa: ANN401 - as of `_head`
    """Has a head say that there is nothing anywhere."""
    last = head[-1]
    last.weight.normal_(0, 0.01)
    bias = last.bias.view(len(_SIDES), -1)
    bias.zero_()
    bias[:, 4:] = -math.log((1 - _RARE) / _RARE)


def make_anchors(size: int) -> torch.Tensor:
    """Returns the anchors of an image of so many pixels, (places, 4) float32 x1, y1, x2, y2, as `TinySSD.raw` does."""
    every: list[torch.Tensor] = []
    for stride in _STRIDES:
        middles = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(middles, middles, indexing="ij")
        halves = torch.tensor(_SIDES) * stride / 2
        corners = [
            x[..., None] - halves,
            y[..., None] - halves,
            x[..., None] + halves,
            y[..., None] + halves,
        ]
        every.append(torch.stack(corners, dim=-1).reshape(-1, 4))
    return torch.cat(every)


# What is assigned to anchors that are not counted, and to those of the background
_NEITHER, _NOTHING = (-2, -1)


def assign(anchors: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Returns which box each anchor is to find, (places,) int64; -1: none, -2: it does not count.

    An anchor finds the box that it overlaps most, if that is half of both together at least; and a box has the anchor
    that overlaps it most, however little that is.
    """
    from torchvision.ops import box_iou

    which = torch.full((len(anchors),), _NOTHING, dtype=torch.int64, device=anchors.device)
    if not len(boxes):
        return which
    overlaps = box_iou(anchors, boxes)
    most, nearest = overlaps.max(dim=1)
    which = torch.where(most >= _MATCHED, nearest, torch.where(most < _MISSED, which, _NEITHER))
    claims = torch.arange(len(anchors), device=anchors.device)[:, None] == overlaps.argmax(dim=0)
    claimed = (claims * torch.arange(1, len(boxes) + 1, device=anchors.device)).amax(dim=1) - 1
    return torch.where(claimed >= 0, claimed, which)


def _middles(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns middles and sizes of boxes, (..., 2) each."""
    first, last = boxes[..., :2], boxes[..., 2:4]
    return (first + last) / 2, last - first


def encoded(boxes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Returns boxes as offsets from their anchors, both (m, 4): of middles in sizes, of sizes as logarithms."""
    (middle, size), (home, unit) = _middles(boxes), _middles(anchors)
    return torch.cat([(middle - home) / unit, (size / unit).log()], dim=-1) / boxes.new_tensor(
        _SPREAD
    )


def decoded(offsets: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Returns the boxes of offsets, (..., places, 4), the inverse of `encoded`."""
    home, unit = _middles(anchors)
    middle = offsets[..., :2] * _SPREAD[0] * unit + home
    half = (offsets[..., 2:] * _SPREAD[2]).clamp(max=_LARGEST).exp() * unit / 2
    return torch.cat([middle - half, middle + half], dim=-1)
