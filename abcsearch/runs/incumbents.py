"""What every trial of a run races against: decided by what its searcher knew, never by what happens to be finished."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from abcsearch.evaluation.racing import Bars, races

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from abcsearch.evaluation.base import Evaluator
    from abcsearch.execution.options import ExecutionOptions
    from abcsearch.runs.disk.journal import Contents
    from abcsearch.searchers.base import Searcher
    from abcsearch.trial import Trial

# Searchers that wait for nothing are asked far ahead. Their trials race against the best of those that are so many
# behind, or of the first half: as many may be under way, whatever the number of workers.
_BEHIND = 16


class Incumbents:
    """The bars of trials, by number.

    A bar follows from how many trials the searcher had been told of when it was asked for the structure, of which
    those do not count that it has not learned from yet: their batch is not whole. So it is the same for any number of
    workers, after a kill, and when a run goes on that was to end within a batch.

    Attributes:
        racing: whether there are any.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        searcher: Searcher,
        execution: ExecutionOptions,
        *,
        competing: bool,
    ) -> None:
        """Begins before the first trial of a search; there are no bars where trials do not compete."""
        self.racing = competing and races(evaluator) and not searcher.seeks_front
        self._bars, self._searcher = Bars(evaluator), searcher
        self._rounds = execution.schedule != "asynchronous"
        self._batches = self._rounds and not execution.window
        self._by_number = self.racing and self._batches and not searcher.needs_results
        self._told = 0
        self._seen: dict[int, int] = {}  # of open trials: how many trials count

    def most(self) -> int:
        """Returns how many trials may be asked for in all as long as nothing more is told."""
        return max(self._told + _BEHIND, 2 * self._told) if self._by_number else sys.maxsize

    def ask(self, numbers: Iterable[int]) -> None:
        """Takes which trials have been asked for now."""
        if not self.racing:
            return
        learned = self._told - (self._searcher.waiting if self._batches else 0)
        for number in numbers:
            behind = max(0, min(number - _BEHIND + 1, number // 2 + 1))
            self._seen[number] = behind if self._by_number else learned

    def tell(self, trial: Trial) -> None:
        """Takes that the searcher has been told of a trial."""
        self._told += 1
        self._seen.pop(trial.number, None)
        if self.racing:
            self._bars.tell(trial.evaluation)

    def bar(self, number: int) -> float:
        """Returns what an open trial races against; minus infinity: nothing."""
        return self._bars.at(self._seen[number]) if self.racing else -math.inf

    def entry(self, number: int) -> list[int]:
        """Returns what a snapshot keeps of an open trial."""
        return [self._seen[number]] if self.racing else []

    def restore(
        self, contents: Contents, told: int, replayed: int, opened: Sequence[Sequence[Any]]
    ) -> None:
        """Goes on from a snapshot.

        Args:
            contents: of the journal.
            told: how many trials the searcher knows.
            replayed: how many of the calls that the journal has are behind it (asynchronous).
            opened: its open trials: number, structure, and what `entry` returned.

        Raises:
            ValueError: if they are not of such a run.
        """
        numbers = (
            range(told)
            if self._rounds
            else [~call for call in contents.order[:replayed] if call < 0]
        )
        for number in numbers:
            self.tell(contents.trials[number])
        if self.racing:
            self._seen = {int(number): int(seen) for number, _, seen in opened}
