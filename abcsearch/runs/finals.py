"""The end of a search: the best few trials are scored in full, and measured, before one of them wins.

Trials that saw a part of the images only are best partly by luck, the winner most of all; and those that are said to be
inside a budget of forward time may be outside. All of it is in the journal: what the full scores and measured times are,
so that nothing is scored or measured again when a run goes on, and who won.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from abcsearch.errors import RunError, plural
from abcsearch.evaluation.racing import complete, finalists, told_apart
from abcsearch.runs.disk.decision import Decision, Timed
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.disk.journal import Journal
    from abcsearch.runs.dispatch import Flights
    from abcsearch.runs.run_state import Standing
    from abcsearch.runs.stopwatch import Stopwatch
    from abcsearch.trial import Trial


class Finals:
    """Scores the best trials of a search in full, and measures their forward time."""

    def __init__(  # noqa: PLR0913 - what it works with
        self,
        evaluator: Evaluator,
        n_trials: int,
        journal: Journal,
        flights: Flights,
        standing: Standing,
        *,
        competing: bool,
        watch: Stopwatch | None = None,
    ) -> None:
        """Takes what it works with.

        Args:
            evaluator: scores in full.
            n_trials: structures to evaluate in all.
            journal: of the search.
            flights: where evaluations run; nothing is under way when the search ends.
            standing: shows how it stands.
            competing: whether one of the trials is to win; else there is nothing to decide.
            watch: measures forward time where the budget bounds it; None: nothing is measured.
        """
        self._evaluator, self._n_trials = evaluator, n_trials
        self._watch = watch
        self._scoring = finalists(evaluator) > 0
        count = max(finalists(evaluator), 0 if watch is None else watch.count)
        self._finalists = count if competing else 0
        self._journal, self._flights, self._standing = journal, flights, standing

    @property
    def decided(self) -> bool | None:
        """Whether full scores have decided a search of so many trials; None: they are not to."""
        return self._n_trials in self._journal.contents.decisions if self._finalists else None

    def run(self, save: Callable[[], None]) -> bool:
        """Scores those in full that have not been, writes down who has won, and shows it.

        Args:
            save: writes a snapshot, which says that this is still to be done: a kill from here on leaves it so.

        Returns:
            Whether the snapshot is out of date now.
        """
        if not self._finalists:
            return False
        due = not self.decided
        if due:
            save()
        trials = [
            trial
            for number, trial in sorted(self._journal.trials.items())
            if number < self._n_trials
        ]
        while self._lacks(self._best(trials)):
            pass
        decision = self._decision(self._best(trials))
        if decision is None:
            self._refuse_outside()
            return due
        if self._journal.contents.decisions.get(self._n_trials) != decision:
            self._journal.note("winner", **decision.to_plain(), of=self._n_trials)
        self._standing.decided(decision)
        return due

    def _best(self, trials: Sequence[Trial]) -> list[Trial]:
        """Returns the best trials by what the search knew of them.

        Those that failed in full, or are outside of the budget as measured, make room for others.
        """
        full = self._journal.contents.final
        failed = {number for number, evaluation in full.items() if evaluation.fitness is None}
        failed |= self._outside()
        ranked = sorted(
            (
                trial
                for trial in trials
                if trial.evaluation.fitness is not None and trial.number not in failed
            ),
            key=lambda trial: (-trial.fitness, trial.number),
        )
        return ranked[: self._finalists]

    def _outside(self) -> set[int]:
        """Returns the numbers of the trials whose measured time is outside of the budget."""
        watch, timed = self._watch, self._journal.contents.timed
        if watch is None:
            return set()
        return {number for number, time in timed.items() if not watch.allows(time)}

    def _times(self, among: Sequence[int]) -> dict[int, Timed]:
        """Returns the measured times of the trials that one wins of, and of those that are outside of the budget."""
        numbers = {*among, *self._outside()}
        return {n: time for n, time in self._journal.contents.timed.items() if n in numbers}

    def _lacks(self, best: list[Trial]) -> bool:
        """Scores or measures those of the best trials that have not been; returns whether there was one."""
        if unscored := [trial for trial in best if not self._is_scored(trial)]:
            self._score(unscored)
            return True
        timed = self._journal.contents.timed
        untimed = [trial for trial in best if trial.number not in timed]
        watch = self._watch
        # One that is inside will do where many have been measured
        enough = watch is not None and len(timed) >= 2 * watch.count and len(untimed) < len(best)
        if watch is None or not untimed or enough:
            return False
        self._standing.announce(f"measuring the forward time of {plural(len(untimed), 'trial')}")
        for number, time in watch.measured(untimed).items():
            self._journal.note("timed", number, **asdict(time))
        return True

    def _refuse_outside(self) -> None:
        """Raises RunError if trials have succeeded, and none of them is inside of the budget as measured."""
        watch, timed, outside = self._watch, self._journal.contents.timed, self._outside()
        if watch is not None and outside:
            nearest = min(outside, key=lambda number: (watch.distance(timed[number]), number))
            raise RunError(watch.refusal(nearest, timed[nearest], len(outside)))

    def _is_scored(self, trial: Trial) -> bool:
        """Returns whether a trial has been scored in full."""
        return trial.number in self._journal.contents.final or complete(
            self._evaluator, trial.evaluation
        )

    def _score(self, trials: Sequence[Trial]) -> None:
        """Scores trials in full, and writes down what is found."""
        self._flights.add_finals({trial.number: trial.candidate for trial in trials})
        done = 0
        self._standing.announce(f"scoring the best {plural(len(trials), 'trial')} in full")
        while arrived := self._flights.wait():
            for number, evaluation in arrived:
                self._journal.note("final", number, evaluation=evaluation.to_plain())
            done += len(arrived)
            self._standing.announce(
                f"{done} of the best {plural(len(trials), 'trial')} scored in full"
            )

    def _decision(self, trials: Sequence[Trial]) -> Decision | None:
        """Returns which of the best trials wins; None without any."""
        contents, watch = self._journal.contents, self._watch
        if watch is not None:
            trials = [trial for trial in trials if trial.number in contents.timed]
        scored = [
            replace(trial, evaluation=contents.final.get(trial.number, trial.evaluation))
            for trial in trials
        ]
        winner = best_trial(scored)
        if winner is None:
            return None
        ranked = sorted(scored, key=lambda trial: (-trial.fitness, trial.number))
        groups = {trial.number: contents.groups.get(trial.number) for trial in ranked}
        alike = [
            trial.number
            for trial in ranked
            if trial is winner
            or not told_apart(
                winner.evaluation, trial.evaluation, (groups[winner.number], groups[trial.number])
            )
        ]
        return Decision(
            winner=winner,
            among=tuple(trial.number for trial in ranked),
            alike=tuple(alike),
            times=self._times([trial.number for trial in ranked]),
            where="" if watch is None else watch.where,
            scored=self._scoring,
        )
