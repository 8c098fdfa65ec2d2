"""How a search stands: counts, best, population; for people, scripts and watchers."""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.errors import FailuresError, plural
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.setup import read_setup
from abcsearch.runs.going_on import going_on
from abcsearch.runs.pace import Note, Pace
from abcsearch.runs.watching import Watcher, Watchers
from abcsearch.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.runs.disk.decision import Decision
    from abcsearch.runs.progress import Progress
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate, SearchSpace

_EVERY = 1.0  # seconds between two writings of progress.json
_BEST = 10  # trials that stand for the population of a searcher that has none


@dataclass(kw_only=True)
class Standing:
    """How a search stands.

    Attributes:
        folder: the run's.
        n_trials: structures to evaluate in all.
        max_failures: more failures than this in a row, counted from the start of this session, stop the run.
        watchers: hear of every trial; one that fails is dropped with a warning.
        progress: shown after every trial.
        stage: what progress calls it.
        best: the best trial, or None.
    """

    folder: RunFolder
    n_trials: int
    max_failures: int
    watchers: InitVar[Sequence[Watcher]]
    progress: Progress
    stage: str
    best: Trial | None = field(default=None, init=False)
    _trials: dict[Candidate, Trial] = field(default_factory=dict["Candidate", Trial], init=False)
    _done: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _in_a_row: list[str] = field(default_factory=list[str], init=False)
    _written: float = field(default=-math.inf, init=False)  # monotonic: the clock may be set back
    _workers: tuple[int, int] | None = field(default=None, init=False)
    _pace: Pace = field(default_factory=Pace, init=False)
    _against: str = field(default="", init=False)  # fitness of what the best is seen against

    def __post_init__(self, watchers: Sequence[Watcher]) -> None:
        """Gathers the watchers."""
        self._watching = Watchers(watchers, self.folder.log)

    def begin(self, trials: Sequence[Trial]) -> None:
        """Takes what the folder holds already."""
        for trial in trials:
            self._count(trial)
        known = read_setup(RunFolder(self.folder.run))
        self._against = "" if known is None else known.against
        (self.folder.path / "progress.json").unlink(missing_ok=True)  # it is of an earlier session
        self._watching.begin(trials, self.n_trials)

    def announce(self, note: str) -> None:
        """Shows a few words before the first trial of this session has finished."""
        self.progress(self.stage, self._done, self.n_trials, note)

    def decided(self, decision: Decision) -> None:
        """Takes who has won, which best.json then has."""
        self.best = decision.winner

    def add(self, trial: Trial, workers: tuple[int, int] | None) -> None:
        """Takes a finished trial: shows it, keeps best.json current.

        Raises:
            FailuresError: after too many failures in a row.
        """
        if self._count(trial):
            self._write_best()
        self._watching.trial(trial, self.best)
        self._workers = workers
        self._pace.add(time.time(), trial.evaluation.seconds)
        left = self._pace.left(self.n_trials - self._done, (workers or (1, 1))[1])
        self.progress(self.stage, self._done, self.n_trials, Note.of(self.note, left))
        if trial.evaluation.failure is None:
            self._in_a_row.clear()
            return
        self.folder.log(f"trial {trial.number} failed: {trial.evaluation.failure}")
        self._in_a_row.append(trial.evaluation.failure)
        if len(self._in_a_row) > self.max_failures:
            reasons = "; ".join(dict.fromkeys(self._in_a_row))
            msg = (
                f"{plural(len(self._in_a_row), 'evaluation')} failed in a row (max_failures = {self.max_failures}): "
                f"{reasons}. Finished trials are kept in {self.folder.path}; once that is mended, evaluate the failed "
                f"ones again with: {going_on(self.folder, retry_failed=True)}"
            )
            raise FailuresError(msg)

    @property
    def note(self) -> str:
        """How it stands, in a few words."""
        against = f" ({self._against})" if self._against else ""
        phrases = [f"best {self.best.fitness:.4f}{against}" if self.best else "no success yet"]
        if self._failed:
            phrases.append(f"{self._failed} failed")
        if self._workers is not None:
            phrases.append(f"{self._workers[0]} of {plural(self._workers[1], 'worker')} busy")
        return ", ".join(phrases)

    def show(self, workers: tuple[int, int] | None) -> None:
        """Writes progress.json for those who watch from outside, at most once a second."""
        self._workers = workers
        if time.monotonic() - self._written >= _EVERY:
            self._write_progress(*(workers or (1, 1)))

    def _write_progress(self, busy: int, there: int) -> None:
        """Writes progress.json."""
        self._written = time.monotonic()
        best = None if self.best is None else self.best.fitness
        self.folder.write_progress(
            self.stage,
            self._done,
            self.n_trials,
            busy=busy,
            workers=there,
            failed=self._failed,
            best=best,
        )

    def write_population(self, searcher: Searcher, told: int) -> None:
        """Writes population.json: what the searcher works from, or the best trials where it has no population (yet)."""
        population = searcher.population()
        trials = [self._trials[candidate] for candidate in population if candidate in self._trials]
        if not population:
            succeeded = (
                trial for trial in self._trials.values() if trial.evaluation.failure is None
            )
            trials = heapq.nsmallest(
                _BEST, succeeded, key=lambda trial: (-trial.fitness, trial.number)
            )
        what = (
            f"population of {searcher.name}"
            if population
            else f"best trials ({searcher.name} has no population now)"
        )
        members = [_member(trial, searcher.space) for trial in trials]
        self.folder.write_json("population.json", {"what": what, "told": told, "members": members})

    def end(self) -> None:
        """Leaves everything current; always called, also where the folder is gone."""
        if self.folder.there:
            self._write_best()
            self._write_progress(0, (self._workers or (1, 1))[1])
        self._watching.end()

    def _count(self, trial: Trial) -> bool:
        """Takes a trial into the running numbers and the best; returns whether it is the new best."""
        self._trials[trial.candidate] = trial
        self._done += 1
        self._failed += trial.evaluation.failure is not None
        # As `best_trial` says, without its lists: a long run that goes on counts all of its trials.
        rank, best = (-trial.fitness, trial.number), self.best
        better = trial.evaluation.failure is None and (
            best is None or rank < (-best.fitness, best.number)
        )
        self.best = trial if better else self.best
        return better

    def _write_best(self) -> None:
        """Writes best.json."""
        if self.best is not None:
            self.folder.write_json("best.json", self.best.to_plain())


def _member(trial: Trial, space: SearchSpace) -> dict[str, Any]:
    """Returns a trial as population.json has it; criteria only where they are searched."""
    evaluation, chosen = trial.evaluation, space.criteria(trial.candidate)
    return {
        "trial": trial.number,
        "fitness": evaluation.fitness,
        "macs": evaluation.macs,
        "params": evaluation.params,
        "widths": {name: kept for name, (kept, _) in space.widths(trial.candidate).items()},
        **({"criteria": chosen} if chosen else {}),
    }
