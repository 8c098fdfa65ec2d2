"""COCO's average precision of images that are drawn with replacement, without matching boxes again for every draw."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.training.resampling import mean_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The detections of one class, the surest first.

    Attributes:
        images: (m,), of which image each is.
        right: (overlaps, m), whether it is of a box that counts.
        wrong: (overlaps, m), whether it is of none; neither, if it is of one that does not count.
        boxes: (n,), boxes of every image that count.
        recalls: at which precision is looked up, ascending.
    """

    images: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    boxes: NDArray[np.int64]
    recalls: NDArray[np.float64]


def matched(
    detections: Sequence[Mapping[str, torch.Tensor]],
    targets: Sequence[Mapping[str, torch.Tensor]],
    most: int,
    overlaps: Sequence[float],
    recalls: Sequence[float],
) -> list[Matched]:
    """Returns the detections of every class that has a box, matched to boxes by pycocotools.

    Args:
        detections: of every image boxes, labels and scores.
        targets: of every image boxes, labels and iscrowd.
        most: detections of an image that count, of each class.
        overlaps: from which on a detection is of a box.
        recalls: at which precision is looked up, ascending.
    """
    from pycocotools.cocoeval import COCOeval  # pyright: ignore[reportMissingImports] - an extra

    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        judge: Any = COCOeval(_indexed(targets), _indexed(detections), "bbox")
        judge.params.maxDets, judge.params.iouThrs = [most], np.array(overlaps)
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.imgIds = list(range(len(targets)))
        classes = judge.params.catIds
        judge.evaluate()
    count = len(targets)
    every = [judge.evalImgs[i * count : (i + 1) * count] for i in range(len(classes))]
    at = np.array(recalls)
    made = [_of_class(one, len(overlaps), at) for one in every]
    return [one for one in made if one.boxes.any()]


def _indexed(items: Sequence[Mapping[str, torch.Tensor]]) -> Any:  # noqa: ANN401 - pycocotools has no types
    """Returns boxes of images as pycocotools has them."""
    from pycocotools.coco import COCO  # pyright: ignore[reportMissingImports] - an extra

    entries: list[dict[str, Any]] = []
    for image, item in enumerate(items):
        boxes, labels = item["boxes"].tolist(), item["labels"].tolist()
        crowds = item["iscrowd"].tolist() if "iscrowd" in item else [0] * len(labels)
        scores = item["scores"].tolist() if "scores" in item else [1.0] * len(labels)
        for (x1, y1, x2, y2), label, crowd, score in zip(
            boxes, labels, crowds, scores, strict=True
        ):
            size = [x2 - x1, y2 - y1]
            entry = {"id": len(entries) + 1, "image_id": image, "category_id": int(label)}
            entry |= {"bbox": [x1, y1, *size], "area": size[0] * size[1]}
            entries.append({**entry, "iscrowd": int(crowd), "score": score})
    coco: Any = COCO()
    classes = sorted({entry["category_id"] for entry in entries})
    coco.dataset = {
        "images": [{"id": image} for image in range(len(items))],
        "categories": [{"id": label} for label in classes],
        "annotations": entries,
    }
    coco.createIndex()
    return coco


def _of_class(judged: Sequence[Any], overlaps: int, recalls: NDArray[np.float64]) -> Matched:
    """Returns the detections of one class out of what pycocotools has found of every image."""
    known = [(image, one) for image, one in enumerate(judged) if one is not None]
    boxes = np.zeros(len(judged), dtype=np.int64)
    for image, one in known:
        boxes[image] = np.count_nonzero(one["gtIgnore"] == 0)
    scores = np.array([score for _, one in known for score in one["dtScores"]], dtype=float)
    order = np.argsort(-scores, kind="mergesort")
    images = [np.full(len(one["dtScores"]), image) for image, one in known]
    hits, ignored = (
        np.concatenate([np.zeros((overlaps, 0)), *(one[key] for _, one in known)], axis=1)[:, order]
        for key in ("dtMatches", "dtIgnore")
    )
    counted = ignored == 0
    return Matched(
        images=np.concatenate([np.zeros(0, dtype=np.int64), *images])[order],
        right=(hits > 0) & counted,
        wrong=(hits == 0) & counted,
        boxes=boxes,
        recalls=recalls,
    )


def precisions(classes: Sequence[Matched], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the average precision in each draw and at each overlap, mean over classes: (draws, overlaps).

    Classes without a box in a draw do not count in it.

    Args:
        classes: as `matched`, one or more.
        counts: (draws, images).
    """
    overlaps = len(classes[0].right)
    each = np.stack(
        [[_areas(one, counts, overlap) for overlap in range(overlaps)] for one in classes]
    )
    return np.stack([mean_known(each[:, overlap].T) for overlap in range(overlaps)], axis=1)


def _areas(one: Matched, counts: NDArray[np.int64], overlap: int) -> NDArray[np.float64]:
    """Returns the average precision of one class at one overlap in each draw, (draws,); NaN without a box."""
    boxes = counts @ one.boxes
    drawn = counts[:, one.images]
    right = (drawn * one.right[overlap]).cumsum(axis=1)
    wrong = (drawn * one.wrong[overlap]).cumsum(axis=1)
    precision = right / np.maximum(right + wrong, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(counts), 1))], axis=1)  # beyond the last detection
    areas = np.full(len(counts), np.nan)
    for draw in np.flatnonzero(boxes):
        at = np.searchsorted(right[draw] / boxes[draw], one.recalls, side="left")
        areas[draw] = best[draw, at].mean()
    return areas
