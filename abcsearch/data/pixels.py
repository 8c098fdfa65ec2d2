"""Bytes of images to what networks take: normalisation, and data sets whose images are bytes in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from abcsearch.data.images import from_rows, held_out
from abcsearch.data.scale import Scale
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import DataError

# Of ImageNet's training images, as everybody uses them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_COUNTED = 4096  # images whose values are counted at a time


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
    for chunk in rows.split(_COUNTED):
        counts += torch.bincount((chunk.to(first.dtype) + first).flatten(), minlength=len(counts))
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
    if held is None:
        chosen = held_out(train[1], how.validation, how.seed, objective=how.objective)
        # Selected as bytes: of the training images, no second copy in floats is ever made.
        kept, validation = ((train[0][some], train[1][some]) for some in chosen)
    else:
        kept, validation = train, held
    pairs = {"train": kept, "validation": validation, "test": test}
    splits = {
        split: Split(from_rows(scale.apply(images)), labels, scale)
        for split, (images, labels) in pairs.items()
    }
    return Data(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        seed=how.seed,
        objective=how.objective,
        held_out=held is None,
    )
