"""The folder of a Ray that is started here: nobody else's, and gone with the run, also where its driver is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from abcsearch.execution import ray_watchdog

# Ray puts sockets below its folder, whose paths the system limits.
_LONGEST = 103 if sys.platform == "darwin" else 107
_BELOW = len("/12345678/session_2000-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class RaySession:
    """The folder of a running Ray, a lock that says so, and the process that clears up if this one is killed."""

    path: Path
    lock: FileLock
    watchdog: subprocess.Popen[bytes]

    def close(self, *, keep: bool = False) -> None:
        """Removes the folder; Ray has been stopped before.

        Args:
            keep: whether it stays until Ray is started the next time, for Ray's logs.
        """
        self.watchdog.kill()
        self.watchdog.wait()
        if not keep:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.release()


def begin_session() -> RaySession | None:
    """Returns a new folder for Ray, and clears those up that killed drivers have left.

    None means that Ray takes its usual one: there are no such folders on this system, or none with a short enough path.
    """
    home = _home()
    if home is None:
        return None
    try:
        # Nobody looks while there is a folder, but not yet its lock
        with FileLock(home / _LOCK, timeout=60):
            _sweep(home)
            path = Path(tempfile.mkdtemp(prefix="", dir=home))
            lock = FileLock(path / _LOCK)
            lock.acquire(timeout=0)
    except (OSError, Timeout):
        return None
    command = [sys.executable, "-I", "-S", ray_watchdog.__file__, str(os.getpid()), str(path)]
    quiet = subprocess.DEVNULL
    # In a session of its own, which neither Ctrl-C nor the end of the terminal reaches.
    watchdog = subprocess.Popen(
        command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    return RaySession(path=path, lock=lock, watchdog=watchdog)


def _home() -> Path | None:
    """Returns the folder of all these folders, which only this user can read; made if it is missing."""
    if not hasattr(os, "getuid"):
        return None
    user = os.getuid()
    for parent in dict.fromkeys((os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "/tmp")):
        path = Path(parent).absolute() / f"abcsearch-ray-{user}"
        if len(os.fsencode(path)) + _BELOW > _LONGEST:
            continue
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.lstat()
            # Anybody may have put something there
            if stat.S_ISDIR(status.st_mode) and status.st_uid == user:
                path.chmod(0o700)
                return path
    return None


def _sweep(home: Path) -> None:
    """Clears up what belongs to no running driver: its lock is free."""
    for path in home.iterdir():
        if not path.is_dir():
            continue
        with contextlib.suppress(OSError, Timeout), FileLock(path / _LOCK).acquire(timeout=0):
            ray_watchdog.clear(path)
