"""Images that are decoded when they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from abcsearch.data.augmentation import draw_moves
from abcsearch.data.images import check_labels, from_rows, own_share
from abcsearch.data.items import like, one_of, row_of, shape_of, tensors_of
from abcsearch.data.paths import reading
from abcsearch.data.scale import Scale
from abcsearch.data.split import Images, Split
from abcsearch.errors import DataError
from abcsearch.example import Example
from abcsearch.rng import torch_reseeded

if TYPE_CHECKING:
    import hashlib
    from collections.abc import Iterator

    from abcsearch.data.split import Batches

_HASHED = 16  # images of a stream that are decoded for its fingerprint
_AHEAD = 4  # batches that every worker process prepares in advance

# To a tensor, or to several inputs: a dict, a tuple or an Example of tensors
Transform = Callable[[Any], Any]


@runtime_checkable
class HasFiles(Protocol):
    """A Dataset whose items are files: errors name them, and the fingerprint sees their names and sizes."""

    def file(self, index: int) -> str:
        """Returns the path of an item."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream(Images):
    """Images that are decoded when they are needed, by worker processes while training, by threads otherwise.

    Attributes:
        source: map-style Dataset: `source[i]` is (image, label); the image may be anything that the transforms take.
            Its labels are not looked at.
        labels: of its items, known without decoding; see `Images`. `training` does not touch them.
        evaluation: image -> (channels, height, width) tensor, uint8 or float32, always the same; None: images are such
            tensors already. Signals and volumes have one or three sizes. Of several inputs it is a dict, a tuple or an
            `Example` of tensors and numbers, alike for all images; `scale` leaves these as they are.
        training: likewise, with random augmentation drawn from torch's global generator; by default `evaluation`.
        scale: what is done to whole batches on their device after it: bytes are copied there, not floats.
        workers: processes while training, and threads; None: one per core. Results do not depend on it.
        indices: (n,) positions in the source of these images; by default all.

    Raises:
        DataError: if the source is no Dataset, or labels do not fit it.
    """

    source: Any = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    evaluation: Transform | None = None
    training: Transform | None = None
    scale: Scale = field(default_factory=Scale)
    workers: int | None = None
    indices: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Checks the labels."""
        if not hasattr(self.source, "__getitem__") or not isinstance(self.source, Sized):
            msg = f"a Stream reads a map-style Dataset (with __getitem__ and __len__), found {self.source!r:.80}"
            raise DataError(msg)
        if self.workers is not None and self.workers < 0:
            msg = f"workers is the number of processes, at least 0, found {self.workers}"
            raise DataError(msg)
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self.source)))
        check_labels(self.labels, len(self._indices))
        if not len(self.labels):
            msg = f"a Stream has at least one image, found none in {self.source!r:.80}"
            raise DataError(msg)

    @property
    def _indices(self) -> torch.Tensor:
        return torch.arange(len(self.source)) if self.indices is None else self.indices

    @cached_property
    def shape(self) -> Any:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride] - computed once
        """Of every image: (channels, height, width), or other sizes; of several inputs by name. Decodes the first."""
        return shape_of(self._first)

    @cached_property
    def _first(self) -> Any:  # noqa: ANN401 - a tensor, or several inputs
        """The first image: a tensor, or several inputs."""
        return self._image(0, self.evaluation)

    @property
    def _cores(self) -> int:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        return cores if self.workers is None else min(self.workers, cores)

    def part(self, indices: torch.Tensor) -> Stream:
        """Returns the images at the given positions, (m,) int64."""
        return replace(self, labels=self.labels[indices], indices=self._indices[indices])

    def where(self, position: int) -> str:
        """Returns what an error calls an image: its file, or its number in the source."""
        index = int(self._indices[position])
        if isinstance(self.source, HasFiles):
            return f"image {self.source.file(index)}"
        return f"image {index} of {getattr(self.source, 'title', type(self.source).__name__)}"

    def _image(self, position: int, transform: Transform | None, first: Any = None) -> Any:  # noqa: ANN401 - two kinds
        """Returns one image, decoded: a tensor, or an `Example` of several inputs without an axis for images.

        Args:
            position: of the image.
            transform: that decodes it.
            first: the first image, which all others are like.

        Raises:
            DataError: naming it, if it cannot be read or is not what it has to be.
        """
        try:
            image = self.source[int(self._indices[position])][0]
            image = image if transform is None else transform(image)
        except (
            Exception
        ) as error:  # what a decoder raises on a damaged file depends on the format and the damage
            msg = f"{self.where(position)} cannot be read: {error}; repair or remove it"
            raise DataError(msg) from error
        if isinstance(image, dict | tuple | Example):
            return one_of(image, first, self.where(position))
        good = isinstance(image, torch.Tensor) and image.ndim in (2, 3, 4)
        if isinstance(first, Example):
            msg = f"{self.where(position)} is one tensor, the first has the inputs {', '.join(first.entries)}; return "
            raise DataError(f"{msg}these for all")
        if not good or image.dtype not in (torch.uint8, torch.float32):
            given = (
                f"{tuple(image.shape)} {image.dtype}"
                if isinstance(image, torch.Tensor)
                else type(image).__name__
            )
            msg = f"{self.where(position)} must be a (channels, height, width) uint8 or float32 tensor, found {given}"
            raise DataError(msg)
        if first is not None and image.shape != first.shape:
            msg = f"{self.where(position)} is {tuple(image.shape)}, the first is {tuple(first.shape)}; set size to "
            msg += "resize all"
            raise DataError(msg)
        return image.as_subclass(torch.Tensor)

    def decoded(self) -> Any:  # noqa: ANN401 - a tensor, or of several inputs an Example
        """Returns all images, unaugmented, before `scale`, as they lie in memory (see `as_rows`): uint8 or float32.

        Raises:
            DataError: if an image cannot be read, or has another size than the first.
        """
        first = self._first
        several = isinstance(first, Example)
        arrays = [
            torch.empty(len(self), *x.shape, dtype=x.dtype) for x in tensors_of(row_of(first))
        ]

        def decode(position: int) -> None:
            image = row_of(self._image(position, self.evaluation, first))
            for rows, x in zip(arrays, tensors_of(image), strict=True):
                rows[position] = x

        with ThreadPoolExecutor(max(1, self._cores)) as pool:
            try:
                for _ in pool.map(decode, range(len(self))):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return like(first, arrays) if several else arrays[0]

    def loaded(self) -> Split:
        """Returns all images in memory, unaugmented."""
        rows = self.decoded()
        if isinstance(rows, Example):
            return Split(from_rows(rows), self.labels)
        known = self.scale if rows.dtype == torch.uint8 else None
        return Split(from_rows(self.scale.apply(rows)), self.labels, known)

    def batches(self, batch_size: int, *, device: torch.device | str = "cpu") -> Batches:
        """Yields all images in order; see `Images.batches`."""
        device, positions = torch.device(device), torch.arange(len(self))
        every = _Decoding(self, self.evaluation, None).rows(positions, batch_size, device)
        for rows, labels in zip(every, self.labels.to(device).split(batch_size), strict=True):
            yield from_rows(self._scaled(rows)), labels

    def _scaled(self, rows: Any) -> Any:  # noqa: ANN401 - a tensor, or of several inputs an Example
        return rows if isinstance(rows, Example) else self.scale.apply(rows)

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
        """Yields one epoch of training; see `Images.shuffled`. Shifts and mirror images come after `training`."""
        device, count = torch.device(device), len(self) // batch_size
        order = torch.randperm(len(self), generator=generator)[: count * batch_size]
        # Per image: no matter which worker has it
        seeds = torch.randint(2**62, (len(self),), generator=generator)
        moves = draw_moves(count, batch_size, generator, shift=shift, flip=flip, device=device)
        positions = own_share(batch_size, share)
        order = order.view(count, batch_size)[:, positions].flatten()
        every = _Decoding(self, self.training or self.evaluation, seeds).rows(
            order, batch_size // share[1], device
        )
        labels = self.labels[order].to(device).split(batch_size // share[1])
        for rows, label, move in zip(every, labels, moves, strict=True):
            move = move.part(positions)
            images = from_rows(move.apply(self._scaled(rows)))
            yield images, move.apply_to_labels(label, self.shape)

    def update(self, digest: hashlib._Hash) -> None:
        """Adds the labels, names and sizes of files, and a few decoded images to a hash."""
        digest.update(f"{len(self)}{self.shape}{self.scale}".encode())
        digest.update(self.labels.contiguous().numpy().tobytes())
        if isinstance(self.source, HasFiles):
            for index in self._indices.tolist():
                file = self.source.file(index)
                with reading(file):
                    size = Path(file).stat().st_size
                digest.update(os.fsencode("/".join(Path(file).parts[-2:])) + f" {size}\n".encode())
        some = torch.linspace(0, len(self) - 1, min(_HASHED, len(self))).long()
        for rows in tensors_of(self.part(some).decoded()):
            digest.update(rows.numpy().tobytes())


class _Decoding(Dataset[Any]):
    """Batches of a stream as worker processes see them: a list of positions in, rows of pixels or an error out."""

    def __init__(
        self, stream: Stream, transform: Transform | None, seeds: torch.Tensor | None
    ) -> None:
        """Keeps what a worker needs; it may be pickled."""
        self._stream, self._transform, self._seeds = stream, transform, seeds
        # Before there are workers, each of which would decode an image to see
        self._first = stream._first

    def __getitems__(self, positions: list[int]) -> list[torch.Tensor] | DataError:
        """Returns the tensors of a batch as they lie in memory; errors too, as one raised would have a traceback."""
        try:
            images = [tensors_of(row_of(self._one(position))) for position in positions]
        except DataError as error:
            return error
        return [torch.stack(each) for each in zip(*images, strict=True)]

    def _one(self, position: int) -> Any:  # noqa: ANN401 - a tensor, or of several inputs an Example
        if self._seeds is None:
            return self._stream._image(position, self._transform, self._first)
        with torch_reseeded(int(self._seeds[position])):
            return self._stream._image(position, self._transform, self._first)

    def rows(self, order: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[Any]:
        """Yields batches on a device."""
        batches = [positions.tolist() for positions in order.split(batch_size)]
        workers = min(self._stream._cores, len(batches))
        loader = DataLoader(
            self,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            prefetch_factor=_AHEAD if workers else None,
            generator=torch.Generator(),  # otherwise the loader draws from the global one
        )
        items = iter(loader)
        try:
            while (rows := self._next(items, workers)) is not None:
                moved = [x.to(device, non_blocking=True) for x in rows]
                yield like(self._first, moved) if isinstance(self._first, Example) else moved[0]
        finally:
            del items  # which ends the workers; kept by an error's traceback, they would end late and slowly

    @staticmethod
    def _next(items: Iterator[Any], workers: int) -> list[torch.Tensor] | None:
        """Returns the next batch of a loader, or None after the last."""
        try:
            rows = next(items, None)
        except RuntimeError as error:  # a worker was killed: what kills it is outside of Python
            rows = DataError(
                f"a process that decodes images has died: {error}; is there enough memory and /dev/shm for "
                f"workers = {workers}?"
            )
        if isinstance(rows, DataError):
            del items
            raise rows
        return rows


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401 - as torch types it
    return batch
