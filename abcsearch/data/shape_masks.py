"""Drawn shapes with masks of their pixels, or with the labels of all that is shown; nothing is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.data.images import IGNORED, held_out
from abcsearch.data.pixels import HoldOut, byte_data
from abcsearch.data.scale import Scale
from abcsearch.data.shapes import CLASSES, background, colour_beside, mask_of
from abcsearch.errors import DataError
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from abcsearch.data.splits import Data

    Labelled = Callable[[NDArray[np.int64]], NDArray[np.int64] | NDArray[np.float32]]

_SCALE = Scale(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
_SMALLEST, _LARGEST = 0.25, 0.5  # of a shape, as a share of the image


def shape_masks(
    *,
    train: int = 800,
    test: int = 300,
    size: int = 32,
    drawing: int = 0,
    validation: float = 0.2,
    seed: int = 0,
) -> Data:
    """Squares, circles and triangles with the class of every pixel, for segmentation; nothing is downloaded.

    An image has one to three shapes of any colour on a background of stripes and noise; later ones may cover earlier
    ones. Classes are 0 for the background, 1 for squares, 2 for circles, 3 for triangles; pixels at their edges do not
    count, as in VOC.

    Args:
        train: images to learn from, those of search-validation among them.
        test: further ones.
        size: their height and width in pixels.
        drawing: seed of what is drawn; with the same one, sizes and numbers, all images are the same.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.

    Raises:
        DataError: if a number is out of range.
    """
    how = HoldOut(validation=validation, seed=seed, objective="segmentation")
    return _drawn("shape_masks", (train, test), size, drawing, how, _without_edges)


def shape_tags(
    *,
    train: int = 800,
    test: int = 300,
    size: int = 32,
    drawing: int = 0,
    validation: float = 0.2,
    seed: int = 0,
) -> Data:
    """The images of `shape_masks` with three labels each: whether a square, a circle, a triangle is shown.

    Args:
        train: images to learn from, those of search-validation among them.
        test: further ones.
        size: their height and width in pixels.
        drawing: seed of what is drawn.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.

    Raises:
        DataError: if a number is out of range.
    """
    how = HoldOut(validation=validation, seed=seed, objective="multilabel")
    return _drawn("shape_tags", (train, test), size, drawing, how, _shown)


def _drawn(
    name: str, counts: tuple[int, int], size: int, drawing: int, how: HoldOut, labelled: Labelled
) -> Data:
    """Returns drawn images with the labels that follow from the classes of their pixels."""
    numbers = {
        "train": (counts[0], 2),
        "test": (counts[1], 1),
        "size": (size, 16),
        "drawing": (drawing, 0),
    }
    wrong = ", ".join(
        f"{key} = {value}" for key, (value, least) in numbers.items() if value < least
    )
    if wrong:
        msg = f"{name}: train is at least 2, test 1, size 16 pixels, drawing 0, found {wrong}"
        raise DataError(msg)
    # Before anything is drawn
    held_out(torch.zeros(counts[0]), how.validation, how.seed, objective=how.objective)
    splits: list[tuple[torch.Tensor, torch.Tensor]] = []
    for split, count in zip(("train", "test"), counts, strict=True):
        every = [
            _image(numpy_stream(drawing, f"shape masks, {split}", number), size)
            for number in range(count)
        ]
        images, labels = (
            np.stack(each)
            for each in zip(*((image, labelled(mask)) for image, mask in every), strict=True)
        )
        splits.append((torch.from_numpy(images), torch.from_numpy(labels)))
    return byte_data(name, splits[0], splits[1], _SCALE, how)


def _image(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns an image, (size, size, 3), and the class of every pixel, (size, size)."""
    image, classes = background(rng, size), np.zeros((size, size), dtype=np.int64)
    for _ in range(int(rng.integers(1, 4))):
        side = int(rng.integers(round(_SMALLEST * size), round(_LARGEST * size) + 1))
        left, top = (int(rng.integers(0, size - side + 1)) for _ in range(2))
        label = int(rng.integers(1, len(CLASSES) + 1))
        mask = mask_of(label, left, top, side, size)
        image[mask] = colour_beside(rng, image[mask].mean(axis=0)) + rng.normal(
            0, 8, (int(mask.sum()), 3)
        )
        classes[mask] = label
    return image.clip(0, 255).astype(np.uint8), classes


def _without_edges(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the classes of pixels, ignored where the pixel to the right or below is of another one."""
    edge = np.zeros(classes.shape, dtype=bool)
    edge[:-1] |= classes[:-1] != classes[1:]
    edge[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    return np.where(edge, IGNORED, classes)


def _shown(classes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns which shapes are to be seen, multi-hot."""
    return np.isin(np.arange(1, len(CLASSES) + 1), classes).astype(np.float32)
