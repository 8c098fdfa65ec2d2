"""What the files of a run folder say by themselves: no network, no data, nothing is written."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.baselines.registry import searched
from abcsearch.errors import RunError, plural, quoted
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.known import STAGE, mapped_total, read_known, told_lines
from abcsearch.runs.disk.shapes import other_baseline, shown_header, winner_name
from abcsearch.runs.header import KIND
from abcsearch.runs.watching import finish_times
from abcsearch.signing import is_own
from abcsearch.trial import Trial, best_trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.runs.disk.decision import Decision


@dataclass(frozen=True, kw_only=True)
class SearchHistory:
    """One search of a run: its own, or that of a baseline.

    Attributes:
        name: of the searcher.
        trials: finished ones in the order of asking.
        finished: when each was on disk, by number, in unix seconds; of old journals not all.
        lost: how often its worker was lost, by number of the trial.
        decision: which trial has won by full scores; None where there is none.
    """

    name: str
    trials: tuple[Trial, ...] = field(repr=False)
    finished: Mapping[int, float] = field(repr=False)
    lost: Mapping[int, int] = field(default_factory=dict[int, int])
    decision: Decision | None = None

    @property
    def succeeded(self) -> tuple[Trial, ...]:
        """The trials that have a fitness."""
        return tuple(trial for trial in self.trials if trial.evaluation.failure is None)

    @property
    def best(self) -> Trial | None:
        """The trial of the highest fitness, by full scores where they have decided, or None."""
        return best_trial(self.trials) if self.decision is None else self.decision.winner


@dataclass(frozen=True, kw_only=True)
class History:
    """A run as its files tell it.

    Attributes:
        path: the folder.
        header: run.json.
        searches: its own search, then the random baseline, if it has begun.
        map: what was evaluated before the search; None where nothing was, or where it is damaged.
        damaged_map: what is wrong with it; "" where nothing is.
        known: what the searcher was told of other runs, a line for each.
        told: trials of other runs, which the map need not evaluate again: where they are all that it asks for, as where
            several budgets share one, there is no `map`; () of a searcher that asks for none.
        over: whether its own search has all its trials, or has run out of structures.
        names: of the widths and blocks, where a file has them; criteria, if they are searched, follow these.
        note: that the search is finished, but its random baseline is not; "" otherwise.
    """

    path: Path
    header: Mapping[str, Any] = field(repr=False)
    searches: tuple[SearchHistory, ...]
    over: bool
    names: tuple[str, ...] = ()
    note: str = ""
    map: SearchHistory | None = None
    known: tuple[str, ...] = ()
    told: tuple[Trial, ...] = field(default=(), repr=False)
    damaged_map: str = ""

    @property
    def evaluated(self) -> tuple[SearchHistory, ...]:
        """All that was evaluated: the map, the search, the baselines."""
        return self.searches if self.map is None else (self.map, *self.searches)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        return self.header["settings"]

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, machine and command."""
        return self.header["environment"]

    @property
    def vouched(self) -> bool:
        """Whether the user has written run.json; one from elsewhere may say anything."""
        return is_own(KIND, self.header)

    @property
    def own(self) -> SearchHistory:
        """The run's own search."""
        return self.searches[0]

    @property
    def searcher(self) -> str:
        """The name of the searcher."""
        return self.own.name

    @property
    def n_dims(self) -> int:
        """How many numbers a structure has; 0 without a trial."""
        return len(self.own.trials[0].candidate) if self.own.trials else 0

    @property
    def criteria(self) -> tuple[str, ...]:
        """The names of the criteria that every width chooses from; () where there is no choice."""
        listed = self.settings.get("criterion")
        return tuple(listed) if isinstance(listed, list) and len(listed) > 1 else ()


def read_history(run_dir: str | Path) -> History:
    """Returns what the files of a run folder say.

    Raises:
        RunError: if the folder holds no run, or a damaged one.

    Warns:
        UserWarning: if the random baseline in it is that of another run: it is left out.
    """
    folder = RunFolder(run_dir)
    header = shown_header(folder)
    settings = header["settings"]
    n_trials = int(settings["n_trials"])
    searches = [_search(folder, winner_name(settings["searcher"]["name"]), n_trials)]
    for name in searched(settings.get("baselines", ())):
        there = folder.baseline(name).journal.exists()
        other = other_baseline(folder, name, header) if there else ""
        if other:
            warnings.warn(f"{other}. It is left out", UserWarning, stacklevel=2)
        elif there:
            searches.append(_search(folder.baseline(name), name, n_trials))
    mapped, damaged = _map(folder)
    over = folder.finished(n_trials) and (folder.exhausted() or len(searches[0].trials) >= n_trials)
    return History(
        path=folder.path,
        header=header,
        searches=tuple(searches),
        over=over and (searches[0].decision is not None or folder.decided() is None),
        names=_names(folder),
        note=_baseline_note(folder, settings, searches),
        map=mapped,
        known=told_lines(folder),
        told=_told(folder) if mapped is not None or "map" in header["identity"] else (),
        damaged_map=damaged,
    )


def _map(folder: RunFolder) -> tuple[SearchHistory | None, str]:
    """Returns what was evaluated before a search, and what is wrong with it: the rest is shown without it."""
    try:
        total = mapped_total(folder)
        return (_search(folder.map, STAGE, total) if total else None), ""
    except (RunError, OSError) as error:
        return None, str(error)


def _told(folder: RunFolder) -> tuple[Trial, ...]:
    """Returns the trials of other runs that a search was told of, as far as they can be read."""
    try:
        known = read_known(folder)
    except (RunError, OSError):
        return ()
    return () if known is None else known.trials


def _baseline_note(
    folder: RunFolder, settings: Mapping[str, Any], searches: Sequence[SearchHistory]
) -> str:
    """Returns that a searched baseline of a finished search is not finished, or ""."""
    wanted = int(settings["n_trials"])
    counts = {search.name: len(search.trials) for search in searches[1:]}
    for name in searched(settings.get("baselines", ())) if folder.finished(wanted) else ():
        done = counts.get(name, 0)
        if done < wanted and not folder.baseline(name).exhausted():
            again = f"abcsearch resume {quoted(folder.path)}"
            return (
                f"The {name} baseline is not finished, {done} of {plural(wanted, 'trial')}: {again}"
            )
    return ""


def _names(folder: RunFolder) -> tuple[str, ...]:
    """Returns the names of widths and blocks; none where the file that has them is missing or damaged."""
    try:
        return tuple(
            str(name) for name in folder.read_json("population.json")["members"][0]["widths"]
        )
    except (RunError, AttributeError, IndexError, KeyError, TypeError):
        return ()


def _search(folder: RunFolder, name: str, n_trials: int) -> SearchHistory:
    """Returns one search; an earlier call may have asked for more than `n_trials`."""
    contents = read_journal(folder.journal)
    return SearchHistory(
        name=name,
        trials=tuple(
            contents.trials[number] for number in sorted(contents.trials) if number < n_trials
        ),
        finished=finish_times(folder.journal),
        lost={number: len(reasons) for number, reasons in contents.lost.items()},
        decision=contents.decisions.get(n_trials),
    )
