"""What a search found: its trials, its best structure, and the network of any."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.bounds import COSTS
from abcsearch.channels.repair import Repaired
from abcsearch.errors import RunError, plural
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.evaluation.sliced import SlicedEvaluator
from abcsearch.evaluation.staged import Staged
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.going_on import going_on
from abcsearch.runs.summaries import Summarised
from abcsearch.runs.trials import frame_of, rows_of
from abcsearch.runs.watching import finish_times
from abcsearch.transforms.ranked import Ranked
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.disk.decision import Decision
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.runs.task import Task
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial


@dataclass(frozen=True, kw_only=True, repr=False)
class SearchResult(Summarised):
    """A finished search.

    Attributes:
        run_dir: its folder.
        settings: what it was asked to do.
        task: network, data, channel groups, space, budget and ranking.
        trials: all trials in the order of asking.
        best: the trial of the highest fitness; where the best few were scored in full, of the highest full score, which
            its evaluation then has.
        build: candidate -> sliced network with its batch-norm statistics re-estimated, on the CPU: the very one that
            fitness saw where the evaluator is `AdaptiveBN`, and the one before training where it trains.
        decision: what full scores have decided, and which of the best trials cannot be told apart: `decision.words`;
            None where trials were compared as they are.
    """

    run_dir: Path
    settings: SearchSettings
    task: Task
    trials: tuple[Trial, ...] = field(repr=False)
    best: Trial
    build: Callable[[Candidate], nn.Module] = field(repr=False)
    decision: Decision | None = field(default=None, repr=False)

    def pareto(self, x: str = "macs", y: str = "fitness") -> list[Trial]:
        """Returns the trials that no other one beats in both x (smaller is better) and y (larger is better).

        Args:
            x: "macs", "params", "seconds", a metric, or another cost in closed form: "flops", "peak_activation" and,
                where the budget bounds it, "latency_ms" (as expected from layers, unless all candidates were measured).
            y: "fitness", or any of these.

        Returns:
            Trials by ascending x; failed trials are left out.

        Raises:
            RunError: if a trial has no such number.
        """
        ranked = sorted(
            (
                (self.number(t, x), -self.number(t, y), t.number, t)
                for t in self.trials
                if t.evaluation.failure is None
            ),
            key=lambda entry: entry[:3],
        )
        front: list[Trial] = []
        best = np.inf
        for _, negative, _, trial in ranked:
            if negative < best:
                front.append(trial)
                best = negative
        return front

    def trials_frame(self) -> Any:  # noqa: ANN401 - of a package that need not be there
        """Returns the trials as a pandas DataFrame: fitness, costs, metrics and widths by name; see `rows_of`.

        Raises:
            ConfigError: if pandas is not installed.
        """
        space = self.task.space
        names = [d.name for d in space.dimensions if d.kind != "criterion"]
        times = finish_times(RunFolder(self.run_dir).journal)
        return frame_of(rows_of(self.trials, names, self.settings.criteria, times))

    @property
    def summary(self) -> tuple[tuple[str, str], ...]:
        """What it is in five lines, names and values."""
        failed = sum(trial.evaluation.failure is not None for trial in self.trials)
        costs, pair = self.task.graph.costs, [self.task.space.full, self.best.candidate]
        counts = {name: getattr(costs, name)(pair).tolist() for name in ("macs", "params")}
        sizes = (
            f"{name} {full:,} => {kept:,} ({kept / (full or 1):.1%})"
            for name, (full, kept) in counts.items()
        )
        return (
            ("run folder", str(self.run_dir)),
            (
                "searcher",
                f"{self.settings.searcher.name}, {plural(len(self.trials), 'trial')}, {failed} failed",
            ),
            ("best", f"trial {self.best.number}, fitness {self.best.fitness:.4f}"),
            ("size", ", ".join(sizes)),
            (
                "next",
                "finetune(result.model(), data, Recipe(...)); result.trials_frame(), result.pareto()",
            ),
        )

    def number(self, trial: Trial, name: str) -> float:
        """Returns a number of a trial by name, as `pareto` takes it.

        Raises:
            RunError: if it has no such number.
        """
        evaluation, costs = trial.evaluation, self.task.constraint.costs
        reported = {
            key: getattr(evaluation, key) for key in ("fitness", "macs", "params", "seconds")
        }
        reported |= {key: value for key, value in evaluation.metrics.items() if key not in reported}
        if name in reported:
            return float(reported[name])
        closed = [key for key in COSTS if hasattr(costs, key)]
        if name in closed:
            return float(getattr(costs, name)([trial.candidate])[0])
        msg = f"trial {trial.number} has no {name!r}; it has: {', '.join(dict.fromkeys([*reported, *closed]))}"
        raise RunError(msg)

    @cached_property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Kept and full channels, and ranks, of the best structure; see `SearchSpace.widths`."""
        return self.task.space.widths(self.task.graph.settled(self.best.candidate))

    @cached_property
    def criteria(self) -> dict[str, str]:
        """The criterion that has chosen the channels of the best structure, by group; {} where there was no choice."""
        return self.task.space.criteria(self.best.candidate)

    def model(self) -> nn.Module:
        """Returns the best network: sliced, statistics of its batch norms re-estimated, in evaluation mode."""
        return self.build(self.best.candidate)


def collected(
    folder: RunFolder,
    task: Task,
    settings: SearchSettings,
    trials: Sequence[Trial],
    evaluator: Evaluator,
    decision: Decision | None,
) -> SearchResult:
    """Returns what trials found.

    Args:
        folder: the run's.
        task: what is pruned.
        settings: of the run.
        trials: in the order of asking.
        evaluator: what evaluated them.
        decision: by full scores; None where there is none.

    Raises:
        RunError: if no trial succeeded.
    """
    best = best_trial(trials) if decision is None else decision.winner
    if best is None:
        reasons = (
            "; ".join(dict.fromkeys(str(t.evaluation.failure) for t in trials))
            or "no structure was evaluated"
        )
        msg = (
            f"no trial of {folder.path} succeeded: {reasons}; once that is mended, evaluate them again with: "
            f"{going_on(folder, retry_failed=True)}"
        )
        raise RunError(msg)
    # Made when first needed: it may read images
    builder = cache(lambda: builder_of(task, evaluator))
    return SearchResult(
        run_dir=folder.path,
        settings=settings,
        task=task,
        trials=tuple(trials),
        best=best,
        build=lambda candidate: builder().build(candidate),
        decision=decision,
    )


def builder_of(task: Task, evaluator: Evaluator) -> AdaptiveBN:
    """Returns the AdaptiveBN of the search, or one with default options where the search had another evaluator.

    Where the search repairs networks at once, it repairs them layer after layer: few are built, so that this costs
    little, and it is worth some points more before fine-tuning (experiments/benchmarks/README.md).
    """
    first = evaluator.first if isinstance(evaluator, Staged) else evaluator
    if isinstance(first, AdaptiveBN):
        builder = copy.copy(first)
    else:
        repair = first.options.repair if isinstance(first, SlicedEvaluator) else "none"
        batch = max(2, min(AdaptiveBNOptions.batch_size, len(task.data.train)))
        with warnings.catch_warnings():  # nobody asked for a calibration
            warnings.simplefilter("ignore", UserWarning)
            builder = AdaptiveBN(
                task.source, task.data, AdaptiveBNOptions(batch_size=batch, repair=repair)
            )
    ranked = isinstance(builder.source, Ranked)
    source = builder.source.source if isinstance(builder.source, Ranked) else builder.source
    if isinstance(source, Repaired):
        source = source.in_turn()
        builder.source = Ranked(source) if ranked else source
    return builder
