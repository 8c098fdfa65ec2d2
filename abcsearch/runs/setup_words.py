"""What looks wrong with a set-up, and what to check: from scores, answers and inputs to sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.errors import plural
from abcsearch.runs.disk.setup import chance_name
from abcsearch.training.objectives import is_share, metric_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from abcsearch.data.splits import Data
    from abcsearch.training.objectives import Objective

_SURE = 3  # standard errors beyond which a difference is none of chance
_NEAR = 0.1  # of the way from chance to perfect: below, a share is near chance; at most as much again as chance itself
_GAIN = 0.03  # that calibration brings at least where it is told
_LOSS = 0.05  # likewise, that it costs
# Gained by another order of classes at least, and images per class to tell
_RENAMED, _FEWEST = (0.25, 10)
_SAME = 0.95  # of the images with one and the same answer
# Inputs of a mean or standard deviation outside of these are not normalised, whatever the scores; and outside of the
# narrower ones they may be what is wrong where scores are.
_TO_CHECK = {
    True: "Check that the checkpoint is that of this network and these data, the order of the classes, mean and std",
    False: "Check labels, mean and std, and the recipe that the network is trained by ([pretrain]: epochs, lr)",
}
_FAR_MEAN, _FAR_STD = 10.0, (1e-3, 10.0)
_ODD_MEAN, _ODD_STD = 0.4, (0.5, 2.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What a network answers on some images.

    Attributes:
        values: (n,) float64, the metric of every image; (1,) where it is one of a whole data set.
        losses: (n,) minus the loss of every image, higher is better; None where the objective has no such metric.
        answers: (n,) int64, the best class of every image of a classification; else None.
        labels: of these images.
        outputs: classes that the network has outputs for; None where it answers none.
    """

    values: torch.Tensor
    losses: torch.Tensor | None
    answers: torch.Tensor | None
    labels: torch.Tensor
    outputs: int | None

    @property
    def mean(self) -> float:
        """The score."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """Its standard error."""
        return standard_error(self.values)


def standard_error(values: torch.Tensor) -> float:
    """Returns the standard error of the mean of (n,) values."""
    return float(values.std(correction=0)) / math.sqrt(len(values))


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """All that a set-up is judged by.

    Attributes:
        goal: what the network is for.
        data: its data.
        brought: whether the network was trained by others than the run.
        images: how many search-validation images were scored.
        mean: (channels,) of the inputs.
        std: likewise.
        loaded: on search-validation, with the weights as they were loaded; None where they are not there yet.
        calibrated: the same with statistics of normalisations taken anew.
        training: as loaded, on training images.
        chance: score of the best constant answer, or of interpolation.
    """

    goal: Objective
    data: Data
    brought: bool
    images: int
    mean: torch.Tensor
    std: torch.Tensor
    loaded: Scored | None = None
    calibrated: Scored | None = None
    training: Scored | None = None
    chance: float | None = None

    @property
    def outputs(self) -> int | None:
        """Classes that the network has outputs for."""
        return None if self.loaded is None else self.loaded.outputs

    @cached_property
    def classes(self) -> int | None:
        """Classes of the data."""
        return self.data.classes if self.outputs is not None else None

    @property
    def best(self) -> Scored | None:
        """The better one of as loaded and calibrated."""
        both = [scored for scored in (self.loaded, self.calibrated) if scored is not None]
        return max(both, key=lambda scored: scored.mean, default=None)

    @property
    def gain(self) -> float:
        """What calibration brings."""
        if self.loaded is None or self.calibrated is None:
            return 0.0
        return self.calibrated.mean - self.loaded.mean

    @property
    def gain_error(self) -> float:
        """Its standard error: both are of the same images."""
        if self.loaded is None or self.calibrated is None:
            return 0.0
        return standard_error(self.calibrated.values - self.loaded.values)

    @property
    def gains(self) -> bool:
        """Whether calibration brings more than it should; statistics of what the run has trained only lag behind."""
        least = (
            _GAIN
            if is_share(self.goal.headline)
            else _GAIN * abs(self.loaded.mean if self.loaded else 0.0)
        )
        return self.brought and self.gain > max(least, _SURE * self.gain_error)

    @property
    def near_chance(self) -> bool:
        """Whether the network does hardly better than a constant answer."""
        if self.best is None or self.chance is None:
            return False
        # Of the same images, which differ more than methods do
        if chance_name(self.goal.headline) != "chance":
            return self.best.mean <= self.chance
        room = _NEAR * (1 - self.chance) if is_share(self.goal.headline) else 0.0
        return self.best.mean <= self.chance + max(_SURE * self.best.error, min(self.chance, room))


def warnings_on(looked: Looked) -> Iterator[str]:
    """Yields what looks wrong, and what to check."""
    metric = looked.goal.headline
    if looked.loaded is not None and not math.isfinite(looked.loaded.mean):
        yield f"{metric} of the full network is {looked.loaded.mean}: check its weights, and mean and std of the data"
        return
    yield from _on_outputs(looked)
    other_order = "" if looked.best is None else _other_order(looked.best)
    if looked.near_chance and looked.best is not None and looked.chance is not None:
        best, chance = (metric_text(metric, value) for value in (looked.best.mean, looked.chance))
        name, other = chance_name(metric), "one answer for all images"
        told = (
            f"is near chance: {metric} {best}, where {other}"
            if name == "chance"
            else f"has {metric} {best}, {name}"
        )
        yield (
            f"the full network {told} has {chance}; a search "
            f"has nothing to go by.{_same_answer(looked.best)} {_TO_CHECK[looked.brought]}{_odd_pixels(looked)}"
        )
    elif looked.gains:
        yield (
            f"calibration brings {_points(metric, looked.gain)}: the statistics in the checkpoint's normalisations are "
            "not those of these images. Candidates are calibrated, but repair aims at what the network does with those "
            "that it has. Check that mean, std and size are those that it was trained with; if they are, calibrate it "
            'before the search (abcsearch.evaluation.adaptive_bn.calibrate), or set repair = "none" for the evaluator'
            f"{_odd_pixels(looked)}"
        )
    elif -looked.gain > max(_LOSS if is_share(metric) else math.inf, _SURE * looked.gain_error):
        yield (
            f"calibration costs {_points(metric, -looked.gain)}: statistics of {looked.data.name}'s training images, "
            "unaugmented, are worse than those in the checkpoint. Are they images of another kind than those of "
            "search-validation? More of them may help: calibration_images of the evaluator"
        )
    if other_order:
        yield other_order
    far = looked.mean.abs().max() > _FAR_MEAN or not _inside(looked.std, _FAR_STD)
    if far:
        yield f"inputs have {_pixel_text(looked)}: bytes that were not normalised, or all alike? Check mean and std"


def _on_outputs(looked: Looked) -> Iterator[str]:
    """Yields that a network has more outputs than there are classes."""
    outputs, classes = looked.outputs, looked.classes
    if outputs is not None and classes is not None and outputs > classes:
        yield (
            f"the network has {outputs} outputs and the data have {plural(classes, 'class')}: outputs {classes} to "
            f"{outputs - 1} are never right. Is its last layer that of another data set, or do labels begin with 1?"
        )


def notes_on(looked: Looked) -> Iterator[str]:
    """Yields what search-validation can have been to a network that was trained by others.

    Whether it was trained on these images cannot be told without the test images, which are not looked at here. What
    can be told is whether it does worse on them than on training images, as on all images that are new to a network.
    """
    held, seen = looked.loaded, looked.training
    if (
        held is None
        or seen is None
        or looked.near_chance
        or not (looked.brought and looked.data.held_out)
    ):
        return
    new, old = held.losses, seen.losses
    if new is None or old is None:
        new, old = held.values, seen.values
    if float(old.mean() - new.mean()) > 2 * math.hypot(standard_error(new), standard_error(old)):
        return
    metric = looked.goal.headline
    scores = " and ".join(metric_text(metric, one.mean) for one in (held, seen))
    yield (
        f"search-validation, held out of the training images, is scored no worse than these ({metric} {scores}): a "
        "network that was trained on all of them has seen it, and fitness is then optimistic, though it still tells "
        "structures apart; the test images tell. To be sure, give images that it has not seen: a folder val/ beside "
        "train/ and test/, or Data.of(train, test, validation=...)"
    )


def _points(metric: str, value: float) -> str:
    """Returns a difference of a metric in words."""
    return (
        f"{100 * value:.1f} points of {metric}" if is_share(metric) else f"{value:.4g} of {metric}"
    )


def _same_answer(scored: Scored) -> str:
    """Returns that nearly all images get one answer, or ""."""
    if scored.answers is None:
        return ""
    counts = scored.answers.bincount()
    share = float(counts.max()) / len(scored.answers)
    return (
        f" It answers class {int(counts.argmax())} for {100 * share:.0f} % of the images."
        if share > _SAME
        else ""
    )


def _other_order(scored: Scored) -> str:
    """Returns that the answers fit the labels in another order, or "": of class folders, or counted from 1."""
    from scipy.optimize import linear_sum_assignment

    if scored.answers is None or scored.outputs is None:
        return ""
    classes = max(int(scored.labels.max()) + 1, scored.outputs)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (scored.labels.numpy(), scored.answers.numpy()), 1)
    there = len(scored.labels.unique())
    rows, columns = linear_sum_assignment(counts, maximize=True)
    share = counts[rows, columns].sum() / len(scored.labels)
    if len(scored.labels) < _FEWEST * there or share < 0.5 or share - scored.mean < _RENAMED:
        return ""
    pairs = [
        (row, column)
        for row, column in zip(rows, columns, strict=True)
        if row != column and counts[row, column]
    ]
    some = ", ".join(f"{row} as {column}" for row, column in pairs[:4]) + (
        ", ..." if pairs[4:] else ""
    )
    return (
        f"answers fit labels in another order: {100 * share:.1f} % instead of {100 * scored.mean:.1f} % are right if "
        f"labels are renumbered (label {some}). Classes of folders are numbered by their names in alphabetical order, "
        "from 0: in which order was the network trained on them?"
    )


def _inside(values: torch.Tensor, ends: tuple[float, float]) -> bool:
    """Returns whether all values are between two ends."""
    return bool(((values >= ends[0]) & (values <= ends[1])).all())


def _odd_pixels(looked: Looked) -> str:
    """Returns what inputs look like, where that may be what is wrong; else ""."""
    odd = looked.mean.abs().max() > _ODD_MEAN or not _inside(looked.std, _ODD_STD)
    return f" (inputs have {_pixel_text(looked)}; most networks take about 0 and 1)" if odd else ""


def _pixel_text(looked: Looked) -> str:
    """Returns mean and standard deviation of the inputs in words."""
    mean, std = (
        ", ".join(f"{value:.3g}" for value in values[:4].tolist())
        + (", ..." if len(values) > 4 else "")
        for values in (looked.mean, looked.std)
    )
    return f"a mean of {mean} and a standard deviation of {std} per channel"
