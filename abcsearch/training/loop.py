"""The one training loop: of base networks, of candidates for a moment, of what a search found."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.pointwise import pointwise_safely
from abcsearch.data.images import Images
from abcsearch.errors import ConfigError, DataError, ModelError
from abcsearch.rng import torch_seeded, torch_stream
from abcsearch.training.checkpoints import Checkpoint, images_hash, network_hash
from abcsearch.training.computing import computing, find_device
from abcsearch.training.crew import ALONE, Crew
from abcsearch.training.distillation import distillation_loss, teach
from abcsearch.training.mixing import Mixing, augmented, check_mixing, widened
from abcsearch.training.objectives import find_objective, output_of
from abcsearch.training.optimization import step_shares
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import device_of, modes_kept
from abcsearch.training.state import Trained, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from abcsearch.training.objectives import Objective

    # Called after every epoch with (epochs done, epochs in all, mean training loss of the epoch).
    OnEpoch = Callable[[int, int, float], None]


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
    teacher: nn.Module | None = None,
    validation: Images | None = None,
    checkpoint: str | Path | None = None,
    crew: Crew = ALONE,
) -> Trained:
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
        teacher: the network whose outputs are learned, if the recipe distils; it is left as it was.
        validation: images that are scored after every epoch, so that the best weights are known.
        checkpoint: a file that the training is saved to after every epoch, and continued from if it is there: bit for
            bit as if it had never been stopped. It stays: called again after the last epoch, this returns at once.
        crew: this process among those that train together.

    Raises:
        ConfigError: if there are fewer images than one batch, or fewer steps than one, or the recipe does not suit the
            objective, the teacher or the validation images.
        ModelError: if the model does not return logits, or has nothing to train, or the loss is not finite.
        DataError: if a label has no output, or an image cannot be read.
        CheckpointError: if the checkpoint is of another training, or damaged.
    """
    check_training(recipe, split, objective, taught=teacher is not None, scored=validation is not None)
    crew.check(recipe.batch_size)
    if not any(p.requires_grad for p in model.parameters()):
        msg = f"{type(model).__name__} has no parameter to train: requires_grad is False everywhere"
        raise ModelError(msg)
    shares = step_shares(recipe, len(split) // recipe.batch_size, steps)
    file = None
    if checkpoint is not None:
        same: dict[str, Any] = {"seed": seed, "part": part, "objective": objective, "steps": steps}
        same |= {"recipe": asdict(recipe), "workers": crew.size}
        networks, images = {"network": model, "teacher": teacher}, {"images": split, "validation": validation}
        same |= {name: None if own is None else network_hash(own) for name, own in networks.items()}
        same |= {name: None if own is None else images_hash(own) for name, own in images.items()}
        file = Checkpoint(checkpoint, same)
    place = find_device(recipe.device, recipe.precision)
    with (
        _lent(model),
        _lent(teacher),
        computing(place, precision=recipe.precision, threads=recipe.threads),
        pointwise_safely(model),
        torch_seeded(seed, f"{part}-forward"),
    ):
        model.to(place, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - overload without it
        model.train()
        lessons = _Lessons(split, recipe, find_objective(objective), teacher, place, crew)
        training = Training(model, recipe, torch_stream(seed, f"{part}-batches"))
        if file is not None and (saved := file.read()) is not None:
            training.load(saved)
        network = crew.joined(model) if training.done < len(shares) else model
        while training.done < len(shares):
            with _draws_of(crew, seed, part, training.done):
                loss = lessons.epoch(network, training, shares[training.done])
            if not math.isfinite(loss):
                _diverged(loss, training.done + 1, recipe, file)
            training.after_epoch(loss, validation if crew.first else None, lessons.objective)
            if file is not None and crew.first:
                file.write(training.saved())
            if on_epoch is not None:
                on_epoch(training.done, len(shares), loss)
        return training.finished()


@contextlib.contextmanager
def _lent(model: nn.Module | None) -> Iterator[None]:
    """Runs a block, and puts a network back on its device and its modules into their modes."""
    if model is None:
        yield
        return
    home = device_of(model)
    with modes_kept(model):
        try:
            yield
        finally:
            model.to(home)


def _draws_of(crew: Crew, seed: int, part: str, done: int) -> contextlib.AbstractContextManager[None]:
    """Returns a block in which each of several processes has global generators of its own, anew in every epoch."""
    return torch_seeded(seed, f"{part}-forward-{crew.rank}", done) if crew.size > 1 else contextlib.nullcontext()


def _diverged(loss: float, epoch: int, recipe: Recipe, file: Checkpoint | None) -> None:
    """Ends a training whose loss is not finite; its checkpoint would only lead here again.

    Raises:
        ModelError: always.
    """
    if file is not None:
        file.path.unlink(missing_ok=True)
    limit = "" if recipe.clip_norm else ", or limit gradients with clip_norm"
    msg = f"the training loss is {loss} in epoch {epoch}; lower lr = {recipe.lr}{limit}"
    raise ModelError(msg)


class _Lessons:
    """What a network is taught: batches, and the loss on them."""

    def __init__(
        self,
        split: Images,
        recipe: Recipe,
        objective: Objective,
        teacher: nn.Module | None,
        place: torch.device,
        crew: Crew,
    ) -> None:
        """Prepares the images, the mixing and the teacher."""
        self.objective, self._recipe, self._teacher, self._place, self._crew = objective, recipe, teacher, place, crew
        self._split, self._change = augmented(recipe, split)
        self._mixing = Mixing(recipe, split) if recipe.mixup or recipe.cutmix else None
        self._smoothing = {"label_smoothing": recipe.label_smoothing} if recipe.label_smoothing else {}
        if teacher is not None:
            teacher.to(place).eval()

    def epoch(self, network: nn.Module, training: Training, shares: list[float]) -> float:
        """Trains for an epoch; returns the mean loss.

        Args:
            network: the training's network, as it is called.
            training: what changes.
            shares: of the learning rate, for every step; the epoch ends with them.
        """
        # Nothing in a step waits for the device: the loss is read once per epoch, labels are checked once.
        losses = torch.zeros((), device=self._place)
        optimizer, recipe = training.optimizer, self._recipe
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for step, (images, labels) in zip(range(len(shares)), self._batches(training.draws), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * shares[step]
            loss = self._loss(network, training, images, labels, first=training.done + step == 0)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            torch.clear_autocast_cache()  # it holds weights as they were before the step
            if training.average is not None:
                training.average.update()
            losses += loss.detach()
        return float(self._crew.mean(losses)) / len(shares)

    def _batches(self, draws: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Returns this process's part of an epoch."""
        recipe = self._recipe
        return self._split.shuffled(
            recipe.batch_size, draws, shift=recipe.shift, flip=recipe.flip, device=self._place, share=self._crew.share
        )

    def _loss(
        self, network: nn.Module, training: Training, images: torch.Tensor, labels: torch.Tensor, *, first: bool
    ) -> torch.Tensor:
        """Returns the loss of a batch, a scalar; the first one of a training is checked."""
        if self._change is not None:
            images = self._change(images)
        wanted = labels
        if self._mixing is not None:
            images, wanted = self._mixing(images, labels)
        outputs = output_of(training.model, network(images))
        if first:
            _check(self.objective, outputs, labels, self._split)
        if self._mixing is not None:
            wanted = widened(wanted, outputs)
        loss = self.objective.loss(outputs, wanted, **self._smoothing)
        if self._teacher is None:
            return loss
        weight, taught = self._recipe.distillation, teach(self._teacher, images, outputs)
        return (1 - weight) * loss + weight * distillation_loss(outputs, taught, self._recipe.temperature)


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


def check_training(recipe: Recipe, split: Images, objective: str, *, taught: bool, scored: bool) -> None:
    """Raises unless a recipe suits what it is for.

    Args:
        recipe: how to train.
        split: training images.
        objective: what the network is for.
        taught: whether there is a teacher.
        scored: whether there are validation images.

    Raises:
        DataError: if it is no set of images, or RandAugment cannot have their pixels.
        ConfigError: if there are fewer images than one batch, the objective is unknown or not that of a classification
            where it has to be, or a teacher or validation images are missing, or the teacher is one too many.
    """
    check_images(recipe, split)
    find_objective(objective)
    check_mixing(recipe, split, objective)
    if recipe.distillation and objective != "classification":
        msg = f"distillation learns the classes of a classification, found the objective {objective!r}; set it to 0"
        raise ConfigError(msg)
    if bool(recipe.distillation) != taught:
        found = "no teacher" if recipe.distillation else "a teacher"
        msg = (
            f"distillation = {recipe.distillation:g} with {found}: fine-tuning of pruned networks takes both (the full "
            "network is the teacher), training from the beginning neither"
        )
        raise ConfigError(msg)
    if recipe.keep == "best" and not scored:
        msg = 'keep = "best" needs validation images, which fine-tuning has; set keep to "last"'
        raise ConfigError(msg)


def _check(objective: Objective, outputs: torch.Tensor, labels: torch.Tensor, split: Images) -> None:
    """Checks the outputs of the first batch, also with the highest label that any batch will have."""
    objective.check(outputs, labels)
    highest = split.labels.reshape(len(split), -1).amax(dim=1).argmax()[None]
    objective.check(outputs[:1], split.labels[highest].to(outputs.device))
