"""How well pixels are told apart on a whole data set."""

from __future__ import annotations

import torch

from abcsearch.data.images import IGNORED
from abcsearch.training.collected import Metrics


class MeanIoU(Metrics):
    """miou: intersection over union of every class over all pixels of all images, the mean over classes; in [0, 1].

    All images share one confusion matrix: a class that few images show counts as much as the others, and is no mean of
    images on which it is a few pixels. Ignored pixels do not count, nor do classes that are neither there nor answered.

    Source: Everingham et al., The Pascal visual object classes challenge (IJCV 2010), section 4.
    """

    def __init__(self) -> None:
        """Begins with no pixel."""
        self._counts: torch.Tensor | None = None  # (classes, classes): labels by answers

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes (batch, classes, ...) logits and (batch, ...) class numbers."""
        classes, counted = outputs.shape[1], labels != IGNORED
        pairs = labels[counted] * classes + outputs.argmax(dim=1)[counted]
        counts = pairs.bincount(minlength=classes**2).view(classes, classes).cpu()
        self._counts = counts if self._counts is None else self._counts + counts

    def finish(self) -> dict[str, float]:
        """Returns miou; 0 where no pixel counts."""
        if self._counts is None:
            return {"miou": 0.0}
        hits, counts = self._counts.diagonal(), self._counts
        union = counts.sum(dim=0) + counts.sum(dim=1) - hits
        there = union > 0
        return {
            "miou": float((hits[there] / union[there].double()).mean())
            if bool(there.any())
            else 0.0
        }
