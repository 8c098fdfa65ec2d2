"""Memory for the large tensors of a network that is built, used for a while and thrown away, over and over.

The system hands out new memory page by page and cleared, and for large networks that would be most of the cost of a
candidate. So the block of the last candidate, once it is gone, serves the next one.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

_LINE = 64  # bytes: the alignment of torch's own memory
_HUGE_PAGE = 1 << 21  # bytes; numpy asks the system for huge pages where a block is large
_MOST = 1 << 28  # bytes that may lie idle

_spare: list[np.ndarray] = []  # at most one block


class _Lease(np.ndarray):
    """A view of a block; being of another type than the block, it is what its own views keep alive."""


class Memory:
    """One block of memory for a number of tensors.

    Every tensor has a storage of its own; the block is free again when the last of them is gone.
    """

    def __init__(self, size: int) -> None:
        """Takes a block.

        Args:
            size: bytes, the sum of `room` over all tensors.
        """
        block = _block(size) if size else np.empty(0, np.uint8)
        self._free = block.view(_Lease)
        if size:
            weakref.finalize(self._free, _give_back, block).atexit = False

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Returns a new tensor, not initialised."""
        size = room(shape, dtype)
        memory, self._free = self._free[:size], self._free[size:]
        return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)


def room(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Returns the bytes that a tensor takes."""
    return -(-math.prod(shape) * dtype.itemsize // _LINE) * _LINE


def _block(size: int) -> np.ndarray:
    """Returns a block of at least this size, the spare one if it is large enough."""
    try:
        block = _spare.pop()
    except IndexError:
        block = np.empty(0, np.uint8)
    if len(block) >= size:
        return block
    whole = np.empty((math.ceil(size / _HUGE_PAGE) + 1) * _HUGE_PAGE, dtype=np.uint8)
    return whole[-whole.ctypes.data % _HUGE_PAGE :]


def _give_back(block: np.ndarray) -> None:
    if not _spare and len(block) <= _MOST:
        _spare.append(block)
