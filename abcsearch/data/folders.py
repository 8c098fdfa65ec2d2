"""Data sets of image files, one folder per class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from abcsearch.data.images import held_out
from abcsearch.data.paths import reading
from abcsearch.data.pixels import IMAGENET_MEAN, IMAGENET_STD, HoldOut, byte_data, scale_of
from abcsearch.data.splits import Data
from abcsearch.data.stream import Stream, Transform
from abcsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Folder:
    """The images of a folder `ROOT/CLASS/*`, as a map-style Dataset of (RGB image of PIL, class number).

    Names are kept as one array of bytes: a list of a million Python strings would be copied into every worker process.

    Attributes:
        classes: their names, sorted.
        labels: (n,) int64.
    """

    def __init__(self, root: Path) -> None:
        """Lists the files.

        Args:
            root: the folder.

        Raises:
            DataError: if it is missing, empty, has a class without an image, or may not be read.
        """
        from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

        with reading(root, f"{root}/CLASS/IMAGE"):
            below = sorted(entry.path for entry in os.scandir(root) if entry.is_dir())
            for path in below:
                os.scandir(path).close()  # what may not be read is said here; torchvision would take it as empty
        if not below:
            msg = (
                f"data folder {root} has no folders of classes; expected {root}/CLASS/IMAGE: sort the images into them"
            )
            raise DataError(msg)
        try:
            self.classes, numbers = find_classes(str(root))
            samples = make_dataset(str(root), numbers, IMG_EXTENSIONS)
        except FileNotFoundError as error:
            msg = f"data folder {root} holds no images: {error}"
            raise DataError(msg) from error
        self._root = str(root)
        self._names = np.array([os.fsencode(os.path.relpath(file, root)) for file, _ in samples])
        self.labels = torch.tensor([label for _, label in samples])

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._names)

    def file(self, index: int) -> str:
        """Returns the path of an image."""
        return os.path.join(self._root, os.fsdecode(self._names[index]))  # noqa: PTH118 - a million times

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Returns an image, decoded, and its class."""
        with Image.open(self.file(index)) as image:
            return image.convert("RGB"), int(self.labels[index])


def bytes_of(image: Image.Image) -> torch.Tensor:
    """Returns an image of PIL as (channels, height, width) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _folders(path: str, second: Sequence[str]) -> tuple[Folder, Folder]:
    """Returns the training and the test folder, whose classes are the same."""
    root = Path(path)
    with reading(root, f"{root}/train/CLASS/IMAGE and {root}/{second[0]}/CLASS/IMAGE"):
        there = {entry.name for entry in os.scandir(root)}
    name = next((name for name in second if name in there), second[0])
    train, test = Folder(root / "train"), Folder(root / name)
    if train.classes != test.classes:
        msg = f"{path}: train and {name} have different classes: {sorted(set(train.classes) ^ set(test.classes))}"
        raise DataError(msg)
    return train, test


def image_folder(  # noqa: PLR0913 - options of a config
    *,
    path: str,
    validation: float = 0.1,
    seed: int = 0,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stream: bool = False,
    workers: int | None = None,
) -> Data:
    """Images in the ImageFolder layout: `path/train/CLASS/*` and `path/test/CLASS/*` (or `path/val/CLASS/*`).

    They are decoded into memory once, or streamed: then only search-validation is in memory, and the others are decoded
    when they are needed.

    Args:
        path: the folder.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.
        size: height and width to resize to; None takes the images as they are (all must have one size).
        mean: per channel, of values in [0, 1]; by default that of the training images; of ImageNet's if streamed.
        std: likewise.
        stream: keeps images on disk.
        workers: threads and processes that decode; None: one per core.

    Raises:
        DataError: if a folder is missing or empty, a file cannot be decoded, or sizes or classes differ.
    """
    from torchvision.transforms import v2

    if size is not None and size < 1:
        msg = f"image_folder: size is the height and width in pixels, at least 1, found {size}"
        raise DataError(msg)
    transform: Transform = v2.Compose([bytes_of, v2.Resize((size, size))]) if size else bytes_of
    usual = (IMAGENET_MEAN, IMAGENET_STD)
    scale = scale_of(mean, std, usual)
    train, test = (
        Stream(source=folder, labels=folder.labels, evaluation=transform, scale=scale, workers=workers)
        for folder in _folders(path, ("test", "val"))
    )
    how, name = HoldOut(validation=validation, seed=seed), f"image_folder {path}"
    if stream:
        return Data.from_images(train, test, validation=validation, seed=seed, name=name)
    if train.shape != test.shape:
        msg = f"{name}: images of all splits have one (channels, height, width), found train {train.shape}, "
        msg += f"test {test.shape}; set size to resize all"
        raise DataError(msg)
    held_out(train.labels, validation, seed)  # refused before anything is decoded, like mean and std
    rows = train.decoded()
    scale = scale if mean is not None else scale_of(None, None, rows)
    return byte_data(name, (rows, train.labels), (test.decoded(), test.labels), scale, how)


def imagenet(  # noqa: PLR0913 - options of a config
    *,
    path: str,
    validation: float = 5000,
    seed: int = 0,
    size: int = 224,
    resize: int = 256,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    workers: int | None = None,
) -> Data:
    """ImageNet as torchvision reads it: `path/train/WNID/*.JPEG` and `path/val/WNID/*.JPEG`, streamed.

    Training sees random crops and mirror images; everything else the middle of the image. The val images are the test
    split; search-validation is held out of the training images, and the only one that is kept in memory.

    Args:
        path: the folder.
        validation: number of training images held out for search-validation, or their share.
        seed: of that choice.
        size: height and width that the network sees.
        resize: shorter side that images are resized to before their middle is cut out.
        mean: per channel, of values in [0, 1].
        std: likewise.
        workers: processes (and threads) that decode; None: one per core. Results do not depend on it.

    Raises:
        DataError: if a folder is missing or empty, or a file cannot be decoded.
    """
    from torchvision.transforms import v2

    if not 1 <= size <= resize:
        msg = f"imagenet: size is at least 1 and at most resize, found size = {size} and resize = {resize}"
        raise DataError(msg)
    # Resized as PIL images: JPEGs are decoded at a smaller scale that way, and bytes go to the device.
    common: dict[str, Any] = {
        "evaluation": v2.Compose([v2.Resize(resize), v2.CenterCrop(size), bytes_of]),
        "training": v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), bytes_of]),
        "scale": scale_of(mean, std, ((), ())),
        "workers": workers,
    }
    train, test = (Stream(source=f, labels=f.labels, **common) for f in _folders(path, ("val",)))
    return Data.from_images(train, test, validation=validation, seed=seed, name=f"imagenet {path}")
