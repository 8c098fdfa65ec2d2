"""Images with labels: in memory, or decoded when they are needed."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.data.augmentation import draw_moves
from abcsearch.data.images import (
    as_rows,
    check_inputs,
    check_labels,
    from_rows,
    own_share,
    select,
)
from abcsearch.errors import DataError, plural
from abcsearch.example import Example, laid, sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    import numpy as np

    from abcsearch.data.scale import Scale

    # Inputs are `Inputs`, which what is derived narrows
    Batches = Iterator[tuple[Any, torch.Tensor]]

_HASHED = 1024  # images copied at a time to be hashed


class Images(ABC):
    """Images with labels: in memory (`Split`) or decoded when they are needed (`Stream`).

    An image may have one, two or three dimensions besides its channels: signals, images, volumes. Where a network takes
    several inputs, an image is all of them: batches are then an `Example` each.

    Attributes:
        labels: (n,) int64 class numbers from 0; or (n, ...) float32 values; or (n, height, width) int64 class numbers
            of pixels, -100 for those that do not count; or (n, most, 6) float64 boxes, see `abcsearch.data.boxes`.
    """

    labels: torch.Tensor

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> Any:  # noqa: ANN401 - two kinds
        """Of every image: (channels, height, width), or channels and one or three sizes; of several inputs by name."""

    @abstractmethod
    def part(self, indices: torch.Tensor) -> Self:
        """Returns the images at the given positions, (m,) int64."""

    @abstractmethod
    def loaded(self) -> Split:
        """Returns all images in memory, unaugmented."""

    @abstractmethod
    def batches(self, batch_size: int, *, device: torch.device | str = "cpu") -> Batches:
        """Yields all images in order, unaugmented, the last batch being what is left.

        Args:
            batch_size: images per batch.
            device: where they are wanted.

        Yields:
            (batch, channels, height, width) float32 images, channels_last, and their labels. Signals and volumes are
            (batch, channels, ...), contiguous. Of several inputs an `Example` of tensors with a row per image.
        """

    @abstractmethod
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
        """Yields one epoch of training: every image once, in a new order, augmented; no incomplete batch.

        The same generator state gives the same bits, whatever the number of workers.

        Args:
            batch_size: images per batch.
            generator: on the CPU; order and augmentation are drawn from it.
            shift: random translation by up to so many pixels in both directions, zeros coming in.
            flip: random horizontal mirror image.
            device: where they are wanted.
            share: (number, count): of every batch, only this one of so many equal parts; all draws stay the same.

        Yields:
            As `batches`.

        Raises:
            DataError: if images are signals or volumes, which are not shifted and mirrored, or labels are maps that
                cannot be moved with them.
        """

    @abstractmethod
    def update(self, digest: hashlib._Hash) -> None:
        """Adds what identifies these images and labels to a hash."""


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
            given = f"{type(images).__name__} and {type(labels).__name__}"
            msg = f"images and labels are torch tensors, found {given}; convert them with torch.as_tensor"
            raise DataError(msg)
        if images.ndim not in (3, 4, 5) or images.dtype != torch.float32 or not images.numel():
            given = f"{tuple(images.shape)} {images.dtype}"
            msg = f"images are (n, channels, height, width) float32 and not empty, found {given}; signals are "
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
        """Returns the images at the given positions, (m,) int64, in memory as they are."""
        indices = indices.to(self.images.device)
        return Split._of(
            select(self.rows, indices), self.labels.index_select(0, indices), self.scale
        )

    def loaded(self) -> Split:
        """Returns this split: it is in memory."""
        return self

    def to(self, device: torch.device | str) -> Split:
        """Returns the split on a device; the copy there is made once and kept as long as this split."""
        device = torch.empty(
            0, device=device
        ).device  # "cuda" is "cuda:0", or whichever is the current one
        if device == self.images.device:
            return self
        if device not in self._elsewhere:
            # What is made in such a block cannot be trained on
            with torch.inference_mode(mode=False):
                self._elsewhere[device] = Split._of(
                    self.rows.to(device), self.labels.to(device), self.scale
                )
        return self._elsewhere[device]

    def batches(self, batch_size: int, *, device: torch.device | str = "cpu") -> Batches:
        """Yields all images in order; see `Images.batches`."""
        here = self.to(device)
        yield from zip(here.images.split(batch_size), here.labels.split(batch_size), strict=True)

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
        here = self.to(device)
        count = len(self) // batch_size
        order = torch.randperm(len(self), generator=generator)[: count * batch_size].to(
            here.images.device
        )
        every = draw_moves(
            count, batch_size, generator, shift=shift, flip=flip, device=here.images.device
        )
        positions = own_share(batch_size, share)
        for indices, moves in zip(order.split(batch_size), every, strict=True):
            if share[1] > 1:
                indices, moves = indices[positions], moves.part(positions)
            images = from_rows(moves.apply(select(here.rows, indices)))
            yield images, moves.apply_to_labels(here.labels.index_select(0, indices), self.shape)

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
        here = self.to("cpu")
        several, rows = isinstance(here.images, Example), here.rows
        arrays = rows.mapped(lambda x: x.numpy()) if several else rows.numpy()
        return _from_arrays, (arrays, here.labels.contiguous().numpy(), here.scale)


def _from_arrays(rows: Any, labels: np.ndarray[Any, Any], scale: Scale | None) -> Split:  # noqa: ANN401 - two kinds
    # Memory that is shared is read-only, and nobody here writes to images
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = (
            rows.mapped(torch.from_numpy) if isinstance(rows, Example) else torch.from_numpy(rows)
        )
        return Split._of(tensors, torch.from_numpy(labels), scale)


# Pickled for a process of Python's own, tensors are moved to shared memory once; so both sides read the same.
ForkingPickler.register(Split, lambda split: (Split._of, (split.rows, split.labels, split.scale)))
