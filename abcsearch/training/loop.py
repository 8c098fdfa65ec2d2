"""The one training loop: of base networks, of candidates for a moment, of what a search found, of any lesson."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.layout import fit_layout, laid_out
from abcsearch.channels.onednn import pointwise_safely
from abcsearch.errors import DivergedError
from abcsearch.example import ROWS
from abcsearch.rng import torch_seeded
from abcsearch.training.checkpoints import Checkpoint, images_hash
from abcsearch.training.checks import check_lesson, check_loss, fitted
from abcsearch.training.computing import computing, find_device
from abcsearch.training.crew import ALONE, Crew
from abcsearch.training.lesson import lesson_of, whole_of
from abcsearch.training.mixing import augmented
from abcsearch.training.optimization import step_shares
from abcsearch.training.recipe import identity_of
from abcsearch.training.scoring import device_of, modes_kept
from abcsearch.training.state import Trained, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from abcsearch.data.split import Images
    from abcsearch.training.lesson import Lesson
    from abcsearch.training.recipe import Recipe

    # Called after every epoch with (epochs done, epochs in all, mean training loss of the epoch).
    OnEpoch = Callable[[int, int, float], None]


def train(  # noqa: PLR0913 - the one training loop; everything but the first three has a good default
    model: nn.Module | Lesson,
    split: Images,
    recipe: Recipe,
    *,
    seed: int = 0,
    stream: str = "train",
    objective: str = "classification",
    steps: int | None = None,
    on_epoch: OnEpoch | None = None,
    teacher: nn.Module | None = None,
    validation: Images | None = None,
    checkpoint: str | Path | None = None,
    crew: Crew = ALONE,
    same: Mapping[str, Any] | None = None,
) -> Trained:
    """Trains a network, or the modules of a lesson, in place; deterministic on CPU for the same arguments.

    Args:
        model: maps images to logits, and learns the labels, `Supervised`; or a `Lesson`, which says what is learned.
            Weights change, the modes of modules do not. They are trained on the recipe's device, and are where they
            were afterwards; weights stay channels_last.
        split: training images. Those in memory are copied to the device once and stay there.
        recipe: how.
        seed: the run's seed.
        stream: name of the random stream, so that different trainings of a run differ.
        objective: of `OBJECTIVES`: what the loss of a network is.
        steps: optimiser steps, at least 1, instead of the recipe's epochs, whose schedule is then squeezed into these.
        on_epoch: progress.
        teacher: the network whose outputs are learned, if the recipe distils; it is left as it was.
        validation: images that are scored after every epoch, so that the best weights are known.
        checkpoint: a file that the training is saved to after every epoch, and continued from if it is there: bit for
            bit as if it had never been stopped. It stays: called again after the last epoch, this returns at once.
        crew: this process among those that train together.
        same: what else tells this training from others: plain values, which its checkpoint is recognised by.

    Raises:
        ConfigError: if there are fewer steps than one, or the recipe does not suit the
            objective, the teacher, the lesson or the validation images.
        ModelError: if the model does not return logits, or has nothing to train, or the loss is not finite.
        LessonError: if a lesson does not keep what `Lesson` says.
        DataError: if a label has no output, or an image cannot be read.
        CheckpointError: if the checkpoint is of another training, or damaged.
    """
    lesson = lesson_of(model, objective, teacher)
    check_lesson(lesson, recipe, split, scored=validation is not None)
    fitting = fitted(recipe, len(split), crew.size)
    crew.check(fitting.batch_size)
    modules = dict(lesson.modules)
    whole = whole_of(modules)
    shares = step_shares(fitting, len(split) // fitting.batch_size, steps)
    file = None
    if checkpoint is not None:
        identity: dict[str, Any] = {
            "seed": seed,
            "part": stream,
            "steps": steps,
            **lesson._identity(),
        }
        identity |= {"recipe": identity_of(recipe), "workers": crew.size, **(same or {})}
        every = {"images": split, "validation": validation}
        identity |= {
            name: None if images is None else images_hash(images) for name, images in every.items()
        }
        file = Checkpoint(checkpoint, identity)
    device = find_device(recipe.device, recipe.precision)
    with (
        _lent([*modules.values(), *lesson.teachers.values()]),
        _among(lesson, crew),
        computing(device, precision=recipe.precision, threads=recipe.threads),
        pointwise_safely(whole),
        torch_seeded(seed, f"{stream}-forward"),
    ):
        _fit_layouts([*modules.values(), *lesson.teachers.values()], split)
        laid_out(whole, device)
        whole.train()
        for asked in lesson.teachers.values():
            asked.to(device).eval()
        lesson.begin(fitting, split)
        training = Training(lesson, modules, fitting, seed, stream)
        if file is not None and (saved := file.read()) is not None:
            training.load(saved)
        epochs = _Epochs(training, split, fitting, device, crew, shares)
        while training.done < len(shares):
            with _draws_of(crew, seed, stream, training.done):
                loss = epochs.next()
            if not math.isfinite(loss):
                _diverged(loss, training.done + 1, recipe, file)
            training.note(loss, validation if crew.first else None)
            if file is not None and crew.first:
                file.write(training.saved())
            if on_epoch is not None:
                on_epoch(training.done, len(shares), loss)
        return training.finished()


def _fit_layouts(networks: Iterable[nn.Module], split: Images) -> None:
    """Finds out how batches have to lie in memory for networks, of which some may take something else than images."""
    unknown = [network for network in networks if ROWS not in vars(network)]
    if not unknown:
        return
    first = split.part(torch.arange(1)).loaded().images
    for network in unknown:
        fit_layout(network, first)


@contextlib.contextmanager
def _lent(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Runs a block, and puts networks back on their devices and their modules into their modes."""
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.to, device_of(module))
            stack.enter_context(modes_kept(module))
        yield


