"""One run of one searcher: how good its winner would be after every number of evaluations."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abcsearch.evaluation.base import evaluate
from abcsearch.rng import derived_seed
from abcsearch.searchers.registry import make_searcher
from abcsearch.trial import Trial
from experiments.benchmarks.searchers.problems import problem


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to be made.

    Attributes:
        row: name of the row in the table: a searcher, or a variant of one.
        searcher: its name in the registry.
        options: what differs from its defaults.
        task: of problems.
        seed: of the run.
        evaluations: how many.
    """

    row: str
    searcher: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    task: str
    seed: int
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class Played:
    """One finished run.

    Attributes:
        steps: (evaluations, accuracy): from so many evaluations on, the structure that looks best so far has this
            accuracy (without noise), in [0, 1].
        evaluations: made in all, repeated ones counted.
        seconds: wall-clock time.
    """

    steps: list[tuple[int, float]]
    evaluations: int
    seconds: float


def play(job: Job, data: Path) -> Played:
    """Runs a searcher on a task.

    The winner so far is the trial of the highest fitness, as in a real run, where nobody knows the truth; it is
    scored by the truth. What a searcher wants to know before its first proposal (`probes`) is evaluated first, counts,
    and cannot win. Searchers that ask for structures again that they have seen (attribute `repeats`) are charged for
    them: such evaluations come before the batch that is asked next.

    Args:
        job: what to run.
        data: the folder with the table.
    """
    task = problem(job.task, data)
    start = time.perf_counter()
    searcher = make_searcher(
        job.searcher, task.space, task.constraint, seed=job.seed, **job.options
    )
    steps: list[tuple[int, float]] = []
    probes = [
        Trial(
            number,
            candidate,
            evaluate(task.evaluator, candidate, derived_seed(job.seed, "probe", number)),
        )
        for number, candidate in enumerate(searcher.probes()[: job.evaluations])
    ]
    searcher.know(probes)
    best, proposed, charged = -float("inf"), 0, len(probes)
    while charged < job.evaluations:
        asked = searcher.ask(job.evaluations - charged)
        charged = len(probes) + proposed + int(getattr(searcher, "repeats", 0))
        trials: list[Trial] = []
        for number, candidate in enumerate(asked, start=proposed):
            trial = Trial(
                number,
                candidate,
                evaluate(task.evaluator, candidate, derived_seed(job.seed, "bench", number)),
            )
            trials.append(trial)
            charged += 1
            if trial.fitness > best and charged <= job.evaluations:
                best = trial.fitness
                steps.append((charged, float(task.truths([candidate])[0])))
        if not trials:  # everything inside the budget is known
            break
        searcher.tell(trials)
        proposed += len(trials)
    return Played(
        steps=steps, evaluations=min(charged, job.evaluations), seconds=time.perf_counter() - start
    )
