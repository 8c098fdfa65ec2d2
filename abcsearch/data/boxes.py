"""Boxes of objects as labels: what torchvision's detectors take, a dict per image, in one tensor.

All else of this package selects, moves, hashes and sends labels as one tensor with a row per image. So boxes are kept
as (n, most, 6) float64: x1, y1, x2, y2 in pixels, the class from 1, and 1 where the box is of a crowd. Images with
fewer boxes than `most` are filled up with rows of class 0, which is the background in torchvision's convention. The
type tells them from other labels, which are whole numbers or float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from abcsearch.errors import DataError, plural

WIDTH = 6  # numbers of a row
LABEL, CROWD = 4, 5  # where they are in a row
_LEAST = 1.0  # pixels of height and width that a box has at least once its image has been moved
TARGET_KEYS = ("boxes", "labels", "iscrowd")  # of a target; the last one may be missing
_KEYS = TARGET_KEYS[:2]

Target = dict[str, torch.Tensor]  # of an image


def are_boxes(labels: torch.Tensor) -> bool:
    """Returns whether labels are boxes, packed as this module says."""
    return labels.dtype == torch.float64


def are_targets(labels: Any) -> bool:  # noqa: ANN401 - what the user has
    """Returns whether labels are a sequence of dicts, one per image."""
    listed = isinstance(labels, Sequence) and not isinstance(labels, str) and len(labels) > 0
    return listed and isinstance(labels[0], Mapping)


def packed(targets: Sequence[Any], where: str = "labels") -> torch.Tensor:
    """Returns the labels of images, (n, most, 6) float64.

    Args:
        targets: of every image a dict: boxes, (m, 4) numbers x1, y1, x2, y2 in pixels with x1 < x2 and y1 < y2; labels,
            (m,) whole numbers from 1 (0 is the background); perhaps iscrowd, (m,) zeros and ones. m may be 0.
            Anything else in it is left out.
        where: names them in messages.

    Raises:
        DataError: naming the image (from 0), if a target is none.
    """
    rows = [_rows(target, f"{where}: image {number}") for number, target in enumerate(targets)]
    labels = torch.zeros(len(rows), max([1, *map(len, rows)]), WIDTH, dtype=torch.float64)
    for number, row in enumerate(rows):
        labels[number, : len(row)] = row
    return labels


def _rows(target: Any, where: str) -> torch.Tensor:  # noqa: ANN401 - what the user has
    """Returns the boxes of one image, (m, 6) float64."""
    if not isinstance(target, Mapping):
        msg = f"{where} has a dict of boxes and labels, found {type(target).__name__}"
        raise DataError(msg)
    given = cast("Mapping[str, Any]", target)
    if missing := [key for key in _KEYS if key not in given]:
        msg = f"{where} has boxes and labels, found {', '.join(map(str, given)) or 'nothing'}; {missing[0]} is missing"
        raise DataError(msg)
    boxes, labels = (_numbers(given[key], f"{where}: {key}") for key in _KEYS)
    crowd = _numbers(given.get("iscrowd", [0] * len(labels)), f"{where}: iscrowd")
    boxes = boxes.reshape(0, 4) if not boxes.numel() else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        msg = f"{where}: boxes are (m, 4), x1, y1, x2, y2 in pixels, found {tuple(boxes.shape)}"
        raise DataError(msg)
    for key, values in (("labels", labels), ("iscrowd", crowd)):
        if values.shape != (len(boxes),):
            msg = f"{where}: {key} are ({len(boxes)},), one for each of {plural(len(boxes), 'box')}, found "
            raise DataError(f"{msg}{tuple(values.shape)}")
    rows = torch.cat([boxes, labels[:, None], crowd[:, None]], dim=1)
    _check_rows(rows, where)
    return rows


def _numbers(values: Any, where: str) -> torch.Tensor:  # noqa: ANN401 - what the user has
    """Returns numbers as float64."""
    try:
        numbers = torch.as_tensor(values).detach().cpu()
    except Exception as error:  # what can be made a tensor is torch's to say
        msg = f"{where} are numbers, found {values!r:.80}"
        raise DataError(msg) from error
    if numbers.dtype == torch.bool or numbers.is_complex():
        numbers = (
            numbers.to(torch.int64)
            if where.endswith("iscrowd")
            else torch.full(numbers.shape, torch.nan)
        )
    return numbers.to(torch.float64)


def _check_rows(rows: torch.Tensor, where: str) -> None:
    """Raises DataError unless all boxes of one image are some."""
    for number, row in enumerate(rows.tolist()):
        x1, y1, x2, y2, label, crowd = row
        if not all(value - value == 0 for value in row):
            msg = f"{where}: box {number} is {row[:4]} of class {label}: numbers must be finite"
        elif not (x1 < x2 and y1 < y2):
            msg = f"{where}: box {number} is {row[:4]}, which is empty; boxes are x1, y1, x2, y2 with x1 < x2 and "
            msg += "y1 < y2 (COCO's files have x, y, width, height: add these to x and y)"
        elif label < 1 or label != int(label):
            msg = f"{where}: box {number} has label {label:g}; classes of objects are whole numbers from 1, 0 is the "
            msg += "background, as in torchvision: add 1 where yours count from 0"
        elif crowd not in (0, 1):
            msg = f"{where}: box {number} has iscrowd {crowd:g}, which is 0 or 1"
        else:
            continue
        raise DataError(msg)


def check_boxes(labels: torch.Tensor, count: int) -> None:
    """Raises DataError unless packed boxes are those of so many images."""
    if (
        labels.ndim != 3
        or labels.shape[0] != count
        or labels.shape[2] != WIDTH
        or not labels.numel()
    ):
        msg = f"labels of float64 are boxes, ({count}, most, {WIDTH}) as abcsearch.data.boxes.packed makes them of dicts "
        msg += f"with boxes and labels, found {tuple(labels.shape)}; values are float32"
        raise DataError(msg)
    x1, y1, x2, y2, label, crowd = labels.unbind(-1)
    sound = (
        (x1 < x2)
        & (y1 < y2)
        & (label >= 1)
        & (label == label.floor())
        & ((crowd == 0) | (crowd == 1))
    )
    wrong = ~((sound & torch.isfinite(labels).all(dim=-1)) | (labels == 0).all(dim=-1))
    if bool(wrong.any()):
        image = int(wrong.any(dim=1).nonzero()[0])
        _check_rows(labels[image][(labels[image] != 0).any(dim=-1)], f"labels: image {image}")


def check_splits(name: str, objective: str, labels: Mapping[str, torch.Tensor], shape: Any) -> None:  # noqa: ANN401
    """Raises DataError unless either all splits of a data set have boxes, inside of their images, or none has.

    Args:
        name: of the data set.
        objective: what networks are for.
        labels: by split.
        shape: of every image, see `Images.shape`.
    """
    others = [split for split, label in labels.items() if not are_boxes(label)]
    if others and (objective == "detection" or len(others) < len(labels)):
        msg = f"{name}: labels of a detection are a dict for each image, with boxes and labels, found others in "
        raise DataError(f"{msg}{', '.join(others)}")
    for split, label in labels.items():
        if are_boxes(label):
            check_inside(label, shape, f"{name}: {split}")


def check_inside(labels: torch.Tensor, shape: Any, where: str) -> None:  # noqa: ANN401 - see `Images.shape`
    """Checks packed boxes against the size of their images.

    Args:
        labels: the boxes.
        shape: of every image, (channels, height, width).
        where: names the images.

    Raises:
        DataError: if images have no height and width, a box is not inside of its image, or there is none at all.
    """
    if isinstance(shape, dict) or len(shape) != 3:
        msg = f"{where}: boxes are of images (channels, height, width), found {shape}"
        raise DataError(msg)
    height, width = shape[1:]
    x1, y1, x2, y2, label = labels[..., : LABEL + 1].unbind(-1)
    outside = ((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height)) & (label > 0)
    if bool(outside.any()):
        image, box = outside.nonzero()[0].tolist()
        msg = f"{where}: image {image}: box {box} is {labels[image, box, :4].tolist()}, outside of its image, which is "
        msg += f"{width} wide and {height} high; coordinates are pixels of the image as the network gets it"
        raise DataError(msg)
    if not bool((label > 0).any()):
        msg = (
            f"{where}: no image has a box; a detection needs some to learn from and to be judged by"
        )
        raise DataError(msg)


def unpacked(labels: torch.Tensor) -> list[Target]:
    """Returns of every image what torchvision's detectors take, and what COCO's metrics do.

    Args:
        labels: (n, most, 6), packed.

    Returns:
        A dict for each image: boxes, (m, 4) float32; labels, (m,) int64 from 1; iscrowd, (m,) int64. On the device of
        the labels.
    """
    targets: list[Target] = []
    for rows in labels:
        there = rows[rows[:, LABEL] > 0]
        numbers = there[:, LABEL:].long()
        targets.append(
            {"boxes": there[:, :4].float(), "labels": numbers[:, 0], "iscrowd": numbers[:, 1]}
        )
    return targets


def without_crowds(targets: Sequence[Target]) -> list[Target]:
    """Returns what a detector learns: boxes that are of one object each."""
    return [{key: target[key][target["iscrowd"] == 0] for key in _KEYS} for target in targets]


def moved(
    labels: torch.Tensor,
    size: tuple[int, int],
    offsets: torch.Tensor | None,
    mirrored: torch.Tensor | None,
) -> torch.Tensor:
    """Returns the boxes of images that are shifted, then mirrored, see `Moves`.

    Boxes are cut off at the edges of their images; what is then narrower or lower than a pixel is no box any more.

    Args:
        labels: (batch, most, 6), packed.
        size: height and width of the images.
        offsets: (2, batch), by how many rows and columns images go up and left (down and right if negative); or None.
        mirrored: (batch,) bool, or None.
    """
    height, width = size
    x, y, rest = labels[..., 0:LABEL:2], labels[..., 1:LABEL:2], labels[..., LABEL:]
    if offsets is not None:
        y, x = ((values - by[:, None, None]) for values, by in zip((y, x), offsets, strict=True))
    x, y = x.clamp(0, width), y.clamp(0, height)
    if mirrored is not None:
        x = torch.where(mirrored[:, None, None], width - x.flip(-1), x)
    boxes = torch.cat([x[..., :1], y[..., :1], x[..., 1:], y[..., 1:], rest], dim=-1)
    there = (
        (rest[..., 0] > 0)
        & ((x[..., 1] - x[..., 0]) >= _LEAST)
        & ((y[..., 1] - y[..., 0]) >= _LEAST)
    )
    return torch.where(there[..., None], boxes, torch.zeros_like(boxes))
