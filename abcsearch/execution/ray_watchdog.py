"""Ends what is left of a Ray of ours whose driver was killed. A script of its own, which needs nothing but Python.

Ray ends most of its processes with the driver (Linux), but its two agents wait a minute for a head that is gone, and
its folder stays for ever. All of Ray's processes write what they print into files below that folder: by these they are
told from everything else on the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOK = 0.5  # seconds between looks at the driver
# Seconds: late starters are looked for, and what cannot be ended is given up
_LEAST, _LONGEST = (2.0, 60.0)
_PRINTED = (".out", ".err")  # a driver's own files, which its children inherit, have other names
_PROC = Path("/proc")


def processes_of(folder: Path) -> set[int]:
    """Returns the ids of the processes that write what they print to files below a folder; Linux only, else none."""
    return {int(entry.name) for entry in _PROC.glob("[0-9]*") if any(_written(entry, f"{folder}/"))}


def _written(process: Path, beginning: str) -> Iterator[str]:
    """Yields the files below a folder that a process has open for what it prints."""
    with contextlib.suppress(OSError):  # it has ended, or is somebody else's
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink()).removesuffix(" (deleted)")
                writes = entry.lstat().st_mode & 0o200
                if writes and target.startswith(beginning) and target.endswith(_PRINTED):
                    yield target


def clear(folder: Path, least: float = 0.0) -> None:
    """Ends the processes of a Ray whose driver is gone, and removes its folder.

    Args:
        folder: of that Ray alone.
        least: so many seconds it is looked for processes.
    """
    start = time.monotonic()
    while (pids := processes_of(folder)) or time.monotonic() - start < least:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() - start > _LONGEST:
            break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def _watch(driver: int, folder: Path) -> None:
    """Waits until this process is not the driver's child any more, then clears up."""
    while os.getppid() == driver:
        time.sleep(_LOOK)
    clear(folder, _LEAST)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), Path(sys.argv[2]))
