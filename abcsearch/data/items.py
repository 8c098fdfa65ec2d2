"""One image as a data set gives it: a tensor, or several inputs of a network, all alike the first image's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from abcsearch.data.images import KINDS, as_rows
from abcsearch.errors import DataError
from abcsearch.example import Example

_NARROW = (torch.float64, torch.float16, torch.bfloat16)  # what becomes float32
_WHOLE = (torch.int8, torch.int16, torch.int32)  # what becomes int64


def one_of(item: Any, first: Any, where: str) -> Example:  # noqa: ANN401 - whatever a Dataset returns
    """Returns the inputs of one image: tensors, without an axis for images; numbers and arrays are made such.

    Args:
        item: a dict, a tuple or an `Example`.
        first: those of the first image, which these are to be like; None: there is none yet.
        where: names the image in messages.

    Raises:
        DataError: if something is no number, or keys, shapes or types are others than the first one's.
    """
    inputs = Example.of(item).mapped(_tensor)
    if not inputs.entries:
        msg = f"{where} has no input; return a tensor, a dict or a tuple of tensors"
        raise DataError(msg)
    for name, x in inputs.entries.items():
        if not isinstance(x, torch.Tensor) or x.dtype not in KINDS:
            what = (
                f"{tuple(x.shape)} {x.dtype}" if isinstance(x, torch.Tensor) else type(x).__name__
            )
            msg = f"{where} has {what} as {name!r}; inputs are float32, int64 or bool tensors, numbers or arrays: "
            raise DataError(
                msg + "make it one in the Dataset, bytes of images by dividing and normalising them"
            )
    if first is not None:
        _check_like(inputs, first, where)
    return inputs


def _tensor(leaf: Any) -> Any:  # noqa: ANN401 - whatever a Dataset returns
    """Returns a number or an array as a tensor of one of `KINDS`, where there is one; anything else as it is."""
    if isinstance(leaf, np.ndarray | np.generic | bool | int | float):
        array = np.asarray(leaf)
        leaf = (
            torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
            if array.dtype.kind in "biuf"
            else leaf
        )
    if not isinstance(leaf, torch.Tensor):
        return leaf
    leaf = leaf.detach().as_subclass(torch.Tensor)
    return leaf.float() if leaf.dtype in _NARROW else leaf.long() if leaf.dtype in _WHOLE else leaf


def _check_like(inputs: Example, first: Any, where: str) -> None:  # noqa: ANN401 - a tensor or an Example
    """Raises DataError unless inputs have keys, shapes and types of the first image's."""
    if not isinstance(first, Example):
        msg = f"{where} has several inputs ({', '.join(inputs.entries)}), the first image is one tensor"
        raise DataError(f"{msg} {tuple(first.shape)}; return the same for all")
    here, there = inputs.entries, first.entries
    missing, new = (
        [name for name in one if name not in other] for one, other in ((there, here), (here, there))
    )
    if missing or new:
        words = [f"lacks {', '.join(missing)}"] if missing else []
        words += [f"has {', '.join(new)}, which the first image has not"] if new else []
        msg = f"{where} {' and '.join(words)}; the first image has the inputs {', '.join(there)}: return these for all"
        raise DataError(msg)
    for name, x in here.items():
        if x.shape != there[name].shape or x.dtype != there[name].dtype:
            msg = f"{where} has {tuple(x.shape)} {x.dtype} as {name!r}, the first {tuple(there[name].shape)} "
            raise DataError(f"{msg}{there[name].dtype}; make all alike")


def row_of(image: Any) -> Any:  # noqa: ANN401 - a tensor or an Example
    """Returns one image as it lies in memory (see `as_rows`)."""
    if isinstance(image, Example):
        return image.mapped(row_of)
    return as_rows(image[None])[0]


def tensors_of(image: Any) -> list[torch.Tensor]:  # noqa: ANN401 - a tensor or an Example
    """Returns the tensors of an image or a batch, by the sorted names of several inputs."""
    return [x for _, x in sorted(image.entries.items())] if isinstance(image, Example) else [image]


def like(first: Example, tensors: list[torch.Tensor]) -> Example:
    """Returns several inputs in the structure of the first image's, of tensors in the order of `tensors_of`."""
    by_name = dict(zip(sorted(first.entries), tensors, strict=True))
    ordered = iter([by_name[name] for name in first.entries])
    return first.mapped(lambda _: next(ordered))


def shape_of(image: Any) -> Any:  # noqa: ANN401 - a tensor or an Example
    """Returns the shape of one image; of several inputs by name."""
    if isinstance(image, Example):
        return {name: list(x.shape) for name, x in image.entries.items()}
    return tuple(image.shape)
