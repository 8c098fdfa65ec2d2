"""The one interface for progress, and what logs keep of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from abcsearch.runs.disk.folder import RunFolder


class Progress(Protocol):
    """The one interface for progress: a bar on a terminal, plain lines in a log."""

    def __call__(self, stage: str, done: int, total: int, note: str, /) -> None:
        """Takes that `done` of `total` steps of a stage are finished; `note` is a few words on how it stands."""
        ...


def milestone(done: int, total: int) -> bool:
    """Returns whether a step is worth a line in a log: the first, the last, and about every tenth part between."""
    return done in (1, total) or done % max(1, total // 10) == 0


def logged(folder: RunFolder, progress: Progress) -> Progress:
    """Returns a progress that also writes the milestones of every stage to the folder's log."""

    def both(stage: str, done: int, total: int, note: str) -> None:
        if milestone(done, total):
            folder.log(f"{stage}: {done}/{total}, {note}")
        progress(stage, done, total, note)

    return both


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""
    del stage, done, total, note
