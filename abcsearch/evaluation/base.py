"""What an evaluator is, and how a failing one becomes a failed trial."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from abcsearch.errors import SearcherError, ShortageError, one_line
from abcsearch.shortages import described, shortage, words
from abcsearch.space import Candidate
from abcsearch.trial import Evaluation, is_truth

# (candidate, seed) -> evaluation, or its fitness alone as a number. The seed comes from (run seed, trial number), so
# that a trial always gets its own.
Evaluator = Callable[[Candidate, int], Evaluation]


def evaluate(
    evaluator: Evaluator,
    candidate: Candidate,
    seed: int,
    stage: str | None = None,
    bar: float | None = None,
) -> Evaluation:
    """Runs an evaluator, times it, and turns whatever it raises into a failed evaluation with the reason.

    Ctrl-C passes through, and so does what is no result of the candidate: a shortage of the machine, a mistake in the
    evaluator. An end of the process that the evaluator asks for (sys.exit) is a failure like any other.

    Args:
        evaluator: runs here.
        candidate: is evaluated.
        seed: of the evaluation.
        stage: runs this attribute of the evaluator instead, "first" or "second" of a staged one, or "in_full" of a
            `Finalist`. So an executor is handed the same object for all, and sends network and images once.
        bar: what the candidate races against, of a `Racer`; None: it sees all images.

    Raises:
        SearcherError: if the evaluator returns something else than an Evaluation of numbers, or a number: a mistake in
            its code, not in the candidate.
        ShortageError: if the machine runs short of memory, file descriptors or disk space, or loses its GPU.
    """
    start = time.perf_counter()
    try:
        call: Any = evaluator if stage is None else getattr(evaluator, stage)
        evaluation = call(candidate, seed) if bar is None else call.race(candidate, seed, bar)
    except (KeyboardInterrupt, SearcherError, ShortageError):
        raise
    except BaseException as error:  # noqa: BLE001 - any failure of a candidate is recorded and the search goes on
        what = shortage(error)
        if what is not None:
            msg = f"{platform.node()} ran short of {what}: {one_line(described(error))}"
            raise ShortageError(
                msg
            ) from None  # it must be pickled, which what it was raised from need not survive
        evaluation = Evaluation(fitness=None, failure=described(error))
    return _plain(evaluation, time.perf_counter() - start)


def _plain(evaluation: Evaluation, seconds: float) -> Evaluation:
    """Returns an evaluation of plain numbers, as the journal needs them: the user's may be numpy's or torch's."""
    evaluation = _whole(evaluation)
    try:
        return replace(
            evaluation,
            fitness=None if evaluation.fitness is None else float(evaluation.fitness),
            metrics={str(name): float(value) for name, value in evaluation.metrics.items()},
            diagnostics={str(name): float(value) for name, value in evaluation.diagnostics.items()},
            macs=_cost(evaluation.macs),
            params=_cost(evaluation.params),
            failure=None if evaluation.failure is None else one_line(words(evaluation.failure)),
            seconds=seconds,
        )
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        msg = f"an evaluator returns an Evaluation of numbers, found {words(evaluation)}: {error}"
        raise SearcherError(msg) from error


def _whole(returned: Any) -> Evaluation:  # noqa: ANN401 - whatever the user's own function returns
    """Returns what an evaluator has returned: an evaluation, or the fitness alone.

    Raises:
        SearcherError: if it is neither.
    """
    if isinstance(returned, Evaluation):
        return returned
    try:
        number = None if is_truth(returned) or isinstance(returned, str) else float(returned)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = None
    if number is None:
        msg = f"an evaluator returns an Evaluation, or a fitness, which is one number; found {type(returned).__name__}"
        raise SearcherError(msg)
    if math.isfinite(number):
        return Evaluation(fitness=number)
    return Evaluation(fitness=None, failure=f"the fitness is {number}")


def _cost(value: Any) -> int:  # noqa: ANN401 - a number of any type
    """Returns macs or params as an int; raises ValueError if it is true, false or negative."""
    if is_truth(value) or int(value) < 0:
        msg = f"macs and params are whole numbers, at least 0, found {value!r}"
        raise ValueError(msg)
    return int(value)
