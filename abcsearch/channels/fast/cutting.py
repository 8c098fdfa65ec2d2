"""What is left of a tensor when entries of its axes are removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

# Entries from which on a tensor, with what is made of it, leaves the cache of one core
_LARGE = 1 << 17
_PIECE = 1 << 16
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Axes in ascending order, each with (k,) int64, the entries to keep
Cuts = Sequence[tuple[int, torch.Tensor]]


def is_large(tensor: torch.Tensor) -> bool:
    """Returns whether what is left of a tensor is made in memory that the caller provides."""
    return (
        tensor.numel() >= _LARGE
        and tensor.is_cpu
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_complex() or tensor.is_neg())
    )


def cut(tensor: torch.Tensor, cuts: Cuts) -> torch.Tensor:
    """Returns a new tensor with the entries that the cuts keep.

    Args:
        tensor: any tensor that needs no gradient, or in `torch.no_grad()`.
        cuts: at least one.
    """
    for axis, kept in cuts:
        tensor = tensor.index_select(axis, kept if tensor.is_cpu else kept.to(tensor.device))
    return tensor


def left_shape(tensor: torch.Tensor, cuts: Cuts) -> list[int]:
    """Returns the shape of what the cuts leave."""
    shape = list(tensor.shape)
    for axis, kept in cuts:
        shape[axis] = len(kept)
    return shape


def cut_into(result: torch.Tensor, tensor: torch.Tensor, cuts: Cuts) -> None:
    """Does what `cut` does for a large tensor, with the result in memory that is there already."""
    if [axis for axis, _ in cuts] == [0, 1]:
        _cut_matrix(tensor, cuts[0][1], cuts[1][1], result)
    else:
        torch.index_select(cut(tensor, cuts[:-1]), *cuts[-1], out=result)


def _cut_matrix(
    tensor: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, result: torch.Tensor
) -> None:
    """Cuts the first two axes, a few rows at a time: what lies in between stays in the cache.

    numpy takes entries row by row in the order of memory, torch column by column.
    """
    # Of the same size: numpy does not know all of torch's types
    integers = _INTEGERS[tensor.element_size()]
    source, target = tensor.detach().view(integers).numpy(), result.view(integers).numpy()
    kept, columns_kept = rows.numpy(), columns.numpy()
    count = max(1, _PIECE // tensor.stride(0))
    piece = np.empty((count, *source.shape[1:]), source.dtype)
    for start in range(0, len(kept), count):
        chunk = kept[start : start + count]
        # "wrap" never has to, and is the quickest: with "raise" numpy would fill a buffer of its own first.
        taken = source.take(chunk, 0, piece[: len(chunk)], "wrap")
        taken.take(columns_kept, 1, target[start : start + count], "wrap")
