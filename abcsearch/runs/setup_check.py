"""Is the set-up right? What the full network does on its data, looked at before anything is searched."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.fast.cloning import clone
from abcsearch.errors import AbcSearchError, RunError, callers, one_line
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, calibrate, statistics
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.sliced import calibration_images
from abcsearch.example import Example, Inputs
from abcsearch.files import is_there
from abcsearch.rng import torch_seeded, torch_stream
from abcsearch.runs.disk.setup import FILE, SetUp, write_setup
from abcsearch.runs.settings import RunConfig
from abcsearch.runs.setup_words import Looked, Scored, notes_on, warnings_on
from abcsearch.runs.timing import full_macs
from abcsearch.steps import doing
from abcsearch.training.collected import Collection
from abcsearch.training.computing import computing, find_device
from abcsearch.training.detections import constant_detections
from abcsearch.training.objectives import find_objective
from abcsearch.training.scoring import passes, values_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from abcsearch.data.split import Images
    from abcsearch.data.splits import Data
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.progress import Progress
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.runs.task import Task
    from abcsearch.training.objectives import Objective

# So many images of a split are scored; fewer where their passes have more multiply-accumulates than so many, or they
# have more values.
_MOST, _LEAST, _WORK, _VALUES = 2000, 200, 300e9, 64e6
_CALIBRATION, _BATCH = 512, 128  # as of AdaptiveBN
_GUESSED = 256  # labels that a constant answer is scored on at a time


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a set-up is looked at for.

    Attributes:
        brought: whether the network was trained by others than the run: it may have seen search-validation.
        trained: whether its weights are there.
        device: where it is scored.
    """

    brought: bool
    trained: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def look_at(model: nn.Module, data: Data, macs: int, asked: Asked) -> SetUp:
    """Returns how a network does on its data; it is left as it was.

    Args:
        model: the full network.
        data: its data; the test images are not looked at.
        macs: of one of its passes, which decide how many images are scored.
        asked: for what.

    Raises:
        AbcSearchError: if outputs and labels do not fit.
    """
    values = sum(x.numel() for x in Example.of(data.example).tensors)
    count = int(min(_MOST, max(_LEAST, min(_WORK / max(macs, 1), _VALUES / values))))
    goal = find_objective(data.objective)
    train = _some(data.train, count, data.seed, "set-up, training images").loaded()
    known: dict[str, Any] = {
        "goal": goal,
        "data": data,
        "brought": asked.brought,
        **_pixels(train.images),
    }
    if not asked.trained:
        return _record(Looked(**known, images=0))
    held = _some(data.validation, count, data.seed, "set-up, search-validation")
    network = clone(model, {}).to(asked.device)
    with computing(asked.device, threads=torch.get_num_threads()), torch_seeded(0, "set-up"):
        known["loaded"] = _scored(network, held, goal)
        known["training"] = _scored(network, train, goal)
        images = calibration_images(data, _CALIBRATION).images.to(asked.device)
        if statistics(network) and len(images) > 1:
            calibrate(network, images, batch_size=min(_BATCH, len(images)))
            known["calibrated"] = _scored(network, held, goal)
    return _record(
        Looked(**known, images=len(held), chance=_chance(data, goal, known["loaded"], held))
    )


def _record(looked: Looked) -> SetUp:
    """Returns the record of what was looked at."""
    scores = {
        name: None if scored is None else scored.mean
        for name, scored in (
            ("loaded", looked.loaded),
            ("calibrated", looked.calibrated),
            ("training", looked.training),
        )
    }
    return SetUp(
        metric=looked.goal.headline,
        images=looked.images,
        chance=looked.chance,
        outputs=looked.outputs,
        classes=looked.classes,
        mean=tuple(looked.mean.tolist()),
        std=tuple(looked.std.tolist()),
        warnings=tuple(warnings_on(looked)),
        notes=tuple(notes_on(looked)),
        **scores,
    )


def _some(images: Images, count: int, seed: int, stream: str) -> Images:
    """Returns at most so many images of a split, drawn once per data split."""
    if len(images) <= count:
        return images
    order = torch.randperm(len(images), generator=torch_stream(seed, stream))
    return images.part(order[:count].sort().values)


def _pixels(images: Inputs) -> dict[str, torch.Tensor]:
    """Returns mean and standard deviation per channel of (n, channels, ...) inputs; of several, of the deepest."""
    if isinstance(images, Example):
        every = [x for x in images.tensors if x.is_floating_point() and x.ndim > 1]
        if not every:
            return {"mean": torch.zeros(1), "std": torch.ones(1)}
        images = max(every, key=lambda x: x.ndim)
    dims = [dim for dim in range(images.dim()) if dim != 1]
    return {"mean": images.mean(dim=dims), "std": images.std(dim=dims, correction=0)}


