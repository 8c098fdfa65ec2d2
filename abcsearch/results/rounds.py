"""What a searcher worked from, round by round: its population after every exchange of structures and results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abcsearch.errors import RunError
from abcsearch.registry import OBJECT
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.knowledge import kept
from abcsearch.runs.roles import named_searcher

if TYPE_CHECKING:
    from abcsearch.runs.result import SearchResult
    from abcsearch.space import Candidate
    from abcsearch.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Round:
    """One exchange with a searcher.

    Attributes:
        number: from 0.
        trials: that it asked for, and was told of.
        population: what it worked from afterwards, best first: food sources, parents ...; () of a searcher without.
    """

    number: int
    trials: tuple[Trial, ...] = field(repr=False)
    population: tuple[Trial, ...] = field(repr=False)


def populations(result: SearchResult) -> list[Round]:
    """Returns the rounds of a search: the searcher, made anew, proposes its structures again and hears of the trials.

    Nothing is evaluated, and nothing needs to have been kept for it: it is there of old runs, too.

    Args:
        result: of a search in rounds, whose searcher has a name.

    Raises:
        RunError: if the search was in no rounds, its searcher was passed as an object, or proposes others now.
    """
    settings, trials = result.settings, result.trials
    how = settings.execution
    if how.schedule != "rounds" or how.window or settings.searcher.name.endswith(OBJECT):
        why = (
            "its searcher was passed as an object"
            if settings.searcher.name.endswith(OBJECT)
            else "it had none"
        )
        raise RunError(
            f"populations are those of a search in rounds whose searcher has a name; {why}"
        )
    searcher = named_searcher(result.task, settings)
    searcher.know(kept(RunFolder(result.run_dir), searcher).trials)
    known: dict[Candidate, Trial] = {}
    rounds: list[Round] = []
    done = 0
    while done < len(trials) and (asked := searcher.ask(settings.n_trials - done)):
        told = trials[done : done + len(asked)]
        if [trial.candidate for trial in told] != asked[: len(told)]:
            msg = f"the searcher proposes other structures now than in trial {told[0].number}; was the run started with "
            raise RunError(f"{msg}other versions?")
        for trial in told:
            searcher.tell([trial])
            known[trial.candidate] = trial
        done += len(told)
        members = tuple(
            known[candidate] for candidate in searcher.population() if candidate in known
        )
        rounds.append(Round(number=len(rounds), trials=told, population=members))
    return rounds
