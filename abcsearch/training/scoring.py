"""How good a network is on a split."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.errors import DataError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from abcsearch.data.splits import Split

# Metrics of one batch, summed over its images: logits (n, classes) and labels (n,) -> a number; all higher is better.
METRICS = ("top1", "top5", "neg_loss")


def score(model: nn.Module, split: Split, *, batch_size: int = 512) -> dict[str, float]:
    """Returns all metrics of a network on a split: top1 and top5 in [0, 1], neg_loss (negative mean cross-entropy).

    Runs in evaluation mode without gradients and leaves the modes of the modules as they were.

    Args:
        model: maps (batch, channels, height, width) to logits (batch, classes).
        split: images and labels.
        batch_size: images per pass.

    Raises:
        ModelError: if the model does not return logits.
        DataError: if a label has no output.
    """
    sums = torch.zeros(len(METRICS), dtype=torch.float64)
    with modes_kept(model), torch.inference_mode():
        model.eval()
        for start in range(0, len(split), batch_size):
            labels = split.labels[start : start + batch_size]
            logits = check_logits(model(split.images[start : start + batch_size]), labels)
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([best[:, 0].sum(), best.sum(), -loss]).double()
    return dict(zip(METRICS, (sums / len(split)).tolist(), strict=True))


def check_logits(output: object, labels: torch.Tensor) -> torch.Tensor:
    """Returns a network's output if it is logits for the labels.

    Raises:
        ModelError: if it is something else than a (batch, classes) tensor.
        DataError: if a label has no output.
    """
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != len(labels):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        msg = f"the model must return logits (batch, classes) for {len(labels)} images, found {found}"
        raise ModelError(msg)
    if int(labels.max()) >= output.shape[1]:
        msg = f"label {int(labels.max())} has no output: the model has {output.shape[1]} classes, counted from 0"
        raise DataError(msg)
    return output


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Runs a block and puts the training mode of every module back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
