"""What every set of images can do, in memory or not, and the rules that labels keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.data.boxes import LABEL, are_boxes, check_boxes
from abcsearch.errors import DataError, plural
from abcsearch.example import Example, Inputs
from abcsearch.rng import derived_seed

if TYPE_CHECKING:
    from collections.abc import Mapping


KINDS = (torch.float32, torch.int64, torch.bool)  # of several inputs
IGNORED = -100  # label of pixels that do not count, as in torch


def as_rows(images: Any) -> Any:  # noqa: ANN401 - of a tensor a tensor, of several inputs as many
    """Returns images as they lie in memory: with height and width (n, height, width, channels), others as they are."""
    if isinstance(images, Example):
        return images.mapped(as_rows)
    return images.permute(0, 2, 3, 1) if images.ndim == 4 else images


def from_rows(rows: Any) -> Any:  # noqa: ANN401 - as `as_rows`
    """Returns the (n, channels, ...) images that lie in memory as `as_rows` says."""
    if isinstance(rows, Example):
        return rows.mapped(from_rows)
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows


def check_labels(labels: torch.Tensor, count: int) -> None:
    """Checks shape, type and range of labels.

    Raises:
        DataError: if they do not belong to `count` images, or are none of what `Images.labels` says.
    """
    given = f"found {tuple(labels.shape)} {labels.dtype}"
    if labels.shape[:1] != (count,):
        msg = f"labels are ({count},) int64 for {plural(count, 'image')}, {given}"
        raise DataError(msg)
    if are_boxes(labels):
        check_boxes(labels, count)
        return
    if labels.dtype == torch.float32:
        wrong = int((~torch.isfinite(labels)).sum())
        if wrong:
            msg = f"labels must be finite, found {plural(wrong, 'value')} not"
            raise DataError(msg)
        return
    in_a_column = labels.ndim == 2 and labels.shape[1] == 1
    if labels.dtype != torch.int64 or labels.ndim > 4 or in_a_column or not labels.numel():
        msg = (
            f"labels are ({count},) int64 class numbers, ({count}, height, width) int64 class numbers of pixels or "
            f"({count}, ...) float32 values for {plural(count, 'image')}, {given}"
        )
        raise DataError(msg)
    low = int((labels if labels.ndim == 1 else labels.where(labels != IGNORED, 0)).min())
    if low < 0:
        but = "" if labels.ndim == 1 else f", {IGNORED} for pixels that do not count"
        msg = f"labels count classes from 0{but}, found {low}"
        raise DataError(msg)


def class_count(labels: torch.Tensor) -> int | None:
    """Returns the number of classes, the largest class number plus 1; of boxes without class 0, the background.

    None where labels are values.
    """
    if are_boxes(labels):
        return int(labels[..., LABEL].max())
    return 1 + int(labels.max()) if labels.dtype == torch.int64 else None


def most_classes(name: str, every: list[torch.Tensor]) -> int:
    """Returns the largest number of classes of a data set's splits.

    Raises:
        DataError: if labels are no class numbers.
    """
    known = [count for labels in every if (count := class_count(labels)) is not None]
    if len(known) < len(every):
        msg = f"{name}: labels are values, not class numbers: there is no number of classes"
        raise DataError(msg)
    return max(known)


def hardest(labels: torch.Tensor) -> torch.Tensor:
    """Returns the position of an image with the highest class number or value, (1,), which needs an output."""
    values = labels[..., LABEL] if are_boxes(labels) else labels
    return values.reshape(len(labels), -1).amax(dim=1).argmax()[None]


def select(rows: Inputs, indices: torch.Tensor) -> Inputs:
    """Returns the rows at the given positions, (m,) int64, of what lies in memory."""
    return rows[indices] if isinstance(rows, Example) else rows.index_select(0, indices)


def check_inputs(inputs: Example, count: int) -> None:
    """Checks several inputs: tensors of numbers that are finite, with a row per image.

    Raises:
        DataError: if there are none, or others.
    """
    if not inputs.entries:
        msg = "an image has at least one input, found none"
        raise DataError(msg)
    if inputs.listed:
        msg = "a list of tensors of three axes is a list of images, found one among several inputs; make it a tuple"
        raise DataError(msg)
    for name, x in inputs.entries.items():
        if not isinstance(x, torch.Tensor):
            msg = f"inputs of a network are torch tensors, found {type(x).__name__} as {name!r}; convert it with "
            raise DataError(f"{msg}torch.as_tensor")
        if not x.ndim or len(x) != count or not x.numel() or x.dtype not in KINDS:
            msg = f"inputs are tensors ({count}, ...) of {plural(count, 'image')}, float32, int64 or bool and not "
            msg += f"empty, found {tuple(x.shape)} {x.dtype} as {name!r}"
            raise DataError(
                f"{msg}; scale bytes in your Dataset" if x.dtype == torch.uint8 else msg
            )
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            first = (
                int((~torch.isfinite(x)).flatten(1).any(dim=1).nonzero()[0]) if x.ndim > 1 else 0
            )
            msg = f"inputs must be finite, found values that are not in {name!r}, first in number {first} (from 0)"
            raise DataError(msg)


def own_share(batch_size: int, share: tuple[int, int]) -> slice:
    """Returns the positions in a batch of one of its equal parts.

    Args:
        batch_size: images in the batch, a multiple of the number of parts.
        share: (number of the part from 0, number of parts).
    """
    number, count = share
    return slice(number * batch_size // count, (number + 1) * batch_size // count)


def check_classification(labels: torch.Tensor) -> None:
    """Raises DataError unless labels are those of a classification: one class number per image, (n,) int64."""
    if labels.dtype != torch.int64 or labels.ndim != 1:
        msg = (
            f"labels of a classification are (n,) int64, found {tuple(labels.shape)} {labels.dtype}; say what they are "
            'for: objective = "regression", "segmentation", "multilabel", "superresolution" or "detection"'
        )
        raise DataError(msg)


def check_multi_hot(labels: torch.Tensor) -> None:
    """Raises DataError unless labels are multi-hot: (n, labels) float32, 1 where an image has a label, else 0."""
    rule = "labels of a multi-label classification are multi-hot, (n, labels) float32 of 0 and 1, found "
    if labels.dtype != torch.float32 or labels.ndim != 2:
        convert = "; convert them with labels.float()" if labels.ndim == 2 else ""
        msg = f"{rule}{tuple(labels.shape)} {labels.dtype}{convert}"
        raise DataError(msg)
    wrong = ((labels != 0) & (labels != 1)).any(dim=1)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        value = float(labels[first][(labels[first] != 0) & (labels[first] != 1)][0])
        raise DataError(f"{rule}{value:g} in number {first} (from 0)")


def check_masks(labels: torch.Tensor, shape: Any) -> None:  # noqa: ANN401 - see `Images.shape`
    """Raises DataError unless labels are masks: class numbers of the pixels of images, or of some of their places.

    Args:
        labels: (n, height, width) int64, with other sizes than the images where a network answers for fewer places; or
            of signals and volumes.
        shape: of every image, see `Images.shape`.
    """
    sizes = () if isinstance(shape, dict) else tuple(shape[1:])
    if (
        labels.dtype == torch.int64
        and labels.ndim > 1
        and (not sizes or labels.ndim == len(sizes) + 1)
    ):
        return
    convert = (
        "; convert them with masks.long()"
        if labels.ndim > 1 and labels.dtype != torch.int64
        else ""
    )
    msg = f"labels of a segmentation are class numbers of pixels, (n{''.join(f', {size}' for size in sizes)}) int64, "
    raise DataError(f"{msg}found {tuple(labels.shape)} {labels.dtype}{convert}")


def check_kinds(name: str, objective: str, labels: Mapping[str, torch.Tensor], shape: Any) -> None:  # noqa: ANN401
    """Raises DataError, naming the split, unless labels are those of a classification or segmentation that is one.

    Args:
        name: of the data set.
        objective: what networks are for; of those that are not ours labels may be anything.
        labels: by split.
        shape: of every image, see `Images.shape`.
    """
    for split, label in labels.items():
        try:
            if objective == "classification":
                check_classification(label)
            elif objective == "segmentation":
                check_masks(label, shape)
            elif objective == "multilabel":
                check_multi_hot(label)
        except DataError as error:
            msg = f"{name}: {split}: {error}"
            raise DataError(msg) from error
    if objective == "multilabel" and len({label.shape[1] for label in labels.values()}) > 1:
        counts = ", ".join(f"{split} {label.shape[1]}" for split, label in labels.items())
        msg = f"{name}: all splits have the same labels, found {counts} of them"
        raise DataError(msg)


def held_out(
    labels: torch.Tensor, validation: float, seed: int, *, objective: str = "classification"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which training images stay and which are held out for search-validation, both in order.

    Args:
        labels: of all training images; of a classification, the same share of every class is held out.
        validation: a share in (0, 1), or a whole number of images.
        seed: which ones.
        objective: what networks are for.

    Raises:
        DataError: if the share or the seed is out of range, or there are too few images of a class.
    """
    from sklearn.model_selection import train_test_split

    whole = isinstance(validation, int) and not isinstance(validation, bool)
    if not (0 < validation < len(labels) if whole else 0 < validation < 1):
        msg = (
            "validation is the share of training images held out, in (0, 1), or their number, below "
            f"{len(labels)}, found {validation}"
        )
        raise DataError(msg)
    if seed < 0:
        msg = f"seed of the split is at least 0, found {seed}"
        raise DataError(msg)
    if objective == "classification":
        check_classification(labels)
    try:
        indices = train_test_split(
            np.arange(len(labels)),
            test_size=validation,
            stratify=labels.cpu().numpy() if objective == "classification" else None,
            random_state=derived_seed(seed, "split") % 2**32,
        )
    except ValueError as error:
        msg = f"cannot hold {validation:g} of {plural(len(labels), 'training image')} out for search-validation: {error}"
        raise DataError(msg) from error
    kept, held = (torch.from_numpy(some).sort().values for some in indices)
    return kept, held
