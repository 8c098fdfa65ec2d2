"""The one training loop: SGD with momentum, cosine schedule with warm-up."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from abcsearch.data.images import Images
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, DataError, ModelError, type_problems
from abcsearch.rng import torch_seeded, torch_stream
from abcsearch.training.computing import MAX_THREADS, check_precision, computing, find_device
from abcsearch.training.objectives import find_objective, output_of
from abcsearch.training.scoring import device_of, modes_kept, score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from abcsearch.training.objectives import Objective

    # Called after every epoch with (epochs done, epochs in all, mean training loss of the epoch).
    OnEpoch = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images, at least 1.
        batch_size: images per step, at least 1; an incomplete last batch is left out of its epoch.
        lr: highest learning rate, > 0; reached after the warm-up, then a cosine down to 0.
        momentum: Nesterov momentum, in [0, 1).
        weight_decay: L2 penalty on weights, not on biases and norm parameters.
        warmup_epochs: epochs of linear warm-up, may be a fraction.
        label_smoothing: in [0, 1).
        shift: augmentation: random translation by up to so many pixels in both directions, zeros coming in.
        flip: augmentation: random horizontal mirror image.
        threads: torch threads on the CPU; part of the recipe since it decides the order of summation.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
        precision: "float32"; on CUDA also "tf32" or "bf16".

    Raises:
        ConfigError: if a value is out of range, or the device does not have the precision.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    threads: int = 1
    device: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Checks the values."""
        if problems := type_problems(self):
            msg = f"training recipe: {'; '.join(problems)}"
            raise ConfigError(msg)
        check_precision(self.precision, find_device(self.device))
        rules = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": self.lr > 0,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "warmup_epochs": self.warmup_epochs >= 0,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "shift": self.shift >= 0,
            "threads": 1 <= self.threads <= MAX_THREADS,
        }
        rules = {name: holds and math.isfinite(getattr(self, name)) for name, holds in rules.items()}
        wrong = [f"{name} = {getattr(self, name)}" for name, holds in rules.items() if not holds]
        if wrong:
            msg = f"training recipe out of range: {', '.join(wrong)} (see abcsearch.Recipe for the ranges)"
            raise ConfigError(msg)


