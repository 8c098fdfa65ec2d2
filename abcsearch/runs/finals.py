"""The end of a search: the best few trials are scored in full, and their full scores decide which one wins.

Trials that saw a part of the images only are best partly by luck, the winner most of all. All of it is in the journal:
what the full scores are, so that nothing is scored again when a run goes on, and who won.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from abcsearch.errors import plural
from abcsearch.evaluation.racing import complete, finalists, told_apart
from abcsearch.runs.disk.decision import Decision
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.disk.journal import Journal
    from abcsearch.runs.dispatch import Flights
    from abcsearch.runs.run_state import Standing
    from abcsearch.trial import Trial


class Finals:
    """Scores the best trials of a search in full."""

    def __init__(
        self,
        evaluator: Evaluator,
        n_trials: int,
        journal: Journal,
        flights: Flights,
        standing: Standing,
        *,
        competing: bool,
    ) -> None:
        """Takes what it works with.

        Args:
            evaluator: scores in full.
            n_trials: structures to evaluate in all.
            journal: of the search.
            flights: where evaluations run; nothing is under way when the search ends.
            standing: shows how it stands.
            competing: whether one of the trials is to win; else there is nothing to decide.
        """
        self._evaluator, self._n_trials = evaluator, n_trials
        self._finalists = finalists(evaluator) if competing else 0
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
        while lacking := [trial for trial in self._best(trials) if not self._is_scored(trial)]:
            self._score(lacking)
        decision = self._decision(self._best(trials))
        if decision is None:
            return due
        if self._journal.contents.decisions.get(self._n_trials) != decision:
            self._journal.note("winner", **decision.to_plain(), of=self._n_trials)
        self._standing.decided(decision)
        return due

    def _best(self, trials: Sequence[Trial]) -> list[Trial]:
        """Returns the best trials by what the search knew of them; those that failed in full make room for others."""
        full = self._journal.contents.final
        failed = {number for number, evaluation in full.items() if evaluation.fitness is None}
        ranked = sorted(
            (
                trial
                for trial in trials
                if trial.evaluation.fitness is not None and trial.number not in failed
            ),
            key=lambda trial: (-trial.fitness, trial.number),
        )
        return ranked[: self._finalists]

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
        contents = self._journal.contents
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
            winner=winner, among=tuple(trial.number for trial in ranked), alike=tuple(alike)
        )
