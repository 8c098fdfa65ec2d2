"""Racing: a candidate is shown images until it is clear that it has lost against the best one so far.

Source: Maron and Moore, "Hoeffding races" (NIPS 1993): a test after every stage, here of each candidate against the
best one that was known when it was proposed, so that neither workers nor their speed decide.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from abcsearch.evaluation.staged import BAR as BAR
from abcsearch.evaluation.staged import Staged, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from abcsearch.evaluation.base import Evaluator
    from abcsearch.space import Candidate
    from abcsearch.trial import Evaluation

FIRST_STAGE = 128  # images, where there are no more classes than that
GROWTH = 2  # a stage ends at so many times the images of the one before
MARGIN = 2.0  # standard errors by which a candidate must be behind
GROUPS = 20  # of images, whose means are compared where two candidates are

IMAGES = "images"  # the metric that says how many images a fitness is of
ERROR = "standard_error"  # the metric that says what the standard error of that fitness is
_GROUP = "group_mean_"  # what the metrics are called that go to the journal, and not into the trial


@runtime_checkable
class Racer(Protocol):
    """An evaluator that may stop scoring a candidate that has lost."""

    @property
    def races(self) -> bool:
        """Whether it does."""
        ...

    def race(self, candidate: Candidate, seed: int, bar: float) -> Evaluation:
        """Returns what is found of a candidate up to where its fitness is clearly below a bar, or on all images.

        Metrics say on how many images (`IMAGES`), how sure that is (`ERROR`) and, unless it is minus infinity, the bar
        (`BAR`); of all images also means of groups, which go to the journal and not into the trial.
        """
        ...


@runtime_checkable
class Finalist(Protocol):
    """An evaluator that can score a candidate on all images where trials may have seen only some of them."""

    @property
    def finalists(self) -> int:
        """How many of the best trials are scored in full at the end of a search."""
        ...

    def complete(self, evaluation: Evaluation) -> bool:
        """Returns whether a trial has been scored in full already."""
        ...

    def in_full(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns what is found on all images."""
        ...


def races(evaluator: Evaluator) -> bool:
    """Returns whether an evaluator, or the first stage of a staged one, races."""
    if isinstance(evaluator, Staged):
        return hasattr(evaluator, "bar") and races(evaluator.first)
    return isinstance(evaluator, Racer) and evaluator.races


def start_of(evaluator: Evaluator, stage: str | None, bar: float) -> float | None:
    """Returns the bar that `evaluate` is called with; None: the evaluator, or its stage, knows none."""
    if stage in ("first", "second"):
        evaluator = getattr(evaluator, stage)
    best_few = finalists(evaluator)
    if stage == "in_full" or not isinstance(evaluator, Racer) or not (evaluator.races or best_few):
        return None
    return -math.inf if stage == "second" else bar


def finalists(evaluator: Evaluator) -> int:
    """Returns how many of the best trials an evaluator scores in full at the end of a search; 0: none."""
    return evaluator.finalists if isinstance(evaluator, Finalist) else 0


def complete(evaluator: Evaluator, evaluation: Evaluation) -> bool:
    """Returns whether an evaluation is as full as the evaluator can make it."""
    return not isinstance(evaluator, Finalist) or evaluator.complete(evaluation)


def outdated(evaluator: Evaluator, evaluation: Evaluation, bar: float) -> bool:
    """Returns whether a candidate that was stopped early would not have been against another bar."""
    if (
        evaluation.fitness is None
        or complete(evaluator, evaluation)
        or BAR not in evaluation.metrics
    ):
        return False
    return not is_behind(evaluation.fitness, evaluation.metrics.get(ERROR), bar)


def ends(count: int, first: int) -> list[int]:
    """Returns after how many images each stage ends, the last one after all of them.

    Args:
        count: how many there are, 1 or more.
        first: how many the first stage shows.
    """
    stages = [first]
    while stages[-1] < count:
        stages.append(GROWTH * stages[-1])
    return [*stages[:-1], count]


