"""The journal: one line per finished trial, on disk before anybody is told.

A line is the CRC-32 of the rest as eight hex digits, a space, and a JSON object. Lines are appended and fsynced. A last
line that is torn (the process was killed while writing) is cut off when the journal is opened for writing; damage
anywhere else is an error.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from typing import TYPE_CHECKING

from abcsearch.errors import AbcSearchError, RunError
from abcsearch.trial import Trial

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


def _encode(event: dict[str, object]) -> bytes:
    """Returns the line of an event."""
    text = json.dumps(event).encode()  # metrics that are not finite are written as Python reads them: NaN, Infinity
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> dict[str, object] | None:
    """Returns the event of a line, or None if the line is damaged."""
    check, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text):
        return None
    return json.loads(text)


def read_journal(path: Path) -> tuple[dict[int, Trial], int]:
    """Returns all finished trials by number, and the length in bytes of the undamaged part.

    Raises:
        RunError: if a line other than the last is damaged, or a number occurs twice.
    """
    trials: dict[int, Trial] = {}
    sound = 0
    lines = re.findall(rb"[^\n]*\n|[^\n]+", path.read_bytes()) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        event = _decode(line)
        if event is None:
            if number == len(lines):
                break
            msg = f"{path}, line {number} of {len(lines)} is damaged; restore the file from a copy, or start a new run"
            raise RunError(msg)
        try:
            trial = Trial.from_plain(event)
        except (KeyError, TypeError, ValueError, AttributeError, AbcSearchError) as error:
            msg = f"{path}, line {number} of {len(lines)} is no trial: {error!r}; restore the file from a copy"
            raise RunError(msg) from error
        if trial.number in trials:
            msg = f"{path}, line {number}: trial {trial.number} is there twice; two processes may have written"
            raise RunError(msg)
        trials[trial.number] = trial
        sound += len(line)
    return trials, sound


class Journal:
    """A journal open for appending.

    Attributes:
        trials: all finished trials by number.
        repaired: number of bytes of a torn last line that were cut off when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates a journal and cuts a torn last line off.

        Raises:
            RunError: as `read_journal`.
        """
        self.trials, sound = read_journal(path)
        self.repaired = path.stat().st_size - sound if path.exists() else 0
        self._file = path.open("ab")
        self._file.truncate(sound)

    def append(self, trial: Trial) -> None:
        """Writes a finished trial to disk before it returns."""
        self._file.write(_encode({**trial.to_plain(), "time": time.time()}))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.trials[trial.number] = trial

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
