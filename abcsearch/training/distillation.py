"""Knowledge distillation: how far what a network says is from what another one does, by what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

if TYPE_CHECKING:
    from collections.abc import Callable

    Divergence = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def distillation_loss(
    outputs: torch.Tensor, wanted: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Returns temperature^2 times the mean divergence KL(wanted || outputs) of softened classes, a scalar.

    Of a segmentation it is the mean over all pixels, those without a label among them.

    Source: Hinton, Vinyals and Dean, Distilling the knowledge in a neural network (2015), section 2.

    Args:
        outputs: (batch, classes, ...) logits.
        wanted: logits of the teacher, of the same shape.
        temperature: > 0, that both are divided by; its square keeps gradients of one size.
    """
    ours = F.log_softmax(outputs.float() / temperature, dim=1)
    theirs = F.log_softmax(wanted.float() / temperature, dim=1)
    places = outputs.numel() // outputs.shape[1]
    return temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True) / places


def of_labels(outputs: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns temperature^2 times the mean divergence of softened labels, each there or not, a scalar.

    Args:
        outputs: (batch, labels) logits.
        wanted: those of the teacher.
        temperature: > 0, that both are divided by.
    """
    ours, theirs = outputs.float() / temperature, wanted.float() / temperature
    there = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    absent = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return temperature**2 * (there + absent).mean()


def of_values(outputs: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the mean squared distance of values, a scalar; the temperature is not used.

    Args:
        outputs: (batch, ...) values.
        wanted: those of the teacher.
        temperature: of those divergences that soften.
    """
    del temperature
    return F.mse_loss(outputs.float(), wanted.float())


def of_images(outputs: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the mean absolute distance of images, a scalar, as the loss of super-resolution is; as `of_values`."""
    del temperature
    return F.l1_loss(outputs.float(), wanted.float())
