"""What a report says of a preparation: what was made, what it cost, and what it is worth."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from abcsearch.channels.source import Sliced
from abcsearch.errors import RunError
from abcsearch.runs.disk.spent import read_spent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from abcsearch.results.open_run import FinishedRun


def prepared_facts(
    run: FinishedRun, scores: Mapping[str, dict[str, Any] | None]
) -> Iterator[tuple[str, str]]:
    """Yields what was prepared, what became of the structures that the search began with, and what it is worth.

    Args:
        run: finished or not.
        scores: of the networks that the report compares, by name: of their fine-tuning, None without one.
    """
    result = run.result
    made, named = result.task.made, result.settings.prepare
    if made is None or named is None:
        return
    yield "by", named.name
    spent = read_spent(run.folder)
    if spent is not None:
        yield "time", spent.words
    for name, value in made.facts.items():
        yield name, fact_text(value)
    trials = {trial.candidate: trial for trial in reversed(result.trials)}
    for start in made.starts:
        trial = trials.get(start)
        if trial is not None:
            fitness = trial.evaluation.fitness
            yield (
                f"its structure, trial {trial.number}",
                "failed" if fitness is None else f"fitness {fitness:.4f}",
            )
    yield from _worth(run)
    if isinstance(made.facts.get("epochs"), int):
        yield from _epochs(run, scores, made.facts["epochs"])


def _worth(run: FinishedRun) -> Iterator[tuple[str, str]]:
    """Yields the fitness of the full network and of uniform widths, as brought and as prepared."""
    task, full = run.result.task, run.structures[0]
    prepared = run.fitness_on(task.source, full.candidate, "full, prepared")
    yield "fitness of the full network, before and after", _both(run.fitness(full), prepared)
    with contextlib.suppress(RunError):  # no uniform widths meet the budget
        uniform = task.uniform()
        brought = Sliced(task.base, task.graph, task.rank(task.base))
        before = run.fitness_on(brought, uniform, "uniform, as brought")
        after = run.fitness_on(task.source, uniform, ",".join(map(str, uniform)))
        yield "fitness of uniform widths, before and after", _both(before, after)


def _both(before: float | None, after: float | None) -> str:
    """Returns two fitnesses in words."""
    return ", ".join(
        "failed" if fitness is None else f"{fitness:.4f}" for fitness in (before, after)
    )


def _epochs(
    run: FinishedRun, scores: Mapping[str, dict[str, Any] | None], prepared: int
) -> Iterator[tuple[str, str]]:
    """Yields how many epochs each network was trained for since the base network, where all are fine-tuned."""
    total: dict[str, int] = {}
    for structure in run.structures:
        score = scores[structure.name]
        if score is None:
            return
        from_prepared = structure != run.structures[0] and not structure.has_networks
        total[structure.name] = int(score["recipe"]["epochs"]) + (prepared if from_prepared else 0)
    yield "epochs since the base network, preparation and fine-tuning", fact_text(total)


def fact_text(value: Any) -> str:  # noqa: ANN401 - a plain JSON value
    """Returns a fact of a preparation in words, numbers with four digits."""
    if isinstance(value, bool | None):
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(fact_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {fact_text(inner)}" for name, inner in value.items())
    return str(value)
