"""How far a run is, seen from outside: cheap enough to look every second, and nothing is written."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, fields
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from abcsearch.baselines.registry import searched
from abcsearch.errors import AbcSearchError, RunError
from abcsearch.files import is_there
from abcsearch.runs.damage import damaged
from abcsearch.runs.folder import RunFolder
from abcsearch.runs.journal import read_journal
from abcsearch.runs.lines import Chain, OutOfChainError, Success, decode_event, many_objects, trial_of
from abcsearch.runs.setup import read_setup
from abcsearch.runs.shapes import other_baseline, shown_header, winner_name
from abcsearch.runs.tuned import interrupted, kept, recipes, tunings
from abcsearch.trial import Trial, best_trial

if TYPE_CHECKING:
    from collections.abc import Iterator

# The pace is that of the trials of the last minutes, but of so many at least.
_RECENT, _FEWEST = 300, 50
# A longer time between two trials, in seconds and in evaluations, is a stop of the run.
_PAUSE, _EVALUATIONS = 60, 3
_LOG_LINES = 5
TUNING = "fine-tuning"  # what the stages of fine-tuning begin with
PREPARING = "preparing"  # and those of what is trained before a search


class Pace:
    """How fast trials finish now, from the times at which the last ones did."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=1000)

    def add(self, finished: float, seconds: float) -> None:
        """Takes when a trial finished, and how long its evaluation took."""
        longest = max(_PAUSE, _EVALUATIONS * seconds)
        if self._recent and not 0 <= finished - self._recent[-1][0] <= longest:  # stopped, or the clock was set back
            self._recent.clear()
        self._recent.append((finished, seconds))

    def interval(self, workers: int | None = None) -> float | None:
        """Returns the seconds from one finished trial to the next, or None if nothing tells.

        Args:
            workers: how many evaluations run at a time. The first ones finish together and look faster than they were.
        """
        if not self._recent:
            return None
        last = self._recent[-1][0]
        recent = [pair for pair in self._recent if pair[0] > last - _RECENT]
        recent = recent if len(recent) > _FEWEST else list(self._recent)[-_FEWEST:]
        found = [(last - recent[0][0]) / (len(recent) - 1)] if len(recent) > 1 else []
        if workers:
            found.append(sum(seconds for _, seconds in recent) / len(recent) / workers)
        return max(found, default=None)

    def left(self, remaining: int, workers: int | None = None, now: float | None = None) -> float | None:
        """Returns the seconds until so many more trials are finished, or None if nothing tells."""
        interval = self.interval(workers)
        if interval is None or not remaining:
            return None
        passed = (time() if now is None else now) - self._recent[-1][0]
        return max(interval * remaining - max(passed, 0), 0)


class JournalTail:
    """The finished trials of a journal that another process writes; every look reads only what was appended.

    Attributes:
        n_trials: trials from this number on are left out, as the search leaves them out.
        done: number of trials.
        failed: number of those that failed.
        failing: of these, the last ones without a success after them.
        seconds: sum of the evaluations' times.
        best: the best trial.
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
        self.done, self.failed, self.failing, self.seconds = 0, 0, 0, 0.0
        self.best: Trial | None = None
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
                    read_journal(self._path)  # says what is wrong, unless this is a last line that is torn
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
        if "event" in event:
            return
        trial = trial_of(event)
        self._count(
            trial.number, trial.evaluation.seconds, event.get("time", 0), failed=trial.evaluation.failure is not None
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
        self.pace.add(time, seconds)


@dataclass(frozen=True)
class Pulse:
    """What a running search, or a fine-tuning, says of itself in progress.json.

    Attributes:
        stage: what is being done.
        busy: evaluations that run now.
        workers: how many can run at a time.
        time: when it said so, in unix seconds.
    """

    stage: str
    busy: int
    workers: int
    time: float

    @property
    def tuning(self) -> bool:
        """Whether it is that of fine-tuning."""
        return str(self.stage).startswith(TUNING)

    @property
    def training(self) -> bool:
        """Whether it is that of a training, which says how far it is in its stage."""
        return str(self.stage).startswith((TUNING, PREPARING))

    @classmethod
    def of(cls, folder: RunFolder) -> Pulse | None:
        """Returns what the file says, or None without a file that can be read."""
        try:
            plain = folder.read_json("progress.json")
            return cls(**{own.name: plain[own.name] for own in fields(cls)})
        except (RunError, KeyError, TypeError):
            return None


@dataclass(frozen=True, kw_only=True)
class SearchStatus:
    """How far one search is.

    Attributes:
        name: of the searcher or the baseline.
        done: number of finished trials.
        total: of so many.
        failed: number of failed ones.
        failing: of these, the last ones without a success after them.
        best: the best trial.
        seconds: sum of the evaluations' times.
        interval: seconds from one finished trial to the next; None if it does not run, or nothing tells.
        left: seconds until it is finished, likewise.
    """

    name: str
    done: int
    total: int
    failed: int
    failing: int
    best: Trial | None
    seconds: float
    interval: float | None = None
    left: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run is.

    Attributes:
        searches: the search, then the baselines.
        running: whether a process writes to the folder now.
        finished: whether nothing is left to search, and nobody writes.
        gave_up: whether failures in a row have stopped it: more of them than max_failures.
        exhausted: whether the search ended because there are no other structures.
        tuned: names of the structures that have been fine-tuned: what export and report take as such.
        kept: names of the folders in finetuned/ with what was fine-tuned by other recipes.
        recipes: in what the recipe of a fine-tuning differs from the run's own, by name, or folder/name of those kept.
        damaged: files of weights or scores that are damaged or missing, with what to do, once nobody writes.
        interrupted: the command that continues a fine-tuning which was stopped, once nobody writes; else None.
        pulse: what the running process says of itself; None if it says nothing.
        setup: how the full network did on the data before the search, and what looked wrong, a line each.
        preparing: where a preparation stood that was stopped, or failed; None without such a one.
        log: the last lines of the log.
    """

    searches: tuple[SearchStatus, ...]
    running: bool
    finished: bool
    gave_up: bool
    exhausted: bool
    tuned: tuple[str, ...]
    kept: tuple[str, ...]
    recipes: dict[str, tuple[str, ...]]
    damaged: tuple[str, ...]
    interrupted: str | None
    pulse: Pulse | None
    setup: tuple[str, ...]
    preparing: str | None
    log: tuple[str, ...]


