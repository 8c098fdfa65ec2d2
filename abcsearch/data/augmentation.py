"""Augmentation of whole batches, on the device that they are on: random shifts and mirror images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.data.boxes import are_boxes, moved
from abcsearch.data.images import IGNORED
from abcsearch.errors import DataError
from abcsearch.example import Example

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class Moves:
    """How the images of a batch are moved; first shifted, then mirrored.

    Attributes:
        shift: largest shift in pixels.
        offsets: (2, batch) int64, the rows and columns that an image is cut out of its padded self at, 0 to 2 * shift;
            None: nothing is shifted.
        mirrored: (batch,) bool; None: nothing is mirrored.
    """

    shift: int
    offsets: torch.Tensor | None
    mirrored: torch.Tensor | None

    def part(self, positions: slice) -> Moves:
        """Returns the moves of some images of the batch."""
        offsets = None if self.offsets is None else self.offsets[:, positions]
        return replace(
            self,
            offsets=offsets,
            mirrored=None if self.mirrored is None else self.mirrored[positions],
        )

    def apply(self, images: Any, fill: float = 0) -> Any:  # noqa: ANN401 - a tensor; several inputs if nothing moves
        """Returns moved copies of (batch, height, width, channels) images; `fill` comes in at their edges.

        Raises:
            DataError: if they are no images of height and width.
        """
        if self.offsets is None and self.mirrored is None:
            return images
        if isinstance(images, Example) or images.ndim != 4:
            given = "of several inputs" if isinstance(images, Example) else tuple(images.shape[1:])
            msg = f"images {given} are not shifted and mirrored, which takes height and width; set "
            msg += "shift = 0 and flip = false in the recipe"
            raise DataError(msg)
        n, height, width, channels = images.shape
        pad = self.shift if self.offsets is not None else 0
        if pad:
            images = F.pad(images, (0, 0, pad, pad, pad, pad), value=fill)
        # Every pixel's position in its padded image: one gather of whole pixels does shift and mirror image at once.
        device = images.device
        rows = torch.arange(height, device=device)[None, :, None]
        columns = torch.arange(width, device=device)[None, None, :]
        if self.mirrored is not None:
            columns = torch.where(self.mirrored[:, None, None], width - 1 - columns, columns)
        if self.offsets is not None:
            rows, columns = (
                rows + self.offsets[0][:, None, None],
                columns + self.offsets[1][:, None, None],
            )
        first = torch.arange(n, device=device)[:, None, None] * (height + 2 * pad)
        positions = (first + rows) * (width + 2 * pad) + columns
        return (
            images.flatten(0, 2)
            .index_select(0, positions.flatten())
            .view(n, height, width, channels)
        )

    def apply_to_labels(self, labels: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Returns the labels of moved images: pixels and boxes move with them, pixels that come in do not count.

        Labels that are images themselves, of as many channels and a whole number of times as large, move with them,
        too.

        Args:
            labels: (batch, ...), see `Images.labels`.
            shape: (channels, height, width) of the images.

        Raises:
            DataError: if they are maps of another size than the images, or of other values.
        """
        if labels.ndim <= 2 or (self.offsets is None and self.mirrored is None):
            return labels
        if are_boxes(labels):
            offsets = None if self.offsets is None else self.offsets - self.shift
            return moved(labels, (shape[1], shape[2]), offsets, self.mirrored)
        if scale := _enlargement(labels, shape):
            offsets = None if self.offsets is None else scale * self.offsets
            larger = replace(self, shift=scale * self.shift, offsets=offsets)
            return larger.apply(labels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if labels.dtype != torch.int64 or labels.shape[1:] != shape[1:]:
            msg = (
                f"labels {tuple(labels.shape[1:])} {labels.dtype} of images {shape} cannot be shifted and mirrored "
                "with them: only class numbers of every pixel, boxes, and images of as many channels can; set "
                "shift = 0 and flip = false in the recipe"
            )
            raise DataError(msg)
        return self.apply(labels[..., None], IGNORED)[..., 0]


def _enlargement(labels: torch.Tensor, shape: tuple[int, ...]) -> int:
    """Returns how many times larger labels are that are images of as many channels; 0 if they are none."""
    if labels.ndim != 4 or labels.dtype != torch.float32 or labels.shape[1] != shape[0]:
        return 0
    scale = labels.shape[2] // shape[1]
    return scale if tuple(labels.shape[2:]) == (scale * shape[1], scale * shape[2]) else 0


def draw_moves(
    count: int,
    batch_size: int,
    generator: torch.Generator,
    *,
    shift: int,
    flip: bool,
    device: torch.device,
) -> Iterator[Moves]:
    """Returns the moves of the batches of an epoch: drawn at once, since a copy to a device in every step would wait.

    Args:
        count: batches.
        batch_size: images in each.
        generator: on the CPU.
        shift: largest shift in pixels.
        flip: whether images are mirrored, half of them.
        device: where the images are.
    """
    offsets: list[torch.Tensor] = []
    chances: list[torch.Tensor] = []
    for _ in range(count):
        if shift:
            offsets.append(torch.randint(0, 2 * shift + 1, (2, batch_size), generator=generator))
        if flip:
            chances.append(torch.rand(batch_size, generator=generator))
    shifts = torch.stack(offsets).to(device).unbind() if offsets else [None] * count
    mirrors = (torch.stack(chances) < 0.5).to(device).unbind() if chances else [None] * count
    return (Moves(shift=shift, offsets=o, mirrored=m) for o, m in zip(shifts, mirrors, strict=True))
