"""The one training loop: SGD with momentum, cosine schedule with warm-up."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.channels.latency import torch_threads
from abcsearch.data.splits import Data, Split
from abcsearch.errors import ConfigError, DataError, ModelError
from abcsearch.rng import torch_seeded, torch_stream
from abcsearch.training.objectives import find_objective, output_of
from abcsearch.training.scoring import modes_kept, score

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

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
        threads: torch threads; part of the recipe since it decides the order of summation.

    Raises:
        ConfigError: if a value is out of range.
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

    def __post_init__(self) -> None:
        """Checks the ranges."""
        rules = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": self.lr > 0,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "warmup_epochs": self.warmup_epochs >= 0,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "shift": self.shift >= 0,
            "threads": self.threads >= 1,
        }
        rules = {name: holds and math.isfinite(getattr(self, name)) for name, holds in rules.items()}
        wrong = [f"{name} = {getattr(self, name)}" for name, holds in rules.items() if not holds]
        if wrong:
            msg = f"training recipe out of range: {', '.join(wrong)} (see abcsearch.Recipe for the ranges)"
            raise ConfigError(msg)


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int = 0,
    part: str = "train",
    objective: str = "classification",
    on_epoch: OnEpoch | None = None,
) -> None:
    """Trains a network in place; deterministic on CPU for the same arguments.

    Args:
        model: maps images to logits; its weights change, the modes of its modules do not.
        split: training images.
        recipe: how.
        seed: the run's seed.
        part: name of the random stream, so that different trainings of a run differ.
        objective: of `OBJECTIVES`: what the loss is.
        on_epoch: progress.

    Raises:
        ConfigError: if there are fewer images than one batch.
        ModelError: if the model does not return logits, or has nothing to train, or the loss is not finite.
        DataError: if a label has no output.
    """
    check_images(recipe, split)
    if not any(p.requires_grad for p in model.parameters()):
        msg = f"{type(model).__name__} has no parameter to train: requires_grad is False everywhere"
        raise ModelError(msg)
    optimizer = torch.optim.SGD(
        _parameter_groups(model, recipe.weight_decay),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
    )
    steps = len(split) // recipe.batch_size
    draws = torch_stream(seed, f"{part}-batches")
    goal = find_objective(objective)
    smoothing = {"label_smoothing": recipe.label_smoothing} if recipe.label_smoothing else {}
    with modes_kept(model), torch_threads(recipe.threads), torch_seeded(seed, f"{part}-forward"):
        model.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - overload without it
        for epoch in range(recipe.epochs):
            order = torch.randperm(len(split), generator=draws)[: steps * recipe.batch_size]
            losses = torch.zeros(())
            for step, batch in enumerate(order.split(recipe.batch_size)):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr * _schedule(epoch + step / steps, recipe)
                images = augment(split.images[batch], recipe, draws)
                logits, labels = output_of(model, model(images)), split.labels[batch]
                goal.check(logits, labels)
                loss = goal.loss(logits, labels, **smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses += loss.detach()
            if not bool(torch.isfinite(losses)):
                msg = f"the training loss is {float(losses)} in epoch {epoch + 1}; lower lr = {recipe.lr}"
                raise ModelError(msg)
            if on_epoch is not None:
                on_epoch(epoch + 1, recipe.epochs, float(losses) / steps)


def check_images(recipe: Recipe, split: Split) -> None:
    """Raises unless there are images for at least one batch.

    Raises:
        DataError: if it is no split.
        ConfigError: if there are fewer images than one batch.
    """
    if not isinstance(split, Split):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"training takes a Split (data.train), found {type(split).__name__}"
        raise DataError(msg)
    if len(split) < recipe.batch_size:
        msg = f"batch_size {recipe.batch_size} is larger than the {len(split)} training images; make it smaller"
        raise ConfigError(msg)


def augment(images: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Returns shifted and mirrored copies of (n, channels, height, width) images, drawn per image."""
    n, _, height, width = images.shape
    if recipe.shift:
        pad = recipe.shift
        offsets = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
        rows = (torch.arange(height) + offsets[0][:, None])[:, None, :, None]
        columns = (torch.arange(width) + offsets[1][:, None])[:, None, None, :]
        padded = F.pad(images, (pad, pad, pad, pad))
        images = padded[
            torch.arange(n)[:, None, None, None], torch.arange(images.shape[1])[:, None, None], rows, columns
        ]
    if recipe.flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images.contiguous(memory_format=torch.channels_last)


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
    model: nn.Module, data: Data, recipe: Recipe | None = None, *, seed: int = 0, on_epoch: OnEpoch | None = None
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
    tuned = copy.deepcopy(model)
    with torch_threads(recipe.threads):
        before = score(tuned, data.test)
        train(tuned, data.train, recipe, seed=seed, part="finetune", on_epoch=on_epoch)
        return FineTuned(model=tuned.eval(), before=before, after=score(tuned, data.test))
