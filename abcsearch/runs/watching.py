"""Those who hear of every trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.trial import Trial


class Watcher(Protocol):
    """Hears of every trial of a search. What it raises never stops the search: it is dropped with a warning."""

    def begin(self, trials: Sequence[Trial], n_trials: int) -> None:
        """Takes what the folder holds already, in the order of numbers, and how many trials there will be."""
        ...

    def trial(self, trial: Trial, best: Trial | None) -> None:
        """Takes a finished trial, after it is on disk."""
        ...

    def end(self) -> None:
        """Hears that the session is over, also after errors and Ctrl-C."""
        ...
