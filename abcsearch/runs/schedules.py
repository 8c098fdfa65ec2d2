"""When a search asks for more structures: in rounds, with a window of open ones, or whenever a worker is free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from abcsearch.runs.dispatch import slots

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor


class Schedule(Protocol):
    """When a search asks for more, and in which order the searcher hears of what it asked for.

    Attributes:
        ahead: whether more is asked for while something is open.
        apart: whether structures that were asked for together are evaluated, and told, one by one; if not, all of them
            have finished before the searcher hears of the first.
        at_once: whether the searcher is told of what has finished first; if not, in the order of asking.
    """

    @property
    def ahead(self) -> bool: ...  # noqa: D102

    @property
    def apart(self) -> bool: ...  # noqa: D102

    @property
    def at_once(self) -> bool: ...  # noqa: D102

    def wanted(self, asked: int, left_open: int) -> int:
        """Returns how many more structures should be open now.

        Args:
            asked: structures so far.
            left_open: of these, those that the searcher has not heard of.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """The searcher's own rounds: it is asked for all that it has, when nothing is open.

    Attributes:
        n_trials: more than any round has.
    """

    n_trials: int
    ahead: bool = field(default=False, init=False)
    apart: bool = field(default=False, init=False)
    at_once: bool = field(default=False, init=False)

    def wanted(self, asked: int, left_open: int) -> int:
        """Returns all, or none while something is open."""
        del asked
        return 0 if left_open else self.n_trials


@dataclass(frozen=True, kw_only=True)
class Window:
    """So many structures are open at any time: one more is asked for as soon as the oldest has been told.

    Attributes:
        size: how many.
        most: returns how many structures may have been asked for by now.
    """

    size: int
    most: Callable[[], int]
    ahead: bool = field(default=True, init=False)
    apart: bool = field(default=True, init=False)
    at_once: bool = field(default=False, init=False)

    def wanted(self, asked: int, left_open: int) -> int:
        """Returns what fills the window."""
        return min(self.size - left_open, self.most() - asked)


@dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """One more is asked for whenever a worker is free, and the searcher is told of whatever has finished.

    Attributes:
        executor: of the workers.
        under_way: returns how many evaluations are.
        apart: whether structures that a stopped session has left open are evaluated one by one.
    """

    executor: Executor
    under_way: Callable[[], int]
    apart: bool
    ahead: bool = field(default=True, init=False)
    at_once: bool = field(default=True, init=False)

    def wanted(self, asked: int, left_open: int) -> int:
        """Returns one if a worker is free."""
        del asked, left_open
        return min(1, slots(self.executor) - self.under_way())
