"""What networks are for: the loss that they are trained with and the metrics that they are judged by.

`Data.objective` names one, or its import path; `OBJECTIVES["mine"] = Objective(...)` makes another one known, and
`METRICS["mine"] = function` a metric for any of them. `OUTPUTS[MyNet] = function` says which part of what a
network returns is its output, where that is not one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.data.images import IGNORED
from abcsearch.errors import ConfigError, DataError, ModelError, plural
from abcsearch.example import run_on
from abcsearch.training import named
from abcsearch.training.collected import Metrics
from abcsearch.training.distillation import distillation_loss, of_values
from abcsearch.training.named import is_share as is_share
from abcsearch.training.named import metric_text as metric_text
from abcsearch.training.segmentation import MeanIoU

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.registry import Registry
    from abcsearch.training.distillation import Divergence

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

METRICS: Registry[Metric] = named.METRICS


def _fits(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Checks nothing: any outputs fit any labels."""
    del outputs, labels


def _output(model: nn.Module, returned: Any) -> Any:  # noqa: ANN401 - networks return anything
    """Returns a network's output, see `output_of`, which is found when it is called."""
    return output_of(model, returned)


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
        whole: by name: metrics of a whole data set, which are no means over its images. A class stands for all its
            metrics, and is computed once for those that are named.
        output: (network, what its forward pass returned) to its output; metrics and `check` are of that.
        taught: (network, what is called in its place, images, labels) to the output, or None, and the loss of a batch,
            where the loss is the network's own; `loss` is then not asked.
        aux: whether an entry "aux" beside "out" is an auxiliary head, which learns the same labels.
        divergence: (outputs, those of a teacher, temperature) of a batch to how far the first are from the second, a
            scalar: what a recipe with `distillation` lowers. None: there is none.

    The first metric is that of `whole`, where there are some, and the others follow.
    """

    loss: Callable[..., torch.Tensor]
    metrics: Mapping[str, Metric]
    to_full: Mapping[str, Metric] = field(default_factory=dict[str, Metric])
    check: Callable[[Any, torch.Tensor], None] = _fits
    whole: Mapping[str, type[Metrics]] = field(default_factory=dict[str, type[Metrics]])
    output: Callable[[nn.Module, Any], Any] = _output
    taught: Callable[..., tuple[Any, torch.Tensor]] | None = None
    aux: bool = False
    divergence: Divergence | None = None

    @property
    def names(self) -> list[str]:
        """All metrics but those to the full network, the one that reports show first."""
        return [*self.whole, *self.metrics]

    @property
    def headline(self) -> str:
        """The metric that reports show: the first one."""
        return self.names[0]

    def learned(
        self,
        model: nn.Module,
        called: Callable[..., Any],
        batch: tuple[Any, torch.Tensor],
        **options: Any,  # noqa: ANN401 - keywords of the loss
    ) -> tuple[Any, torch.Tensor]:
        """Shows a network a batch; returns its output and the loss.

        Args:
            model: the network, in training mode.
            called: what is called in its place: itself, or what averages gradients over processes.
            batch: images and labels.
            options: of the loss.
        """
        images, labels = batch
        if self.taught is not None:
            return self.taught(model, called, images, labels, **options)
        outputs = self.output(model, run_on(called, images))
        return outputs, self.loss(outputs, labels, **options)


def _hits(outputs: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Returns 1 for every image whose label is among the `count` best classes, (batch,) float32."""
    best = outputs.topk(min(count, outputs.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).float()


def top1(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns 1 for every image whose best class is the label, (batch,) float32."""
    return _hits(outputs, labels, 1)


def top5(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns 1 for every image whose label is among the five best classes, (batch,) float32."""
    return _hits(outputs, labels, 5)


def neg_loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns minus the cross-entropy of every image, (n,) in nats: the mean over places, without ignored ones."""
    losses = F.cross_entropy(outputs.float(), labels, reduction="none", ignore_index=IGNORED)
    counted = (labels != IGNORED).reshape(len(labels), -1).sum(dim=1)
    return -losses.reshape(len(labels), -1).sum(dim=1) / counted.clamp_min(1)


def neg_kl(outputs: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Returns minus the divergence of the full network's classes from these, (n,) in nats: the mean over places."""
    ours, theirs = F.log_softmax(outputs.float(), dim=1), F.log_softmax(full.float(), dim=1)
    return (
        -F.kl_div(ours, theirs, reduction="none", log_target=True)
        .sum(dim=1)
        .reshape(len(ours), -1)
        .mean(dim=1)
    )


def pixel_accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the share of the pixels of every image, (n,), whose best class is the label, without ignored ones."""
    counted = (labels != IGNORED).flatten(1)
    return ((outputs.argmax(dim=1) == labels).flatten(1) & counted).sum(dim=1) / counted.sum(
        dim=1
    ).clamp_min(1)


def neg_mse(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns minus the mean squared error of every image, (n,)."""
    return -F.mse_loss(outputs.float(), labels, reduction="none").flatten(1).mean(dim=1)


def neg_mae(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns minus the mean absolute error of every image, (n,)."""
    return -F.l1_loss(outputs.float(), labels, reduction="none").flatten(1).mean(dim=1)


_UNLABELLED = 255  # what VOC and Cityscapes call pixels that do not count


def _check_classes(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises unless outputs are (batch, classes) logits, or (batch, classes, ...) ones of places, for the labels."""
    wanted = (len(labels), "classes", *labels.shape[1:])
    if outputs.ndim != len(wanted) or (outputs.shape[0], *outputs.shape[2:]) != (
        wanted[0],
        *wanted[2:],
    ):
        shape = ", ".join(map(str, ("batch", *wanted[1:])))
        msg = f"the model must return logits ({shape}) for {plural(len(labels), 'image')}, found {tuple(outputs.shape)}"
        raise ModelError(msg)
    if int(labels.max()) >= outputs.shape[1]:
        classes = plural(outputs.shape[1], "class")
        msg = f"label {int(labels.max())} has no output: the model has {classes}, counted from 0"
        if labels.ndim > 1 and int(labels.max()) == _UNLABELLED:
            msg += f"; where {_UNLABELLED} means pixels that do not count, say so: ignore_index = {_UNLABELLED}"
        raise DataError(msg)


def _check_values(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises unless outputs have the shape of the labels."""
    if outputs.shape != labels.shape:
        msg = f"the model must return {tuple(labels.shape)} numbers for {plural(len(labels), 'image')}, found "
        msg += f"{tuple(outputs.shape)}"
        raise ModelError(msg)


OBJECTIVES: Registry[Objective] = named.OBJECTIVES

# What it names.
CLASSIFICATION = Objective(
    loss=F.cross_entropy,
    metrics={"top1": top1, "top5": top5, "neg_loss": neg_loss},
    to_full={"neg_kl": neg_kl},
    check=_check_classes,
    divergence=distillation_loss,
)
SEGMENTATION = Objective(
    loss=F.cross_entropy,
    metrics={"pixel_accuracy": pixel_accuracy, "neg_loss": neg_loss},
    whole={"miou": MeanIoU},
    to_full={"neg_kl": neg_kl},
    check=_check_classes,
    aux=True,
    divergence=distillation_loss,
)
REGRESSION = Objective(
    loss=F.mse_loss,
    metrics={"neg_mse": neg_mse, "neg_mae": neg_mae},
    check=_check_values,
    divergence=of_values,
)


def as_objective(name: str, value: Any) -> Objective:  # noqa: ANN401 - whatever a name leads to
    """Returns the objective for what a name leads to: one, or a function without arguments that returns one.

    Raises:
        ConfigError: if it is neither.
    """
    made: object = value if isinstance(value, Objective) or not callable(value) else value()
    if isinstance(made, Objective):
        return made
    msg = f"objective {name!r} is an Objective, or a function that returns one, found {made!r:.80}"
    raise ConfigError(msg)


def find_objective(name: str) -> Objective:
    """Returns an objective by name or import path.

    Raises:
        ConfigError: if the name is unknown (with the nearest valid one), or the import path leads to none.
    """
    return OBJECTIVES.find(name)


# Class of a network -> which part of what it returns is its output; holds for its subclasses as well.
OUTPUTS: dict[type, Callable[[Any], torch.Tensor]] = {}


def registered() -> dict[str, Callable[[], object]]:
    """Returns calls that register in another process what has been added in this one for evaluations and training.

    That is in `OBJECTIVES`, `METRICS` and `OUTPUTS`. The calls are named as messages name them, and may be pickled if
    what has been added can be.
    """
    return {
        **OBJECTIVES.sent(),
        **METRICS.sent(),
        **{
            f"OUTPUTS[{kind.__qualname__}]": partial(_add_output, kind, entry)
            for kind, entry in OUTPUTS.items()
        },
    }


def aux_of(returned: object) -> torch.Tensor | None:
    """Returns the entry "aux" of what a forward pass returned, beside "out" as torchvision has it; None without one."""
    if not isinstance(returned, Mapping) or "out" not in returned:
        return None
    aux = cast("Mapping[str, object]", returned).get("aux")
    return aux if isinstance(aux, torch.Tensor) else None


def _add_output(kind: type, select: Callable[[Any], torch.Tensor]) -> None:
    OUTPUTS[kind] = select


def output_of(model: nn.Module, returned: object) -> torch.Tensor:
    """Returns a network's output out of what its forward pass returned.

    That is the tensor; or what the entry of its class in `OUTPUTS` selects; or else the `logits` (as of torchvision's
    GoogLeNet in training mode, or an entry of a dict) or the entry "out" of a dict (as of torchvision's segmentation
    networks).

    Raises:
        ModelError: if there is no such tensor.
    """
    if isinstance(returned, torch.Tensor):
        return returned
    select = next((OUTPUTS[kind] for kind in type(model).__mro__ if kind in OUTPUTS), None)
    if select is not None:
        output: object = select(returned)
    elif isinstance(returned, Mapping) and "out" in returned:
        output = cast("Mapping[str, object]", returned)["out"]
    elif isinstance(returned, Mapping) and "logits" in returned:
        output = cast("Mapping[str, object]", returned)["logits"]
    else:
        output = getattr(returned, "logits", None)
    if isinstance(output, torch.Tensor):
        return output
    name = type(model).__name__
    if select is not None:
        msg = f"OUTPUTS[{name}] must select a tensor, found {type(output).__name__}"
        raise ModelError(msg)
    example, keys = "0", ""
    if isinstance(returned, Mapping):
        names = [str(key) for key in cast("Mapping[object, object]", returned)]
        example, keys = repr(names[0]) if names else "'logits'", f" with {', '.join(names)}"
    msg = (
        f"{name} must return logits, found a {type(returned).__name__}{keys}; say which part is the output: "
        f"abcsearch.OUTPUTS[{name}] = lambda returned: returned[{example}]"
    )
    raise ModelError(msg)
