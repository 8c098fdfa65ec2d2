"""Drawn shapes with their boxes: a data set for detection that needs no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.data.boxes import packed
from abcsearch.data.images import held_out
from abcsearch.data.pixels import HoldOut, byte_data
from abcsearch.data.scale import Scale
from abcsearch.errors import DataError
from abcsearch.rng import numpy_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from abcsearch.data.splits import Data

CLASSES = ("square", "circle", "triangle")  # labels 1, 2 and 3
_SMALLEST, _LARGEST = 0.2, 0.5  # of a shape, as a share of the image
_MOST = 4  # shapes in an image
_OVERLAP = 0.1  # of the smaller one of two boxes, at most
_CONTRAST = 40  # between the mean colours of a shape and of what is behind it, at least
_SCALE = Scale(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

Drawn = tuple["NDArray[np.uint8]", dict[str, list[list[int]] | list[int]]]


def shapes(
    *,
    train: int = 1200,
    test: int = 300,
    size: int = 64,
    drawing: int = 0,
    validation: float = 0.2,
    seed: int = 0,
) -> Data:
    """Squares, circles and triangles with their boxes, drawn when they are asked for; nothing is downloaded.

    An image has one to four shapes of any colour that tells them from a background of stripes and noise. Labels are 1
    for squares, 2 for circles, 3 for triangles. Boxes are exact: the first and last rows and columns of a shape.

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
    wrong = {
        name: value
        for name, value, least in (("train", train, 2), ("test", test, 1))
        if value < least
    }
    wrong |= {"size": size} if size < 16 else {}
    wrong |= {"drawing": drawing} if drawing < 0 else {}
    if wrong:
        given = ", ".join(f"{name} = {value}" for name, value in wrong.items())
        msg = f"shapes: train is at least 2, test 1, size 16 pixels, drawing 0, found {given}"
        raise DataError(msg)
    # Refused before anything is drawn
    held_out(torch.zeros(train), validation, seed, objective="detection")
    splits: list[tuple[torch.Tensor, torch.Tensor]] = []
    for split, count in (("train", train), ("test", test)):
        every = [
            draw(numpy_stream(drawing, f"shapes, {split}", number), size) for number in range(count)
        ]
        images = torch.from_numpy(np.stack([image for image, _ in every]))
        splits.append((images, packed([target for _, target in every])))
    how = HoldOut(validation=validation, seed=seed, objective="detection")
    return byte_data("shapes", splits[0], splits[1], _SCALE, how)


def draw(rng: np.random.Generator, size: int) -> Drawn:
    """Returns an image, (size, size, 3) uint8, and its boxes and labels."""
    image = background(rng, size)
    boxes: list[list[int]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, _MOST + 1))):
        side = int(rng.integers(round(_SMALLEST * size), round(_LARGEST * size) + 1))
        left, top = (int(rng.integers(0, size - side + 1)) for _ in range(2))
        label = int(rng.integers(1, len(CLASSES) + 1))
        mask = mask_of(label, left, top, side, size)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        colour = colour_beside(rng, image[mask].mean(axis=0))
        if any(_overlap(box, other) > _OVERLAP for other in boxes):
            continue  # the first one never is: no image is empty
        image[mask] = colour + rng.normal(0, 8, (int(mask.sum()), 3))
        boxes.append(box)
        labels.append(label)
    return image.clip(0, 255).astype(np.uint8), {"boxes": boxes, "labels": labels}


def background(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Returns stripes of two colours in any direction, with noise."""
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, size)
    across = np.arange(size) * np.cos(angle) + np.arange(size)[:, None] * np.sin(angle)
    share = 0.5 + 0.25 * np.sin(2 * np.pi * across / period)
    return (
        first * share[..., None]
        + second * (1 - share[..., None])
        + rng.normal(0, 12, (size, size, 3))
    )


def colour_beside(rng: np.random.Generator, behind: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a colour that can be told from the mean one behind it."""
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - behind).mean() < _CONTRAST:
        colour = rng.uniform(0, 255, 3)
    return colour


def mask_of(label: int, left: int, top: int, side: int, size: int) -> NDArray[np.bool_]:
    """Returns which pixels of an image belong to a shape: those whose middle is inside of it."""
    x = (np.arange(size) + 0.5 - left) / side
    y = (np.arange(size)[:, None] + 0.5 - top) / side
    square = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    if CLASSES[label - 1] == "circle":
        return (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25
    if CLASSES[label - 1] == "triangle":  # with its tip up
        return square & (np.abs(x - 0.5) <= y / 2)
    return square


def _overlap(first: list[int], second: list[int]) -> float:
    """Returns the area that two boxes share, as a share of the smaller one."""
    wide, high = (min(first[k + 2], second[k + 2]) - max(first[k], second[k]) for k in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return max(wide, 0) * max(high, 0) / min(areas)
