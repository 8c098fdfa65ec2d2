"""What networks are for: the loss that they are trained with and the metrics that they are judged by.

`Data.objective` names one; `OBJECTIVES["mine"] = Objective(...)` makes another one known. `OUTPUTS[MyNet] = function`
says which part of what a network returns is its output, where that is not one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.data.images import IGNORED
from abcsearch.errors import ConfigError, DataError, ModelError, unknown_name

if TYPE_CHECKING:
    from torch import nn

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _fits(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Checks nothing: any outputs fit any labels."""
    del outputs, labels


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a network is for.

    Attributes:
        loss: (outputs, labels) of a batch to the mean loss, a scalar; takes `label_smoothing` as a keyword if a recipe
            sets it.
        metrics: by name: (outputs, labels) of a batch to one number per image, (batch,); higher is better. A network's
            score is their mean over all images.
        to_full: by name: (outputs, outputs of the full network) to one number per image, (batch,); higher is better.
        check: raises ModelError or DataError where the outputs of a batch do not fit its labels.
    """

    loss: Callable[..., torch.Tensor]
    metrics: Mapping[str, Metric]
    to_full: Mapping[str, Metric] = field(default_factory=dict[str, Metric])
    check: Callable[[torch.Tensor, torch.Tensor], None] = _fits

    @property
    def headline(self) -> str:
        """The metric that reports show: the first one."""
        return next(iter(self.metrics))


_SHARES = frozenset({"top1", "top5", "pixel_accuracy", "miou"})


def metric_text(metric: str, value: float) -> str:
    """Returns a metric's value as people read it: shares of images or pixels in per cent."""
    return f"{100 * value:.2f} %" if metric in _SHARES else f"{value:.4f}"


