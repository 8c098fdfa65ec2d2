"""Data sets of image files, one folder per class."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
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
from abcsearch.errors import DataError, plural

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
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        with reading(root, f"{root}/CLASS/IMAGE"):
            # Hidden ones, such as .ipynb_checkpoints, are no classes.
            below = sorted(
                e.path for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")
            )
            for path in below:
                os.scandir(
                    path
                ).close()  # what may not be read is said here; torchvision would take it as empty
        if not below:
            msg = f"data folder {root} has no folders of classes; expected {root}/CLASS/IMAGE: sort the images into them"
            raise DataError(msg)
        self.classes = [os.path.basename(path) for path in below]  # noqa: PTH119 - as they are sorted
        numbers = {name: number for number, name in enumerate(self.classes)}
        samples = make_dataset(str(root), numbers, IMG_EXTENSIONS, allow_empty=True)
        seen = {label for _, label in samples}
        empty = [name for name, number in numbers.items() if number not in seen]
        if empty:
            some = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
            msg = f"data folder {root} holds no images of {plural(len(empty), 'class')}: {some}; images end in "
            msg += f"{', '.join(IMG_EXTENSIONS)}. Put some there, or remove the empty folders"
            raise DataError(msg)
        self._root = str(root)
        self._names = np.array([os.fsencode(os.path.relpath(file, root)) for file, _ in samples])
        self.labels = torch.tensor([label for _, label in samples])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes as text: bytes of a file system that are none are replaced."""
        return tuple(os.fsencode(name).decode(errors="replace") for name in self.classes)

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


def _there(path: str, second: Sequence[str]) -> list[str]:
    """Returns which of these folders are there beside that of the training images, in this order; the first if none."""
    root = Path(path)
    with reading(root, f"{root}/train/CLASS/IMAGE and {root}/{second[0]}/CLASS/IMAGE"):
        there = {entry.name for entry in os.scandir(root)}
    return [name for name in second if name in there] or [second[0]]


def _folders(path: str, others: Sequence[str]) -> list[Folder]:
    """Returns the folder of the training images and others beside it, whose classes are the same."""
    root = Path(path)
    train = Folder(root / "train")
    every = [train, *(Folder(root / name) for name in others)]
    for name, folder in zip(others, every[1:], strict=True):
        if train.classes != folder.classes:
            ours, theirs = set(train.classes), set(folder.classes)
            sides = (("train", sorted(ours - theirs)), (name, sorted(theirs - ours)))
            odd = "; ".join(
                f"in {side} alone: {', '.join(names)}" for side, names in sides if names
            )
            msg = f"{path}: train and {name} have different classes ({odd}); both need a folder of images for each class"
            raise DataError(msg)
    return every


# Names of the folder of search-validation, where there is one for the test images besides.
_VALIDATION = ("val", "valid", "validation")
_HELD_OUT = 0.1  # where there is none


def _splits(path: str, validation: float | None) -> list[str]:
    """Returns the folders beside train: that of the test images, and that of search-validation if it is to be read.

    Warns:
        UserWarning: if it is there, and images are to be held out instead.
    """
    test, *others = _there(path, ("test", *_VALIDATION))
    if validation is not None and test == "test" and others:
        msg = f"image_folder {path}: validation = {validation:g}: so much is held out of train, and {others[0]} is not "
        msg += "read; leave validation out to search on that"
        warnings.warn(msg, UserWarning, stacklevel=2)
        return [test]
    return [test, *others[:1]] if test == "test" else [test]


def image_folder(  # noqa: PLR0913 - options of a config
    *,
    path: str,
    validation: float | None = None,
    seed: int = 0,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stream: bool = False,
    workers: int | None = None,
) -> Data:
    """Images in the ImageFolder layout: `path/train/CLASS/*`, `path/val/CLASS/*` and `path/test/CLASS/*`.

    Those of val (or valid) are search-validation; without them, it is held out of the training images. Without test,
    those of val are the test images.

    They are decoded into memory once, or streamed: then only search-validation is in memory, and the others are decoded
    when they are needed.

    Args:
        path: the folder.
        validation: share of the training images that is held out for search-validation, or their number; None: the
            images of val or, where there is no val beside test, 0.1.
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
    others = _splits(path, validation)
    folders = _folders(path, others)
    names: dict[str, Any] = {"class_names": folders[0].names}
    train, test, *held = (
        Stream(
            source=folder, labels=folder.labels, evaluation=transform, scale=scale, workers=workers
        )
        for folder in folders
    )
    how, name = (
        HoldOut(validation=_HELD_OUT if validation is None else validation, seed=seed),
        f"image_folder {path}",
    )
    if stream and held:
        splits: dict[str, Any] = {"train": train, "validation": held[0].loaded(), "test": test}
        return Data(name=name, **splits, seed=seed, **names)
    if stream:
        data = Data.from_images(train, test, validation=how.validation, seed=seed, name=name)
        return replace(data, **names)
    shapes = {
        other: images.shape
        for other, images in zip(("train", *others), (train, test, *held), strict=True)
    }
    if len(set(shapes.values())) > 1:
        msg = f"{name}: images of all splits have one (channels, height, width), found "
        msg += f"{', '.join(f'{other} {shape}' for other, shape in shapes.items())}; set size to resize all"
        raise DataError(msg)
    if not held:
        # Refused before anything is decoded, like mean and std
        held_out(train.labels, how.validation, seed)
    rows = train.decoded()
    scale = scale if mean is not None else scale_of(None, None, rows)
    pairs = [(images.decoded(), images.labels) for images in (test, *held)]
    data = byte_data(name, (rows, train.labels), pairs[0], scale, how, *pairs[1:])
    return replace(data, **names)


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
    folders = _folders(path, _there(path, ("val",)))
    train, test = (Stream(source=f, labels=f.labels, **common) for f in folders)
    name = f"imagenet {path}"
    data = Data.from_images(train, test, validation=validation, seed=seed, name=name)
    return replace(data, class_names=folders[0].names)
