"""The forward time of the best trials, measured in turns with the full network's before one of them wins."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.channels.latency import in_turns
from abcsearch.channels.runtimes import check_runtime
from abcsearch.errors import plural
from abcsearch.rng import derived_seed
from abcsearch.runs.disk.decision import Timed
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.going_on import going_on

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from abcsearch.budget import Limit
    from abcsearch.channels.options import LatencyOptions
    from abcsearch.channels.turns import Turns
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.runs.task import Task
    from abcsearch.trial import Trial

_OCCASIONS = 2  # on which the best are measured


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """Measures trials, and says which are inside the budget.

    Attributes:
        task: whose networks are measured.
        options: where and how.
        limit: of forward time.
        seed: of the run.
        path: of its folder.
    """

    task: Task
    options: LatencyOptions
    limit: Limit
    seed: int
    path: Path

    @classmethod
    def of(
        cls, task: Task, settings: SearchSettings, path: Path, *, finished: bool
    ) -> Stopwatch | None:
        """Returns the stopwatch of a run; None where forward time is not bounded, or nothing is to be measured.

        Args:
            task: of the run.
            settings: of it.
            path: of its folder.
            finished: whether all is decided, so that nothing will be measured.

        Raises:
            ModelError: if the runtime that is to measure is not there.
        """
        limit = next((one for one in task.constraint.limits if one.name == "latency_ms"), None)
        if limit is None or not settings.latency.finalists:
            return None
        if not finished:
            check_runtime(settings.latency)
        return cls(task=task, options=settings.latency, limit=limit, seed=settings.seed, path=path)

    @property
    def count(self) -> int:
        """How many of the best trials are measured."""
        return self.options.finalists

    @property
    def where(self) -> str:
        """Where, in words."""
        return self.options.where

    def measured(self, trials: Sequence[Trial]) -> dict[int, Timed]:
        """Returns the forward times of trials, measured together, by number: the longer of two measurements.

        Of the best trials the first that is inside wins, and many are just about inside: of one measurement, the
        winner would often be one that was only measured so.
        """
        occasions = [self._turns(trials) for _ in range(_OCCASIONS)]
        shares = np.max([turns.shares for turns in occasions], axis=0)
        full_ms = float(np.median([turns.full_ms for turns in occasions]))
        return {
            trial.number: Timed(share=float(share), full_ms=full_ms)
            for trial, share in zip(trials, shares, strict=True)
        }

    def _turns(self, trials: Sequence[Trial]) -> Turns:
        """Returns the forward times of trials, measured in turns, of networks that are built anew."""
        networks = [
            self.task.source.network(
                trial.candidate, derived_seed(self.seed, "evaluation", trial.number)
            )
            for trial in trials
        ]
        full, example = copy.deepcopy(self.task.base), self.task.data.example[:1]
        return in_turns(networks, full, example, self.options)

    def _ms(self, time: Timed) -> float:
        """Returns a time in the milliseconds of the budget: at the speed that the machine had when that was bound."""
        return time.share * float(self.limit.cost([self.task.space.full])[0])

    def allows(self, time: Timed) -> bool:
        """Returns whether a measured time is inside the budget."""
        return self.limit.low <= self._ms(time) <= self.limit.high

    def distance(self, time: Timed) -> float:
        """Returns how far a time is outside of the budget, in milliseconds; 0 inside."""
        return max(self._ms(time) - self.limit.high, self.limit.low - self._ms(time), 0.0)

    def refusal(self, number: int, nearest: Timed, count: int) -> str:
        """Returns the message that no trial is inside, with the nearest one."""
        full = float(self.limit.cost([self.task.space.full])[0])
        wanted = f"{self.limit.low / full:.3f} to {self.limit.high / full:.3f}"
        return (
            f"none of the best {plural(count, 'trial')} of {self.path} is inside the budget of forward time as measured "
            f"({self.where}): it allows {wanted} of the full network's time, and the nearest, trial {number}, takes "
            f"{nearest.share:.3f}. Search on with more trials ({going_on(RunFolder(self.path), n_trials='N')}), "
            f"or begin a run with another budget, with latency.check = true, or with a less busy machine"
        )
