"""The objectives and metrics that have a name, without torch; see `abcsearch.training.objectives`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from abcsearch.errors import ConfigError
from abcsearch.registry import Home, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _metric(name: str, value: Any) -> Metric:  # noqa: ANN401 - whatever a name leads to
    if callable(value):
        return cast("Metric", value)
    msg = f"metric {name!r} is a function of (outputs, labels) to one number per image, found {value!r:.50}"
    raise ConfigError(msg)


_IN = "abcsearch.training.objectives"
_LABELS = "abcsearch.training.multilabel"
_QUALITY = "abcsearch.training.image_quality"
_MAP = "abcsearch.training.detections:MeanAveragePrecision"

# Name -> metric: (outputs, labels) of a batch to one number per image, (batch,); higher is better. Those of this
# package are of objectives, which say which; `METRICS["mine"] = function` can be the fitness under any objective.
METRICS: Registry[Metric] = Registry(
    "metric",
    f"{__name__}:METRICS",
    {
        "top1": Home(
            path=f"{_IN}:top1",
            description="classification: share of images whose best class is the label",
        ),
        "top5": Home(
            path=f"{_IN}:top5",
            description="classification: share whose label is among the five best classes",
        ),
        "neg_loss": Home(
            path=f"{_IN}:neg_loss",
            description="classification, segmentation: minus the cross-entropy; smoother, for accuracies near chance",
        ),
        "neg_kl": Home(
            path=f"{_IN}:neg_kl",
            description="classification, segmentation: minus the divergence to the full network's outputs",
        ),
        "pixel_accuracy": Home(
            path=f"{_IN}:pixel_accuracy",
            description="segmentation: share of pixels whose best class is the label",
        ),
        "miou": Home(
            path="abcsearch.training.segmentation:MeanIoU",
            description="segmentation: intersection over union of all images' pixels, mean over classes",
        ),
        "neg_mse": Home(
            path=f"{_IN}:neg_mse", description="regression: minus the mean squared error"
        ),
        "neg_mae": Home(
            path=f"{_IN}:neg_mae", description="regression: minus the mean absolute error"
        ),
        "macro_ap": Home(
            path=f"{_LABELS}:LabelScores",
            description="multilabel: average precision of all images, mean over labels",
        ),
        "macro_f1": Home(
            path=f"{_LABELS}:LabelScores",
            description="multilabel: F1 of all images, mean over labels",
        ),
        "micro_f1": Home(
            path=f"{_LABELS}:LabelScores", description="multilabel: F1 of all answers together"
        ),
        "label_accuracy": Home(
            path=f"{_LABELS}:label_accuracy",
            description="multilabel: share of an image's labels that are right",
        ),
        "neg_bce": Home(
            path=f"{_LABELS}:neg_bce", description="multilabel: minus the binary cross-entropy"
        ),
        "psnr": Home(
            path=f"{_QUALITY}:psnr",
            description="superresolution: peak signal-to-noise ratio of Y in dB, mean over images",
        ),
        "ssim": Home(
            path=f"{_QUALITY}:ssim",
            description="superresolution: structural similarity of Y, up to 1",
        ),
        "mAP": Home(
            path=_MAP, description="detection: COCO's average precision, overlaps of 0.5 to 0.95"
        ),
        "mAP50": Home(
            path=_MAP, description="detection: likewise, boxes that overlap by half are right"
        ),
        "mAP75": Home(path=_MAP, description="detection: likewise, by three quarters"),
    },
    error=ConfigError,
    accept=_metric,
)

# Name -> objective. `OBJECTIVES["mine"] = Objective(...)` makes one of your own known by name.
OBJECTIVES: Registry[Any] = Registry(
    "objective",
    f"{__name__}:OBJECTIVES",
    {
        "classification": Home(
            path=f"{_IN}:CLASSIFICATION",
            description="one class per image: cross-entropy; judged by top1, top5, neg_loss, neg_kl",
        ),
        "segmentation": Home(
            path=f"{_IN}:SEGMENTATION",
            description="one class per pixel: cross-entropy; judged by miou, pixel_accuracy, neg_loss, neg_kl",
        ),
        "regression": Home(
            path=f"{_IN}:REGRESSION",
            description="numbers: mean squared error; judged by neg_mse, neg_mae",
        ),
        "multilabel": Home(
            path=f"{_LABELS}:MULTILABEL",
            description="several labels at once: binary cross-entropy; judged by macro_ap, macro_f1, micro_f1, "
            "label_accuracy, neg_bce",
        ),
        "superresolution": Home(
            path=f"{_QUALITY}:SUPERRESOLUTION",
            description="images from small ones: mean absolute error; judged by psnr, ssim",
        ),
        "detection": Home(
            path="abcsearch.training.detections:DETECTION",
            description="boxes of objects: the network's own losses; judged by mAP, mAP50, mAP75",
        ),
    },
    error=ConfigError,
    accept=Home(path=f"{_IN}:as_objective"),
    callables=False,
)

_SHARES = frozenset(
    {"top1", "top5", "pixel_accuracy", "miou", "mAP", "mAP50", "mAP75", "label_accuracy"}
    | {"macro_ap", "macro_f1", "micro_f1"}
)


def is_share(metric: str) -> bool:
    """Returns whether a metric is in [0, 1] and told in per cent: shares of images or pixels, average precision."""
    return metric in _SHARES


def metric_text(metric: str, value: float) -> str:
    """Returns a metric's value as people read it: what is in [0, 1] in per cent, ratios of signals in dB."""
    if metric == "psnr":
        return f"{value:.2f} dB"
    return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.4f}"


def change_text(metric: str, change: float, *, signed: bool = True) -> str:
    """Returns a difference of a metric as people read it: shares in points, ratios of signals in dB."""
    if is_share(metric):
        return f"{100 * change:+.2f} points" if signed else f"{100 * change:.1f} points"
    sign = "+" if signed and change >= 0 else ""
    return f"{sign}{metric_text(metric, change)}"
