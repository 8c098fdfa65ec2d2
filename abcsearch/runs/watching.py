"""Who watches a search: told of every trial once it is on disk, after the run itself. TensorBoard is one."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from abcsearch.errors import ConfigError
from abcsearch.files import is_there
from abcsearch.runs.disk.lines import decode_line
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils.tensorboard import SummaryWriter

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.task import Task
    from abcsearch.trial import Trial

_PATIENCE = 60.0  # seconds that watchers may take at the end for what they have not written yet


class Watcher(Protocol):
    """Watches a search. Nothing that it raises stops the search."""

    def begin(self, trials: Sequence[Trial], n_trials: int) -> None:
        """Takes what the folder already holds, in order of number, before anything new; and how many there will be."""
        ...

    def trial(self, trial: Trial, best: Trial | None) -> None:
        """Takes a finished trial, which is on disk, and the best one so far. Trials may finish in another order."""
        ...

    def end(self) -> None:
        """Is called at the end of the session, always: also after errors and Ctrl-C."""
        ...


WatcherFactory = Callable[["Task", "RunFolder"], Watcher]
"""Makes the watcher of one search: called once, when it begins, with what is pruned and the folder with its run.json.

What can be wrong is found before: when the factory itself is made.
"""


class Watchers:
    """Tells watchers of everything, in order, in a thread of its own: whatever they do, the search goes on.

    One that fails is dropped with a warning.
    """

    def __init__(self, watchers: Sequence[Watcher], log: Callable[[str], object]) -> None:
        """Takes the watchers, and where to log that one was dropped."""
        self._watchers, self._log = list(watchers), log
        self._calls: queue.SimpleQueue[Callable[[Watcher], None] | None] = queue.SimpleQueue()
        self._dropped: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="abcsearch-watchers", daemon=True)
        if watchers:
            self._thread.start()

    def begin(self, trials: Sequence[Trial], n_trials: int) -> None:
        """See `Watcher.begin`."""
        self._tell(lambda watcher: watcher.begin(trials, n_trials))

    def trial(self, trial: Trial, best: Trial | None) -> None:
        """See `Watcher.trial`."""
        self._tell(lambda watcher: watcher.trial(trial, best))

    def end(self) -> None:
        """See `Watcher.end`; waits for those who are behind, but not for ever."""
        self._tell(lambda watcher: watcher.end())
        self._calls.put(None)
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._dropped.put(
                "watchers are far behind and are left there; they catch up when the run is continued"
            )
        self._warn()

    def _tell(self, call: Callable[[Watcher], None]) -> None:
        self._calls.put(call)
        self._warn()

    def _warn(self) -> None:
        """Warns of watchers that were dropped, in the thread of the search."""
        while not self._dropped.empty():
            message = self._dropped.get()
            self._log(message)
            warnings.warn(message, stacklevel=2)

    def _run(self) -> None:
        """Tells until the end."""
        while (call := self._calls.get()) is not None:
            for watcher in list(self._watchers):
                try:
                    call(watcher)
                except Exception as error:  # noqa: BLE001 - whatever it is, the search goes on
                    self._watchers.remove(watcher)
                    self._dropped.put(f"{type(watcher).__name__} stops watching: {error}")


def finish_times(journal: Path | None) -> dict[int, float]:
    """Returns when each trial of a journal finished, in unix seconds; of a line that is damaged nothing."""
    if journal is None or not is_there(journal):
        return {}
    times: dict[int, float] = {}
    for line in journal.read_bytes().splitlines(keepends=True):
        event = decode_line(line) or {}
        if {"number", "time"} <= event.keys():
            times[event["number"]] = event["time"]
    return times


def tensorboard_watcher() -> WatcherFactory:
    """Returns what makes a `TensorBoard` in the run folder.

    Raises:
        ConfigError: if the package is missing.
    """
    _summary_writer()
    return lambda _, folder: TensorBoard(folder.path / "tensorboard", folder.journal)


def _summary_writer() -> type[SummaryWriter]:
    """Returns PyTorch's writer, which needs the package tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        msg = f"TensorBoard is not installed ({error}); run: pip install 'abcsearch[watch]'"
        raise ConfigError(msg) from error
    return SummaryWriter


class TensorBoard:
    """Writes the scalars of every trial for TensorBoard, at step number + 1.

    A search that continues writes all of it anew, so that no point is there twice or missing, whatever of the old
    files had reached the disk. Points are written in order of number, a trial that finishes early waiting for those
    before it: TensorBoard takes a step back for a restart and hides the later points.
    """

    def __init__(self, path: str | Path, journal: Path | None = None) -> None:
        """Checks that TensorBoard is there; nothing is written yet.

        Args:
            path: folder for the event files; event files in it are replaced.
            journal: of the search; it has the times of the trials that are there at the beginning.

        Raises:
            ConfigError: if the package is missing.
        """
        self._path = Path(path)
        self._journal = journal
        self._make = _summary_writer()
        self._writer: SummaryWriter | None = None
        self._waiting: dict[int, tuple[Trial, float]] = {}
        self._next, self._failures = 0, 0
        self._best: Trial | None = None

    def begin(self, trials: Sequence[Trial], n_trials: int) -> None:
        """Replaces the event files by one with these trials."""
        del n_trials
        for old in self._path.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = self._make(str(self._path))
        times = finish_times(self._journal)
        for trial in trials:
            self._take(trial, times.get(trial.number, time.time()))
        self._writer.flush()

    def trial(self, trial: Trial, best: Trial | None) -> None:
        """Writes a trial, and flushes: it can be seen at once."""
        del best  # so far, of trials that may be later than this one
        self._take(trial, time.time())
        if self._writer is not None:
            self._writer.flush()

    def end(self) -> None:
        """Writes what still waits for earlier trials, which will not come, and closes the file."""
        for number in sorted(self._waiting):
            self._write(*self._waiting.pop(number))
        if self._writer is not None:
            self._writer.close()

    def _take(self, trial: Trial, finished: float) -> None:
        """Writes a trial, and those that waited for it, when it is its turn."""
        self._waiting[trial.number] = trial, finished
        while self._next in self._waiting:
            self._write(*self._waiting.pop(self._next))
            self._next += 1

    def _write(self, trial: Trial, finished: float) -> None:
        """Writes the scalars of a trial."""
        evaluation = trial.evaluation
        self._failures += evaluation.failure is not None
        self._best = best_trial([trial] if self._best is None else [self._best, trial])
        scalars: dict[str, float | None] = {
            "fitness": evaluation.fitness,
            "best_fitness": self._best and self._best.fitness,
            "macs": evaluation.macs,
            "params": evaluation.params,
            "seconds": evaluation.seconds,
            "failures": self._failures,
            **{f"metrics/{name}": value for name, value in evaluation.metrics.items()},
        }
        for name, value in scalars.items():
            if value is not None and self._writer is not None:
                self._writer.add_scalar(name, value, trial.number + 1, walltime=finished)
