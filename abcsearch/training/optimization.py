"""What changes the weights: learning rates step by step, the optimiser, and the moving average."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from abcsearch.training.recipe import Recipe


def step_shares(recipe: Recipe, per_epoch: int, steps: int | None) -> list[list[float]]:
    """Returns the learning rate of every step of every epoch as a share of the highest one.

    Args:
        recipe: its epochs and schedule.
        per_epoch: steps in an epoch.
        steps: steps in all, instead of the recipe's epochs, whose schedule is then squeezed into these.

    Raises:
        ConfigError: if steps are not at least 1.
    """
    if steps is None:
        return [
            [rate_share(epoch + step / per_epoch, recipe) for step in range(per_epoch)]
            for epoch in range(recipe.epochs)
        ]
    if steps < 1:
        msg = f"steps is the number of optimiser steps, at least 1, found {steps}"
        raise ConfigError(msg)
    every = [rate_share(recipe.epochs * step / steps, recipe) for step in range(steps)]
    return [every[first : first + per_epoch] for first in range(0, steps, per_epoch)]


def rate_share(epoch: float, recipe: Recipe) -> float:
    """Returns the learning rate at a (fractional) epoch as a share of the highest one."""
    warmup = min(recipe.warmup_epochs, recipe.epochs / 2)
    if epoch < warmup:
        return (epoch + 1 / recipe.epochs) / (warmup + 1 / recipe.epochs)
    if recipe.schedule == "step":
        passed = sum(epoch >= share * recipe.epochs - 1e-9 for share in recipe.milestones)
        return recipe.gamma**passed
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (recipe.epochs - warmup)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Returns the optimiser of all parameters that are trained."""
    groups = _parameter_groups(model, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns parameters with and without weight decay: vectors (biases, norm scales and shifts) have none."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Average:
    """The exponential moving average of a network's weights and statistics; counters are copied.

    After step t it is decay * average + (1 - decay) * weights, where decay is the recipe's or, in the beginning,
    (1 + t) / (10 + t).

    Attributes:
        tensors: by name as in the network's state, on its device.
        steps: that it has seen.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begins with the network as it is."""
        self._model, self._decay, self.steps = model, decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def update(self) -> None:
        """Takes the weights after a step in."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        now = self._model.state_dict()
        moving = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([self.tensors[name] for name in moving], [now[name] for name in moving], 1 - decay)
            for name in now.keys() - moving:
                self.tensors[name].copy_(now[name])

    def load(self, tensors: Mapping[str, torch.Tensor], steps: int) -> None:
        """Takes up an average where it was left."""
        self.steps = steps
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Runs a block with the average in the network, and puts its own weights back afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        self._model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self._model.load_state_dict(own)
