"""Files that are replaced whole, and records in them that tell when they are damaged.

A kill at any instant leaves the old file or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Any

from abcsearch.scratch import sibling_of, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

CHECKSUM = "checksum"  # the last entry of a sealed record, and in the metadata of our files of weights
_SEAL = re.compile(rf',?\n "{CHECKSUM}": "([0-9a-f]{{16}})"\n}}\n\Z')


def replace_file(
    target: Path, writer: Callable[[Path], object], *, lasting: bool = True, make_folder: bool = True
) -> None:
    """Replaces a file atomically: temporary sibling, fsync, rename. Siblings that dead processes have left go.

    Args:
        target: the file.
        writer: writes the file to the path that it is given.
        lasting: whether it must survive the loss of power; without, it is cheaper.
        make_folder: whether its folder is made if missing.
    """
    if make_folder:
        target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    sibling = sibling_of(target)
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


def sealed(record: Mapping[str, Any], encode: Callable[[Any], Any] | None = None) -> str:
    """Returns a record as JSON whose last entry is a checksum of the text before it.

    Args:
        record: plain JSON values.
        encode: what json calls for anything else.
    """
    text = json.dumps(record, indent=1, default=encode)
    body = text.removesuffix("}").rstrip("\n")
    return f'{body}{"," if record else ""}\n "{CHECKSUM}": "{_digest(body)}"\n}}\n'


def unsealed(text: str, decode: Callable[[dict[str, Any]], Any] | None = None) -> tuple[Any, bool]:
    """Returns the value of JSON that `sealed` wrote, and whether it has a checksum; old files have none.

    Args:
        text: of the file.
        decode: the object hook of json.

    Raises:
        ValueError: if it is no JSON, or its checksum is not that of its content.
    """
    value = json.loads(text, object_hook=decode)
    if not isinstance(value, dict) or CHECKSUM not in value:
        return value, False
    seal = _SEAL.search(text)
    if seal is None or _digest(text[: seal.start()]) != seal[1]:
        msg = "its checksum is not that of its content"
        raise ValueError(msg)
    del value[CHECKSUM]
    return value, True


def _digest(text: str) -> str:
    """Returns the checksum of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
