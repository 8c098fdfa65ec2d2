"""Several labels at once: each is there or not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.data.images import check_multi_hot
from abcsearch.errors import ModelError, plural
from abcsearch.training.collected import Metrics
from abcsearch.training.distillation import of_labels
from abcsearch.training.objectives import Objective
from abcsearch.training.resampling import mean_known, precision_areas

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LabelScores(Metrics):
    """macro_ap, macro_f1 and micro_f1 of all images; in [0, 1].

    macro_ap is the mean over labels of average precision, the area below precision over recall; F1 is of logits above
    0, the mean over labels or of all answers together. Labels that no image has do not count among the means.

    Source: as scikit-learn's average_precision_score and f1_score.
    """

    def __init__(self) -> None:
        """Begins with no image."""
        self._outputs: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes (batch, labels) logits and multi-hot labels."""
        self._outputs.append(outputs.float().cpu())
        self._labels.append(labels.cpu() > 0)

    def finish(self) -> dict[str, float]:
        """Returns the three of them; NaN where a logit is, 0 where no image has any label."""
        from sklearn.metrics import average_precision_score

        scores, there = torch.cat(self._outputs).numpy(), torch.cat(self._labels).numpy()
        names = ("macro_ap", "macro_f1", "micro_f1")
        if not np.isfinite(scores).all():
            return dict.fromkeys(names, float("nan"))
        shown = there.any(axis=0)
        if not shown.any():
            return dict.fromkeys(names, 0.0)
        with warnings.catch_warnings():  # of a single image
            warnings.simplefilter("ignore")
            precision: Any = average_precision_score(
                there[:, shown], scores[:, shown], average="macro"
            )
        hits = ((scores > 0) & there).sum(axis=0)
        both = (scores > 0).sum(axis=0) + there.sum(axis=0)
        macro = 2 * hits[shown] / both[shown]
        return dict(
            zip(
                names,
                (float(precision), float(macro.mean()), float(2 * hits.sum() / both.sum())),
                strict=True,
            )
        )

    def resampled(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]] | None:
        """Returns the three of images that are drawn; None where a logit is NaN."""
        scores = torch.cat(self._outputs).numpy().astype(float)
        there = torch.cat(self._labels).numpy()
        if not np.isfinite(scores).all():
            return None
        areas = [
            precision_areas(scores[:, label], there[:, label], counts)
            for label in range(there.shape[1])
        ]
        hits = counts @ ((scores > 0) & there).astype(np.int64)
        labels = counts @ there.astype(np.int64)
        both = counts @ (scores > 0).astype(np.int64) + labels
        each = np.where(labels > 0, 2 * hits / np.maximum(both, 1), np.nan)
        micro = 2 * hits.sum(axis=1) / np.maximum(both.sum(axis=1), 1)
        return {
            "macro_ap": mean_known(np.stack(areas, axis=1)),
            "macro_f1": mean_known(each),
            "micro_f1": np.where(labels.sum(axis=1) > 0, micro, 0.0),
        }


def label_accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the share of the labels of every image that are answered rightly, (batch,); a logit above 0 is a yes."""
    return ((outputs > 0) == (labels > 0)).float().mean(dim=1)


def neg_bce(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns minus the binary cross-entropy of every image, (batch,), mean over labels."""
    return -F.binary_cross_entropy_with_logits(outputs.float(), labels, reduction="none").mean(
        dim=1
    )


def _check_labels(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises unless labels are multi-hot and there is a logit for each."""
    check_multi_hot(labels)
    if outputs.shape != labels.shape:
        msg = f"the model must return a logit for each of {plural(labels.shape[1], 'label')}, {tuple(labels.shape)} for "
        raise ModelError(f"{msg}{plural(len(labels), 'image')}, found {tuple(outputs.shape)}")


MULTILABEL = Objective(
    loss=F.binary_cross_entropy_with_logits,
    metrics={"label_accuracy": label_accuracy, "neg_bce": neg_bce},
    whole=dict.fromkeys(("macro_ap", "macro_f1", "micro_f1"), LabelScores),
    check=_check_labels,
    divergence=of_labels,
)
