"""Bytes of images to what networks take: normalisation, and data sets whose images are bytes in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from abcsearch.data.images import from_rows, held_out
from abcsearch.data.splits import Data, Split
from abcsearch.errors import DataError, plural

# Of ImageNet's training images, as everybody uses them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_COUNTED = 4096  # images whose values are counted at a time


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How values become inputs of a network: bytes are divided by 255, then normalised per channel.

    Attributes:
        mean: per channel, of values in [0, 1]; () leaves out both.
        std: likewise, > 0.

    Raises:
        DataError: if they are not numbers, of the same count.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, Sequence) or not all(isinstance(value, float | int) for value in values):  # pyright: ignore[reportUnnecessaryIsInstance]
                msg = f"{name} is a list with one number per channel, found {values!r}"
                raise DataError(msg)
        if len(self.mean) != len(self.std) or not all(0 < value < math.inf for value in self.std):
            msg = f"mean and std have one number per channel each, std above 0, found {self.mean} and {self.std}"
            raise DataError(msg)
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns bytes or float32 values, as they lie in memory (see `as_rows`), as float32 inputs.

        Raises:
            DataError: if there are another number of channels.
        """
        count = from_rows(rows).shape[1]
        if self.mean and len(self.mean) != count:
            channels = plural(count, "channel")
            msg = f"mean and std have one number per channel, found {len(self.mean)} for {channels}"
            raise DataError(msg)
        values = rows.to(torch.float32, copy=bool(self.mean))  # what follows is in place
        if rows.dtype == torch.uint8:
            values.div_(255)
        if self.mean:
            values.sub_(_constant(self.mean, rows)).div_(_constant(self.std, rows))
        return values

    def undo(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the values in [0, 1] that float32 inputs, as they lie in memory, were made from."""
        if not self.mean:
            return rows
        return rows * _constant(self.std, rows) + _constant(self.mean, rows)


def _constant(values: tuple[float, ...], rows: torch.Tensor) -> torch.Tensor:
    """Returns a number per channel on the device of images, in a shape that meets theirs."""
    numbers = _on_device(values, rows.device)
    return numbers if rows.ndim == 4 else numbers.view(-1, *(1,) * (rows.ndim - 2))


@functools.lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Returns numbers on a device, where a copy in every step would make the step wait."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device)


def scale_of(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    default: tuple[Sequence[float], Sequence[float]] | torch.Tensor,
) -> Scale:
    """Returns the normalisation that options ask for, or a default.

    Args:
        mean: per channel, or None.
        std: likewise, given together.
        default: (mean, std), or the bytes, as they lie in memory, whose mean and standard deviation it is.

    Raises:
        DataError: if only one of them is given, or they are no numbers.
    """
    if (mean is None) != (std is None):
        msg = f"mean and std are given together, found mean = {mean} and std = {std}"
        raise DataError(msg)
    if mean is None or std is None:
        mean, std = _measured(default) if isinstance(default, torch.Tensor) else default
    return Scale(mean=mean, std=std)  # pyright: ignore[reportArgumentType] - made tuples there


def _measured(rows: torch.Tensor) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation per channel of bytes, in [0, 1]: exact, from how often each value occurs."""
    rows = rows if rows.ndim == 4 else rows.movedim(1, -1)
    channels = rows.shape[-1]
    counts = torch.zeros(channels * 256, dtype=torch.int64)
    first = 256 * torch.arange(channels, dtype=torch.int16 if channels < 128 else torch.int64)
    for part in rows.split(_COUNTED):
        counts += torch.bincount((part.to(first.dtype) + first).flatten(), minlength=len(counts))
    shares = counts.view(channels, 256).double()
    total, values = shares.sum(dim=1), torch.arange(256).double() / 255
    mean = shares @ values / total
    squares = (shares * (values - mean[:, None]) ** 2).sum(dim=1)
    std = (squares / (total - 1).clamp_min(1)).sqrt().clamp_min(1e-6)
    return mean.tolist(), std.tolist()


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Which training images are held out for search-validation.

    Attributes:
        validation: share in (0, 1), or a whole number of images.
        seed: which ones.
        objective: what networks are for.
    """

    validation: float
    seed: int = 0
    objective: str = "classification"


def byte_data(
    name: str,
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    scale: Scale,
    how: HoldOut,
    held: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Data:
    """Returns a data set of bytes in memory, normalised once.

    Args:
        name: for records.
        train: uint8 images, as they lie in memory (see `as_rows`), and labels.
        test: likewise.
        scale: the normalisation.
        how: what is held out.
        held: likewise, search-validation, where it is there; then nothing is held out.

    Raises:
        DataError: as `Data.from_tensors`.
    """
    parts = [train, train if held is None else held]
    if held is None:
        chosen = held_out(train[1], how.validation, how.seed, objective=how.objective)
        # Selected as bytes: of the training images, no second copy in floats is ever made.
        parts = [(train[0][own], train[1][own]) for own in chosen]
    own, validation, other = (Split(from_rows(scale.apply(images)), labels, scale) for images, labels in [*parts, test])
    splits = {"train": own, "validation": validation, "test": other}
    return Data(name=name, **splits, seed=how.seed, objective=how.objective, held_out=held is None)
