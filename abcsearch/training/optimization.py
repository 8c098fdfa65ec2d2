"""What changes the weights: learning rates step by step, the optimiser, and the moving average."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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


class Optimizers:
    """The optimisers of a training, whose learning rates follow one schedule, each from its own highest one.

    Attributes:
        parameters: all that they change.
    """

    def __init__(self, named: Mapping[str, torch.optim.Optimizer]) -> None:
        """Takes them as they are: the learning rate of every group is its highest one."""
        self._named = dict(named)
        self._rates = [float(group["lr"]) for group in self._groups()]
        self._options = {name: _options(optimizer) for name, optimizer in named.items()}
        self.parameters: list[torch.Tensor] = [
            p for group in self._groups() for p in group["params"]
        ]

    def _groups(self) -> list[dict[str, Any]]:
        """Returns the groups of all; loading a state makes new ones."""
        return [group for optimizer in self._named.values() for group in optimizer.param_groups]

    def step(self, share: float, clip_norm: float) -> None:
        """Changes the parameters by their gradients.

        Args:
            share: of the highest learning rates.
            clip_norm: longest gradient, of all parameters together; 0: no limit.
        """
        # `intact` sees groups that have come
        for group, rate in zip(self._groups(), self._rates, strict=False):
            group["lr"] = rate * share
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        for optimizer in self._named.values():
            optimizer.step()

    def intact(self, whole: nn.Module) -> bool:
        """Returns whether they still change what they did in the beginning, and all of it is in the modules."""
        now = [p for group in self._groups() for p in group["params"]]
        known = {id(parameter) for parameter in whole.parameters()}
        return [*map(id, now)] == [*map(id, self.parameters)] and known.issuperset(map(id, now))

    def saved(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns the tensors of their states, and the plain values: of states, and options that have been changed.

        Of one optimiser, tensors are called number.key; of several, name.number.key.
        """
        tensors: dict[str, torch.Tensor] = {}
        values: dict[str, Any] = {}
        for name, optimizer in self._named.items():
            for number, entries in optimizer.state_dict()["state"].items():
                for key, value in entries.items():
                    path = f"{self._before(name)}{number}.{key}"
                    if isinstance(value, torch.Tensor):
                        tensors[path] = value
                    elif value is not None:
                        values[path] = value
        now = {name: _options(optimizer) for name, optimizer in self._named.items()}
        options = {name: groups for name, groups in now.items() if groups != self._options[name]}
        return tensors, {
            name: plain for name, plain in (("values", values), ("options", options)) if plain
        }

    def load(self, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
        """Takes their states up, tensors laid out in memory as the parameters are."""
        entries = {**tensors, **plain.get("values", {})}
        for name, optimizer in self._named.items():
            before = self._before(name)
            states = {
                path.removeprefix(before): value
                for path, value in entries.items()
                if path.startswith(before)
            }
            _load(optimizer, states, plain.get("options", {}).get(name, ()))

    def _before(self, name: str) -> str:
        """Returns what stands before the names of an optimiser's tensors."""
        return f"{name}." if len(self._named) > 1 else ""


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Returns the plain options of every group, but for the learning rate, which the schedule sets."""
    plain = (bool, int, float, str, tuple, type(None))
    return [
        {
            key: value
            for key, value in group.items()
            if key not in ("params", "lr") and isinstance(value, plain)
        }
        for group in optimizer.param_groups
    ]


def _load(
    optimizer: torch.optim.Optimizer,
    entries: Mapping[str, Any],
    options: Iterable[Mapping[str, Any]],
) -> None:
    """Gives an optimiser its state and options back."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, Any] = {}
    for path, value in entries.items():
        number, _, key = path.partition(".")
        like = parameters[int(number)]
        if isinstance(value, torch.Tensor) and value.shape == like.shape:
            value = torch.empty_like(like).copy_(value).detach()
        states.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, changed in zip(groups, options, strict=False):
        group |= {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in changed.items()
        }
    optimizer.load_state_dict({"state": states, "param_groups": groups})


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
        self.tensors = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        }

    def update(self) -> None:
        """Takes the weights after a step in."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        now = self._model.state_dict()
        moving = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.tensors[name] for name in moving], [now[name] for name in moving], 1 - decay
            )
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
        before = {
            name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()
        }
        self._model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self._model.load_state_dict(before)
