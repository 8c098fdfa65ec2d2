"""The finished trials of a journal that another process writes, and how fast they finish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.errors import AbcSearchError, RunError
from abcsearch.files import is_there
from abcsearch.runs.disk.decision import Decision
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.lines import (
    Chain,
    OutOfChainError,
    Success,
    decode_event,
    many_objects,
    trial_of,
)
from abcsearch.runs.pace import Pace
from abcsearch.trial import Trial, best_trial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class JournalTail:
    """The finished trials of a journal that another process writes; every look reads only what was appended.

    Attributes:
        n_trials: trials from this number on are left out, as the search leaves them out.
        done: number of trials.
        failed: number of those that failed.
        failing: of these, the last ones without a success after them.
        seconds: sum of the evaluations' times.
        evaluated: number of trials that were evaluated, and not known from elsewhere.
        best: the best trial, by full scores where they have decided.
        decision: by full scores; None where there is none.
        pace: how fast they finish.
    """

    def __init__(self, path: Path, n_trials: int) -> None:
        self._path = path
        self.n_trials = n_trials
        self._start_over()

    def _start_over(self) -> None:
        """Forgets everything."""
        self._offset, self._last, self._chain = 0, b"", Chain()
        self._numbers: set[int] = set()
        self.done, self.failed, self.failing, self.evaluated, self.seconds = 0, 0, 0, 0, 0.0
        self.best: Trial | None = None
        self.decision: Decision | None = None
        self.pace = Pace()

    def look(self) -> None:
        """Takes in what was appended since the last look; a line that is not whole yet waits for the next one.

        Raises:
            RunError: if the journal is damaged.
        """
        with many_objects():
            for line in self._appended():
                try:
                    text = self._chain.text(line)
                except OutOfChainError:
                    text = None
                if text is None:
                    # Says what is wrong, unless this is a last line that is torn
                    read_journal(self._path)
                    return
                self._offset, self._last = self._offset + len(line), line
                try:
                    self._take(text)
                except (ValueError, AbcSearchError) as error:
                    read_journal(self._path)  # says so
                    msg = f"{self._path} holds a line that is damaged: {error}; restore it from a copy"
                    raise RunError(msg) from error

    def _appended(self) -> Iterator[bytes]:
        """Yields the whole lines behind those read before; all lines where the journal was cut or replaced since."""
        if not is_there(self._path):
            return
        if not self._offset:
            self._chain = Chain.of(self._path)
        with self._path.open("rb") as file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._start_over()
                self._chain = Chain.of(self._path)
                file.seek(0)
            yield from (line for line in file if line.endswith(b"\n"))

    def _take(self, text: bytes) -> None:
        """Takes the JSON of a line."""
        success = Success.of(text)
        if success is not None:
            self._count(success.number, success.seconds, success.time)
            if success.number < self.n_trials and (self._better(success)):
                self.best = success.trial()
            return
        event = decode_event(text)
        if event.get("event") == "winner" and event.get("of") == self.n_trials:
            self.decision = Decision.of(event)
            self.best = self.decision.winner
        if "event" in event:
            return
        trial = trial_of(event)
        self._count(
            trial.number,
            trial.evaluation.seconds,
            event.get("time", 0),
            failed=trial.evaluation.failure is not None,
        )
        if trial.number < self.n_trials:
            self.best = best_trial([trial] if self.best is None else [self.best, trial])

    def _better(self, success: Success) -> bool:
        """Returns whether a trial is better than the best so far: as `best_trial` says."""
        best = self.best
        return best is None or (-success.fitness, success.number) < (-best.fitness, best.number)

    def _count(self, number: int, seconds: float, time: float, *, failed: bool = False) -> None:
        """Counts a trial."""
        if number in self._numbers:
            read_journal(self._path)  # says so
        self._numbers.add(number)
        if number >= self.n_trials:
            return
        self.done += 1
        self.failed += failed
        self.failing = self.failing + 1 if failed else 0
        self.seconds += seconds
        self.evaluated += seconds > 0
        self.pace.add(time, seconds)