def train(  # noqa: PLR0913 - the one training loop; everything but the first three has a good default
    model: nn.Module,
    split: Images,
    recipe: Recipe,
    *,
    seed: int = 0,
    part: str = "train",
    objective: str = "classification",
    steps: int | None = None,
    on_epoch: OnEpoch | None = None,
) -> None:
    """Trains a network in place; deterministic on CPU for the same arguments.

    Args:
        model: maps images to logits; its weights change, the modes of its modules do not. It is trained on the recipe's
            device, and is where it was afterwards; its weights stay channels_last.
        split: training images. Those in memory are copied to the device once and stay there.
        recipe: how.
        seed: the run's seed.
        part: name of the random stream, so that different trainings of a run differ.
        objective: of `OBJECTIVES`: what the loss is.
        steps: optimiser steps, at least 1, instead of the recipe's epochs, whose schedule is then squeezed into these.
        on_epoch: progress.

    Raises:
        ConfigError: if there are fewer images than one batch, or fewer steps than one.
        ModelError: if the model does not return logits, or has nothing to train, or the loss is not finite.
        DataError: if a label has no output, or an image cannot be read.
    """
    check_images(recipe, split)
    if not any(p.requires_grad for p in model.parameters()):
        msg = f"{type(model).__name__} has no parameter to train: requires_grad is False everywhere"
        raise ModelError(msg)
    shares = _shares(recipe, len(split) // recipe.batch_size, steps)
    home, place = device_of(model), find_device(recipe.device)
    goal = find_objective(objective)
    smoothing = {"label_smoothing": recipe.label_smoothing} if recipe.label_smoothing else {}
    model.to(place, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - overload without it
    optimizer = torch.optim.SGD(
        _parameter_groups(model, recipe.weight_decay),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
    )
    draws = torch_stream(seed, f"{part}-batches")
    with (
        _lent(model, home),
        modes_kept(model),
        computing(place, precision=recipe.precision, threads=recipe.threads),
        torch_seeded(seed, f"{part}-forward"),
    ):
        model.train()
        for epoch, own in enumerate(shares, 1):
            # Nothing in a step waits for the device: the loss is read once per epoch, labels are checked once.
            losses = torch.zeros((), device=place)
            batches = split.shuffled(recipe.batch_size, draws, shift=recipe.shift, flip=recipe.flip, device=place)
            for step, (images, labels) in zip(range(len(own)), batches, strict=False):  # the last may be cut short
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr * own[step]
                outputs = output_of(model, model(images))
                if (epoch, step) == (1, 0):
                    _check(goal, outputs, labels, split)
                loss = goal.loss(outputs, labels, **smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                torch.clear_autocast_cache()  # it holds weights as they were before the step
                losses += loss.detach()
            if not bool(torch.isfinite(losses)):
                msg = f"the training loss is {float(losses)} in epoch {epoch}; lower lr = {recipe.lr}"
                raise ModelError(msg)
            if on_epoch is not None:
                on_epoch(epoch, len(shares), float(losses) / len(own))


@contextlib.contextmanager
def _lent(model: nn.Module, home: torch.device) -> Iterator[None]:
    """Runs a block and puts the network back on a device."""
    try:
        yield
    finally:
        model.to(home)


def check_images(recipe: Recipe, split: Images) -> None:
    """Raises unless there are images for at least one batch.

    Raises:
        DataError: if it is no set of images.
        ConfigError: if there are fewer images than one batch.
    """
    if not isinstance(split, Images):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"training takes a Split or Stream (data.train), found {type(split).__name__}"
        raise DataError(msg)
    if len(split) < recipe.batch_size:
        msg = f"batch_size {recipe.batch_size} is larger than the {len(split)} training images; make it smaller"
        raise ConfigError(msg)


def _check(objective: Objective, outputs: torch.Tensor, labels: torch.Tensor, split: Images) -> None:
    """Checks the outputs of the first batch, also with the highest label that any batch will have."""
    objective.check(outputs, labels)
    highest = split.labels.reshape(len(split), -1).amax(dim=1).argmax()[None]
    objective.check(outputs[:1], split.labels[highest].to(outputs.device))


def _shares(recipe: Recipe, per_epoch: int, steps: int | None) -> list[list[float]]:
    """Returns the learning rate of every step of every epoch as a share of the highest one.

    Raises:
        ConfigError: if steps are not at least 1.
    """
    if steps is None:
        return [
            [_schedule(epoch + step / per_epoch, recipe) for step in range(per_epoch)] for epoch in range(recipe.epochs)
        ]
    if steps < 1:
        msg = f"steps is the number of optimiser steps, at least 1, found {steps}"
        raise ConfigError(msg)
    every = [_schedule(recipe.epochs * step / steps, recipe) for step in range(steps)]
    return [every[first : first + per_epoch] for first in range(0, steps, per_epoch)]


def _schedule(epoch: float, recipe: Recipe) -> float:
    """Returns the learning rate at a (fractional) epoch as a share of the highest one."""
    warmup = min(recipe.warmup_epochs, recipe.epochs / 2)
    if epoch < warmup:
        return (epoch + 1 / recipe.epochs) / (warmup + 1 / recipe.epochs)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (recipe.epochs - warmup)))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Returns parameters with and without weight decay: vectors (biases, norm scales and shifts) have none."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """A fine-tuned network and its test scores.

    Attributes:
        model: the network, in evaluation mode.
        before: metrics on the test split before fine-tuning (see `score`).
        after: metrics on the test split after it.
    """

    model: nn.Module = field(repr=False)
    before: dict[str, float]
    after: dict[str, float]


def finetune(
    model: nn.Module,
    data: Data,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> FineTuned:
    """Trains a copy of a pruned network on the training split and scores both on the test split.

    Args:
        model: the network; not changed.
        data: trains on `data.train`; `data.test` is only scored.
        recipe: how; by default `Recipe(lr=0.02)`.
        seed: the run's seed.
        on_epoch: progress, called with (epochs done, epochs in all, mean loss).

    Raises:
        ConfigError, ModelError, DataError: as `train` and `score`.
    """
    recipe = recipe or Recipe(lr=0.02)
    if not isinstance(data, Data):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"fine-tuning takes a Data, with train and test splits, found {type(data).__name__}"
        raise DataError(msg)
    home, place = device_of(model), find_device(recipe.device)
    tuned, goal = copy.deepcopy(model).to(place), data.objective
    with computing(place, precision=recipe.precision, threads=recipe.threads):
        before = score(tuned, data.test, objective=goal)
        train(
            tuned,
            data.train,
            recipe,
            seed=seed,
            part="finetune",
            objective=goal,
            on_epoch=on_epoch,
        )
        after = score(tuned, data.test, objective=goal)
    return FineTuned(model=tuned.eval().to(home), before=before, after=after)
