"""What a run folder holds of other runs, and of the map: trials that its searcher was told of before it began."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from abcsearch.errors import AbcSearchError, RunError, plural
from abcsearch.runs.disk.lines import trial_of
from abcsearch.runs.disk.shapes import shown_header

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.space import Candidate
    from abcsearch.trial import Evaluation, Trial

KNOWN = "known.json"
STAGE = "map"  # what the evaluation of a map is called


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known of one other run.

    Attributes:
        run: its folder, as the settings name it.
        id: of the run.
        seed: of the run.
        trials: those that fit, each structure once.
        failed: how many others had failed.
        foreign: how many others are of another space.
        same: whether they are what this run would find itself, so that none of them is evaluated again: the seed is
            the same, too.
    """

    run: str
    id: str | None
    seed: int
    trials: tuple[Trial, ...] = field(repr=False)
    failed: int = 0
    foreign: int = 0
    same: bool = True

    @property
    def line(self) -> str:
        """What was taken and what was left out, in words."""
        left = [f"{self.failed} failed"] if self.failed else []
        left += [f"{self.foreign} of another space"] if self.foreign else []
        rest = f" ({' and '.join(left)} left out)" if left else ""
        again = (
            ""
            if self.same
            else f"; of another seed ({self.seed}): evaluated again where they are proposed"
        )
        return f"known: {plural(len(self.trials), 'structure')} of {self.run}{rest}{again}"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of other runs.

    Attributes:
        sources: the runs, in the order in which they were named.
    """

    sources: tuple[Source, ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, in order."""
        return tuple(itertools.chain.from_iterable(source.trials for source in self.sources))

    @cached_property
    def structures(self) -> frozenset[Candidate]:
        """The structures of all trials."""
        return frozenset(trial.candidate for trial in self.trials)

    @cached_property
    def evaluations(self) -> dict[Candidate, Evaluation]:
        """What need not be evaluated again."""
        same = (source.trials for source in self.sources if source.same)
        return {trial.candidate: trial.evaluation for trial in itertools.chain.from_iterable(same)}

    @property
    def lines(self) -> list[str]:
        """A line for every run, for logs."""
        return [source.line for source in self.sources]

    def to_plain(self) -> dict[str, Any]:
        """Returns all of it as plain JSON values."""
        sources = []
        for source in self.sources:
            plain = {field_.name: getattr(source, field_.name) for field_ in fields(source)}
            sources.append({**plain, "trials": [trial.to_plain() for trial in source.trials]})
        return {"sources": sources}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Known:
        """Returns what `to_plain` described.

        Raises:
            AbcSearchError, LookupError, TypeError, ValueError: if it is not that.
        """
        sources = [
            Source(**{**one, "trials": tuple(map(trial_of, one["trials"]))})
            for one in plain["sources"]
        ]
        return cls(sources=tuple(sources))


def read_known(folder: RunFolder) -> Known | None:
    """Returns what a folder holds of other runs; None where there is nothing.

    Raises:
        RunError: if it is damaged.
    """
    plain = folder.read_json(KNOWN)
    try:
        return None if plain is None else Known.from_plain(plain)
    except (AbcSearchError, LookupError, TypeError, ValueError) as error:
        msg = f"{folder.path / KNOWN} is damaged: {error!r:.200}; restore it from a copy, or start a new run"
        raise RunError(msg) from error


def told_lines(folder: RunFolder) -> tuple[str, ...]:
    """Returns what a search was told of other runs, a line for each, as far as that can be read."""
    try:
        known = read_known(folder)
    except (RunError, OSError) as error:
        return (str(error),)
    return () if known is None else tuple(known.lines)


def mapped_so_far(folder: RunFolder) -> int:
    """Returns how many structures the map of a run has, as far as that can be read: 0 of a damaged one."""
    try:
        return mapped_total(folder)
    except (RunError, OSError):
        return 0


def mapped_total(folder: RunFolder) -> int:
    """Returns how many structures the map of a run has; 0 without a map.

    Raises:
        RunError: if it is damaged.
    """
    if folder.map.read_json("run.json") is None:
        return 0
    return int(shown_header(folder.map)["settings"]["n_trials"])
