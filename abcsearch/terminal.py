"""What the command line shows: messages, errors, tables, progress, and the screen of a run that is watched."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shlex
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text
from typer import rich_utils

from abcsearch.errors import AbcSearchError, escaped, plural
from abcsearch.formats import clock_text
from abcsearch.runs.disk.stages import FAILED
from abcsearch.searchers.registry import nothing_left
from abcsearch.stopping import stopping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

    from abcsearch.results.status import RunStatus, RunWatch, SearchStatus

_ANYWHERE = {
    "--debug": "debug",
    "--quiet": "quiet",
    "-q": "quiet",
    "--verbose": "verbose",
    "-v": "verbose",
}


class EscapingConsole(Console):
    """A console on which every character of a text shows: only rich itself moves the cursor and colours.

    Names, reasons and notes come out of files that anybody may have written.
    """

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - of rich
        """Returns a text for the terminal: escaped before it is measured, so that nothing is cut."""
        return super().render_str(escaped(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yields what is written; here what did not come as a text is escaped, too."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))


console = EscapingConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)
_err = EscapingConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
_switches: set[str] = set()  # of the whole process


def set_up() -> None:
    """Takes --debug, --quiet and --verbose off the arguments of the process; shows warnings as one line each."""
    _switches.update(_ANYWHERE[argument] for argument in sys.argv if argument in _ANYWHERE)
    sys.argv = [argument for argument in sys.argv if argument not in _ANYWHERE]
    warnings.showwarning = _show_warning
    rich_utils.Console = (
        EscapingConsole  # what typer says of arguments, which may be names of files
    )
    if "verbose" in _switches:
        logger = logging.getLogger("abcsearch")
        logger.setLevel(logging.INFO)
        logger.addHandler(_LogLines())


def switched(name: str) -> bool:
    """Returns whether "quiet", "verbose" or "debug" is on."""
    return name in _switches


class _LogLines(logging.Handler):
    """Prints what a run writes to its log, above the bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning as one line."""
    _say(f"warning: {message}")


def _say(text: str) -> None:
    """Prints on the error stream; on a terminal above the bar or spinner that it shows, which rich has of streams."""
    if _err.is_terminal:
        sys.stderr.write(f"{escaped(text)}\n")
    else:
        _err.print(text)


@contextlib.contextmanager
def answering(
    run_dir: Path | None = None, again: str = "resume", options: Sequence[str] = ()
) -> Iterator[None]:
    """Turns errors into one clear message and an exit status: 2 the user's, 1 ours, 130 Ctrl-C after saving.

    Args:
        run_dir: where finished work is saved.
        again: the command that goes on after Ctrl-C.
        options: of it.
    """
    try:
        with stopping():
            yield
    except typer.Exit:
        raise
    except KeyboardInterrupt as error:
        started = run_dir is not None and any(
            (run_dir / name).exists() for name in ("run.json", "front.json")
        )
        hint = f"everything finished is saved, continue with: {shlex.join(['abcsearch', again, str(run_dir), *options])}"
        _err.print(f"stopped; {hint if started else 'nothing was started yet'}")
        raise typer.Exit(130) from error
    except Exception as error:
        if "debug" in _switches:
            _err.print(traceback.format_exc())
        text, status = _explained(error)
        _err.print(text)
        raise typer.Exit(status) from error


def _explained(error: Exception) -> tuple[str, int]:
    """Returns the message and the exit status of an error."""
    if isinstance(error, AbcSearchError):
        return f"error: {error}", 2
    if isinstance(error, OSError):  # a full disk, a folder without permission
        return (
            f"error: {error.filename or 'system'}: {error.strerror or error}; what is finished is kept",
            2,
        )
    advice = "" if "debug" in _switches else "; please report it with what --debug prints"
    return f"internal error: {type(error).__name__}: {error}{advice}", 1


def print_json(value: Any, *, indent: int | None = 1) -> None:  # noqa: ANN401 - plain JSON values
    """Prints plain values for scripts, and nothing else; without an indent on one line.

    JSON has no numbers that are not finite: they become null.
    """
    text = json.dumps(_finite(value), indent=indent, allow_nan=False)
    # The one control character that json leaves as it is
    console.print(text.replace("\x7f", "\\u007f"))


def _finite(value: Any) -> Any:  # noqa: ANN401 - plain JSON values
    """Returns plain values with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(head: Iterable[str], *rows: Iterable[str]) -> None:
    """Prints a table without ever cutting a cell: a terminal that is too narrow wraps the lines."""
    table = Table(*head, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*row)
    wide = EscapingConsole(width=1000, highlight=False, markup=False, emoji=False)
    wide.width = wide.measure(table).maximum
    with wide.capture() as drawn:
        wide.print(table)
    # Above a spinner, if there is one
    console.print(Text.from_ansi(drawn.get().removesuffix("\n")))


