"""The three splits that are never mixed: train, search-validation, test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.data.boxes import check_splits
from abcsearch.data.images import (
    check_kinds,
    held_out,
    most_classes,
)
from abcsearch.data.split import Images, Split
from abcsearch.errors import DataError
from abcsearch.registry import Home

if TYPE_CHECKING:
    from collections.abc import Sequence


# What reads the user's own data makes `Data`: it is imported when it is needed.
_READ = Home(path="abcsearch.data.user_data:read")


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
        class_names: in the order of the class numbers, for those who use an export; () where they are not known.

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
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Checks that the splits fit together."""
        for split in ("train", "validation", "test"):
            kind, given = (Split if split == "validation" else Images), getattr(self, split)
            if not isinstance(given, kind):
                msg = f"{self.name}: {split} is {'a Split' if kind is Split else 'a Split or Stream'}, found "
                msg += f"{type(given).__name__}"
                raise DataError(msg)
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        shapes = {split: images.shape for split, images in splits.items()}
        if any(shape != self.train.shape for shape in shapes.values()):
            given = ", ".join(f"{split} {shape}" for split, shape in shapes.items())
            msg = f"{self.name}: images of all splits have one shape, (channels, height, width), found {given}"
            raise DataError(msg)
        labels = {split: images.labels for split, images in splits.items()}
        check_kinds(self.name, self.objective, labels, self.train.shape)
        if self.objective == "classification":
            self._check_classes()
        check_splits(self.name, self.objective, labels, self.train.shape)
        self._check_names()

    def _check_names(self) -> None:
        given: object = self.class_names
        texts = isinstance(given, list | tuple) and all(isinstance(name, str) for name in given)
        if not texts or (
            given and self.objective == "classification" and len(given) < self.classes
        ):
            wanted = f"{self.classes} of " if texts else ""
            msg = f"{self.name}: class_names are texts, one for each class, {wanted}them; found {given!r:.80}"
            raise DataError(msg)
        object.__setattr__(self, "class_names", tuple(self.class_names))

    def _check_classes(self) -> None:
        known, seen = (
            set(images.labels.unique().tolist()) for images in (self.train, self.validation)
        )
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
        told: dict[str, Any] = {
            "mean": mean,
            "std": std,
            "ignore_index": ignore_index,
            "inputs": inputs,
        }
        return _READ(train, test, validation, name=name, seed=seed, objective=objective, **told)

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
            objective: what networks are for: "classification", "segmentation", "multilabel", "regression", ... or your
                own of `OBJECTIVES`.

        Raises:
            DataError: if shapes, types or the share are wrong, or a class has fewer than two training images.
        """
        return cls.from_images(
            Split(*train),
            Split(*test),
            validation=validation,
            seed=seed,
            name=name,
            objective=objective,
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
        """The number of classes: the largest label plus 1; of boxes the largest label, as 0 is the background.

        Raises:
            DataError: if labels are no class numbers.
        """
        return most_classes(
            self.name, [self.train.labels, self.validation.labels, self.test.labels]
        )

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
        for split, images in (
            ("train", self.train),
            ("validation", self.validation),
            ("test", self.test),
        ):
            digest.update(split.encode())
            images.update(digest)
        if self.objective != "classification":
            digest.update(self.objective.encode())
        return digest.hexdigest()[:16]
