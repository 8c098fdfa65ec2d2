"""How well pixels are told apart on a whole data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.data.images import IGNORED
from abcsearch.training.collected import Metrics
from abcsearch.training.resampling import mean_known

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MeanIoU(Metrics):
    """miou: intersection over union of every class over all pixels of all images, the mean over classes; in [0, 1].

    All images share one confusion matrix: a class that few images show counts as much as the others, and is no mean of
    images on which it is a few pixels. Ignored pixels do not count, nor do classes that are neither there nor answered.

    Source: Everingham et al., The Pascal visual object classes challenge (IJCV 2010), section 4.
    """

    def __init__(self) -> None:
        """Begins with no pixel."""
        self._counts: torch.Tensor | None = None  # (classes, classes): labels by answers
        # Of every image, by class: pixels that are right, and those that are labelled or answered so
        self._images: list[torch.Tensor] = []  # (batch, 2, classes)

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes (batch, classes, ...) logits and (batch, ...) class numbers."""
        classes, counted = outputs.shape[1], labels != IGNORED
        # Which image, label and answer, as one number
        first = torch.arange(len(labels), device=labels.device).view(-1, *[1] * (labels.ndim - 1))
        pairs = (first * classes + labels) * classes + outputs.argmax(dim=1)
        each = pairs[counted].bincount(minlength=len(labels) * classes**2)
        each = each.view(len(labels), classes, classes)
        hits = each.diagonal(dim1=1, dim2=2)
        union = each.sum(dim=1) + each.sum(dim=2) - hits
        self._images.append(torch.stack([hits, union], dim=1).int().cpu())
        counts = each.sum(dim=0).cpu()
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

    def resampled(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Returns miou of images that are drawn."""
        images = torch.cat(self._images).numpy().astype(float)
        hits, union = (counts @ images[:, which] for which in (0, 1))
        each = np.where(union > 0, hits / np.maximum(union, 1), np.nan)
        return {"miou": mean_known(each)}