def print_status(watched: RunWatch, *, as_json: bool = False) -> None:
    """Prints how far a run is, as a table or as JSON."""
    status = watched.look()
    if as_json:
        print_json(asdict(status))
        return
    console.print(watched.title)
    for search in status.rows:
        console.print(
            f"{search.name}: {_counts(search)}; {clock_text(search.seconds)} of evaluations"
        )
    for line in _notes(status):
        console.print(line)
    console.print(_state(status, watched))


def watch(watched: RunWatch, every: float = 1.0, *, as_json: bool = False) -> None:
    """Shows how far a run is until it is finished or the user stops looking: one screen, or lines without a terminal.

    Args:
        watched: the run.
        every: seconds between two looks.
        as_json: a line of JSON whenever something has changed instead.
    """
    with contextlib.suppress(KeyboardInterrupt):  # the run goes on
        if as_json:
            _watch_json(watched, every)
        elif console.is_terminal:
            _watch_screen(watched, every)
        else:
            _watch_lines(watched, every)


def _watch_screen(watched: RunWatch, every: float) -> None:
    """Shows a screen that is drawn anew at every look."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = watched.look()
            live.update(_screen(status, watched), refresh=True)
            if status.finished:
                return
            time.sleep(every)


def _watch_json(watched: RunWatch, every: float) -> None:
    """Prints a line of JSON whenever something but the time has changed."""
    shown = None
    while True:
        status = watched.look()
        stage = status.pulse.stage if status.pulse and status.pulse.training else None
        now = (
            [(search.done, search.failed) for search in status.rows],
            status.running,
            status.log,
            stage,
        )
        if now != shown:
            print_json(asdict(status), indent=None)
        if status.finished:
            return
        shown = now
        time.sleep(every)


def _watch_lines(watched: RunWatch, every: float) -> None:
    """Prints a line whenever something has changed."""
    console.print(watched.title)
    shown: dict[str, str] = {}
    while True:
        status = watched.look()
        now = {search.name: f"{search.name}: {_counts(search)}" for search in status.rows}
        left = {
            search.name: f", {clock_text(search.left)} left"
            for search in status.rows
            if search.left
        }
        # How many are busy changes all the time
        plain = status.running and not (status.pulse and status.pulse.training)
        now[""] = "running now" if plain else _state(status, watched)
        now.update((line, f"warning: {line}") for line in status.damaged)
        for name, line in now.items():
            if shown.get(name) != line:
                console.print(line + left.get(name, ""))
        if status.finished:
            return
        shown = now
        time.sleep(every)


def _screen(status: RunStatus, watched: RunWatch) -> Group:
    """Returns the screen of a run."""
    table = Table.grid(Column(no_wrap=True), Column(ratio=1), padding=(0, 2, 0, 0), expand=True)
    for search in status.rows:
        line = Table.grid(
            Column(ratio=1),
            Column(no_wrap=True),
            Column(width=12),
            padding=(0, 1, 0, 0),
            expand=True,
        )
        bar = ProgressBar(total=search.total, completed=search.done)
        count = f"{search.done:>{len(str(search.total))}}/{search.total}"
        line.add_row(bar, count, f"{clock_text(search.left)} left" if search.left else "")
        pace = f", {_pace(search.interval)}" if search.interval else ""
        table.add_row(escaped(search.name), Group(line, Text(_result(search) + pace)))
    log = [
        Text(escaped(line), style="dim", no_wrap=True, overflow="ellipsis") for line in status.log
    ]
    notes = [Text(escaped(line)) for line in _notes(status)]
    return Group(
        Text(escaped(watched.title)), table, *log, *notes, Text(escaped(_state(status, watched)))
    )


def _counts(search: SearchStatus) -> str:
    """Returns trials, failures and the best of a search."""
    return f"{search.done} of {plural(search.total, search.unit)}, {_result(search)}"


def _result(search: SearchStatus) -> str:
    """Returns failures and the best of a search."""
    best = search.best
    if best is None:
        return f"{search.failed} failed"
    return f"{search.failed} failed, best {best.fitness:.4f} (trial {best.number}, {best.evaluation.macs:,} MACs)"


def _notes(status: RunStatus) -> list[str]:
    """Returns how the full network did, which fine-tunings are by other recipes, and which files are damaged."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, changes in status.recipes.items():
        if changes or "/" in name:
            groups.setdefault(changes, []).append(name)
    tuned = [
        f"fine-tuned with {'; '.join(changes) or 'the recipe of the run'}: {', '.join(names)}"
        for changes, names in groups.items()
    ]
    decided = [
        f"{search.name}: {search.decision.words}"
        for search in status.searches
        if search.decision is not None
    ]
    notes = [
        *decided,
        *status.known,
        *([] if status.prepared is None else [f"prepared in {status.prepared}"]),
        *(line.replace("warning: ", "set-up: ") for line in status.setup),
        *tuned,
    ]
    return [*notes, *(f"warning: {line}" for line in status.damaged)]


