"""Those who watch a search, in a thread of their own: whatever they do, the search goes on."""

from __future__ import annotations

import queue
import threading
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from abcsearch.runs.watching import Watcher
    from abcsearch.trial import Trial

_PATIENCE = 60.0  # seconds that they may take at the end for what they have not written yet


class Watchers:
    """Tells watchers of everything, in order; one that fails is dropped with a warning."""

    def __init__(self, watchers: Sequence[Watcher], log: Callable[[str], object]) -> None:
        """Takes the watchers, and where to log that one was dropped."""
        self._watchers, self._log = list(watchers), log
        self._calls: queue.SimpleQueue[Callable[[Watcher], None] | None] = queue.SimpleQueue()
        self._dropped: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="abcsearch-watchers", daemon=True)
        if watchers:
            self._thread.start()

    def begin(self, trials: Sequence[Trial], n_trials: int) -> None:
        """See `Watcher.begin`."""
        self._tell(lambda watcher: watcher.begin(trials, n_trials))

    def trial(self, trial: Trial, best: Trial | None) -> None:
        """See `Watcher.trial`."""
        self._tell(lambda watcher: watcher.trial(trial, best))

    def end(self) -> None:
        """See `Watcher.end`; waits for those who are behind, but not for ever."""
        self._tell(lambda watcher: watcher.end())
        self._calls.put(None)
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._dropped.put("watchers are far behind and are left there; they catch up when the run is continued")
        self._warn()

    def _tell(self, call: Callable[[Watcher], None]) -> None:
        self._calls.put(call)
        self._warn()

    def _warn(self) -> None:
        """Warns of watchers that were dropped, in the thread of the search."""
        while not self._dropped.empty():
            message = self._dropped.get()
            self._log(message)
            warnings.warn(message, stacklevel=2)

    def _run(self) -> None:
        """Tells until the end."""
        while (call := self._calls.get()) is not None:
            for watcher in list(self._watchers):
                try:
                    call(watcher)
                except Exception as error:  # noqa: BLE001 - whatever it is, the search goes on
                    self._watchers.remove(watcher)
                    self._dropped.put(f"{type(watcher).__name__} stops watching: {error}")