class RunWatch:
    """Looks at a run folder again and again.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._folder = RunFolder(path)
        self._tails: dict[str, JournalTail] = {}
        self._ends: tuple[list[int], bool, bool] = ([], False, False)

    @property
    def title(self) -> str:
        """What is run, and since when."""
        header = shown_header(self._folder)
        settings, started = header["settings"], header["environment"]["started"]
        return f"{self.path}: {settings['searcher']['name']}, seed {settings['seed']}, started {started}"

    def look(self) -> RunStatus:
        """Returns how far the run is now.

        Raises:
            RunError: if the folder holds no run, or a damaged one.
        """
        header = shown_header(self._folder)
        settings = header["settings"]
        folders = {winner_name(settings["searcher"]["name"]): self._folder}
        begun = {path.parent.name for path in self.path.glob("baselines/*/run.json")}
        due = set(searched(settings.get("baselines", ())))
        for name in sorted(begun | due):
            if other := other_baseline(self._folder, name, header):
                raise RunError(other)
            folders[f"baseline {name}"] = self._folder.baseline(name)
        running = self._folder.in_use()  # before the journals: what is finished after that is seen at the next look
        ended, exhausted = self._ended(list(folders.values()), settings["n_trials"])
        # What is left of a search or a fine-tuning that was killed, or is over, says nothing.
        pulses = [p for p in map(Pulse.of, folders.values()) if p and running and p.tuning == ended]
        pulse = max(pulses, key=lambda found: found.time, default=None)
        written = {name: folder.journal.stat().st_mtime for name, folder in folders.items() if folder.journal.exists()}
        active = max(written, key=lambda name: written[name]) if running and written else None
        searches = tuple(
            self._search(name, folder, settings["n_trials"], None if ended else pulse, active=name == active)
            for name, folder in folders.items()
        )
        # Of a trial whose line is damaged the snapshot says that it is done; it has to be evaluated again.
        lacking = not exhausted and any(search.done < search.total for search in searches)
        over = ended and not running and not lacking
        winners = {search.name.removeprefix("baseline "): search.best for search in searches}
        best = {name: None if trial is None else trial.candidate for name, trial in winners.items()}
        most = settings.get("max_failures")
        most = most if isinstance(most, int) else math.inf
        made = tunings(self._folder, settings, best)
        return RunStatus(
            searches=searches,
            running=running,
            finished=over,
            gave_up=not (running or over) and any(search.failing > most for search in searches),
            exhausted=exhausted,
            tuned=tuple(name for name, tuned in made.items() if tuned.scores is not None),
            kept=tuple(path.name for path in kept(self._folder)),
            recipes=recipes(self._folder, made, settings.get("finetune")),
            damaged=() if running else damaged(self._folder, header, made),
            interrupted=interrupted(self._folder, settings.get("finetune")) if over else None,
            pulse=pulse,
            setup=() if (known := read_setup(self._folder)) is None else known.lines,
            preparing=None if running else _left_off(self._folder),
            log=_last_lines(self.path / "log.txt"),
        )

    def _search(
        self, name: str, folder: RunFolder, n_trials: int, pulse: Pulse | None, *, active: bool
    ) -> SearchStatus:
        """Returns how far one search is."""
        tail = self._tails.get(name)
        if tail is None or tail.n_trials != n_trials:  # continued with another number of trials
            tail = self._tails[name] = JournalTail(folder.journal, n_trials)
        tail.look()
        workers = pulse.workers if pulse else None
        return SearchStatus(
            name=name,
            done=tail.done,
            total=n_trials,
            failed=tail.failed,
            failing=tail.failing,
            best=tail.best,
            seconds=tail.seconds,
            interval=tail.pace.interval(workers) if active else None,
            left=tail.pace.left(n_trials - tail.done, workers) if active else None,
        )

    def _ended(self, folders: list[RunFolder], n_trials: int) -> tuple[bool, bool]:
        """Returns whether all searches are over, and whether the first one has run out of structures.

        That is in the states of the searchers, which can be large: they are read again only when they are new.
        """
        states = [folder.path / "searcher.json" for folder in folders]
        stamps = [n_trials, *(state.stat().st_mtime_ns if state.exists() else 0 for state in states)]
        if stamps != self._ends[0]:
            ended = all(folder.finished(n_trials) for folder in folders)
            self._ends = (stamps, ended, folders[0].exhausted())
        return self._ends[1:]


def _left_off(folder: RunFolder) -> str | None:
    """Returns where a preparation stands that has not come to its end; None without such a one."""
    pulse = None if (folder.path / "prepared.json").exists() else Pulse.of(folder)
    return pulse.stage if pulse is not None and str(pulse.stage).startswith(PREPARING) else None


def _last_lines(path: Path) -> tuple[str, ...]:
    """Returns the last lines of a log."""
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        return tuple(file.read().decode(errors="replace").splitlines()[-_LOG_LINES:])