@contextlib.contextmanager
def _among(lesson: Lesson, crew: Crew) -> Iterator[None]:
    """Lets a lesson know who trains with it for a block."""
    lesson.crew = crew
    try:
        yield
    finally:
        lesson.crew = ALONE


def _draws_of(
    crew: Crew, seed: int, stream: str, done: int
) -> contextlib.AbstractContextManager[None]:
    """Returns a block in which each of several processes has global generators of its own, anew in every epoch."""
    return (
        torch_seeded(seed, f"{stream}-forward-{crew.rank}", done)
        if crew.size > 1
        else contextlib.nullcontext()
    )


def _diverged(loss: float, epoch: int, recipe: Recipe, file: Checkpoint | None) -> None:
    """Ends a training whose loss is not finite; its checkpoint would only lead here again.

    Raises:
        DivergedError: always.
    """
    if file is not None:
        file.path.unlink(missing_ok=True)
    limit = "" if recipe.clip_norm else ", or limit gradients with clip_norm"
    msg = f"the training loss is {loss} in epoch {epoch}; lower lr = {recipe.lr}{limit}"
    raise DivergedError(msg)


class _Epochs:
    """The steps of a training, an epoch at a time."""

    def __init__(
        self,
        training: Training,
        split: Images,
        recipe: Recipe,
        device: torch.device,
        crew: Crew,
        shares: list[list[float]],
    ) -> None:
        """Prepares the images.

        Args:
            training: as it has begun, or was left.
            split: its images.
            recipe: how.
            device: where.
            crew: this process among those that train together.
            shares: of the learning rates, for every step of every epoch; an epoch ends with them.
        """
        self._training, self._recipe, self._device, self._crew, self._shares = (
            training,
            recipe,
            device,
            crew,
            shares,
        )
        self._split, self._change = augmented(recipe, split)
        self._joined = training.done < len(shares) and training.lesson._joined(crew)

    def next(self) -> float:
        """Trains for an epoch; returns the mean loss.

        Raises:
            LessonError: if the lesson returns no loss, or has changed what is trained.
        """
        # Nothing in a step waits for the device: the loss is read once per epoch, labels are checked once.
        losses = torch.zeros((), device=self._device)
        training, shares = self._training, self._shares[self._training.done]
        before, steps = sum(map(len, self._shares[: training.done])), sum(map(len, self._shares))
        for step, (images, labels) in zip(range(len(shares)), self._batches(), strict=False):
            losses += self._step(images, labels, shares[step])
            training.after_step((before + step + 1) / steps)
        training.after_epoch(None if self._joined else self._crew)
        return float(self._crew.mean(losses)) / len(shares)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Returns this process's part of an epoch."""
        recipe, draws = self._recipe, self._training.draws
        return self._split.shuffled(
            recipe.batch_size,
            draws,
            shift=recipe.shift,
            flip=recipe.flip,
            device=self._device,
            share=self._crew.share,
        )

    def _step(self, images: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
        """Teaches one batch; returns its loss."""
        lesson, optimizers = self._training.lesson, self._training.optimizers
        if self._change is not None:
            images = self._change(images)
        self._training.before_step()
        loss = lesson.step(images, labels, self._training.chance)
        check_loss(lesson, loss, optimizers.parameters)
        if loss.requires_grad:
            loss.backward()
        if not self._joined:
            self._crew.average(optimizers.parameters)
        optimizers.step(share, self._recipe.clip_norm)
        torch.clear_autocast_cache()  # it holds weights as they were before the step
        return loss.detach()
