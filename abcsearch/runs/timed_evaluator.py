"""An evaluator that measures each candidate's forward time as well, and fails those outside of the budget."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from abcsearch.channels.latency import in_turns
from abcsearch.evaluation import racing
from abcsearch.evaluation.staged import Staged
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from abcsearch.budget import Limit
    from abcsearch.channels.options import LatencyOptions
    from abcsearch.channels.source import Source
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.example import Inputs
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.runs.task import Task
    from abcsearch.space import Candidate


def measured(evaluator: Evaluator, task: Task, settings: SearchSettings) -> Evaluator:
    """Returns the evaluator; if the settings ask for it, one that measures each candidate and fails those outside.

    The time is among the metrics as latency_ms. It is measured after the evaluation, in the same process.
    """
    limit = next((limit for limit in task.constraint.limits if limit.name == "latency_ms"), None)
    if limit is None or not settings.latency.check:
        return evaluator
    if isinstance(evaluator, Staged):
        staged = copy.copy(evaluator)
        # Those outside are not worth training
        staged.first = measured(evaluator.first, task, settings)
        return staged
    full_ms = float(limit.cost([task.space.full])[0])
    example = task.data.example[:1]
    return _Measured(evaluator, task.source, task.base, full_ms, example, settings.latency, limit)


@dataclass(frozen=True)
class _Measured:
    """An evaluator that measures each candidate's forward time as well, and fails those outside of a limit."""

    evaluator: Evaluator
    source: Source
    full: nn.Module
    full_ms: float
    example: Inputs
    options: LatencyOptions
    limit: Limit

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns what the evaluator finds, with latency_ms among the metrics."""
        return self._timed(self.evaluator(candidate, seed), candidate, seed)

    @property
    def races(self) -> bool:
        """Whether the evaluator does; see `Racer`."""
        return racing.races(self.evaluator)

    def race(self, candidate: Candidate, seed: int, bar: float) -> Evaluation:
        """Returns the same of a race."""
        return self._timed(
            cast("racing.Racer", self.evaluator).race(candidate, seed, bar), candidate, seed
        )

    @property
    def finalists(self) -> int:
        """How many trials the evaluator scores in full; see `Finalist`."""
        return racing.finalists(self.evaluator)

    def complete(self, evaluation: Evaluation) -> bool:
        """Returns whether a trial has been scored in full already."""
        return racing.complete(self.evaluator, evaluation)

    def in_full(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns what the evaluator finds on all images; the time was measured, and allowed, before."""
        return cast("racing.Finalist", self.evaluator).in_full(candidate, seed)

    def _timed(self, evaluation: Evaluation, candidate: Candidate, seed: int) -> Evaluation:
        """Returns an evaluation with latency_ms among the metrics, failed if that is outside of the limit."""
        if evaluation.failure is not None:
            return evaluation
        network, limit = self.source.network(candidate, seed), self.limit
        turns = in_turns([network], copy.deepcopy(self.full), self.example, self.options)
        # At the speed that the machine had when the budget was bound
        time = float(turns.shares[0]) * self.full_ms
        metrics: Mapping[str, float] = {**evaluation.metrics, "latency_ms": time}
        if limit.low <= time <= limit.high:
            return replace(evaluation, metrics=metrics)
        why = f"latency of {time:.3g} ms is outside of {limit.low:.3g} to {limit.high:.3g} ms"
        return replace(evaluation, metrics=metrics, fitness=None, failure=why)