def _hits(outputs: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Returns 1 for every image whose label is among the `count` best classes, (batch,) float32."""
    best = outputs.topk(min(count, outputs.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).float()


def _top1(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _hits(outputs, labels, 1)


def _top5(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _hits(outputs, labels, 5)


def _neg_loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns minus the cross-entropy of every image; of several places: their mean, ignored ones left out."""
    losses = F.cross_entropy(outputs.float(), labels, reduction="none", ignore_index=IGNORED).flatten(1)
    return -losses.sum(dim=1) / (labels.flatten(1) != IGNORED).sum(dim=1).clamp_min(1)


def _classes_neg_loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(outputs.float(), labels, reduction="none")


def _neg_kl(outputs: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Returns minus the Kullback-Leibler divergence of the full network's classes to these, mean over places."""
    ours, theirs = F.log_softmax(outputs.float(), dim=1), F.log_softmax(full.float(), dim=1)
    return -F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1).reshape(len(ours), -1).mean(dim=1)


def _pixel_accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    counted = (labels != IGNORED).flatten(1)
    return ((outputs.argmax(dim=1) == labels).flatten(1) & counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)


def _miou(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the intersection over union of every image, mean over the classes that it shows or is said to show."""
    found, counted = outputs.argmax(dim=1).flatten(1), (labels != IGNORED).flatten(1)
    labels = labels.flatten(1)
    sums, present = torch.zeros(len(labels), device=labels.device), torch.zeros(len(labels), device=labels.device)
    for number in range(outputs.shape[1]):
        said, there = (found == number) & counted, labels == number
        union = (said | there).sum(dim=1)
        sums += (said & there).sum(dim=1) / union.clamp_min(1)
        present += union > 0
    return sums / present.clamp_min(1)


def _neg_mse(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -F.mse_loss(outputs.float(), labels, reduction="none").flatten(1).mean(dim=1)


def _neg_mae(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -F.l1_loss(outputs.float(), labels, reduction="none").flatten(1).mean(dim=1)


def _check_classes(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises unless outputs are (batch, classes) logits, or (batch, classes, ...) ones of places, for the labels."""
    wanted = (len(labels), "classes", *labels.shape[1:])
    if outputs.ndim != len(wanted) or (outputs.shape[0], *outputs.shape[2:]) != (wanted[0], *wanted[2:]):
        shape = ", ".join(map(str, ("batch", *wanted[1:])))
        msg = f"the model must return logits ({shape}) for {len(labels)} images, found {tuple(outputs.shape)}"
        raise ModelError(msg)
    if int(labels.max()) >= outputs.shape[1]:
        msg = f"label {int(labels.max())} has no output: the model has {outputs.shape[1]} classes, counted from 0"
        raise DataError(msg)


def _check_values(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises unless outputs have the shape of the labels."""
    if outputs.shape != labels.shape:
        msg = f"the model must return {tuple(labels.shape)} numbers for {len(labels)} images, found "
        msg += f"{tuple(outputs.shape)}"
        raise ModelError(msg)


OBJECTIVES: dict[str, Objective] = {
    "classification": Objective(
        loss=F.cross_entropy,
        metrics={"top1": _top1, "top5": _top5, "neg_loss": _classes_neg_loss},
        to_full={"neg_kl": _neg_kl},
        check=_check_classes,
    ),
    "segmentation": Objective(
        loss=F.cross_entropy,
        metrics={"pixel_accuracy": _pixel_accuracy, "miou": _miou, "neg_loss": _neg_loss},
        to_full={"neg_kl": _neg_kl},
        check=_check_classes,
    ),
    "regression": Objective(loss=F.mse_loss, metrics={"neg_mse": _neg_mse, "neg_mae": _neg_mae}, check=_check_values),
}


_BUILT_IN = dict(OBJECTIVES)


def find_objective(name: str) -> Objective:
    """Returns an objective by name.

    Raises:
        ConfigError: if the name is unknown, with the nearest valid one.
    """
    if name not in OBJECTIVES:
        raise ConfigError(unknown_name("objective", name, OBJECTIVES))
    return OBJECTIVES[name]


# Class of a network -> which part of what it returns is its output; holds for its subclasses as well.
OUTPUTS: dict[type, Callable[[Any], torch.Tensor]] = {}


def registered() -> dict[str, Callable[[], object]]:
    """Returns calls that register in another process what has been added to `OBJECTIVES` and `OUTPUTS` in this one.

    They are named as messages name them, and may be pickled if what has been added can be.
    """
    added = {name: entry for name, entry in OBJECTIVES.items() if _BUILT_IN.get(name) is not entry}
    return {
        **{f"OBJECTIVES[{name!r}]": partial(_add_objective, name, entry) for name, entry in added.items()},
        **{f"OUTPUTS[{kind.__qualname__}]": partial(_add_output, kind, entry) for kind, entry in OUTPUTS.items()},
    }


def _add_objective(name: str, objective: Objective) -> None:
    OBJECTIVES[name] = objective


def _add_output(kind: type, select: Callable[[Any], torch.Tensor]) -> None:
    OUTPUTS[kind] = select


def output_of(model: nn.Module, returned: object) -> torch.Tensor:
    """Returns a network's output out of what its forward pass returned.

    That is the tensor; or what the entry of its class in `OUTPUTS` selects; or else the `logits` (as of torchvision's
    GoogLeNet in training mode) or the entry "out" of a dict (as of torchvision's segmentation networks).

    Raises:
        ModelError: if there is no such tensor.
    """
    if isinstance(returned, torch.Tensor):
        return returned
    select = next((OUTPUTS[kind] for kind in type(model).__mro__ if kind in OUTPUTS), None)
    if select is not None:
        found: object = select(returned)
    elif isinstance(returned, Mapping) and "out" in returned:
        found = cast("Mapping[str, object]", returned)["out"]
    else:
        found = getattr(returned, "logits", None)
    if isinstance(found, torch.Tensor):
        return found
    name = type(model).__name__
    if select is not None:
        msg = f"OUTPUTS[{name}] must select a tensor, found {type(found).__name__}"
        raise ModelError(msg)
    part, keys = "0", ""
    if isinstance(returned, Mapping):
        names = [str(key) for key in cast("Mapping[object, object]", returned)]
        part, keys = repr(names[0]) if names else "'logits'", f" with {', '.join(names)}"
    msg = (
        f"{name} must return logits, found a {type(returned).__name__}{keys}; say which part is the output: "
        f"abcsearch.OUTPUTS[{name}] = lambda returned: returned[{part}]"
    )
    raise ModelError(msg)
