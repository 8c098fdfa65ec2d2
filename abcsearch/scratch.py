"""Names of temporary files and folders that tell whose they are, so that those of dead processes can be removed."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import time
import zlib
from pathlib import Path

# .NAME.OWNER.tmp is the sibling of a file that is being written, .KIND-OWNER-abcd1234 a folder of tempfile.
_OWNED = re.compile(r"\.(.+)[.-]([0-9a-f]{8})-(\d+)-(\d+)(?:\.tmp|-[a-z0-9_]{8})\Z")
# Seconds after which nothing is expected any more of a process that cannot be asked about
_LONG = 24 * 3600


def owner() -> str:
    """Returns what names this process among all that can see a folder: machine, process id, when it began."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_born(pid)}"


def sibling_of(target: Path) -> Path:
    """Returns where this process writes a file before it is put in its place."""
    return target.with_name(f".{target.name}.{owner()}.tmp")


def sweep(folder: Path, of: str | None = None) -> None:
    """Removes what dead processes have left half-written in a folder; what living ones write stays.

    Whether a process of another machine (or container) lives is not known: what it has left goes when it is a day old.

    Args:
        folder: its own entries are looked at, not those below; one that cannot be read is left alone.
        of: name of a file; only its siblings are removed. Without, all.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - names alone, at every write
            told = _OWNED.match(name)
            if told is not None and of in (None, told[1]) and _is_dead(folder / name, told):
                _remove(folder / name)


def sweep_all(folder: Path) -> None:
    """Does so in a folder, and in the folders down to three levels below."""
    level = [folder]
    for _ in range(4):
        for entry in level:
            sweep(entry)
        level = [below for entry in level for below in _folders(entry)]


def _folders(folder: Path) -> list[Path]:
    """Returns the folders in a folder; links are left alone."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _is_dead(path: Path, told: re.Match[str]) -> bool:
    """Returns whether nobody writes any more what has this name."""
    _, machine, pid, born = told.groups()
    if machine != _machine() or os.name != "posix":
        return time.time() - path.lstat().st_mtime > _LONG
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it lives, and is somebody else's
    return int(born) != _born(int(pid))  # its number has been given to another one since


def _remove(path: Path) -> None:
    """Removes a file or a folder, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _machine() -> str:
    """Returns eight hex digits that stand for this machine, and for the container: it numbers processes anew."""
    try:
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it is no path
    except OSError:
        space = ""
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


def _born(pid: int) -> int:
    """Returns when a process began, in ticks since the machine did; 0 where the system does not say, -1 if it is over.

    One that is over and that nobody has asked for its end still has its number.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0
