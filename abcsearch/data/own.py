"""Data sets of the user's own: a function that returns `Data`, or two Datasets of PyTorch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.data.splits import Data, Split
from abcsearch.data.stream import Stream
from abcsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from abcsearch.data.images import Images


def from_datasets(  # noqa: PLR0913 - options of a config
    pair: tuple[Any, Any],
    *,
    name: str = "datasets",
    validation: float = 0.1,
    seed: int = 0,
    objective: str = "classification",
    stream: bool = False,
    workers: int | None = None,
) -> Data:
    """Returns the data of two map-style Datasets of PyTorch.

    Args:
        pair: (train, test); items are (image, label), the image a (channels, height, width) tensor, uint8 or normalised
            float32, unaugmented, the label a number or a tensor. They are read into memory, one by one.
        name: for records.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.
        objective: what networks are for.
        stream: reads images when they are needed instead; labels are then those of the attribute `targets`, or read
            once.
        workers: processes that read a stream; None: one per core.

    Raises:
        DataError: if they are no Datasets, or an item is not what it has to be.
    """
    parts: list[Images] = []
    for part, source in zip(("train", "test"), pair, strict=True):
        where = f"{name}: the {part} Dataset"
        if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")) or not len(source):
            msg = f"{where} has __getitem__, __len__ and at least one item, found {source!r:.80}"
            raise DataError(msg)
        if not stream:
            parts.append(_read(source, where))
            continue
        given = getattr(source, "targets", None)
        labels = [_item(source, index, where)[1] for index in range(len(source))] if given is None else given
        parts.append(Stream(source=source, labels=_labels(labels, where), workers=workers))
    return Data.from_images(*parts, validation=validation, seed=seed, name=name, objective=objective)


def _read(source: Any, where: str) -> Split:  # noqa: ANN401 - the user's Dataset
    """Returns all items of a Dataset in memory."""
    labels: list[Any] = []

    class Images:
        """The same Dataset, whose labels are kept on the way."""

        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, index: int) -> tuple[Any]:
            image, label = _item(source, index, where)
            labels.append(label)
            return (image,)

    unknown = torch.zeros(len(source), dtype=torch.int64)
    read = Stream(source=Images(), labels=unknown, workers=0).loaded()
    return Split(read.images, _labels(labels[1:], where), read.scale)  # the first item has been read twice


def _item(source: Any, index: int, where: str) -> tuple[Any, Any]:  # noqa: ANN401 - the user's Dataset
    item: Any = source[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        msg = f"{where} has items (image, label), found {type(item).__name__} at {index}"
        raise DataError(msg)
    return item[0], item[1]


def _labels(labels: Any, where: str) -> torch.Tensor:  # noqa: ANN401 - whatever the user has
    """Returns labels as one tensor: whole numbers int64, others float32."""
    try:
        found = torch.stack([torch.as_tensor(label) for label in labels])
    except Exception as error:  # what can be made a tensor is torch's to say
        msg = f"{where} has labels that are numbers or tensors of one shape, found others: {error}"
        raise DataError(msg) from error
    return found.to(torch.float32 if found.is_floating_point() else torch.int64)


# What a config may set besides the options of the user's function, where that returns two Datasets.
PAIR_OPTIONS = tuple(p for p in inspect.signature(from_datasets).parameters if p not in ("pair", "name"))


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
    own = inspect.signature(function).parameters
    split = {key: value for key, value in options.items() if key in PAIR_OPTIONS and key not in own}
    made = function(**{key: value for key, value in options.items() if key not in split})
    if isinstance(made, tuple) and len(made) == 2:
        return from_datasets(made, name=name, **{k: v for k, v in options.items() if k in PAIR_OPTIONS})
    if isinstance(made, Data) and (left := sorted(split.keys() - {"seed"})):  # a run's seed is always offered
        msg = f"{name} returns data that are split already: it has no option {', '.join(left)}; leave it out"
        raise DataError(msg)
    return made
