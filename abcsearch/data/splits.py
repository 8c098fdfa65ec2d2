"""Images in memory, and the three splits that are never mixed: train, search-validation, test."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.data.augmentation import draw_moves
from abcsearch.data.images import (
    Images,
    as_rows,
    check_classification,
    check_inputs,
    check_labels,
    from_rows,
    held_out,
    own_share,
    select,
)
from abcsearch.errors import DataError, plural
from abcsearch.example import Example, laid, sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from abcsearch.data.images import Batches
    from abcsearch.data.pixels import Scale

_HASHED = 1024  # images copied at a time to be hashed


@dataclass(frozen=True, eq=False)
class Split(Images):
    """Images and labels in memory, on one device.

    Attributes:
        images: (n, channels, height, width) float32, normalised; kept channels_last, the layout that convolutions are
            fastest in (images of one channel, or in this layout already, are not copied). Or signals and volumes,
            (n, channels, length) and (n, channels, depth, height, width), kept contiguous. Or several inputs: a dict,
            a tuple or an `Example` of tensors (n, ...), kept as an `Example`; see `Data.of`.
        labels: see `Images`.
        scale: how the images were made from values in [0, 1], where it is known; augmentation of colours needs it.

    Raises:
        DataError: if shapes, types or labels are others, if there is no image, or if images are not finite.
    """

    images: Any = field(repr=False)  # a tensor, or of several inputs an Example
    labels: torch.Tensor = field(repr=False)
    scale: Scale | None = None
    _elsewhere: dict[torch.device, Split] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Checks shapes, types and values."""
        if isinstance(self.images, dict | tuple | Example):
            self._check_several(Example.of(self.images))
            return
        images, labels = self.images, self.labels
        if not all(isinstance(value, torch.Tensor) for value in (images, labels)):
            found = f"{type(images).__name__} and {type(labels).__name__}"
            msg = f"images and labels are torch tensors, found {found}; convert them with torch.as_tensor"
            raise DataError(msg)
        if images.ndim not in (3, 4, 5) or images.dtype != torch.float32 or not images.numel():
            found = f"{tuple(images.shape)} {images.dtype}"
            msg = f"images are (n, channels, height, width) float32 and not empty, found {found}; signals are "
            msg += "(n, channels, length), volumes (n, channels, depth, height, width)"
            raise DataError(msg)
        check_labels(labels, len(images))
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        object.__setattr__(self, "images", images.detach().contiguous(memory_format=layout))
        low, high = torch.aminmax(self.rows)  # one pass without a copy; NaN is both
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            wrong = (~torch.isfinite(self.rows)).flatten(1).any(dim=1).nonzero().flatten()
            some = f"in {len(wrong)} of {plural(len(images), 'image')}, first in number {int(wrong[0])} (from 0)"
            msg = f"images must be finite, found values that are not {some}"
            raise DataError(msg)

    def _check_several(self, images: Example) -> None:
        """Checks and keeps several inputs."""
        if not isinstance(self.labels, torch.Tensor) or not self.labels.ndim:  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"labels are a torch tensor with one row per image, found {type(self.labels).__name__}"
            raise DataError(msg)
        check_inputs(images, len(self.labels))
        check_labels(self.labels, len(self.labels))
        object.__setattr__(self, "images", laid(images.mapped(lambda x: x.detach())))

    @classmethod
    def _of(cls, rows: Any, labels: torch.Tensor, scale: Scale | None = None) -> Split:  # noqa: ANN401 - two kinds
        """Returns the split of images that have been checked, as they lie in memory (see `as_rows`)."""
        split = object.__new__(cls)
        values = {"images": from_rows(rows), "labels": labels, "scale": scale, "_elsewhere": {}}
        for name, value in values.items():
            object.__setattr__(split, name, value)
        return split

    @property
    def rows(self) -> Any:  # noqa: ANN401 - a tensor, or of several inputs an Example
        """The images as they lie in memory (see `as_rows`), contiguous."""
        return as_rows(self.images)

    @property
    def shape(self) -> Any:  # noqa: ANN401 - two kinds
        """Of every image: (channels, height, width), or channels and one or three sizes; of several inputs by name."""
        sizes = sizes_of(self.images)
        return sizes if isinstance(sizes, dict) else tuple(sizes)

    def part(self, indices: torch.Tensor) -> Split:
        """Returns the images at the given positions."""
        indices = indices.to(self.images.device)
        return Split._of(select(self.rows, indices), self.labels.index_select(0, indices), self.scale)

    def loaded(self) -> Split:
        """Returns this split: it is in memory."""
        return self

    def to(self, device: torch.device | str) -> Split:
        """Returns the split on a device; the copy there is made once and kept as long as this split."""
        device = torch.empty(0, device=device).device  # "cuda" is "cuda:0", or whichever is the current one
        if device == self.images.device:
            return self
        if device not in self._elsewhere:
            with torch.inference_mode(mode=False):  # what is made in such a block cannot be trained on
                self._elsewhere[device] = Split._of(self.rows.to(device), self.labels.to(device), self.scale)
        return self._elsewhere[device]

    def batches(self, batch_size: int, *, device: torch.device | str = "cpu") -> Batches:
        """Yields all images in order; see `Images.batches`."""
        own = self.to(device)
        yield from zip(own.images.split(batch_size), own.labels.split(batch_size), strict=True)

    def shuffled(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        shift: int = 0,
        flip: bool = False,
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Yields one epoch of training; see `Images.shuffled`. Images are selected and augmented on the device."""
        own = self.to(device)
        count = len(self) // batch_size
        order = torch.randperm(len(self), generator=generator)[: count * batch_size].to(own.images.device)
        every = draw_moves(count, batch_size, generator, shift=shift, flip=flip, device=own.images.device)
        positions = own_share(batch_size, share)
        for indices, moves in zip(order.split(batch_size), every, strict=True):
            if share[1] > 1:
                indices, moves = indices[positions], moves.part(positions)
            images = from_rows(moves.apply(select(own.rows, indices)))
            yield images, moves.apply_to_labels(own.labels.index_select(0, indices), self.shape)

    def update(self, digest: hashlib._Hash) -> None:
        """Adds all images and labels to a hash."""
        several = isinstance(self.images, Example)
        every: dict[str, torch.Tensor] = self.images.entries if several else {"": self.images}
        for name, entry in every.items():
            digest.update(f"{name}{tuple(entry.shape)}".encode())
            for images in entry.split(_HASHED):
                digest.update(images.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())

    def __reduce__(self) -> tuple[Callable[..., Split], tuple[Any, ...]]:
        """Pickles arrays: with protocol 5, Ray's, they stay where they are and all its workers read the same memory."""
        own = self.to("cpu")
        several, rows = isinstance(own.images, Example), own.rows
        arrays = rows.mapped(lambda x: x.numpy()) if several else rows.numpy()
        return _from_arrays, (arrays, own.labels.contiguous().numpy(), own.scale)


def _from_arrays(rows: Any, labels: np.ndarray[Any, Any], scale: Scale | None) -> Split:  # noqa: ANN401 - two kinds
    with warnings.catch_warnings():  # memory that is shared is read-only, and nobody here writes to images
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = rows.mapped(torch.from_numpy) if isinstance(rows, Example) else torch.from_numpy(rows)
        return Split._of(tensors, torch.from_numpy(labels), scale)


# Pickled for a process of Python's own, tensors are moved to shared memory once; so both sides read the same.
ForkingPickler.register(Split, lambda split: (Split._of, (split.rows, split.labels, split.scale)))


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set in its three splits.

    Attributes:
        name: for records.
        train: for training and (unaugmented) for calibration.
        validation: search-validation, held out of the training images; all that fitness sees.
        test: touched by fine-tuning and reports only.
        seed: of the split between train and validation; recorded in the run.
        objective: what networks are for, of `OBJECTIVES`: loss and metrics follow from it.
        held_out: whether search-validation has been held out of the training images here, so that a network which was
            trained on all of them has seen it.

    Raises:
        DataError: if the splits hold images of different sizes, or labels are not those of a classification that is
            one, or its search-validation has no image of a class.
    """

    name: str
    train: Images
    validation: Split
    test: Images
    seed: int = 0
    objective: str = "classification"
    held_out: bool = False

    def __post_init__(self) -> None:
        """Checks that the splits fit together."""
        for part in ("train", "validation", "test"):
            kind, found = (Split if part == "validation" else Images), getattr(self, part)
            if not isinstance(found, kind):
                msg = f"{self.name}: {part} is {'a Split' if kind is Split else 'a Split or Stream'}, found "
                msg += f"{type(found).__name__}"
                raise DataError(msg)
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        shapes = {part: images.shape for part, images in parts.items()}
        if any(shape != self.train.shape for shape in shapes.values()):
            found = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
            msg = f"{self.name}: images of all splits have one shape, (channels, height, width), found {found}"
            raise DataError(msg)
        if self.objective == "classification":
            self._check_classes(parts)

    def _check_classes(self, parts: dict[str, Images]) -> None:
        for part, images in parts.items():
            try:
                check_classification(images.labels)
            except DataError as error:
                msg = f"{self.name}: {part}: {error}"
                raise DataError(msg) from error
        known, seen = (set(images.labels.unique().tolist()) for images in (self.train, self.validation))
        if missing := sorted(known - seen):
            some = ", ".join(map(str, missing[:10])) + (", ..." if missing[10:] else "")
            msg = (
                f"{self.name}: search-validation has images of every class, found none of {len(missing)} of "
                f"{len(known)} classes ({some}) among its {len(self.validation)}; hold more images out (validation)"
            )
            raise DataError(msg)

    @classmethod
    def of(  # noqa: PLR0913 - all but two have a default
        cls,
        train: Any,  # noqa: ANN401 - whatever the user has
        test: Any,  # noqa: ANN401 - likewise
        *,
        validation: Any = 0.2,  # noqa: ANN401 - likewise
        seed: int = 0,
        name: str = "data",
        objective: str = "classification",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        ignore_index: int | None = None,
        inputs: Sequence[str] = (),
    ) -> Data:
        """Returns the data of what people have: arrays, Datasets, DataLoaders.

        Each split is one of

        - (images, labels), arrays of numpy or torch: bytes, (n, height, width) or with channels last or second, which
          are normalised; or inputs of the network as they are, floats (n, channels, ...) of one, two or three sizes;
        - a Dataset of PyTorch, map-style or iterable, with items (image, label), or {"image": ..., "label": ...} and
          the like; images are tensors, arrays or PIL images. It is read once, so it should not augment;
        - of a network with several inputs likewise (inputs, label) or arrays (inputs, labels): inputs are a tuple, the
          positional arguments of forward; a dict, its keyword arguments, or where it has none of these names its only
          one; or an `Example`. Dicts with a label and no image are taken so, too: {"left": ..., "right": ...,
          "label": ...}. Inputs are taken as they are: floats, whole numbers, bools, alike for all images;
        - a DataLoader: its Dataset; how it draws and batches is the recipe's to say;
        - a `Split` or a `Stream`.

        Args:
            train: the training images.
            test: the test images; never used before fine-tuning.
            validation: search-validation, likewise; or the share or number of training images that is held out for it.
            seed: which ones are held out.
            name: for records.
            objective: what networks are for.
            mean: per channel of bytes, in [0, 1]; by default that of the training images.
            std: likewise.
            ignore_index: label of pixels that do not count, 255 in VOC and Cityscapes; None: -100 alone.
            inputs: which entries of items that are dicts the network takes; needed where one of several is called image
                (x, data ...), which is taken alone otherwise.

        Raises:
            DataError: if something is of none of these kinds, or splits do not fit together.
        """
        from abcsearch.data.user_data import Reading, data_of

        told: dict[str, Any] = {"mean": mean, "std": std, "ignore_index": ignore_index, "inputs": inputs}
        how = Reading(name=name, seed=seed, objective=objective, **told)
        return data_of(train, test, validation, how)

    @classmethod
    def from_tensors(
        cls,
        train: tuple[torch.Tensor, torch.Tensor],
        test: tuple[torch.Tensor, torch.Tensor],
        *,
        validation: float = 0.2,
        seed: int = 0,
        name: str = "tensors",
        objective: str = "classification",
    ) -> Data:
        """Holds training images out for search-validation; of a classification, the same share of every class.

        Args:
            train: (n, channels, height, width) float32 images, normalised, and labels: (n,) int64 class numbers, or
                what the objective needs (see `Images`). Signals and volumes have one or three sizes. `of` takes more.
            test: likewise; never used before fine-tuning.
            validation: share in (0, 1), or a whole number of images.
            seed: which images are held out.
            name: for records.
            objective: what networks are for: "classification", "segmentation", "regression" or your own of
                `OBJECTIVES`.

        Raises:
            DataError: if shapes, types or the share are wrong, or a class has fewer than two training images.
        """
        return cls.from_images(
            Split(*train), Split(*test), validation=validation, seed=seed, name=name, objective=objective
        )

    @classmethod
    def from_images(
        cls,
        train: Images,
        test: Images,
        *,
        validation: float = 0.2,
        seed: int = 0,
        name: str = "images",
        objective: str = "classification",
    ) -> Data:
        """Holds training images out for search-validation, and decodes these into memory; see `from_tensors`.

        Args:
            train: in memory or a `Stream`.
            test: likewise; never used before fine-tuning.
            validation: share in (0, 1), or a whole number of images.
            seed: which images are held out.
            name: for records.
            objective: what networks are for.

        Raises:
            DataError: if the share is wrong, a class has fewer than two training images, or an image cannot be read.
        """
        kept, held = held_out(train.labels, validation, seed, objective=objective)
        return cls(
            name=name,
            train=train.part(kept),
            validation=train.part(held).loaded(),
            test=test,
            seed=seed,
            objective=objective,
            held_out=True,
        )

    @property
    def classes(self) -> int:
        """The number of classes: the largest label plus 1.

        Raises:
            DataError: if labels are no class numbers.
        """
        every = [images.labels for images in (self.train, self.validation, self.test)]
        if any(labels.dtype != torch.int64 for labels in every):
            msg = f"{self.name}: labels are values, not class numbers: there is no number of classes"
            raise DataError(msg)
        return 1 + max(int(labels.max()) for labels in every)

    @cached_property
    def example(self) -> Any:  # noqa: ANN401 - `Inputs`, which what is derived narrows
        """One image as a batch, (1, channels, ...); of several inputs an `Example`."""
        return self.train.part(torch.tensor([0])).loaded().images

    def fingerprint(self) -> str:
        """Returns a hash of what is in the three splits, to recognise the data of a run; computed once.

        Images in memory count with every pixel, streamed ones with names and sizes of files and a few images.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part, images in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            digest.update(part.encode())
            images.update(digest)
        if self.objective != "classification":
            digest.update(self.objective.encode())
        return digest.hexdigest()[:16]