def standard_error(values: torch.Tensor) -> float | None:
    """Returns the standard error of the mean of some values, or None where they do not tell.

    Of values that are 0 or 1 (an image is answered rightly or not) half the longer side of Wilson's interval of
    two standard errors: it is not 0 where all or none are right. Of others s / sqrt(n); nothing tells where all are
    the same.

    Args:
        values: (n,) float64, finite.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    count, mean = len(values), float(values.mean())
    if bool(((values == 0) | (values == 1)).all()):
        middle = (count * mean + MARGIN**2 / 2) / (count + MARGIN**2)
        half = MARGIN / (count + MARGIN**2) * math.sqrt(count * mean * (1 - mean) + MARGIN**2 / 4)
        return (abs(middle - mean) + half) / MARGIN
    if count == 1 or bool((values == values[0]).all()):
        return None
    return float(values.std()) / math.sqrt(count)


def is_behind(score: float, error: float | None, bar: float) -> bool:
    """Returns whether a candidate has lost: its score is clearly below a bar."""
    return error is not None and score + MARGIN * error < bar


def group_means(values: torch.Tensor) -> dict[str, float]:
    """Returns the means of groups of images as metrics: those of two candidates are compared group by group.

    Args:
        values: (n,) of all images in an order that is the same for all candidates.
    """
    groups = values.tensor_split(min(GROUPS, len(values)))
    return {f"{_GROUP}{number}": float(group.mean()) for number, group in enumerate(groups)}


def without_groups(evaluation: Evaluation) -> tuple[dict[str, float], tuple[float, ...]]:
    """Returns the metrics of an evaluation but for the means of groups, and these."""
    metrics = {
        name: value for name, value in evaluation.metrics.items() if not name.startswith(_GROUP)
    }
    return metrics, tuple(
        value for name, value in evaluation.metrics.items() if name.startswith(_GROUP)
    )


def told_apart(
    one: Evaluation, other: Evaluation, groups: Sequence[Sequence[float] | None]
) -> bool:
    """Returns whether the fitness of two candidates differs by more than two standard errors of the difference.

    Args:
        one: of all images.
        other: likewise.
        groups: as of `difference_error`.
    """
    if one.fitness is None or other.fitness is None:
        return True
    error = difference_error(one, other, groups) or 0.0
    return abs(one.fitness - other.fitness) > MARGIN * error


def difference_error(
    one: Evaluation, other: Evaluation, groups: Sequence[Sequence[float] | None]
) -> float | None:
    """Returns the standard error of the difference of the fitness of two candidates; None where nothing tells.

    Args:
        one: of all images.
        other: likewise.
        groups: the means of groups of images of both, by which they are compared on the same images; None where they
            are not known: then the standard errors of both must do.
    """
    first, second = groups
    if first and second and len(first) == len(second) > 1:
        differences = [a - b for a, b in zip(first, second, strict=True)]
        return statistics.stdev(differences) / math.sqrt(len(differences))
    errors = [evaluation.metrics.get(ERROR) for evaluation in (one, other)]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) if known else None


class Bars:
    """What trials race against: the best fitness that the searcher had been told of.

    Of a staged evaluator, whose first stage decides which trials are promoted, the score that the last of those
    that are promoted has.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        """Begins with nothing told."""
        self._evaluator = evaluator
        self._best = [-math.inf]  # fitness after so many trials
        self._verdicts: list[Verdict] = []

    def tell(self, evaluation: Evaluation) -> None:
        """Takes the next trial that the searcher has been told of."""
        if isinstance(self._evaluator, Staged):
            self._verdicts.append(Verdict.of(evaluation))
            return
        fitness = -math.inf if evaluation.fitness is None else evaluation.fitness
        self._best.append(max(self._best[-1], fitness))

    def at(self, told: int) -> float:
        """Returns the bar of a trial that was asked for when so many had been told; minus infinity where none had."""
        if isinstance(self._evaluator, Staged):
            return self._evaluator.bar(self._verdicts[:told])  # pyright: ignore - `races` has looked
        return self._best[told]
