"""Data sets of the user's own: a function that returns `Data`, or two Datasets of PyTorch."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from abcsearch.data.boxes import TARGET_KEYS, are_targets, packed
from abcsearch.data.images import IGNORED, as_rows, check_labels, from_rows
from abcsearch.data.items import one_of, tensors_of
from abcsearch.data.pixels import HoldOut, byte_data, scale_of
from abcsearch.data.split import Images, Split
from abcsearch.data.splits import Data
from abcsearch.data.stream import Stream
from abcsearch.errors import DataError
from abcsearch.example import Example

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def from_datasets(  # noqa: PLR0913 - options of a config
    pair: tuple[Any, Any],
    *,
    name: str = "datasets",
    validation: float = 0.1,
    seed: int = 0,
    objective: str = "classification",
    stream: bool = False,
    workers: int | None = None,
    ignore_index: int | None = None,
    inputs: Sequence[str] = (),
) -> Data:
    """Returns the data of two map-style Datasets of PyTorch.

    Args:
        pair: (train, test); items are (image, label), the image a (channels, height, width) tensor, uint8 or normalised
            float32, unaugmented, the label a number or a tensor; of several inputs see `Data.of`. They are read into
            memory, one by one.
        name: for records.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.
        objective: what networks are for.
        stream: reads images when they are needed instead; labels are then those of the attribute `targets`, or read
            once.
        workers: processes that read a stream; None: one per core.
        ignore_index: label of pixels that do not count, 255 in VOC and Cityscapes; None: -100 alone.
        inputs: see `Data.of`.

    Raises:
        DataError: if they are no Datasets, or an item is not what it has to be.
    """
    read_: list[Images] = []
    for split, source in zip(("train", "test"), pair, strict=True):
        where = f"{name}: the {split} Dataset"
        if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")) or not len(source):
            msg = f"{where} has __getitem__, __len__ and at least one item, found {source!r:.80}"
            raise DataError(msg)
        if not stream:
            read_.append(_read(source, where, ignore_index, inputs))
            continue
        given = getattr(source, "targets", None)
        pairs = _Pairs(source, where, inputs)
        labels = [pairs[index][1] for index in range(len(source))] if given is None else given
        read: Any = pairs if isinstance(source[0], Mapping) else source
        read_.append(
            Stream(source=read, labels=_labels(labels, where, ignore_index), workers=workers)
        )
    data = Data.from_images(
        *read_, validation=validation, seed=seed, name=name, objective=objective
    )
    return named(data, pair[0])


def _read(source: Any, where: str, ignore_index: int | None, inputs: Sequence[str]) -> Split:  # noqa: ANN401
    """Returns all items of the user's Dataset in memory."""
    kept = _Kept(_Pairs(source, where, inputs))
    unknown = torch.zeros(len(source), dtype=torch.int64)
    read = Stream(source=kept, labels=unknown, workers=0).loaded()
    # The first item has been read twice
    return Split(read.images, _labels(kept.labels[1:], where, ignore_index), read.scale)


class _Pairs:
    """A Dataset of the user's whose items are (image, label), whatever they were."""

    def __init__(self, source: Any, where: str, inputs: Sequence[str]) -> None:  # noqa: ANN401 - the user's Dataset
        if isinstance(inputs, str) or not all(isinstance(name, str) for name in inputs):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"inputs are names of what an item holds for the network, a list of texts, found {inputs!r:.80}"
            raise DataError(msg)
        self._source, self._where, self._inputs = source, where, tuple(inputs)
        self.title = type(source).__name__  # in messages

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Returns image and label."""
        return _item(self._source, index, self._where, self._inputs)


class _Kept:
    """The images of a Dataset, whose labels are kept on the way.

    Attributes:
        labels: in the order of reading.
    """

    def __init__(self, pairs: _Pairs) -> None:
        self._pairs, self.title = pairs, pairs.title
        self.labels: list[Any] = []

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Any]:
        """Returns an image."""
        image, label = self._pairs[index]
        self.labels.append(label)
        return (image,)


# What Datasets call the parts of an item
_IMAGES = ("image", "images", "img", "pixel_values", "x", "input", "data")
_LABELS = ("label", "labels", "target", "targets", "y", "mask", "class")
_COLOURS = (1, 3, 4)  # channels that bytes may have last


def _item(source: Any, index: int, where: str, inputs: tuple[str, ...]) -> tuple[Any, Any]:  # noqa: ANN401
    """Returns image and label of an item of the user's Dataset; PIL images and arrays as tensors."""
    item: Any = source[index]
    if isinstance(item, Mapping):
        item = _named(item, where, index, inputs)
    if not isinstance(item, tuple | list) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        msg = f"{where} has items (image, label), found {type(item).__name__}{size} at {index}; return just these two, "
        raise DataError(
            msg
            + "several inputs as one: ((left, right), label) or ({'left': ..., 'right': ...}, label)"
        )
    return _image(item[0]), item[1]


