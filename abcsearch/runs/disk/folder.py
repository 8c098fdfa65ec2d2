"""A run folder: what lies in it, and how it is written so that a kill at any instant loses nothing.

run.json           format, settings, identity of model and data, environment; written first
journal.jsonl      finished trials and other events, append-only
searcher.json      snapshot of the searcher; without it, it is told again from the journal
population.json    what the searcher works from, for people and scripts
best.json          best structure so far
fitness.json       fitness of compared structures that are no trials, by widths: evaluated once, by the report
setup.json         how the full network did on the data before the first trial, and what looked wrong
finetuning.json    what fine-tuning was asked for, until all of it is done
progress.json      how it stands, and how fine-tuning does, for those who watch; at most a second old
log.txt            progress as plain lines
base.safetensors   trained network of a configured run; base-*.checkpoint while it is being trained
prepared.safetensors  what was trained before the search; prepared.json vouches for it, and has the structures to begin
                   with; prepared-*.checkpoint while it is being trained; prepared-seconds.json: how long it took
baselines/NAME/    run folders of the baselines
map/               run folder of the map: structures whose fitness the searcher wanted to know before it began
known.json         trials of other runs that the searcher was told of
finetuned/         fine-tuned networks and their scores; NAME-*.checkpoint while NAME is being fine-tuned
finetuned/recipe-* what was fine-tuned by other recipes, each in a folder
report.html, report/, report.md, report.json, export/, tensorboard/
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from abcsearch.errors import RunError, escaped, plural, quoted
from abcsearch.files import Anchor, gone, is_there, redone, replace_file, run_of, sealed, unsealed
from abcsearch.runs.disk.arrays import decode_array, encode_array
from abcsearch.runs.disk.journal import cut_journal
from abcsearch.runs.disk.lines import run_id
from abcsearch.runs.disk.missing import again, no_run
from abcsearch.runs.disk.soundness import unsound
from abcsearch.scratch import sweep_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_HEAD = 2**20  # bytes of a snapshot in which its first entries are
_OWNER = ".owner"  # of the lock, for messages
# What is ours in the folder; anything else may be what the user has put there.
_FOLDERS = frozenset(
    {"baselines", "map", "budgets", "finetuned", "report", "export", "tensorboard"}
)
_FILES = (
    *(
        "run.",
        "journal.",
        "searcher.",
        "population.",
        "best.",
        "fitness.",
        "latency.",
        "progress.",
        "setup.",
        "log.",
        "base",
        "prepared",
        "finetuning.",
        "known.",
        "front.",
    ),
    *("report.", "."),
)
FORMAT = 2  # 1: no events but finished trials in the journal, no settings of execution


class RunFolder:
    """Paths and atomic files of one run.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._anchor: Anchor | None = None  # once it is written to

    @property
    def journal(self) -> Path:
        """The journal's path."""
        return self.path / "journal.jsonl"

    @property
    def run(self) -> Path:
        """The folder that commands are given: of a baseline or a map that of its run."""
        return run_of(self.path)

    @property
    def base(self) -> Path:
        """The path of the trained network's weights (configured runs)."""
        return self.path / "base.safetensors"

    @property
    def fitness(self) -> Path:
        """The path of what the report has evaluated."""
        return self.path / "fitness.json"

    def baseline(self, name: str) -> RunFolder:
        """Returns the run folder of a baseline."""
        return RunFolder(self.path / "baselines" / name)

    @property
    def map(self) -> RunFolder:
        """The run folder of the map, which is not there where the searcher had no probes."""
        return RunFolder(self.path / "map")

    def write_json(self, name: str, value: Mapping[str, Any], *, lasting: bool = True) -> None:
        """Replaces a JSON file as `write` does, with a checksum; numpy arrays are kept bit for bit."""
        text = sealed(value, encode_array)
        self.write(name, lambda path: path.write_text(text, encoding="utf-8"), lasting=lasting)

    def write(self, name: str, writer: Callable[[Path], object], *, lasting: bool = True) -> None:
        """Replaces a file atomically: temporary sibling, fsync, rename.

        Args:
            name: path inside the folder.
            writer: writes the file to the path that it is given.
            lasting: whether it must survive the loss of power; without, it is cheaper.

        Raises:
            FolderGoneError: if the folder itself is not there any more.
        """
        replace_file(self.inside(name), writer, lasting=lasting)

    def inside(self, name: str) -> Path:
        """Returns the path of what is to be written into the folder.

        Raises:
            FolderGoneError: if the folder itself is not there any more.
            RunError: if it leads over a link: a folder from elsewhere could have other files written so.
        """
        self.check()
        path = self.path
        for step in Path(name).parts:
            path /= step
            if path.is_symlink():
                there, copy = quoted(path), quoted(f"{path}.copy")
                again = (
                    f"cp -RL {there} {copy} && rm {there} && mv {copy} {there}"
                    if path.exists()
                    else f"rm {there}"
                )
                msg = f"{path} is a link, and links in a run folder are not followed for writing; replace it by what "
                msg += f"it leads to, if that is yours ({again}), or make the run folder itself the link"
                raise RunError(msg)
        return path

    def settle(self) -> None:
        """Remembers which folder this is: nothing is written into another one that takes its name."""
        self._anchor = self._anchor or Anchor.of(self.path)

    @property
    def there(self) -> bool:
        """Whether the folder is there, and the one that it was."""
        return self.path.is_dir() if self._anchor is None else self._anchor.holds

    def check(self) -> None:
        """Raises FolderGoneError unless the folder is there, and the one that it was: it is never made again."""
        if not self.there:
            raise gone(self.path)

    def read_json(self, name: str) -> Any:  # noqa: ANN401 - plain JSON values and arrays
        """Returns a JSON file's value, or None if there is no such file.

        Raises:
            RunError: if it is no regular file or not JSON, or its checksum is not that of its content.
        """
        return self._read_json(name)[0]

    def _read_json(self, name: str) -> tuple[Any, bool]:
        """Returns a JSON file's value, and whether it has a checksum."""
        path = self.path / name
        if not is_there(path):
            return None, False
        try:
            return unsealed(path.read_text(encoding="utf-8"), decode_array)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            msg = (
                f"{path} is damaged: {error!r}; restore it from a copy, or {self._otherwise(name)}"
            )
            raise RunError(msg) from error

    def sealed(self, name: str) -> bool:
        """Returns whether a JSON file has a checksum; those of older versions have none.

        Raises:
            RunError: as `read_json`.
        """
        return self._read_json(name)[1]

    def _otherwise(self, name: str) -> str:
        """Returns what to do where no copy of a file is at hand."""
        usual = again(self.path) if name == "run.json" else "start a new run"
        return redone(self.path) or usual

    def write_progress(  # noqa: PLR0913 - a file with so many entries
        self,
        stage: str,
        done: int,
        total: int,
        *,
        busy: int,
        workers: int,
        failed: int = 0,
        best: float | None = None,
    ) -> None:
        """Writes progress.json, for those who watch from outside.

        Args:
            stage: what is being done.
            done: trials or epochs.
            total: of so many.
            busy: evaluations or trainings that run now.
            workers: how many can run at a time.
            failed: trials.
            best: fitness so far.
        """
        state = {
            "stage": stage,
            "done": done,
            "total": total,
            "failed": failed,
            "best": best,
            "busy": busy,
            "workers": workers,
            "time": time.time(),
            "pid": os.getpid(),
            "host": platform.node(),
        }
        self.write_json("progress.json", state, lasting=False)

    def header(self) -> dict[str, Any]:
        """Returns run.json.

        Raises:
            RunError: if the folder holds no run, a damaged one, or one of a newer format.
        """
        header = self.read_json("run.json")
        if header is None:
            msg = f"{self.path} {no_run(self.path)}"
            raise RunError(msg)
        damaged = (
            f"{self.path / 'run.json'} is damaged: {{}} missing or wrong; restore it from a copy"
        )
        if not isinstance(header, dict) or not isinstance(header.get("format"), int):
            raise RunError(damaged.format("format"))
        if header["format"] > FORMAT:
            msg = f"{self.path} has format {header['format']}, this version reads up to {FORMAT}; update abcsearch"
            raise RunError(msg)
        wrong = [
            key
            for key in ("settings", "identity", "environment")
            if not isinstance(header.get(key), dict)
        ]
        if wrong:
            raise RunError(damaged.format(", ".join(wrong)))
        if wrong := unsound(header):
            msg = f"{self.path / 'run.json'} is damaged: {wrong}; restore it from a copy, or {self._otherwise('')}"
            raise RunError(msg)
        return header

    def finished(self, n_trials: int) -> bool:
        """Returns whether the search has all its trials, or has run out of new structures, and has been decided."""
        state = self._ended()
        over = state.get("told", 0) >= n_trials or bool(state.get("exhausted", False))
        return over and state.get("decided") is not False

    def decided(self) -> bool | None:
        """Returns whether full scores have decided who has won; None: they are not to, or it is not known."""
        return self._ended().get("decided")

    def exhausted(self) -> bool:
        """Returns whether the search has run out of new structures."""
        return bool(self._ended().get("exhausted", False))

    def _ended(self) -> dict[str, Any]:
        """Returns the snapshot of the searcher, or {} where it is damaged, or not of this journal."""
        try:
            state = self._snapshot_head() or self.read_json("searcher.json")
            length, _ = state.get("journal", (0, 0))
            # That its journal is, too, who reads that sees
            mine = state.get("run") == run_id(self.path)
            return state if mine and self.journal.stat().st_size >= length else {}
        except (RunError, AttributeError, TypeError, ValueError, OSError):
            return {}

    def _snapshot_head(self) -> dict[str, Any] | None:
        """Returns the first entries of the searcher's snapshot, whose state can be large; None where that needs all."""
        path = self.path / "searcher.json"
        if not is_there(path):
            return {}
        with path.open("rb") as file:
            head = file.read(_HEAD)
        for entry in (b'\n "open":', b'\n "state":'):
            text, there, _ = head.partition(entry)
            if there and b'\n "exhausted":' in text:
                return json.loads(text.rstrip(b", ") + b"}")
        return None

    def cut(self, until: int, name: str = "before-cut") -> None:
        """Keeps the first lines of the journal only; a copy of all of it is put beside it, named so and numbered.

        Raises:
            RunError: if there are fewer lines.
        """
        copy = cut_journal(self.journal, until, name)
        if copy is not None:
            for file in ("searcher.json", "best.json"):  # they may be of what is cut off
                (self.path / file).unlink(missing_ok=True)
            self.log(
                f"journal: kept the first {plural(until, 'line')}; all of it is in {copy.name}"
            )

    def log(self, line: str) -> None:
        """Appends a line with the time to log.txt, every character of which shows.

        Python's logging hears of it too, as information of "abcsearch".
        """
        line = escaped(line)
        logging.getLogger("abcsearch").info("%s", line)
        path = self.inside("log.txt")
        is_there(path)  # a pipe would be waited for
        try:
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError as error:
            error.filename = str(path)
            raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one writer; the lock of a process that died is free.

        Raises:
            RunError: if the folder cannot be made, or another process writes to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            msg = f"run folder {self.path} is a file; choose another name"
            raise RunError(msg) from error
        except OSError as error:
            msg = f"run folder {self.path} cannot be made: {error}"
            raise RunError(msg) from error
        self._refuse_links()
        # A lock of the system or, where a network file system has none, a file that names its owner.
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0.5)  # longer than `in_use` holds it
        except Timeout as error:
            msg = (
                f"{self.path} is in use by {self._owner()}; wait for it, or watch it with: "
                f"abcsearch status {quoted(self.path)} --watch"
            )
            raise RunError(msg) from error
        except OSError as error:
            msg = f"run folder {self.path} cannot be locked: {error}"
            raise RunError(msg) from error
        try:
            self.settle()
            me = {
                "pid": os.getpid(),
                "host": platform.node(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            self.write_json(_OWNER, me, lasting=False)
            sweep_all(self.path)  # of what processes that were killed have left
            yield
        finally:
            if self.there:
                (self.path / _OWNER).unlink(missing_ok=True)
            self._anchor = None
            lock.release()

    def _refuse_links(self) -> None:
        """Raises RunError if anything in the folder that is ours to write is a link."""
        for parent, folders, files in os.walk(self.path):
            above = Path(parent).relative_to(self.path)
            if above == Path():
                folders[:] = [name for name in folders if name in _FOLDERS]
                files = [name for name in files if name.startswith(_FILES)]
            for name in (*folders, *files):
                self.inside(str(above / name))

    def _owner(self) -> str:
        """Returns who has the lock, in words."""
        try:
            owner = self.read_json(_OWNER)
            # A process of this machine that died has left no lock, or one that is taken over.
            there = f" (if that machine is gone for good, delete {self.path / '.lock'})"
            elsewhere = there if owner["host"] != platform.node() else ""
            return f"process {owner['pid']} on {owner['host']} since {owner['since']}{elsewhere}"
        except (RunError, KeyError, TypeError, OSError):
            return "another process"

    def in_use(self) -> bool:
        """Returns whether a process is writing to the folder now."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with FileLock(self.path / ".lock").acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that cannot be written to is not being written to
            return False
