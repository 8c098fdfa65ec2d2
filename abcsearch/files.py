"""Files that are replaced whole: a kill at any instant leaves the old one or the new one, never a part."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def replace_file(target: Path, writer: Callable[[Path], object], *, lasting: bool = True) -> None:
    """Replaces a file atomically: temporary sibling, fsync, rename. Its folder is made if missing.

    Args:
        target: the file.
        writer: writes the file to the path that it is given.
        lasting: whether it must survive the loss of power; without, it is cheaper.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sibling = target.with_name(f".{target.name}.tmp")
    try:
        writer(sibling)
        if lasting:
            with sibling.open("rb") as file:
                os.fsync(file.fileno())
        sibling.replace(target)
        if lasting:
            sync_folder(target.parent)
    except OSError as error:
        error.filename = error.filename or str(target)  # a write to a full disk does not say where
        raise
    finally:
        sibling.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Puts the names in a folder on disk, where the system lets folders be opened (POSIX)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