def _scored(model: nn.Module, images: Images, goal: Objective) -> Scored:
    """Returns what a network answers on images: values per image, and classes of a classification."""
    name = goal.headline
    values: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    answers: list[torch.Tensor] = []
    outputs: int | None = None
    whole = _of_all(goal)
    for given, labels in passes(model, images, output=goal.output):
        goal.check(given, labels)
        whole.add(given, labels)
        if name in goal.metrics:
            values.append(values_of(name, goal.metrics[name], given, labels).double().cpu())
        if "neg_loss" in goal.metrics:
            losses.append(
                values_of("neg_loss", goal.metrics["neg_loss"], given, labels).double().cpu()
            )
        if labels.dtype == torch.int64 and given.ndim == labels.ndim + 1:
            outputs = given.shape[1]
        if labels.dtype == torch.int64 and labels.ndim == 1 and given.ndim == 2:
            answers.append(given.argmax(dim=1).cpu())
    return Scored(
        values=torch.cat(values)
        if values
        else torch.tensor([whole.finish()[name]], dtype=torch.float64),
        losses=torch.cat(losses) if losses else None,
        answers=torch.cat(answers) if answers else None,
        labels=images.labels.cpu(),
        outputs=outputs,
    )


def _of_all(goal: Objective) -> Collection:
    """Returns what the first metric of an objective is collected in, where it is one of a whole data set."""
    return Collection({name: kind for name, kind in goal.whole.items() if name == goal.headline})


def _chance(data: Data, goal: Objective, scored: Scored, held: Images) -> float | None:
    """Returns the score of a constant answer: the commonest class of the training labels, or their mean.

    Of super-resolution that of bicubic interpolation of the images that the network was scored on. None where the
    objective is the user's own, of which nobody knows what that is.
    """
    labels, batches = data.validation.labels.cpu(), data.validation.labels.cpu().split(_GUESSED)
    if data.objective == "detection":
        return _over(goal, [(constant_detections(data.train.labels, len(labels)), labels)])
    if data.objective == "superresolution":
        return _over(goal, ((_enlarged(low, high), high) for low, high in held.batches(_GUESSED)))
    if data.objective in ("regression", "multilabel"):
        one = data.train.labels.mean(dim=0)[None]
    elif data.objective in ("classification", "segmentation") and scored.outputs is not None:
        every = data.train.labels
        one = torch.zeros(1, scored.outputs, *(1,) * (labels.ndim - 1))
        one[:, int(every[every >= 0].bincount().argmax())] = 1
    else:
        return None
    shape = labels.shape[1:] if labels.dtype != torch.int64 else (one.shape[1], *labels.shape[1:])
    return _over(goal, ((one.expand(len(some), *shape), some) for some in batches))


def _over(goal: Objective, batches: Iterable[tuple[Any, torch.Tensor]]) -> float:
    """Returns the metric that reports show over batches of outputs and labels."""
    whole, name, values = _of_all(goal), goal.headline, list[torch.Tensor]()
    for outputs, labels in batches:
        whole.add(outputs, labels)
        if name in goal.metrics:
            values.append(values_of(name, goal.metrics[name], outputs, labels).double())
    return float(torch.cat(values).mean()) if values else whole.finish()[name]


def _enlarged(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns images as large as the labels, by bicubic interpolation."""
    size = tuple(labels.shape[2:])
    return torch.nn.functional.interpolate(images, size=size, mode="bicubic", align_corners=False)


def asked_of(settings: SearchSettings) -> Asked:
    """Returns what the set-up of a run is looked at for, once its network is trained."""
    brought = not isinstance(settings, RunConfig)
    # An export is of this package, which trains on `data.train`
    if isinstance(settings, RunConfig):
        brought = settings.model.checkpoint is not None and settings.model.sizes is None
    name = (*settings.evaluator.devices, "auto")[0]
    return Asked(brought=brought, device=find_device(name))


def check_setup(
    folder: RunFolder,
    task: Task,
    settings: SearchSettings,
    evaluator: Evaluator,
    progress: Progress,
) -> None:
    """Says how the full network does before the first trial of a run, and keeps it; nothing where trials are there.

    Nothing of it decides a trial. Where it cannot be seen, as with an evaluator of the user's own for a network that
    returns what only that understands, a line in the log says why.

    Args:
        folder: of the run, locked; of a searched baseline nothing is looked at, its run has been.
        task: what is pruned.
        settings: of the run.
        evaluator: of the run.
        progress: shows the scores.

    Warns:
        UserWarning: of what looks wrong, with what to check.
    """
    begun = is_there(folder.journal) and folder.journal.stat().st_size
    if begun or is_there(folder.path / FILE) or folder.run != folder.path:
        return
    doing("looking at the full network on search-validation")
    try:
        setup = look_at(task.base, task.data, full_macs(task), asked_of(settings))
        setup = replace(setup, **_references(task, evaluator))
    except Exception as error:  # noqa: BLE001 - the network, its objective and metrics may be the user's
        folder.log(f"full network: not looked at: {type(error).__name__}: {one_line(str(error))}")
        return
    write_setup(folder, setup)
    progress("full network", 1, 1, setup.words)
    for text in (*setup.warnings, *setup.notes):
        folder.log(f"set-up: {text}")
    for text in setup.warnings:
        warnings.warn(f"set-up: {text}", UserWarning, stacklevel=callers())


def _references(task: Task, evaluator: Evaluator) -> dict[str, float | None]:
    """Returns the fitness of the full network and of uniform widths, where an evaluation trains nothing."""
    if not isinstance(evaluator, AdaptiveBN):
        return {}
    structures = {"full": task.space.full}
    with contextlib.suppress(RunError):  # none is inside the budget
        structures["uniform"] = task.uniform()
    references: dict[str, float | None] = {}
    with torch_seeded(0, "set-up"):
        for name, candidate in structures.items():
            try:
                references[name] = evaluate(evaluator, candidate, 0).fitness
            except AbcSearchError:
                return {}
    return references