def _pace(interval: float) -> str:
    """Returns how many trials finish in a second, a minute or an hour: the first of which there are some."""
    units = (("s", 1), ("min", 60), ("h", 3600))
    unit, seconds = next((pair for pair in units if pair[1] >= interval), units[-1])
    return f"{seconds / interval:.1f} trials/{unit}"


def _unprepared(stage: str, again: str) -> str:
    """Returns that a preparation was stopped or has failed, and how to go on."""
    if not stage.startswith(FAILED):
        return f"stopped while {stage}; {again}"
    return (
        f"{stage}; change [prepare] and search into this folder again, which keeps the network that was trained before; "
        f"or, if something else was wrong, {again}"
    )


def _state(status: RunStatus, watched: RunWatch) -> str:
    """Returns whether a run runs, is finished or was stopped."""
    # Here, since help is shown without numpy
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.going_on import going_on

    if status.running:
        pulse = status.pulse
        if pulse is None:
            return "running now"
        busy = "" if pulse.training else f", {pulse.busy} of {plural(pulse.workers, 'worker')} busy"
        return f"running now: {pulse.stage}{busy}"
    if not status.finished:
        search, again = (
            status.searches[0],
            f"continue with: {going_on(RunFolder(watched.path))}",
        )
        if status.gave_up:
            again = going_on(RunFolder(watched.path), retry_failed=True)
            return f"stopped: too many evaluations failed in a row (see log.txt); once that is mended: {again}"
        if status.preparing is not None:
            return f"not running, {_unprepared(status.preparing, again)}"
        if search.undecided:
            return f"all trials are finished, the best are still to be scored in full or measured; {again}"
        only = search.done >= search.total or status.exhausted  # it can be exported and reported
        return (
            f"{'search finished, its random baseline is not' if only else 'not running'}; {again}"
        )
    if status.interrupted is not None:
        return f"search finished; fine-tuning was interrupted: continue with: {status.interrupted}"
    tuned = f"; fine-tuned: {', '.join(status.tuned)}" if status.tuned else ""
    tuned += f"; by other recipes, in finetuned: {', '.join(status.kept)}" if status.kept else ""
    search = status.searches[0]
    # Of what has been fine-tuned, which takes more to be loaded
    from abcsearch.results.following import following

    text = (
        "finished"
        + (f": {nothing_left(search.name, search.done)}" if status.exhausted else "")
        + tuned
    )
    return f"{text}; next: {following(status, watched.path)}" if watched.configured else text
