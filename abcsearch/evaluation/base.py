"""What an evaluator is, and how a failing one becomes a failed trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from abcsearch.errors import SearcherError, one_line
from abcsearch.space import Candidate
from abcsearch.trial import Evaluation

# (candidate, seed) -> evaluation. The seed comes from (run seed, trial number), so that a trial always gets its own.
Evaluator = Callable[[Candidate, int], Evaluation]


def evaluate(evaluator: Evaluator, candidate: Candidate, seed: int, stage: str | None = None) -> Evaluation:
    """Runs an evaluator, times it, and turns whatever it raises into a failed evaluation with the reason.

    Ctrl-C and the like pass through.

    Args:
        evaluator: runs here.
        candidate: is evaluated.
        seed: of the evaluation.
        stage: runs this attribute of the evaluator instead, "first" or "second" of a cascade. So an executor is handed
            the same object for both, and sends network and images once.

    Raises:
        SearcherError: if the evaluator returns something else than an Evaluation of numbers: a mistake in its code,
            not in the candidate.
    """
    start = time.perf_counter()
    try:
        found = (evaluator if stage is None else getattr(evaluator, stage))(candidate, seed)
    except Exception as error:  # noqa: BLE001 - any failure of a candidate is recorded and the search goes on
        found = Evaluation(fitness=None, failure=": ".join(filter(None, [type(error).__name__, str(error)])))
    if not isinstance(found, Evaluation):  # pyright: ignore[reportUnnecessaryIsInstance] - the user's own function
        msg = f"an evaluator returns an Evaluation, found {type(found).__name__}"
        raise SearcherError(msg)
    try:  # plain numbers, as the journal needs them: the user's may be numpy's or torch's
        return replace(
            found,
            fitness=None if found.fitness is None else float(found.fitness),
            metrics={name: float(value) for name, value in found.metrics.items()},
            macs=int(found.macs),
            params=int(found.params),
            failure=None if found.failure is None else one_line(str(found.failure)),
            seconds=time.perf_counter() - start,
        )
    except (AttributeError, TypeError, ValueError) as error:
        msg = f"an evaluator returns an Evaluation of numbers, found {found}: {error}"
        raise SearcherError(msg) from error
