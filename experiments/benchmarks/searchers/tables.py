"""Medians over seeds, and the Markdown tables made of them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from experiments.benchmarks.searchers.play import Played

NEAR = 0.2  # points of accuracy that count as having found the optimum
MARKS = (50, 100, 200, 400)  # evaluations at which runs are compared
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the runs of one searcher on one task come to.

    Attributes:
        seeds: number of runs.
        accuracy: median accuracy by number of evaluations, in per cent.
        regret: median distance to the optimum by number of evaluations, in points.
        needed: median number of evaluations until a run is within NEAR points of the optimum; infinite if more than
            were made.
        seconds: median wall-clock time of a run.
    """

    seeds: int
    accuracy: dict[int, float]
    regret: dict[int, float]
    needed: float
    seconds: float


def value_at(played: Played, evaluations: int) -> float:
    """Returns the accuracy of the winner after a number of evaluations, in [0, 1]; 0 before the first one."""
    return next((value for number, value in reversed(played.steps) if number <= evaluations), 0.0)


def needed(played: Played, optimum: float) -> float:
    """Returns after how many evaluations a run first is within NEAR points of the optimum; infinite if never."""
    near = optimum - NEAR / 100 - _ROUNDING
    return next((float(number) for number, value in played.steps if value >= near), math.inf)


def summary(runs: list[Played], optimum: float, marks: tuple[int, ...] = MARKS) -> Summary:
    """Returns the medians over the runs of one searcher on one task.

    Args:
        runs: one per seed, at least one.
        optimum: the best accuracy inside the budget, in [0, 1].
        marks: numbers of evaluations.
    """
    accuracy = {n: 100 * statistics.median(value_at(run, n) for run in runs) for n in marks}
    return Summary(
        seeds=len(runs),
        accuracy=accuracy,
        regret={n: 100 * optimum - value for n, value in accuracy.items()},
        needed=statistics.median(needed(run, optimum) for run in runs),
        seconds=statistics.median(run.seconds for run in runs),
    )


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def task_table(summaries: dict[str, Summary], evaluations: int) -> str:
    """Returns the table of one task: accuracy and regret at the marks, one line per searcher."""
    marks = [*next(iter(summaries.values())).accuracy]
    head = [
        "searcher",
        "seeds",
        *(f"{n}: accuracy, % (regret)" for n in marks),
        f"within {NEAR}",
        "s per run",
    ]
    rows = [
        [
            name,
            str(one.seeds),
            *(f"{one.accuracy[n]:.2f} ({abs(one.regret[n]):.2f})" for n in marks),
            f">{evaluations}" if math.isinf(one.needed) else f"{math.ceil(one.needed)}",
            f"{one.seconds:.2f}",
        ]
        for name, one in summaries.items()
    ]
    return markdown(head, rows)


def overview(tasks: list[dict[str, Summary]]) -> str:
    """Returns the table over several tasks, best first: mean regrets at the marks, on how many the optimum is found.

    Args:
        tasks: of every task, the summaries by searcher; the same searchers on all.
    """
    marks = [*next(iter(tasks[0].values())).regret]
    lines: list[tuple[list[float], list[str]]] = []
    for name in tasks[0]:
        ones = [task[name] for task in tasks]
        regrets = [statistics.fmean(one.regret[n] for one in ones) for n in marks]
        solved = sum(math.isfinite(one.needed) for one in ones)
        seeds = min(one.seeds for one in ones)
        lines.append(
            (
                regrets[::-1],
                [name, str(seeds), *(f"{r:.2f}" for r in regrets), f"{solved} of {len(ones)}"],
            )
        )
    head = ["searcher", "seeds", *(f"after {n}" for n in marks), f"tasks within {NEAR}"]
    return markdown(head, [cells for _, cells in sorted(lines)])
