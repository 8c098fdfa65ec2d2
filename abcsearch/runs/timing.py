"""How long evaluations and trainings take, from a small part of each."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from abcsearch.evaluation.adaptive_bn import AdaptiveBNOptions
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.registry import EVALUATORS, make_evaluator
from abcsearch.evaluation.short_training import ShortTrainingOptions
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.runs.task import Task
from abcsearch.runs.timed_evaluator import measured
from abcsearch.training.checks import check_lesson, fitted
from abcsearch.training.computing import find_device
from abcsearch.training.loop import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from abcsearch.channels.source import Source
    from abcsearch.data.split import Images
    from abcsearch.data.splits import Data
    from abcsearch.preparation.base import Preparation
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.space import Candidate
    from abcsearch.training.lesson import Lesson
    from abcsearch.training.recipe import Recipe
    from abcsearch.training.state import Trained
    from abcsearch.trial import Evaluation

PATIENCE = 2.0  # seconds; a part that takes longer is not made larger
# On a CPU, batches are of so many images, and of more while their forward passes have so few MACs: larger ones would
# need the memory of a GPU, and take as long per image.
_SMALL, _CHEAP = 8, 4_000_000_000
_TRAINED = 3  # forward passes that a training step of an image costs
_SCORED = 3  # structures in a search of a preparation
_TINY = 1e-6  # learning rate: what is timed need not learn, and must not diverge
_FASTER = 8  # parts grow by so much at most
_SLOWER = 1.5  # and at least


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long something takes.

    Attributes:
        seconds: of the whole.
        share: of the work that was timed, in (0, 1]; the rest is extrapolated.
        failure: what went wrong in the timed part, or None.
    """

    seconds: float
    share: float
    failure: str | None = None


class _Part(NamedTuple):
    """A part of some work that was timed.

    Attributes:
        work: images, weighted by what they cost.
        seconds: that it took.
        waited: seconds with all that was made ready for it.
        failure: what went wrong, or None.
    """

    work: float
    seconds: float
    waited: float
    failure: str | None = None


def evaluation_time(
    task: Task, settings: SearchSettings, candidate: Candidate, patience: float = PATIENCE
) -> Estimate:
    """Returns how long the evaluation of a structure takes with the evaluator of the settings.

    On a CPU large networks are timed with smaller batches. An evaluator of the user's own is timed as a whole.

    Args:
        task: what is pruned.
        settings: name the evaluator.
        candidate: the structure.
        patience: a timed part that takes longer than so many seconds is not made larger.
    """
    name, options = settings.evaluator.name, dict(settings.evaluator.options)
    record = EVALUATORS.find(name).options
    stages = getattr(record, "stages", None)
    if record is None or stages is None:
        return _stage_time(task, settings, candidate, name, options, patience)
    every = stages(record(**options))
    times = [
        _stage_time(task, settings, candidate, stage, its_options, patience)
        for stage, its_options, _ in every
    ]
    return Estimate(
        seconds=sum(share * time.seconds for (_, _, share), time in zip(every, times, strict=True)),
        share=min(time.share for time in times),
        failure=next((time.failure for time in times if time.failure), None),
    )


def _stage_time(
    task: Task,
    settings: SearchSettings,
    candidate: Candidate,
    name: str,
    options: dict[str, Any],
    patience: float,
) -> Estimate:
    """Returns how long one evaluator takes."""

    def timed(used: dict[str, Any], work: float) -> _Part:
        start = time.perf_counter()
        # What there is to warn of has been said when the run's own was made
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            evaluator = make_evaluator(name, task.source, task.data, **used)
        evaluation = evaluate(measured(evaluator, task, settings), candidate, settings.seed)
        return _Part(work, evaluation.seconds, time.perf_counter() - start, evaluation.failure)

    if name not in _REDUCED:
        small = timed(options, 1)
        return Estimate(seconds=small.seconds, share=1, failure=small.failure)
    reduced = _REDUCED[name]
    full = reduced(options, task, 1.0)[1]
    return _grown(lambda share: timed(*reduced(options, task, share)), full, patience)


