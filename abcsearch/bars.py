"""How far a command is: bars and what is being done on a terminal, plain lines without one."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from abcsearch import terminal
from abcsearch.errors import escaped
from abcsearch.formats import clock_text
from abcsearch.runs.pace import Note, Pace
from abcsearch.steps import STEPS
from abcsearch.terminal import switched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Task
    from rich.status import Status

START = "starting (loading PyTorch)"


class _Rest:
    """How long a stage still takes: as the search itself says or, of a training, by the steps that have finished.

    What came before the first finished step, such as starting workers, is not counted.
    """

    def __init__(self) -> None:
        self._pace = Pace()
        self._end: float | None = None

    def add(self, done: int, total: int, note: str) -> None:
        """Takes that a step has finished, or with 0 that the first one begins."""
        now = time.time()
        if isinstance(note, Note):
            left = note.left
        else:
            if done:
                self._pace.add(now, math.inf)  # whatever it took: a training is not paused
            left = self._pace.left(total - done, now=now)
        self._end = None if left is None or done >= total else now + left

    @property
    def words(self) -> str:
        """The rest in words; "" where nothing tells."""
        return "" if self._end is None else f"{clock_text(max(self._end - time.time(), 0))} left"


class _Left(ProgressColumn):
    """The time left of a stage, once there is an estimate and until it is finished."""

    def render(self, task: Task) -> Text:
        rest = task.fields.get("rest")
        return Text(rest.words if rest is not None else "")


class _Count(MofNCompleteColumn):
    """How many steps are done, where they are counted."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


class _Bar:
    """Progress as one bar per stage on a terminal, and below what is being done while no stage can tell."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._rests: dict[str, _Rest] = {}
        self._step = progress.add_task(START, total=None, note="", rest=None)

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        stage, said = escaped(stage), escaped(note)
        self.hide()
        if stage not in self._tasks:
            self._rests[stage] = _Rest()
            self._tasks[stage] = self._progress.add_task(
                stage, total=total, note=said, rest=self._rests[stage]
            )
        self._rests[stage].add(done, total, note)
        self._progress.update(self._tasks[stage], completed=done, total=total, note=said)

    def step(self, text: str) -> None:
        """Shows what is being done."""
        self._progress.update(self._step, description=escaped(text), visible=True)

    def hide(self) -> None:
        """Takes away what is being done: a stage tells, or all is done."""
        self._progress.update(self._step, visible=False)


class _Lines:
    """Progress as plain lines: what is being done, the first and the last step of a stage, and about every tenth part.

    What is done again and again is said once.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._stage, self._rest = "", _Rest()
        self.step(START)

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        from abcsearch.runs.progress import milestone

        first = stage != self._stage
        if first:
            self._stage, self._rest = stage, _Rest()
        self._rest.add(done, total, note)
        if first or milestone(done, total):
            left = f", {self._rest.words}" if self._rest.words else ""
            terminal.console.print(f"{stage}: {done}/{total}, {note}{left}")

    def step(self, text: str) -> None:
        """Says what is being done."""
        if text not in self._said:
            self._said.add(text)
            terminal.console.print(f"{text} ...")

    def hide(self) -> None:
        """Lines stay."""


class _Steps(logging.Handler):
    """Passes on what is being done."""

    def __init__(self, show: Callable[[str], object]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


@contextlib.contextmanager
def _followed(show: Callable[[str], object]) -> Iterator[None]:
    """Has somebody told what is being done."""
    handler = _Steps(show)
    STEPS.addHandler(handler)
    try:
        yield
    finally:
        STEPS.removeHandler(handler)


def _unseen(*_: object) -> None:
    """Shows nothing."""


@contextlib.contextmanager
def progress_shown() -> Iterator[Callable[[str, int, int, str], None]]:
    """Yields a bar on a terminal, plain lines otherwise; nothing with --quiet, or where --verbose prints the log.

    Entered before anything is loaded, it also says what is being done until there is something to count.
    """
    console = terminal.console
    if switched("quiet") or (switched("verbose") and not console.is_terminal):
        yield _unseen
        return
    if not console.is_terminal:
        lines = _Lines()
        with _followed(lines.step):
            yield lines
        return
    # Wrapped where it must be
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=min(40, max(8, console.width - 95))),
        _Count(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column()),
        _Left(table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console) as progress:
        bar = _Bar(progress)
        try:
            with _followed(bar.step):
                yield bar
        finally:
            bar.hide()


@contextlib.contextmanager
def wait_shown(text: str = START) -> Iterator[Callable[[str, int, int, str], None]]:
    """Shows what a command is at while no progress can be told, on a terminal; nothing with --quiet.

    Entered before anything is loaded; what is being done takes the text's place. Yields what shows no progress.
    """
    if switched("quiet") or not terminal.console.is_terminal:
        yield _unseen
        return
    with (
        terminal.console.status(escaped(text)) as status,
        _followed(lambda step: _update(status, step)),
    ):
        yield _unseen


def _update(status: Status, step: str) -> None:
    """Shows another text beside a spinner."""
    status.update(escaped(step))
