"""Evaluators in two stages: what a search needs of one, to run the second stage for some of the trials only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from abcsearch.evaluation.base import Evaluator
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.space import Candidate

FIRST = "first_fitness"  # the metric that keeps what the first stage found
STAGE = "stage"  # the metric that says which stage the fitness is of: 1 or 2
BAR = "incumbent"  # the metric that says which fitness the trial raced against, in the first stage


@runtime_checkable
class Staged(Protocol):
    """An evaluator with a cheap first stage for all trials and a second one for those that it promotes; see `Cascade`.

    Called as a whole, it returns what both stages find.

    Attributes:
        first: evaluator of the first stage.
        second: evaluator of the second stage.
    """

    first: Evaluator
    second: Evaluator

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns what the stages find."""
        ...

    def promoted(self, earlier: Sequence[Verdict], batch: Mapping[int, Evaluation]) -> list[int]:
        """Returns the numbers of the trials that are decided together and see the second stage, best first.

        Args:
            earlier: of all trials that were decided before.
            batch: what the first stage found, by trial number; of those that succeeded with the metric `FIRST`.
        """
        ...


class Verdict(NamedTuple):
    """What became of a trial after the first stage.

    Attributes:
        score: its fitness there, or None if it failed.
        promoted: whether it sees the second stage.
    """

    score: float | None
    promoted: bool

    @classmethod
    def of(cls, finished: Evaluation) -> Verdict:
        """Returns the verdict on a finished trial."""
        return cls(finished.metrics.get(FIRST), finished.metrics.get(STAGE) == 2)


def cheap(evaluation: Evaluation) -> Evaluation:
    """Returns a first-stage evaluation that says so in its metrics."""
    if evaluation.fitness is None:
        return evaluation
    return replace(evaluation, metrics={**evaluation.metrics, FIRST: evaluation.fitness, STAGE: 1})


def trained(first: Evaluation, second: Evaluation) -> Evaluation:
    """Returns a second-stage evaluation that remembers what the first stage found, and took."""
    raced = {name: first.metrics[name] for name in (BAR,) if name in first.metrics}
    metrics = {**second.metrics, FIRST: first.metrics[FIRST], STAGE: 2, **raced}
    return replace(second, metrics=metrics, seconds=first.seconds + second.seconds)
