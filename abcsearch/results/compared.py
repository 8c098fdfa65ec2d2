"""What a report compares: the full network, the baselines, the winner."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

from abcsearch.baselines.checks import checked_structure
from abcsearch.baselines.registry import BASELINES
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.shapes import baseline_names, other_baseline, winner_name
from abcsearch.runs.settings import to_plain

if TYPE_CHECKING:
    from abcsearch.baselines.registry import Baseline
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.result import SearchResult
    from abcsearch.runs.settings import RunConfig
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial


class Structure(NamedTuple):
    """A structure that the report compares; `baseline` says what it has of its own, if it is one."""

    name: str
    candidate: Candidate
    baseline: Baseline | None = None

    @property
    def has_networks(self) -> bool:
        """Whether its network comes from somewhere else than the candidates of the run."""
        return self.baseline is not None and self.baseline.networks is not None


def baseline_trials(folder: RunFolder, name: str, config: RunConfig) -> list[Trial]:
    """Returns the trials of a searched baseline that there are, by number."""
    other = other_baseline(folder, name, folder.header())
    if other:
        warnings.warn(f"{other}. It is left out", UserWarning, stacklevel=2)
        return []
    trials = read_journal(folder.baseline(name).journal).trials
    return [trial for number, trial in sorted(trials.items()) if number < config.n_trials]


def baseline_best(folder: RunFolder, name: str, config: RunConfig) -> Trial | None:
    """Returns the best trial of a searched baseline: the one that full scores have decided for, where they have."""
    if not baseline_trials(folder, name, config):
        return None
    return read_journal(folder.baseline(name).journal).best(config.n_trials)


def compared(folder: RunFolder, config: RunConfig, result: SearchResult) -> tuple[Structure, ...]:
    """Returns the structures that are compared: full, the baselines that there are, and the winner.

    Raises:
        ConfigError: if the user's own baseline returns no structure.
    """
    winner = winner_name(config.searcher.name)
    called = baseline_names(to_plain(config))
    structures = [Structure("full", result.task.space.full)]
    for name in sorted(config.baselines, key=_turn):
        baseline = BASELINES.find(name)
        best: Trial | None = result.best
        if baseline.structure is not None:
            candidate = checked_structure(name, baseline.structure, result.task)
            structures.append(Structure(called[name], candidate, baseline))
            continue
        if baseline.searcher:
            best = baseline_best(folder, name, config)
        if best is not None:
            structures.append(Structure(called[name], best.candidate, baseline))
    return (*structures, Structure(winner, result.best.candidate))


def _turn(name: str) -> int:
    """Returns where a baseline stands among the others: those of this package come first, in their order."""
    known = [*BASELINES]
    return known.index(name) if name in known else len(known)
