"""How far a run is, seen from outside: cheap enough to look every second, and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.baselines.registry import searched
from abcsearch.errors import RunError
from abcsearch.results.damage import damaged
from abcsearch.results.finetuned_files import interrupted, kept, recipes, tunings
from abcsearch.results.tail import JournalTail
from abcsearch.runs.disk.decision import Decision
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.known import STAGE, mapped_total, told_lines
from abcsearch.runs.disk.setup import read_setup
from abcsearch.runs.disk.shapes import other_baseline, shown_header, winner_name
from abcsearch.runs.disk.spent import read_spent
from abcsearch.runs.disk.stages import FAILED, PREPARING, TUNING
from abcsearch.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.space import Candidate

_LOG_LINES = 5
_MAP_DAMAGED = "the map is damaged: "


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
            return cls(**{field.name: plain[field.name] for field in fields(cls)})
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
        best: the best trial, by full scores where they have decided.
        decision: by full scores; None where there is none.
        undecided: whether all trials are finished, and the best of them still to be scored in full.
        seconds: sum of the evaluations' times.
        evaluated: number of trials that were evaluated, and not known from elsewhere.
        interval: seconds from one finished trial to the next; None if it does not run, or nothing tells.
        left: seconds until it is finished, likewise.
        unit: what is counted.
    """

    name: str
    done: int
    total: int
    failed: int
    failing: int
    best: Trial | None
    seconds: float
    evaluated: int
    decision: Decision | None = None
    undecided: bool = False
    interval: float | None = None
    left: float | None = None
    unit: str = "trial"


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run is.

    Attributes:
        map: of what the searcher wanted to know before it began; None where there is none.
        known: what it was told of other runs, a line for each.
        searches: the search, then the baselines.
        running: whether a process writes to the folder now.
        finished: whether nothing is left to search, and nobody writes.
        gave_up: whether failures in a row have stopped it: more of them than max_failures.
        exhausted: whether the search ended because there are no other structures.
        tuned: names of the structures that have been fine-tuned: what export and report take as such.
        kept: names of the folders in finetuned/ with what was fine-tuned by other recipes.
        recipes: in what the recipe of a fine-tuning differs from the run's own, by name, or folder/name of those kept.
        damaged: files that are damaged, with what to do, of which nothing or only a part is shown here; and once nobody
            writes, those of weights or scores that are damaged or missing.
        interrupted: the command that continues a fine-tuning which was stopped, once nobody writes; else None.
        pulse: what the running process says of itself; None if it says nothing.
        setup: how the full network did on the data before the search, and what looked wrong, a line each.
        prepared: what a preparation has cost that is done; None without one, or where the folder does not say.
        preparing: where a preparation stood that was stopped, or why it failed; None without such a one.
        log: the last lines of the log.
    """

    map: SearchStatus | None
    known: tuple[str, ...]
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
    prepared: str | None
    preparing: str | None
    log: tuple[str, ...]

    @property
    def rows(self) -> tuple[SearchStatus, ...]:
        """What was, is and will be evaluated, in that order: the map, the search, the baselines."""
        return self.searches if self.map is None else (self.map, *self.searches)


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
        # Searches whose best trials are scored in full at their end
        self._to_decide: set[Path] = set()
        self._unread: list[str] = []  # what could not be read at the last look

    @property
    def title(self) -> str:
        """What is run, and since when."""
        header = shown_header(self._folder)
        settings, started = header["settings"], header["environment"]["started"]
        return f"{self.path}: {settings['searcher']['name']}, seed {settings['seed']}, started {started}"

    @property
    def configured(self) -> bool:
        """Whether it has a config, so that the command line goes on with it."""
        return "model" in shown_header(self._folder)["settings"]

    def look(self) -> RunStatus:
        """Returns how far the run is now, as far as that can be read.

        Raises:
            RunError: if the folder holds no run, or its run.json is damaged; if a baseline is that of another run.
        """
        header = shown_header(self._folder)
        self._unread.clear()
        settings, n_trials = header["settings"], header["settings"]["n_trials"]
        folders = self._searched(header)
        # Before the journals: what is finished after that is seen at the next look
        running = self._folder.in_use()
        ended, exhausted = self._ended(list(folders.values()), n_trials)
        total = self._mapped()
        pulse = self._pulse([*folders.values(), self._folder.map], ended=ended) if running else None
        now = None if ended else pulse
        active = _last_written(folders) if running else None
        searches = tuple(
            self._search(name, folder, n_trials, now, active=name == active)
            for name, folder in folders.items()
        )
        mapping = running and not self._folder.journal.exists()
        mapped = (
            self._search(STAGE, self._folder.map, total, now, active=mapping) if total else None
        )
        over = (
            ended
            and not running
            and not self._unread
            and (exhausted or _complete(searches))
            and not _undecided(searches)
        )
        tuned = tunings(self._folder, settings, _winners(searches))
        setup = read_setup(self._folder)
        return RunStatus(
            map=mapped,
            known=told_lines(self._folder),
            searches=searches,
            running=running,
            finished=over,
            gave_up=not (running or over) and _gave_up(searches, settings),
            exhausted=exhausted,
            tuned=tuple(name for name, tuning in tuned.items() if tuning.scores is not None),
            kept=tuple(path.name for path in kept(self._folder)),
            recipes=recipes(self._folder, tuned, settings.get("finetune")),
            damaged=(*self._unread, *(() if running else damaged(self._folder, header, tuned))),
            interrupted=interrupted(self._folder, settings.get("finetune")) if over else None,
            pulse=pulse,
            setup=() if setup is None else setup.lines,
            prepared=_spent(self._folder),
            preparing=None if running else _left_off(self._folder),
            log=_last_lines(self.path / "log.txt"),
        )

    def _searched(self, header: dict[str, Any]) -> dict[str, RunFolder]:
        """Returns the folders of the search and of its baselines, begun or to come.

        Raises:
            RunError: if a baseline is that of another run.
        """
        settings = header["settings"]
        folders = {winner_name(settings["searcher"]["name"]): self._folder}
        begun = {path.parent.name for path in self.path.glob("baselines/*/run.json")}
        for name in sorted(begun | set(searched(settings.get("baselines", ())))):
            if other := self._other(name, header):
                raise RunError(other)
            folders[f"baseline {name}"] = self._folder.baseline(name)
        return folders

    def _other(self, name: str, header: dict[str, Any]) -> str:
        """Returns that a baseline is that of another run, or ""; notes if that cannot be told."""
        try:
            return other_baseline(self._folder, name, header)
        except (RunError, OSError) as error:
            self._unread.append(str(error))
            return ""

    def _mapped(self) -> int:
        """Returns how many structures the map has; 0 without one, or if that cannot be read, which is noted."""
        try:
            return mapped_total(self._folder)
        except (RunError, OSError) as error:
            self._unread.append(f"{_MAP_DAMAGED}{error}")
            return 0

    def _pulse(self, folders: list[RunFolder], *, ended: bool) -> Pulse | None:
        """Returns what the running process has said last: a search that is over, or was killed, says nothing."""
        pulses = [
            pulse
            for pulse in map(Pulse.of, folders)
            if pulse and pulse.tuning == ended and not str(pulse.stage).startswith(FAILED)
        ]
        return max(pulses, key=lambda pulse: pulse.time, default=None)

    def _search(
        self, name: str, folder: RunFolder, n_trials: int, pulse: Pulse | None, *, active: bool
    ) -> SearchStatus:
        """Returns how far one search is."""
        tail = self._tails.get(name)
        if tail is None or tail.n_trials != n_trials:  # continued with another number of trials
            tail = self._tails[name] = JournalTail(folder.journal, n_trials)
        try:
            tail.look()
        except (RunError, OSError) as error:  # what was read before it is shown
            self._unread.append(f"{_MAP_DAMAGED if name == STAGE else ''}{error}")
        workers = pulse.workers if pulse else None
        return SearchStatus(
            name=name,
            done=tail.done,
            total=n_trials,
            failed=tail.failed,
            failing=tail.failing,
            best=tail.best,
            decision=tail.decision,
            undecided=folder.path in self._to_decide
            and tail.decision is None
            and tail.done >= n_trials,
            seconds=tail.seconds,
            evaluated=tail.evaluated,
            interval=tail.pace.interval(workers) if active else None,
            left=tail.pace.left(n_trials - tail.done, workers) if active else None,
            unit="evaluation" if name == STAGE else "trial",
        )

    def _ended(self, folders: list[RunFolder], n_trials: int) -> tuple[bool, bool]:
        """Returns whether all searches are over, and whether the first one has run out of structures.

        That is in the states of the searchers, which can be large: they are read again only when they are new.
        """
        states = [folder.path / "searcher.json" for folder in folders]
        stamps = [
            n_trials,
            *(state.stat().st_mtime_ns if state.exists() else 0 for state in states),
        ]
        if stamps != self._ends[0]:
            ended = all(folder.finished(n_trials) for folder in folders)
            self._ends = (stamps, ended, folders[0].exhausted())
            self._to_decide = {folder.path for folder in folders if folder.decided() is not None}
        return self._ends[1:]


def _last_written(folders: dict[str, RunFolder]) -> str | None:
    """Returns the name of the search whose journal was written to last; None before the first trial."""
    written = {
        name: folder.journal.stat().st_mtime
        for name, folder in folders.items()
        if folder.journal.exists()
    }
    return max(written, key=written.__getitem__, default=None)


def _complete(searches: Sequence[SearchStatus]) -> bool:
    """Returns whether all trials are there: one whose line is damaged is done by the snapshot, and evaluated again."""
    return all(search.done >= search.total for search in searches)


def _undecided(searches: Sequence[SearchStatus]) -> bool:
    """Returns whether the best trials of a search are still to be scored in full."""
    return any(search.undecided for search in searches)


def _gave_up(searches: Sequence[SearchStatus], settings: dict[str, Any]) -> bool:
    """Returns whether more evaluations in a row have failed than the run allows."""
    most = settings.get("max_failures")
    return isinstance(most, int) and any(search.failing > most for search in searches)


def _winners(searches: Sequence[SearchStatus]) -> dict[str, Candidate | None]:
    """Returns the best structure of every search so far, by what files call it."""
    best = {search.name.removeprefix("baseline "): search.best for search in searches}
    return {name: trial and trial.candidate for name, trial in best.items()}


def _spent(folder: RunFolder) -> str | None:
    """Returns how long a preparation has taken that is done, and what its steps cost, where the folder says so."""
    spent = read_spent(folder)
    return None if spent is None else spent.line


def _left_off(folder: RunFolder) -> str | None:
    """Returns where a preparation stands that has not come to its end, or why it failed; None without such a one."""
    pulse = None if (folder.path / "prepared.json").exists() else Pulse.of(folder)
    return pulse.stage if pulse is not None and str(pulse.stage).startswith(PREPARING) else None


def _last_lines(path: Path) -> tuple[str, ...]:
    """Returns the last lines of a log."""
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        return tuple(file.read().decode(errors="replace").splitlines()[-_LOG_LINES:])