def _named(
    item: Mapping[str, Any], where: str, index: int, inputs: tuple[str, ...]
) -> tuple[Any, Any]:
    """Returns image and label of an item that names them; of several inputs a dict of these; boxes are a label.

    Args:
        item: of a data set.
        where: the data set, for messages.
        index: of the item, likewise.
        inputs: the names that are asked for; none: whatever there is.
    """
    item = _with_boxes_as_label(item)
    image, label = _first_of(_IMAGES, item), _first_of(_LABELS, item)
    missing = [name for name in inputs if name not in item]
    if missing:
        msg = f"{where} has no {', '.join(missing)} among the item at {index} ({', '.join(map(str, item))}), which "
        raise DataError(f"{msg}inputs = {list(inputs)} asks for; have every item hold all of them")
    if label is not None and inputs:
        return {name: item[name] for name in inputs}, item[label]
    if label is not None and image is not None:
        return item[image], item[label]
    several = [name for name in item if name != label]
    if label is not None and len(several) > 1:
        return {name: item[name] for name in several}, item[label]
    msg = f"{where} has items (image, label), or named image and label, found {', '.join(map(str, item))} at {index}"
    raise DataError(msg)


def _with_boxes_as_label(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns an item in which boxes, and what belongs to them, are one label, `target`; others as they are."""
    if "boxes" not in item:
        return item
    target = {key: item[key] for key in TARGET_KEYS if key in item}
    return {**{key: item[key] for key in item if key not in target}, "target": target}


def _first_of(names: Sequence[str], item: Mapping[str, Any]) -> str | None:
    """Returns the first of some names that an item has; None without one."""
    return next((name for name in names if name in item), None)


def _image(image: Any) -> Any:  # noqa: ANN401 - whatever a Dataset returns
    """Returns a PIL image or an array as a (channels, ...) tensor; anything else as it is."""
    from PIL import Image

    if isinstance(image, Image.Image):
        image = np.array(image.convert("L") if image.mode == "1" else image)
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 2:
            image = image[..., None]
        last = image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in _COLOURS
        image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0) if last else image))
    if isinstance(image, torch.Tensor) and image.dtype in (
        torch.float64,
        torch.float16,
        torch.bfloat16,
    ):
        return image.float()
    return image


def _labels(labels: Any, where: str, ignore_index: int | None = None) -> torch.Tensor:  # noqa: ANN401 - what the user has
    """Returns labels as one tensor: whole numbers int64, others float32; of pixels that do not count `IGNORED`.

    Dicts with boxes become what `abcsearch.data.boxes` says.
    """
    if are_targets(labels):
        return packed(labels, where)
    try:
        numbers = torch.as_tensor(labels) if hasattr(labels, "shape") else _stacked(labels)
    except Exception as error:  # what can be made a tensor is torch's to say
        msg = f"{where} has labels that are numbers or tensors of one shape, found others: {error}"
        raise DataError(msg) from error
    numbers = numbers.to(torch.float32 if numbers.is_floating_point() else torch.int64)
    if ignore_index is None:
        return numbers
    if numbers.ndim < 2 or numbers.dtype != torch.int64:
        msg = f"ignore_index = {ignore_index} is the label of pixels that do not count; {where} has labels "
        msg += f"{tuple(numbers.shape[1:])} {numbers.dtype} per image: leave it out"
        raise DataError(msg)
    return numbers.where(numbers != ignore_index, IGNORED)


def _stacked(labels: Any) -> torch.Tensor:  # noqa: ANN401 - what the user has
    """Returns labels, one by one, as a tensor; masks may be PIL images."""
    return torch.stack(
        [
            torch.as_tensor(np.array(label) if hasattr(label, "convert") else label)
            for label in labels
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data of the user's own are read.

    Attributes:
        name: for records.
        seed: which images are held out for search-validation.
        objective: what networks are for.
        mean: per channel of bytes, in [0, 1]; None: that of the training images.
        std: likewise.
        ignore_index: label of pixels that do not count, 255 in VOC and Cityscapes; None: -100 alone.
        inputs: see `Data.of`.
    """

    name: str = "data"
    seed: int = 0
    objective: str = "classification"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    ignore_index: int | None = None
    inputs: Sequence[str] = ()


def read(train: Any, test: Any, validation: Any, **how: Any) -> Data:  # noqa: ANN401 - what the user has
    """Returns the data of arrays, Datasets or DataLoaders, read as the keywords of `Reading` say; see `Data.of`."""
    return data_of(train, test, validation, Reading(**how))


def named(data: Data, source: Any) -> Data:  # noqa: ANN401 - what the user has
    """Returns data with the names of their classes, where the Dataset that they are read of has `classes`.

    As those of torchvision do: texts, or several for each class, of which the first counts.
    """
    while isinstance(source, DataLoader | Subset):
        source = source.dataset
    given = getattr(source, "classes", None)
    several = given if isinstance(given, list | tuple) else ()
    names = [name[0] if isinstance(name, tuple) and name else name for name in several]
    texts = all(isinstance(name, str) for name in names)
    if data.objective != "classification" or not texts or len(names) < data.classes:
        return data
    return replace(data, class_names=tuple(names))


def data_of(train: Any, test: Any, validation: Any, how: Reading) -> Data:  # noqa: ANN401 - what the user has
    """Returns the data of arrays, Datasets or DataLoaders; see `Data.of`."""
    return named(_data_of(train, test, validation, how), train)


def _data_of(train: Any, test: Any, validation: Any, how: Reading) -> Data:  # noqa: ANN401 - what the user has
    """Returns the data of arrays, Datasets or DataLoaders, whose classes have no names."""
    given = {"train": train, "test": test}
    share = isinstance(validation, int | float) and not isinstance(validation, bool)
    if not share:
        given["validation"] = validation
    read = {split: _taken(source, f"{how.name}: {split}", how) for split, source in given.items()}
    as_bytes = [split for split, images in read.items() if not isinstance(images, Images)]
    if not as_bytes and (how.mean is not None or how.std is not None):
        msg = f"{how.name}: mean and std are for bytes; these inputs are taken as they are: leave them out"
        raise DataError(msg)
    common = {"seed": how.seed, "name": how.name, "objective": how.objective}
    if not as_bytes and share:
        return Data.from_images(read["train"], read["test"], validation=validation, **common)
    if not as_bytes:
        return Data(
            train=read["train"], validation=read["validation"].loaded(), test=read["test"], **common
        )
    if len(as_bytes) < len(read):
        others = [split for split in read if split not in as_bytes]
        msg = f"{how.name}: images of all splits are of one kind, found bytes in {', '.join(as_bytes)} and inputs as "
        msg += f"they are in {', '.join(others)}"
        raise DataError(msg)
    rows = read["train"][0]
    hold = HoldOut(validation=validation if share else 0.5, seed=how.seed, objective=how.objective)
    scale = scale_of(how.mean, how.std, rows)
    return byte_data(how.name, read["train"], read["test"], scale, hold, read.get("validation"))


def _taken(source: Any, where: str, how: Reading) -> Any:  # noqa: ANN401 - what the user has
    """Returns a split of ready inputs, or (bytes, labels), the bytes as they lie in memory."""
    if isinstance(source, Images):
        return source
    if isinstance(source, tuple | list) and len(source) == 2 and hasattr(source[0], "shape"):
        rows, labels = _rows(source[0], where), source[1]
    elif _are_columns(source):
        rows, labels = as_rows(one_of(source[0], None, where)), source[1]
    else:
        rows, labels = _read_items(source, where, how.inputs)
    numbers = _labels(labels, where, how.ignore_index)
    if how.objective == "classification" and numbers.ndim == 2:
        numbers = _class_numbers(numbers, where)
    if how.objective in ("regression", "multilabel"):
        numbers = numbers.float()
    try:
        if isinstance(rows, Example) or rows.dtype != torch.uint8:
            return Split(from_rows(rows), numbers)
        check_labels(numbers, len(rows))
    except DataError as error:
        msg = f"{where}: {error}"
        raise DataError(msg) from error
    return rows, numbers


def _are_columns(source: Any) -> bool:  # noqa: ANN401 - what the user has
    """Returns whether something is (several inputs, labels), arrays of all images each, and not two items."""
    if not isinstance(source, tuple | list) or len(source) != 2 or not hasattr(source[1], "shape"):
        return False
    if not isinstance(source[0], dict | tuple | Example) or not len(source[1].shape):
        return False
    return all(len(getattr(leaf, "shape", ())) for leaf in Example.of(source[0]).leaves)


def _repeats(first: Any, again: Any, where: str) -> bool:  # noqa: ANN401 - what the user has
    """Returns whether an image is the same when it is read twice, as far as it is one."""
    if isinstance(first, dict | tuple | Example):
        both = [tensors_of(one_of(item, None, where)) for item in (first, again)]
        return len(both[0]) == len(both[1]) and all(map(torch.equal, *both))
    return not isinstance(first, torch.Tensor) or torch.equal(first, again)


def _class_numbers(labels: torch.Tensor, where: str) -> torch.Tensor:
    """Returns (n,) class numbers of labels (n, 1), as some arrays have them.

    Raises:
        DataError: if there are more numbers per image, such as one-hot ones.
    """
    if labels.shape[1] == 1:
        return labels[:, 0]
    msg = f"{where} has {labels.shape[1]} labels per image, where a classification has one class number; of one-hot "
    msg += 'labels that is labels.argmax(1). Of several labels at once, or of values, say so: objective="multilabel", '
    msg += 'or "regression"'
    raise DataError(msg)


def _rows(images: Any, where: str) -> torch.Tensor:  # noqa: ANN401 - an array
    """Returns images of an array as they lie in memory: bytes, whose channels are last or second, or inputs."""
    of_torch = isinstance(images, torch.Tensor)
    values: torch.Tensor = images.detach() if of_torch else torch.as_tensor(np.asarray(images))
    if values.dtype in (torch.float64, torch.float16, torch.bfloat16):
        values = values.float()
    if (
        values.dtype not in (torch.uint8, torch.float32)
        or not 3 <= values.ndim <= 5
        or not values.numel()
    ):
        msg = f"{where}: images are an array of bytes (uint8), (n, height, width) or with channels, or of floats, "
        msg += f"(n, channels, ...), found {tuple(values.shape)} {values.dtype}"
        raise DataError(msg)
    second, last = values.shape[1] in _COLOURS, values.shape[-1] in _COLOURS
    if values.dtype == torch.float32:
        if last and not second and values.ndim > 3:
            msg = f"{where} has floats {tuple(values.shape)} whose channels seem to be last; they come second: "
            msg += "np.moveaxis(images, -1, 1), or images.movedim(-1, 1) of torch"
            raise DataError(msg)
        return as_rows(values)
    if values.ndim == 3:
        return values[..., None]
    channels_last = last and not (second and of_torch)
    return as_rows(values.movedim(-1, 1) if channels_last else values)


def _read_items(source: Any, where: str, inputs: Sequence[str]) -> tuple[Any, Any]:  # noqa: ANN401 - what the user has
    """Returns all images of a Dataset, as they lie in memory, and its labels."""
    source = source.dataset if isinstance(source, DataLoader) else source
    if isinstance(source, IterableDataset):
        source = list(source)
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")) or isinstance(
        source, str | Mapping
    ):
        msg = f"{where} is (images, labels) as arrays, a Dataset, a DataLoader, a Split or a Stream, found "
        msg += f"{type(source).__name__}"
        raise DataError(msg)
    if not len(source):
        msg = f"{where} has at least one image, found none"
        raise DataError(msg)
    pairs = _Pairs(source, where, inputs)
    if not _repeats(pairs[0][0], pairs[0][0], where):
        msg = f"{where}: its first image is another one when it is read again. Augmentation is the recipe's (shift, "
        msg += "flip, randaugment); what this Dataset draws at random is drawn once here: better leave it out"
        warnings.warn(msg, UserWarning, stacklevel=5)
    kept = _Kept(pairs)
    unknown = torch.zeros(len(source), dtype=torch.int64)
    rows = Stream(source=kept, labels=unknown, workers=0).decoded()
    return rows, kept.labels[1:]  # the first item has been read twice


# What a config may set besides the options of the user's function, where that returns two Datasets.
PAIR_OPTIONS = tuple(
    p for p in inspect.signature(from_datasets).parameters if p not in ("pair", "name")
)


def call_own(name: str, function: Callable[..., object], options: Mapping[str, Any]) -> object:
    """Returns the data of the user's function.

    Args:
        name: its import path, for records.
        function: returns `Data`, or (train, test), two Datasets; then those of `PAIR_OPTIONS` that are no arguments of
            its own say how they are split and read.
        options: of both.

    Raises:
        DataError: if there are such options and the function returns data that are split already.
    """
    parameters = inspect.signature(function).parameters
    split = {
        key: value
        for key, value in options.items()
        if key in PAIR_OPTIONS and key not in parameters
    }
    made = function(**{key: value for key, value in options.items() if key not in split})
    if isinstance(made, tuple) and len(made) == 2:
        return from_datasets(
            made, name=name, **{k: v for k, v in options.items() if k in PAIR_OPTIONS}
        )
    # A run's seed is always offered
    if isinstance(made, Data) and (left := sorted(split.keys() - {"seed"})):
        msg = f"{name} returns data that are split already: it has no option {', '.join(left)}; leave it out"
        raise DataError(msg)
    return made
