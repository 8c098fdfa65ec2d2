"""Data sets in files of arrays: CIFAR as it is distributed, and npz."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.data.images import IGNORED, check_classification, check_labels
from abcsearch.data.paths import reading
from abcsearch.data.pickles import plain_pickle
from abcsearch.data.pixels import HoldOut, byte_data, scale_of
from abcsearch.data.splits import Data
from abcsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class _Cifar:
    """How one of the two is distributed.

    Attributes:
        folder: in the archive.
        train: its files of training images.
        test: that of test images.
        labels: the key of labels.
        classes: how many.
        meta: its file with the names of classes, and the key of these.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    classes: int
    meta: tuple[str, str]


_CIFAR10 = _Cifar(
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    labels="labels",
    classes=10,
    meta=("batches.meta", "label_names"),
)
_CIFAR100 = _Cifar(
    folder="cifar-100-python",
    train=("train",),
    test="test",
    labels="fine_labels",
    classes=100,
    meta=("meta", "fine_label_names"),
)


def cifar10(
    *,
    path: str,
    validation: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Data:
    """CIFAR-10 as torchvision keeps it: `path/cifar-10-batches-py/data_batch_1` and so on; nothing is downloaded.

    50 000 training and 10 000 test images, 32x32 in colour, of 10 classes, in memory. What these are
    called is in `batches.meta`, if it is there.

    Args:
        path: the folder that holds cifar-10-batches-py (the unpacked cifar-10-python.tar.gz), or that folder itself.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.
        mean: per channel, of values in [0, 1]; by default that of the training images.
        std: likewise.

    Raises:
        DataError: if a file is missing, may not be read, or is not CIFAR's.
    """
    return _cifar(
        _CIFAR10, f"cifar10 {path}", path, (mean, std), HoldOut(validation=validation, seed=seed)
    )


def cifar100(
    *,
    path: str,
    validation: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Data:
    """CIFAR-100 as torchvision keeps it: `path/cifar-100-python/train` and `test`; nothing is downloaded.

    50 000 training and 10 000 test images, 32x32 in colour, of 100 (fine) classes, in memory. What these
    are called is in `meta`, if it is there.

    Args:
        path: the folder that holds cifar-100-python (the unpacked cifar-100-python.tar.gz), or that folder itself.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.
        mean: per channel, of values in [0, 1]; by default that of the training images.
        std: likewise.

    Raises:
        DataError: if a file is missing, may not be read, or is not CIFAR's.
    """
    return _cifar(
        _CIFAR100, f"cifar100 {path}", path, (mean, std), HoldOut(validation=validation, seed=seed)
    )


def _cifar(kind: _Cifar, name: str, path: str, given: tuple[Any, Any], how: HoldOut) -> Data:
    root = Path(path)
    with reading(root, f"{root}/{kind.folder}"):
        there = {entry.name for entry in root.iterdir()}
    folder = root if kind.train[0] in there and kind.folder not in there else root / kind.folder
    train = [_cifar_batch(kind, folder / file) for file in kind.train]
    images, labels = (torch.cat(tensors) for tensors in zip(*train, strict=True))
    missing = sorted(set(range(kind.classes)) - set(labels.tolist()))
    if missing:
        msg = f"{folder}: training images have all of {kind.classes} classes, found none of {missing}; download it again"
        raise DataError(msg)
    data = byte_data(
        name,
        (images, labels),
        _cifar_batch(kind, folder / kind.test),
        scale_of(*given, images),
        how,
    )
    return replace(data, class_names=_cifar_names(kind, folder))


def _cifar_names(kind: _Cifar, folder: Path) -> tuple[str, ...]:
    """Returns the names of classes; () where the file that has them is missing or damaged: nothing is learned by them."""
    name, key = kind.meta
    file = folder / name
    try:
        if not file.is_file():  # a pipe would be waited for
            return ()
        with file.open("rb") as lines:
            given: Any = _unpickled(file, lines).get(key)
    except (DataError, OSError):
        return ()
    listed: list[Any] = given if isinstance(given, list) else []
    names = [one for one in listed if isinstance(one, str) and one.isprintable() and one]
    return tuple(names) if len(set(names)) == len(listed) == kind.classes else ()


def _cifar_batch(kind: _Cifar, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (n, 32, 32, 3) uint8 images and (n,) int64 labels of a file."""
    with reading(file, f"the unpacked {kind.folder}"), file.open("rb") as lines:
        content = _unpickled(file, lines)
    data, labels = content.get("data"), content.get(kind.labels)
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != 3072
    ):
        msg = f"{file}: 'data' is an array (n, 3072) of uint8, found {_shown(data)}; download it again"
        raise DataError(msg)
    if (
        not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(isinstance(v, int) for v in labels)
    ):
        msg = f"{file}: {kind.labels!r} is a list of {len(data)} class numbers, found {_shown(labels)}; download it again"
        raise DataError(msg)
    _check_range(f"{file}: {kind.labels!r}", np.array(labels), kind.classes)
    rows = torch.from_numpy(data.copy()).view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous()
    return rows, torch.tensor(labels)


def _unpickled(file: Path, lines: IO[bytes]) -> Mapping[str, Any]:
    try:
        content: object = plain_pickle(lines)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        msg = f"{file} is damaged, or no file of CIFAR: {error or type(error).__name__}; download it again"
        raise DataError(msg) from error
    if not isinstance(content, dict):
        msg = f"{file} is no file of CIFAR: it holds a {type(content).__name__}; download it again"
        raise DataError(msg)
    return content


def _shown(value: object) -> str:
    """Returns what a message says of a value: shape and type of arrays, length of lists."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    if isinstance(value, list):
        wrong = next((item for item in value if not isinstance(item, int)), None)
        return f"a list of {len(value)}" + (f" with {wrong!r}" if wrong is not None else "")
    return "nothing" if value is None else type(value).__name__


def _check_range(where: str, labels: NDArray[Any], classes: int) -> None:
    """Raises DataError unless labels are in 0 to classes - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        msg = f"{where}: labels are in 0 to {classes - 1}, found {labels[wrong[0]]} at position {wrong[0]}"
        raise DataError(msg)


_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def npz(  # noqa: PLR0913 - options of a config
    *,
    path: str,
    validation: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: int | None = None,
    objective: str = "classification",
    ignore_index: int | None = None,
) -> Data:
    """A file of `numpy.savez` with train_images, train_labels, test_images and test_labels, in memory.

    Images are bytes, (n, height, width) or (n, height, width, channels) uint8, which are normalised; or inputs of the
    network as they are, (n, channels, height, width) float32, or with the one or three sizes of signals or volumes.
    Labels are whole numbers, (n,) or (n, 1); of a regression, (n, ...) numbers; of a segmentation, (n, height, width)
    whole numbers; of several labels at once ("multilabel"), (n, labels) of 0 and 1.

    Args:
        path: the file.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.
        mean: per channel, of values in [0, 1]; by default that of the training images. For bytes only.
        std: likewise.
        classes: labels are below it; by default any.
        objective: what networks are for: "classification", "segmentation", "multilabel", "regression" or your own.
        ignore_index: label of pixels that do not count, 255 in VOC and Cityscapes; None: -100 alone.

    Raises:
        DataError: if the file or an array in it is missing, damaged, or of another shape or type.
    """
    arrays = _arrays(Path(path))
    splits: list[tuple[torch.Tensor, torch.Tensor]] = []
    for split in ("train", "test"):
        images, labels = (
            arrays[f"{split}_images"],
            _counted(arrays[f"{split}_labels"], ignore_index),
        )
        splits.append(
            (
                _images(f"{path}: {split}_images", images),
                _labels(f"{path}: {split}_labels", labels, objective),
            )
        )
        if classes is not None:
            counted = (
                np.where(labels == IGNORED, 0, labels) if objective == "segmentation" else labels
            )
            _check_range(f"{path}: {split}_labels", counted.ravel(), classes)
        try:
            check_labels(splits[-1][1], len(images))
            if objective == "classification":
                check_classification(splits[-1][1])
        except DataError as error:
            msg = f"{path}: {split}_labels: {error}"
            raise DataError(msg) from error
    (train, _), (test, _) = splits
    if train.dtype != test.dtype:
        msg = f"{path}: train_images and test_images have one type, found {train.dtype} and {test.dtype}"
        raise DataError(msg)
    how, name = HoldOut(validation=validation, seed=seed, objective=objective), f"npz {path}"
    if train.dtype == torch.uint8:
        return byte_data(name, splits[0], splits[1], scale_of(mean, std, train), how)
    if mean is not None or std is not None:
        msg = f"{path}: mean and std are for bytes; float32 images are taken as they are: leave them out"
        raise DataError(msg)
    return Data.from_tensors(
        splits[0], splits[1], validation=validation, seed=seed, name=name, objective=objective
    )


def _counted(labels: NDArray[Any], ignore_index: int | None) -> NDArray[Any]:
    """Returns labels in which the pixels that do not count have the label `IGNORED`."""
    if ignore_index is None or labels.dtype.kind not in "iu":
        return labels
    return np.where(labels == ignore_index, IGNORED, labels.astype(np.int64))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Returns the four arrays of a file."""
    with reading(path, "a file of numpy.savez"), path.open("rb") as opened:
        try:
            file = np.load(opened, allow_pickle=False)
            names = list(getattr(file, "files", []))
            if missing := [name for name in _ARRAYS if name not in names]:
                msg = f"{path} holds {', '.join(_ARRAYS)}; missing: {', '.join(missing)} (found: {', '.join(names)})"
                raise DataError(msg)
            return {name: file[name] for name in _ARRAYS}
        except (ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, KeyError) as error:
            msg = f"{path} is damaged, or no file of numpy.savez with plain arrays: {error}"
            raise DataError(msg) from error


def _images(where: str, images: NDArray[Any]) -> torch.Tensor:
    """Returns images as tensors: bytes (n, height, width, channels), or float32 (n, channels, height, width)."""
    if images.dtype == np.uint8 and images.ndim in (3, 4) and images.size:
        return torch.from_numpy(images if images.ndim == 4 else images[..., None])
    if images.dtype == np.float32 and images.ndim in (3, 4, 5) and images.size:
        return torch.from_numpy(images)
    msg = (
        f"{where} is (n, height, width, channels) uint8 or (n, channels, height, width) float32 and not empty, found "
        f"{_shown(images)}"
    )
    raise DataError(msg)


def _labels(where: str, labels: NDArray[Any], objective: str) -> torch.Tensor:
    """Returns labels as tensors: whole numbers int64, others float32."""
    if labels.dtype.kind not in "iuf":
        msg = f"{where} are numbers, found {_shown(labels)}"
        raise DataError(msg)
    if objective == "classification" and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    whole = labels.dtype.kind in "iu" and objective not in ("regression", "multilabel")
    return torch.from_numpy(labels.astype(np.int64 if whole else np.float32))
