"""How values become inputs of a network."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from abcsearch.data.images import from_rows
from abcsearch.errors import DataError, plural


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
            if not isinstance(values, Sequence) or not all(
                isinstance(value, float | int) for value in values
            ):  # pyright: ignore[reportUnnecessaryIsInstance]
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
        """Returns the values in [0, 1] that float32 inputs, as they lie in memory, were made from, in their shape."""
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
