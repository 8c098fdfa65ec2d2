"""Which structures have been asked for, batch by batch, and what has been told about them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from abcsearch.space import Candidate
    from abcsearch.trial import Trial


@dataclass(eq=False)
class _Batch:
    """A batch of which something is still to be handed out or told."""

    # In the order of asking
    asked: dict[Candidate, None] = field(default_factory=dict["Candidate", None])
    told: dict[Candidate, Trial] = field(default_factory=dict["Candidate", "Trial"])


class Batches:
    """The open batches of a searcher. Every step costs the same however many structures are open or known.

    Attributes:
        queue: what the newest batch has still to hand out; only that one has such a rest.
        open: structures that were asked for and have not been told yet.
    """

    def __init__(self) -> None:
        """Starts without any batch."""
        self.queue: deque[Candidate] = deque()
        self.open: dict[Candidate, _Batch] = {}
        self._batches: dict[_Batch, None] = {}  # oldest first

    def __bool__(self) -> bool:
        """Returns whether a batch is open."""
        return bool(self._batches)

    def begin(self, proposed: Iterable[Candidate]) -> None:
        """Begins a batch when all of the last one has been handed out; nothing proposed is no batch."""
        self.queue = deque(proposed)
        if self.queue:
            self._batches[_Batch()] = None

    def hand_out(self) -> Candidate:
        """Returns the next structure of the newest batch."""
        candidate = self.queue.popleft()
        batch = self._newest()
        batch.asked[candidate] = None
        self.open[candidate] = batch
        return candidate

    def take(self, trial: Trial) -> list[Trial]:
        """Takes the trial of an open structure; returns its batch in the order of asking once all of it is told."""
        batch = self.open.pop(trial.candidate)
        batch.told[trial.candidate] = trial
        if len(batch.told) < len(batch.asked) or (self.queue and batch is self._newest()):
            return []
        del self._batches[batch]
        return [batch.told[candidate] for candidate in batch.asked]

    def asked(self) -> list[list[Candidate]]:
        """Returns what has been handed out of every open batch, the oldest batch first."""
        return [list(batch.asked) for batch in self._batches]

    def told(self) -> list[Trial]:
        """Returns all trials told of open batches."""
        return [trial for batch in self._batches for trial in batch.told.values()]

    @classmethod
    def of(cls, queue: list[Candidate], asked: list[list[Candidate]], told: list[Trial]) -> Batches:
        """Returns open batches as they were: what `queue`, `asked` and `told` returned."""
        made = cls()
        made.queue.extend(queue)
        for candidates in asked:
            batch = _Batch(dict.fromkeys(candidates))
            made._batches[batch] = None
            made.open.update(dict.fromkeys(candidates, batch))
        for trial in told:
            made.open[trial.candidate].told[trial.candidate] = trial
        for trial in told:
            del made.open[trial.candidate]
        return made

    def _newest(self) -> _Batch:
        """Returns the newest open batch."""
        return next(reversed(self._batches))
