"""Augmentation by torchvision: RandAugment of images, mixup and cutmix of batches with their labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.data.stream import Stream
from abcsearch.errors import ConfigError, DataError
from abcsearch.training import jigsaw

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.data.scale import Scale
    from abcsearch.data.split import Images
    from abcsearch.training.recipe import Recipe

_COLOURS = (1, 3)  # channels of the images that RandAugment takes
_ROUNDING = 0.01  # how far values may lie outside of [0, 1]


def check_mixing(recipe: Recipe, split: Images, objective: str) -> None:
    """Raises unless images and labels can be augmented as a recipe says.

    Raises:
        ConfigError: if labels are to be mixed that are no classes, or signals or volumes augmented.
        DataError: if RandAugment cannot have pixels of these images.
    """
    _check_flat(recipe, split)
    if (recipe.mixup or recipe.cutmix) and objective != "classification":
        msg = f"mixup and cutmix mix labels of a classification, found the objective {objective!r}; set both to 0"
        raise ConfigError(msg)
    moved = [name for name in ("randaugment", "jigsaw") if getattr(recipe, name)]
    if moved and split.labels.ndim > 2:
        msg = f"{moved[0]} moves images, not labels of pixels or boxes with them; set it to 0, and use shift and flip"
        raise ConfigError(msg)
    if recipe.randaugment:
        _check_pixels(split)


def _check_flat(recipe: Recipe, split: Images) -> None:
    """Raises ConfigError if what has no height and width is to be augmented."""
    augmentations = ("shift", "flip", "randaugment", "jigsaw", "mixup", "cutmix")
    asked = [name for name in augmentations if getattr(recipe, name)]
    if asked and (isinstance(split.shape, dict) or len(split.shape) != 3):
        msg = f"{', '.join(asked)}: for images of height and width, found {split.shape}; leave it out of the recipe"
        raise ConfigError(msg)


def _check_pixels(split: Images) -> None:
    """Raises DataError unless RandAugment can have the pixels of these images."""
    if split.shape[0] not in _COLOURS:
        msg = f"randaugment takes images of 1 or 3 channels, found {split.shape[0]}; set it to 0"
        raise DataError(msg)
    some = split.part(torch.arange(min(len(split), 64))).loaded()
    if some.scale is None:
        msg = (
            "randaugment works on pixels, and how these images were normalised is not known; make them with "
            "Split(images, labels, Scale(mean=..., std=...)) of abcsearch.data, from bytes, or set randaugment to 0"
        )
        raise DataError(msg)
    low, high = torch.aminmax(some.scale.undo(some.rows))
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        msg = (
            f"randaugment works on pixels in [0, 1], found {float(low):.3g} to {float(high):.3g} when the "
            f"normalisation is undone: mean = {some.scale.mean}, std = {some.scale.std} are not that of these images"
        )
        raise DataError(msg)


def augmented(
    recipe: Recipe, split: Images
) -> tuple[Images, Callable[[torch.Tensor], torch.Tensor] | None]:
    """Returns the images to train on, and what is to be done to every batch of them, if anything.

    RandAugment changes streamed images as bytes in the processes that decode them, those in memory batch by batch.
    """
    split, change = _randomly_augmented(recipe, split)
    share = recipe.jigsaw
    if not share:
        return split, change
    return split, lambda images: jigsaw.changed(images if change is None else change(images), share)


def _randomly_augmented(
    recipe: Recipe, split: Images
) -> tuple[Images, Callable[[torch.Tensor], torch.Tensor] | None]:
    """Returns the same of RandAugment."""
    if not recipe.randaugment:
        return split, None
    from torchvision.transforms import v2

    change = v2.RandAugment(magnitude=recipe.randaugment)
    if isinstance(split, Stream):
        before = split.training or split.evaluation
        return replace(
            split, training=change if before is None else v2.Compose([before, change])
        ), None
    scale: Any = split.loaded().scale
    return split, lambda images: _changed(images, scale, change)


def _changed(
    images: torch.Tensor, scale: Scale, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Returns (batch, channels, height, width) images, each changed as bytes."""
    pixels = (scale.undo(images.permute(0, 2, 3, 1)).clamp(0, 1) * 255).round().to(torch.uint8)
    rows = torch.stack([change(image.permute(2, 0, 1)).permute(1, 2, 0) for image in pixels])
    return scale.apply(rows).permute(0, 3, 1, 2)


class Mixing:
    """Mixup and cutmix: batches whose labels are shares of classes; draws come from torch's global generator.

    Source: Zhang et al., mixup (ICLR 2018); Yun et al., CutMix (ICCV 2019); as torchvision does them.
    """

    def __init__(self, recipe: Recipe, split: Images) -> None:
        """Prepares what the recipe asks for."""
        from torchvision.transforms import v2

        classes = int(split.labels.max()) + 1
        changes = [
            kind(alpha=a, num_classes=classes)
            for kind, a in ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
            if a
        ]
        self._mix: Any = v2.RandomChoice(changes)

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mixed (batch, channels, height, width) images and (batch, classes) shares that sum to 1."""
        images, shares = self._mix(images, labels)
        return images.contiguous(memory_format=torch.channels_last), shares


def widened(shares: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Returns (batch, classes) shares for networks with more outputs than there are classes in the labels."""
    return F.pad(shares, (0, outputs.shape[1] - shares.shape[1]))
