"""The objective of detectors: how they learn boxes, what of what they return are detections, and COCO's metric.

A detector is one of two kinds.

- As torchvision's: in training mode it is called with images and targets, a dict of boxes and labels for each image,
  and returns a dict of losses; in evaluation mode it returns for each image a dict of boxes, labels and scores.
- With a criterion: of what it returns in training mode its method `losses(outputs, targets)` returns a dict of losses;
  in evaluation mode it returns boxes and scores of all places, (batch, places, 4 + classes), of which detections are
  made here. So what is exported has no loops and no sizes that depend on what is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from abcsearch.data.boxes import LABEL, Target, unpacked, without_crowds
from abcsearch.errors import ConfigError, DataError, ModelError, one_line, plural
from abcsearch.training.coco_draws import Matched, matched, precisions
from abcsearch.training.collected import Metrics
from abcsearch.training.objectives import OUTPUTS, Objective

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

# Scores below are no detections; of so many best ones per image, those are left that overlap no better one of their
# class by so much; of these the best, as many as COCO counts.
_LEAST_SCORE, _FIRST, _OVERLAP, _MOST = 0.05, 300, 0.5, 100
# What an export says of them.
POST_PROCESSING = {
    "of": "boxes x1, y1, x2, y2 in pixels and scores in [0, 1] of all places, (batch, places, 4 + classes)",
    "least_score": _LEAST_SCORE,
    "best_before": _FIRST,
    "overlap": _OVERLAP,
    "best_after": _MOST,
    "first_label": 1,
}
_KEYS = ("boxes", "labels", "scores")


class Detections(list[Target]):
    """The detections of a batch: of every image boxes (m, 4), labels (m,) from 1 and scores (m,), the best first.

    Attributes:
        classes: of objects that the detector knows; None where it does not say.
    """

    classes: int | None = None


def output_of(model: nn.Module, returned: Any) -> Detections:  # noqa: ANN401 - networks return anything
    """Returns detections out of what a detector returned in evaluation mode: its own, or made of all places.

    Raises:
        ModelError: if there are none; `OUTPUTS` then says which part is.
    """
    selected = _selected(model, returned)
    if _are_places(selected):
        made = Detections(
            _suppressed(image[:, :4], image[:, 4:]) for image in selected.detach().float()
        )
        made.classes = selected.shape[2] - 4
        return made
    if isinstance(selected, Sequence) and all(_is_detection(item) for item in selected):
        return Detections({key: item[key].detach() for key in _KEYS} for item in selected)
    name = type(model).__name__
    msg = f"{name} must return, in evaluation mode, a list of dicts with boxes, labels and scores, or boxes and scores "
    msg += f"of all places in one tensor (batch, places, 4 + classes), found {_described(selected)}; say which part it "
    raise ModelError(f"{msg}is: abcsearch.OUTPUTS[{name}] = lambda returned: ...")


def _selected(model: nn.Module, returned: Any) -> Any:  # noqa: ANN401 - networks return anything
    """Returns what `OUTPUTS` selects for a network, or all of it."""
    select = next((OUTPUTS[kind] for kind in type(model).__mro__ if kind in OUTPUTS), None)
    return returned if select is None else select(returned)


def _are_places(selected: Any) -> bool:  # noqa: ANN401 - networks return anything
    """Returns whether something is numbers of all places, (batch, places, 4 + classes)."""
    return (
        isinstance(selected, torch.Tensor)
        and selected.ndim == 3
        and selected.shape[2] > 4
        and selected.is_floating_point()
    )


def _is_detection(item: object) -> bool:
    """Returns whether something is a dict of boxes, labels and scores."""
    return isinstance(item, Mapping) and all(
        isinstance(item.get(key), torch.Tensor) for key in _KEYS
    )


def _described(value: Any) -> str:  # noqa: ANN401 - networks return anything
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    inside = f" of {_described(value[0])}" if isinstance(value, Sequence) and value else ""
    keys = f" with {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
    return f"{type(value).__name__}{keys}{inside}"


def _suppressed(boxes: torch.Tensor, scores: torch.Tensor) -> Target:
    """Returns the detections of an image of all its places.

    Args:
        boxes: (places, 4) in pixels.
        scores: (places, classes) in [0, 1].
    """
    from torchvision.ops import batched_nms

    classes = scores.shape[1]
    best, positions = scores.flatten().topk(min(_FIRST, scores.numel()))
    positions = positions[best >= _LEAST_SCORE]
    where, which = positions // classes, positions % classes
    kept = batched_nms(boxes[where], scores.flatten()[positions], which, _OVERLAP)[:_MOST]
    return {
        "boxes": boxes[where[kept]],
        "labels": which[kept] + 1,
        "scores": scores.flatten()[positions[kept]],
    }


def check_detections(output: Detections, labels: torch.Tensor) -> None:
    """Raises unless there are detections of every image of a batch, and an output for every label."""
    if len(output) != len(labels):
        msg = f"the model must return detections of {plural(len(labels), 'image')}, found {len(output)}"
        raise ModelError(msg)
    _check_classes(output.classes, labels)


def _check_classes(classes: int | None, labels: torch.Tensor) -> None:
    """Raises DataError if a label is beyond the classes of a detector, as far as these are known."""
    highest = int(labels[..., LABEL].max())
    if classes is not None and highest > classes:
        msg = f"label {highest} has no output: the model has {plural(classes, 'class')} of objects, counted from 1"
        raise DataError(msg)


def taught(
    model: nn.Module,
    called: Callable[..., Any],
    images: Any,  # noqa: ANN401 - a tensor or an Example
    labels: torch.Tensor,
) -> tuple[Any, torch.Tensor]:
    """Shows a detector a batch in training mode; returns its output, where it has one, and the sum of its losses.

    Args:
        model: the network.
        called: what is called in its place.
        images: of the batch.
        labels: their boxes, packed.

    Raises:
        ModelError: if it is no detector, fails, or returns no dict of losses.
        DataError: if a label has no output.
    """
    targets = without_crowds(unpacked(labels))
    name, criterion = type(model).__name__, getattr(model, "losses", None)
    if criterion is None:
        how = "(images, targets) in training mode. A detector takes both as torchvision's do and returns a dict of "
        how += "losses, or has a method losses(outputs, targets)"
        return None, _summed(name, _run(name, how, lambda: called(images, targets), labels))
    output = called(images)
    if _are_places(output):
        _check_classes(output.shape[2] - 4, labels)
    how = f"losses(outputs, targets), whose outputs were {_described(output)}"
    return output, _summed(name, _run(name, how, lambda: criterion(output, targets), labels))


def _run(name: str, how: str, call: Callable[[], Any], labels: torch.Tensor) -> Any:  # noqa: ANN401 - the user's network
    """Returns what a detector returns for targets, or says what may be wrong with it."""
    try:
        return call()
    except (torch.OutOfMemoryError, ModelError):
        raise
    except Exception as error:  # the user's network
        msg = f"{name} fails, {type(error).__name__}: {one_line(str(error), 200)}, on {how}; labels go up to "
        msg += f"{int(labels[..., LABEL].max())}: it needs an output for each (num_classes of torchvision counts the "
        raise ModelError(f"{msg}background as well)") from error


def _summed(name: str, losses: Any) -> torch.Tensor:  # noqa: ANN401 - networks return anything
    """Returns the sum of a dict of losses."""
    each = list(cast("Mapping[str, Any]", losses).values()) if isinstance(losses, Mapping) else []
    if not each or not all(isinstance(loss, torch.Tensor) and loss.numel() == 1 for loss in each):
        msg = f"{name} must return a dict of losses, scalars, for images and targets in training mode, found "
        raise ModelError(f"{msg}{_described(losses)}")
    return torch.stack([loss.reshape(()) for loss in each]).sum()


def _no_loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:  # noqa: ANN401 - as of `Objective.loss`
    """Raises: the loss of a detector is its own."""
    del outputs, labels
    msg = "the loss of a detector is its own, not one of outputs and labels; lessons have it from Objective.learned"
    raise ConfigError(msg)


class MeanAveragePrecision(Metrics):
    """COCO's average precision: mAP (mean over classes and overlaps of 0.5 to 0.95), mAP50 and mAP75; in [0, 1].

    By torchmetrics with pycocotools, the extra `detection`. Boxes of crowds count as COCO has it. Classes that the
    split has no box of do not count; a network that detects nothing has 0.

    Source: Lin et al., Microsoft COCO: Common objects in context (ECCV 2014).
    """

    def __init__(self) -> None:
        """Begins with no image.

        Raises:
            ConfigError: if the extra is not installed.
        """
        try:
            from torchmetrics.detection import (  # pyright: ignore[reportMissingImports] - an extra
                MeanAveragePrecision as Coco,
            )
        except ImportError as error:
            msg = f"mAP is computed by torchmetrics with pycocotools: pip install 'abcsearch[detection]' ({error})"
            raise ConfigError(msg) from error
        self._coco: Any = Coco(
            box_format="xyxy", iou_type="bbox", max_detection_thresholds=[1, 10, _MOST]
        )
        self._coco.warn_on_many_detections = False  # the best hundred count, in COCO too
        self._detections: list[Target] = []
        self._targets: list[Target] = []
        self._matched: list[Matched] | None = None

    def add(self, outputs: Detections, labels: torch.Tensor) -> None:
        """Takes the detections of a batch."""
        detections = [{key: value.cpu() for key, value in item.items()} for item in outputs]
        targets = unpacked(labels.cpu())
        self._coco.update(detections, targets)
        self._detections += detections
        self._targets += targets
        self._matched = None

    def finish(self) -> dict[str, float]:
        """Returns mAP, mAP50 and mAP75."""
        every = self._coco.compute()
        names = {"mAP": "map", "mAP50": "map_50", "mAP75": "map_75"}
        # -1 where there is no box at all
        return {name: max(float(every[key]), 0.0) for name, key in names.items()}

    def resampled(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]] | None:
        """Returns the three of images that are drawn; None where there is no box at all."""
        if self._matched is None:
            at = self._coco.iou_thresholds, self._coco.rec_thresholds
            self._matched = matched(self._detections, self._targets, _MOST, *at)
        if not self._matched:
            return None
        each = precisions(self._matched, counts)  # at overlaps of 0.5, 0.55 ... 0.95
        return {"mAP": each.mean(axis=1), "mAP50": each[:, 0], "mAP75": each[:, 5]}


def constant_detections(labels: torch.Tensor, count: int) -> Detections:
    """Returns one answer for all images: of every class the mean box, scored by how often it occurs.

    Args:
        labels: of the training images, packed.
        count: so many times.
    """
    rows = labels.flatten(0, 1)
    rows = rows[rows[:, LABEL] > 0]
    classes = rows[:, LABEL].long()
    names, occurring = classes.unique(return_counts=True)
    boxes = torch.stack([rows[classes == name, :4].mean(dim=0) for name in names])
    answer = {"boxes": boxes.float(), "labels": names, "scores": occurring.float() / len(rows)}
    return Detections([answer] * count)


DETECTION = Objective(
    loss=_no_loss,
    metrics={},
    whole=dict.fromkeys(("mAP", "mAP50", "mAP75"), MeanAveragePrecision),
    check=check_detections,
    output=output_of,
    taught=taught,
)