def _adaptive_bn(options: dict[str, Any], task: Task, share: float) -> tuple[dict[str, Any], float]:
    """Returns options for a share of the work, and that work."""
    made = AdaptiveBNOptions(**options)
    batch = min(made.batch_size, len(task.data.train))
    images = min(made.calibration_images, len(task.data.train)) // batch * batch
    scored = _scored(made, task.data, share)
    if share < 1 and images:
        batch = _batch(batch, made.device, full_macs(task))
        images = max(batch, round(share * images) // batch * batch)
    small = {
        **options,
        "calibration_images": images,
        "batch_size": batch,
        "validation_images": scored,
        **_ALL,
    }
    return small, images + scored


def _short_training(
    options: dict[str, Any], task: Task, share: float
) -> tuple[dict[str, Any], float]:
    """Returns options for a share of the work, and that work."""
    made = ShortTrainingOptions(**options)
    batch = min(made.batch_size, len(task.data.train))
    steps = made.steps or made.epochs * (len(task.data.train) // batch)
    scored = _scored(made, task.data, share)
    if share < 1:
        batch = _batch(batch, made.device, full_macs(task))
        steps = max(1, round(share * steps * min(made.batch_size, len(task.data.train)) / batch))
    small = {
        **options,
        "steps": steps,
        "batch_size": batch,
        "validation_images": scored,
        "lr": _TINY,
        **_ALL,
    }
    return small, _TRAINED * steps * batch + scored


def _scored(options: AdaptiveBNOptions | ShortTrainingOptions, data: Data, share: float) -> int:
    """Returns how many validation images a share of the work looks at."""
    every = len(data.validation)
    return max(1, round(share * min(options.validation_images or every, every)))


def _batch(size: int, device: str, macs: int) -> int:
    """Returns the batch size of a timed part."""
    return (
        size
        if find_device(device).type == "cuda"
        else min(size, max(_SMALL, _CHEAP // max(macs, 1)))
    )


def full_macs(task: Task) -> int:
    """Returns the MACs of the full network."""
    return int(task.graph.costs.macs([task.space.full])[0])


# What is timed is a candidate that sees all images.
_ALL: dict[str, Any] = {"scoring": "full", "stage_images": None}
_REDUCED = {"adaptive_bn": _adaptive_bn, "short_training": _short_training}


def training_time(
    task: Task, network: nn.Module, recipe: Recipe, patience: float = PATIENCE
) -> Estimate:
    """Returns how long a training takes; a copy of the network takes some steps of it.

    Args:
        task: it would be trained on the training split of its data.
        network: what would be trained; not changed.
        recipe: how.
        patience: a timed part that takes longer than so many seconds is not made larger.
    """
    split, teacher = task.data.train, task.base if recipe.taught else None
    recipe = fitted(recipe, len(split))
    whole = len(split) // recipe.batch_size * recipe.epochs * recipe.batch_size
    batch = _batch(recipe.batch_size, recipe.device, full_macs(task))

    def timed(share: float) -> _Part:
        steps = max(1, round(share * whole / batch))
        trained, small = (
            copy.deepcopy(network),
            replace(recipe, batch_size=batch, lr=_TINY, keep="last"),
        )
        start = time.perf_counter()
        train(
            trained,
            split,
            small,
            stream="rehearsal",
            objective=task.data.objective,
            steps=steps,
            teacher=teacher,
        )
        _finished(recipe.device)
        seconds = time.perf_counter() - start
        return _Part(steps * batch, seconds, seconds)

    return _grown(timed, whole, patience)


def preparation_time(
    task: Task, settings: SearchSettings, preparation: Preparation, patience: float = PATIENCE
) -> Estimate:
    """Returns how long a preparation takes: it runs as a whole, but for what takes long.

    Of its trainings some steps are taken, and of structures that it has scored, a few in every search of its own.

    Args:
        task: what it is for; not changed.
        settings: of the run.
        preparation: of the run.
        patience: a timed part of a training that takes longer than so many seconds is not made larger.

    Raises:
        PreparationError: if the preparation does not keep its word.
    """
    trainer, sparing = _Rehearsing(task, settings.seed, patience), _Sparing(**vars(task))
    start = time.perf_counter()
    run_preparation(preparation, sparing, trainer)
    rest = time.perf_counter() - start - trainer.waited + sum(sparing.spared)
    shares = [estimate.share for estimate in trainer.estimates]
    return Estimate(
        seconds=rest + sum(estimate.seconds for estimate in trainer.estimates),
        share=min(shares, default=1.0),
    )


@dataclass(frozen=True, kw_only=True)
class _Sparing(Task):
    """Scores a few structures; the others have the fitness of the last one, and would take as long.

    Attributes:
        spared: seconds that each of the others would take.
    """

    spared: list[float] = field(default_factory=list[float])

    def evaluator(self, source: Source) -> Callable[[Candidate, int], Evaluation]:
        """Returns an evaluator for one search."""
        known: list[Evaluation] = []
        evaluator = super().evaluator(source)

        def few(candidate: Candidate, seed: int) -> Evaluation:
            if len(known) < _SCORED:
                known.append(evaluator(candidate, seed))
            else:
                # The first took longer, as what happens for the first time does
                self.spared.append(known[-1].seconds)
            return known[-1]

        return few


class _Rehearsing(Trainer):
    """Takes some steps of every training.

    Attributes:
        estimates: how long each would take.
        waited: seconds that the steps took.
    """

    def __init__(self, task: Task, seed: int, patience: float) -> None:
        super().__init__(task.data.train, seed)
        self._task, self._patience = task, patience
        self.estimates: list[Estimate] = []
        self.waited = 0.0

    def _train(self, lesson: Lesson, recipe: Recipe, name: str, images: Images) -> Trained:
        """Takes some steps that change next to nothing; returns how the last ones went."""
        recipe = fitted(recipe, len(images))
        whole = len(images) // recipe.batch_size * recipe.epochs * recipe.batch_size
        batch = _batch(recipe.batch_size, recipe.device, full_macs(self._task))
        done: list[Trained] = []

        def timed(share: float) -> _Part:
            steps = max(1, round(share * whole / batch))
            small = replace(recipe, batch_size=batch, lr=_TINY, keep="last")
            start = time.perf_counter()
            done.append(
                train(
                    lesson, images, small, seed=self.seed, stream=f"rehearsal {name}", steps=steps
                )
            )
            _finished(recipe.device)
            seconds = time.perf_counter() - start
            return _Part(steps * batch, seconds, seconds)

        check_lesson(lesson, recipe, images, scored=False)
        start = time.perf_counter()
        self.estimates.append(_grown(timed, whole, self._patience))
        self.waited += time.perf_counter() - start
        return done[-1]


def _finished(device: str) -> None:
    """Waits until a device has done what it was told."""
    if find_device(device).type == "cuda":
        torch.cuda.synchronize(find_device(device))


def _grown(timed: Callable[[float], _Part], full: float, patience: float) -> Estimate:
    """Returns the time of the whole from that of parts that grow until one takes long enough.

    The first is timed twice, however long it took: what happens for the first time in a process takes longer, on a
    busy machine many times. Beyond the last one time grows as it did between the last two.

    Args:
        timed: a share in (0, 1] of the work -> that part.
        full: the work of the whole.
        patience: seconds that a part may take, with what it needs, before it is not made larger.
    """
    share = 1e-9  # one batch
    timed(share)
    before, last = None, timed(share)
    while last.work < full:
        factor = min(_FASTER, patience / max(last.waited, 1e-6))
        if factor < _SLOWER:
            break
        share = min(1.0, factor * last.work / full)
        before, last = last, timed(share)
        if last.work <= before.work and share < 1:  # too small a step to count
            break
    if last.work >= full:
        return Estimate(seconds=last.seconds, share=1, failure=last.failure)
    pace = last.seconds / last.work
    if before is not None and before.work < last.work and before.seconds < last.seconds:
        pace = (last.seconds - before.seconds) / (last.work - before.work)
    seconds = last.seconds + pace * (full - last.work)
    return Estimate(seconds=seconds, share=last.work / full, failure=last.failure)
