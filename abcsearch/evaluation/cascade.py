"""Cascade: a cheap fitness for all candidates, an expensive one for the best of them."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from abcsearch.evaluation.adaptive_bn import AdaptiveBN
from abcsearch.evaluation.base import Evaluator, evaluate
from abcsearch.evaluation.options import CascadeOptions
from abcsearch.evaluation.racing import complete
from abcsearch.evaluation.short_training import ShortTraining
from abcsearch.evaluation.staged import FIRST, STAGE, Verdict, cheap, trained

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.channels.source import Source
    from abcsearch.data.splits import Data
    from abcsearch.space import Candidate
    from abcsearch.trial import Evaluation


class Cascade:
    """AdaptiveBN for every candidate, short training for the best fraction; a trained one's fitness is its trained one.

    Those are trained that are among the best `fraction` of all so far, best first, and never more than that share of
    all trials. A round of the searcher is decided as a whole; with a window (and for random search) trial by trial, in
    the order of asking; never does it depend on which evaluation finishes first. Only in the asynchronous schedule it
    does: decided as first stages finish, in the order that the journal has. Trials keep what the first stage found as
    the metric `first_fitness`, and say which `stage` their fitness is of.

    Source: Li et al., EagleEye (ECCV 2020), which fine-tunes the best few after the search; ours does it all along, so
    that the searcher learns from it.

    Attributes:
        first: evaluator of the first stage.
        second: evaluator of the second stage.
        fraction: share of all trials that see the second stage.
    """

    def __init__(self, source: Source, data: Data, options: CascadeOptions | None = None) -> None:
        """Prepares both stages; see `SlicedEvaluator`."""
        options = options or CascadeOptions()
        self.options = options
        self.first = AdaptiveBN(source, data, options.first)
        # From the same source, so that what repairs need is computed once.
        self.second: Evaluator = ShortTraining(self.first.source, data, options.second)
        self.fraction = options.fraction

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns what both stages find: for a candidate that is worth it."""
        first = cheap(evaluate(self.first, candidate, seed))
        return first if first.failure else trained(first, evaluate(self.second, candidate, seed))

    def bar(self, earlier: Sequence[Verdict]) -> float:
        """Returns what a candidate races against in the first stage: the last one of the best fraction.

        Args:
            earlier: of all trials that the searcher had been told of.
        """
        scores = [verdict.score for verdict in earlier if verdict.score is not None]
        count = math.ceil(self.fraction * len(earlier) - 1e-9)
        return heapq.nlargest(count, scores)[-1] if scores else -math.inf

    @property
    def finalists(self) -> int:
        """How many of the best trials are scored in full at the end of a search."""
        return self.options.finalists

    def complete(self, evaluation: Evaluation) -> bool:
        """Returns whether a trial has been trained, and scored on all of search-validation."""
        return evaluation.fitness is None or (
            evaluation.metrics.get(STAGE) == 2 and complete(self.second, evaluation)
        )

    def in_full(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns what the second stage finds on all of search-validation."""
        scored = evaluate(self.second, candidate, seed, "in_full")
        return replace(scored, metrics={**scored.metrics, STAGE: 2})

    def promoted(self, earlier: Sequence[Verdict], batch: Mapping[int, Evaluation]) -> list[int]:
        """Returns the numbers of the trials that are decided together and see the second stage, best first.

        Args:
            earlier: of all trials that were decided before.
            batch: what the first stage found, by trial number.
        """
        scores = {n: e.metrics[FIRST] for n, e in batch.items() if FIRST in e.metrics}
        before = [verdict.score for verdict in earlier if verdict.score is not None]
        count = math.ceil(self.fraction * (len(earlier) + len(batch)) - 1e-9)
        best = heapq.nlargest(count, [*scores.values(), *before])
        free = count - sum(verdict.promoted for verdict in earlier)
        ranked = sorted(scores, key=lambda number: (-scores[number], number))
        return [number for number in ranked[: max(0, free)] if scores[number] >= best[-1]]
