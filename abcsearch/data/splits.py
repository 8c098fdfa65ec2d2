"""Three splits that are never mixed: train, search-validation, test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from sklearn.model_selection import train_test_split

from abcsearch.errors import DataError
from abcsearch.rng import derived_seed


@dataclass(frozen=True)
class Split:
    """Images and labels in memory.

    Attributes:
        images: (n, channels, height, width) float32, normalised.
        labels: (n,) int64, classes from 0.

    Raises:
        DataError: if shapes or types are others, if there is no image, or if images are not finite.
    """

    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)

    def __post_init__(self) -> None:
        """Checks shapes and types."""
        images, labels = self.images, self.labels
        if not all(isinstance(value, torch.Tensor) for value in (images, labels)):
            found = f"{type(images).__name__} and {type(labels).__name__}"
            msg = f"images and labels are torch tensors, found {found}; convert them with torch.as_tensor"
            raise DataError(msg)
        if images.ndim != 4 or images.dtype != torch.float32 or not images.numel():
            found = f"{tuple(images.shape)} {images.dtype}"
            msg = f"images are (n, channels, height, width) float32 and not empty, found {found}"
            raise DataError(msg)
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            found = f"{tuple(labels.shape)} {labels.dtype}"
            msg = f"labels are ({len(images)},) int64 for {len(images)} images, found {found}"
            raise DataError(msg)
        if int(labels.min()) < 0:
            msg = f"labels count classes from 0, found {int(labels.min())}"
            raise DataError(msg)
        if not bool(torch.isfinite(images).all()):
            msg = f"images must be finite, found {int((~torch.isfinite(images)).sum())} values that are not"
            raise DataError(msg)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    def part(self, indices: torch.Tensor) -> Split:
        """Returns the images at the given positions."""
        return Split(self.images[indices], self.labels[indices])

    def loaded(self) -> Split:
        """Returns this split: it is in memory."""
        return self

    def to(self, device: torch.device) -> Split:
        """Returns the split on a device, images channels_last."""
        images = self.images.to(device).contiguous(memory_format=torch.channels_last)
        return Split(images, self.labels.to(device))


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

    Raises:
        DataError: if the splits hold images of different sizes.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    seed: int = 0
    objective: str = "classification"

    def __post_init__(self) -> None:
        """Checks that the splits fit together."""
        shapes = {part: tuple(getattr(self, part).images.shape[1:]) for part in ("train", "validation", "test")}
        if len(set(shapes.values())) > 1:
            found = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
            msg = f"{self.name}: images of all splits have one (channels, height, width), found {found}"
            raise DataError(msg)

    @classmethod
    def from_tensors(
        cls,
        train: tuple[torch.Tensor, torch.Tensor],
        test: tuple[torch.Tensor, torch.Tensor],
        *,
        validation: float = 0.2,
        seed: int = 0,
        name: str = "tensors",
    ) -> Data:
        """Holds a share of the training images out for search-validation, the same share of every class.

        Args:
            train: (n, channels, height, width) float32 images, normalised, and (n,) int64 labels.
            test: likewise; never used before fine-tuning.
            validation: share in (0, 1).
            seed: which images are held out.
            name: for records.

        Raises:
            DataError: if shapes, types or the share are wrong, or a class has fewer than two training images.
        """
        if not 0 < validation < 1:
            msg = f"validation is the share of training images held out, in (0, 1), found {validation}"
            raise DataError(msg)
        if seed < 0:
            msg = f"seed of the split is at least 0, found {seed}"
            raise DataError(msg)
        whole = Split(*train)
        positions = torch.arange(len(whole))
        state = derived_seed(seed, "split") % 2**32
        try:
            kept, held = train_test_split(
                positions.numpy(), test_size=validation, stratify=whole.labels.numpy(), random_state=state
            )
        except ValueError as error:
            msg = f"cannot hold {validation:g} of {len(whole)} training images out for search-validation: {error}"
            raise DataError(msg) from error
        kept, held = (torch.from_numpy(part).sort().values for part in (kept, held))
        return cls(name=name, train=whole.part(kept), validation=whole.part(held), test=Split(*test), seed=seed)

    @property
    def classes(self) -> int:
        """The number of classes: the largest label plus 1."""
        return 1 + max(int(split.labels.max()) for split in (self.train, self.validation, self.test))

    @property
    def example(self) -> torch.Tensor:
        """One image as a batch, (1, channels, height, width)."""
        return self.train.images[:1]

    def fingerprint(self) -> str:
        """Returns a hash of all images and labels, to recognise the data of a run; computed once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for entry in fields(self):
            split = getattr(self, entry.name)
            if isinstance(split, Split):
                digest.update(f"{entry.name}{tuple(split.images.shape)}".encode())
                digest.update(split.images.contiguous().numpy().tobytes())
                digest.update(split.labels.numpy().tobytes())
        return digest.hexdigest()[:16]
