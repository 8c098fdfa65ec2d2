"""How fast trials finish, and how long the rest will take: the same for who watches from inside and from outside."""

from __future__ import annotations

from collections import deque
from time import time

# The pace is that of the trials of the last minutes, but of so many at least.
_RECENT, _FEWEST = 300, 50
# A longer time between two trials, in seconds and in evaluations, is a stop of the run.
_PAUSE, _EVALUATIONS = 60, 3


class Pace:
    """How fast trials finish now, from the times at which the last ones did."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=1000)

    def add(self, finished: float, seconds: float) -> None:
        """Takes when a trial finished, and how long its evaluation took."""
        longest = max(_PAUSE, _EVALUATIONS * seconds)
        # Stopped, or the clock was set back
        if self._recent and not 0 <= finished - self._recent[-1][0] <= longest:
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
        paces = [(last - recent[0][0]) / (len(recent) - 1)] if len(recent) > 1 else []
        if workers:
            paces.append(sum(seconds for _, seconds in recent) / len(recent) / workers)
        return max(paces, default=None)

    def left(
        self, remaining: int, workers: int | None = None, now: float | None = None
    ) -> float | None:
        """Returns the seconds until so many more trials are finished, or None if nothing tells."""
        interval = self.interval(workers)
        if interval is None or not remaining:
            return None
        passed = (time() if now is None else now) - self._recent[-1][0]
        return max(interval * remaining - max(passed, 0), 0)


class Note(str):
    """A few words on how a search stands, with the seconds that it still takes.

    Attributes:
        left: seconds until it is finished; None if nothing tells.
    """

    __slots__ = ("left",)
    left: float | None

    @classmethod
    def of(cls, words: str, left: float | None) -> Note:
        """Returns the words with the seconds."""
        made = cls(words)
        made.left = left
        return made
