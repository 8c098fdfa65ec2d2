"""Knowledge distillation: a network learns the outputs of another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.errors import ModelError
from abcsearch.example import run_on
from abcsearch.training.objectives import output_of

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.example import Inputs


def distillation_loss(
    outputs: torch.Tensor, wanted: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Returns temperature^2 times the mean divergence KL(wanted || outputs) of softened classes, a scalar.

    Source: Hinton, Vinyals and Dean, Distilling the knowledge in a neural network (2015), section 2.

    Args:
        outputs: (batch, classes) logits.
        wanted: (batch, classes) logits of the teacher.
        temperature: > 0, that both are divided by; its square keeps gradients of one size.
    """
    ours = F.log_softmax(outputs.float() / temperature, dim=1)
    theirs = F.log_softmax(wanted.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def teach(teacher: nn.Module, images: Inputs, outputs: torch.Tensor) -> torch.Tensor:
    """Returns the teacher's outputs for images, without gradients.

    Raises:
        ModelError: if they have another shape than those of the network that learns.
    """
    with torch.no_grad():
        wanted = output_of(teacher, run_on(teacher, images))
    if wanted.shape != outputs.shape:
        msg = (
            f"teacher and network must have the same classes, found outputs {tuple(wanted.shape)} of the teacher and "
            f"{tuple(outputs.shape)} of the network"
        )
        raise ModelError(msg)
    return wanted
