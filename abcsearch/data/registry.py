"""Data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from abcsearch.data.splits import Data
from abcsearch.errors import AbcSearchError, DataError, option_problems, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def digits(*, validation: float = 0.25, seed: int = 0) -> Data:
    """1 797 real handwritten digits, 8x8 grey (UCI, shipped with scikit-learn; nothing is downloaded).

    The test set is fixed (every seed has the same 360 images); `seed` decides which training images are held out for
    search-validation.

    Args:
        validation: share of the 1 437 training images that is held out.
        seed: of that choice.
    """
    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels.numpy(), random_state=0)
    images = (images - images[train].mean()) / images[train].std()
    return Data.from_tensors(
        (images[train], labels[train]), (images[test], labels[test]), validation=validation, seed=seed, name="digits"
    )


def image_folder(*, path: str, validation: float = 0.1, seed: int = 0, size: int | None = None) -> Data:
    """Images in the ImageFolder layout: `path/train/CLASS/*` and `path/test/CLASS/*`, decoded into memory once.

    Channels are normalised by the mean and standard deviation of the training images.

    Args:
        path: the folder.
        validation: share of the training images that is held out for search-validation.
        seed: of that choice.
        size: height and width to resize to; None takes the images as they are (all must have one size).

    Raises:
        DataError: if a folder is missing or empty, a file cannot be decoded, or sizes or classes differ.
    """
    if size is not None and size < 1:
        msg = f"image_folder: size is the height and width in pixels, at least 1, found {size}"
        raise DataError(msg)
    parts = [_read_folder(Path(path) / part, size) for part in ("train", "test")]
    (train, labels, classes), (test, test_labels, test_classes) = parts
    if classes != test_classes:
        msg = f"{path}: train and test have different classes: {sorted(set(classes) ^ set(test_classes))}"
        raise DataError(msg)
    mean, std = train.mean(dim=(0, 2, 3), keepdim=True), train.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
    return Data.from_tensors(
        ((train - mean) / std, labels),
        ((test - mean) / std, test_labels),
        validation=validation,
        seed=seed,
        name=f"image_folder {path}",
    )


def _read_folder(path: Path, size: int | None) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Returns images (n, 3, h, w) float32 in [0, 1], labels (n,) int64 and class names of one folder."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    if not path.is_dir():
        msg = f"data folder {path} is missing; expected {path}/CLASS/IMAGE (check the path option of [data])"
        raise DataError(msg)
    steps = [v2.ToImage(), *([v2.Resize((size, size))] if size else []), v2.ToDtype(torch.float32, scale=True)]
    try:
        folder = ImageFolder(str(path), transform=v2.Compose(steps))
    except FileNotFoundError as error:
        msg = f"data folder {path} holds no images: {error}"
        raise DataError(msg) from error
    images: list[torch.Tensor] = []
    for index, (file, _) in enumerate(folder.samples):
        try:
            images.append(folder[index][0])
        except Exception as error:  # what a decoder raises on a damaged file depends on the format and the damage
            msg = f"image {file} cannot be read: {error}; repair or remove it"
            raise DataError(msg) from error
        if images[-1].shape != images[0].shape:
            found, first = tuple(images[-1].shape[1:]), tuple(images[0].shape[1:])
            msg = f"image {file} is {found}, the first is {first}; set size to resize all"
            raise DataError(msg)
    return torch.stack(images).as_subclass(torch.Tensor), torch.tensor(folder.targets), folder.classes


# Name -> loader. `DATASETS["mine"] = load_mine` makes a data set known by name.
DATASETS: dict[str, Callable[..., Data]] = {"digits": digits, "image_folder": image_folder}


def load_data(name: str, **options: Any) -> Data:  # noqa: ANN401 - each data set has its own
    """Returns a data set by name.

    Raises:
        DataError: if the name or an option is unknown (with the nearest valid one), one is missing, or loading fails.
    """
    check_data_options(name, options)
    try:
        data: object = DATASETS[name](**options)
    except AbcSearchError:
        raise
    except Exception as error:  # the user's loader, or an option of the wrong type: anything can go wrong
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        msg = f"data set {name!r} cannot be loaded with {given}: {type(error).__name__}: {error}"
        raise DataError(msg) from error
    if not isinstance(data, Data):
        msg = f"data set {name!r} returned {type(data).__name__}, expected abcsearch.Data (see Data.from_tensors)"
        raise DataError(msg)
    return data


def check_data_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises DataError for an unknown name, or with all unknown and missing options, without loading anything."""
    if name not in DATASETS:
        raise DataError(unknown_name("data set", name, DATASETS))
    problems = option_problems(DATASETS[name], options)
    if problems:
        raise DataError("\n".join(f"data set {name!r}: {problem}" for problem in problems))
