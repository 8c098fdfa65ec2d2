"""Files that are replaced whole, and records in them that tell when they are damaged.

A kill at any instant leaves the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import FolderGoneError, RunError, quoted
from abcsearch.scratch import sibling_of, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CHECKSUM = (
    "checksum"  # the last entry of a sealed record, and in the metadata of our files of weights
)
_FLOAT = "__float__"  # the only entry of what stands for a number that is not finite
_SEAL = re.compile(rf'\n "{CHECKSUM}": "([0-9a-f]{{16}})"\n}}\n\Z')


def replace_file(
    target: Path,
    writer: Callable[[Path], object],
    *,
    lasting: bool = True,
    make_folder: bool = True,
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


def link(file: Path, other: Path) -> None:
    """Has a file under another name as well, unless that is taken; where the system cannot, it is copied.

    Files of weights are replaced whole and never changed, so that neither name sees what becomes of the other.
    """
    if not file.is_file() or other.exists():
        return
    other.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        try:
            os.link(file, other)
        except FileExistsError:
            raise
        except OSError:
            replace_file(other, lambda path: path.write_bytes(file.read_bytes()))


@dataclass(frozen=True)
class Anchor:
    """A folder that is written to again and again, and must be the same one all the time.

    Attributes:
        path: the folder.
        identity: what the system tells it from others by, whatever their names.
    """

    path: Path
    identity: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> Anchor:
        """Returns that of a folder, or of the nearest one above it that is there."""
        there = next(
            folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir()
        )
        return cls(there, _identity(there) or (0, 0))

    @property
    def holds(self) -> bool:
        """Whether the folder is where it was."""
        return self.path.is_dir() and _identity(self.path) == self.identity

    def check(self) -> None:
        """Raises FolderGoneError if the folder was renamed or deleted, whatever has its name now."""
        if not self.holds:
            raise gone(self.path)


def gone(path: Path, descriptor: int | None = None) -> FolderGoneError:
    """Returns the error for a file or folder that was renamed or deleted while it was written to.

    Args:
        path: where it was.
        descriptor: of the open file, by which some systems know where it is now.
    """
    try:
        now = None if descriptor is None else Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        now = None
    if now is None:
        msg = (
            f"{path} is not there any more: it was renamed or deleted while it was written to. What is finished is in "
            "the renamed folder: give the command again with its name (a search goes on with: abcsearch resume "
            "NEW_NAME). Nothing was written in its place"
        )
    elif now.name.endswith(" (deleted)"):
        msg = (
            f"{path} was deleted while it was written to, and what was finished with it; restore the folder from a "
            f"copy and continue with: abcsearch resume {quoted(run_of(path.parent))}, or start anew"
        )
    else:
        msg = (
            f"{path} was renamed while it was written to. It is {now} now, with all that is finished; "
            f"continue with: abcsearch resume {quoted(run_of(now.parent))}"
        )
    return FolderGoneError(msg)


def run_of(folder: Path) -> Path:
    """Returns the run folder that commands are given: that of a baseline, or of a map, is above it."""
    if folder.parent.name == "baselines":
        return folder.parent.parent
    return folder.parent if is_map(folder) else folder


def is_map(folder: Path) -> bool:
    """Returns whether a folder is the map of the run above it."""
    return folder.name == "map" and (folder.parent / "run.json").is_file()


def redone(folder: Path) -> str:
    """Returns what to do about a damaged folder in a run folder that can be made again; "" for the run's."""
    if folder.parent.name == "baselines":
        return f"delete {folder}: this baseline is then searched again"
    return f"delete {folder}: the map is then evaluated again" if is_map(folder) else ""


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns device and inode of a file or folder, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def same_file(path: Path, descriptor: int) -> bool:
    """Returns whether an open file is the one of this name."""
    status = os.fstat(descriptor)
    return _identity(path) == (status.st_dev, status.st_ino)


def is_there(path: Path) -> bool:
    """Returns whether a file is there to be read.

    Raises:
        RunError: if it is no regular file: a pipe would be waited for, a device read without end.
    """
    if path.is_file():
        return True
    if path.exists():
        what = "folder" if path.is_dir() else "pipe, device or socket"
        msg = f"{path} is a {what}, not a file; restore it from a copy, or move it elsewhere"
        raise RunError(msg)
    return False


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

    JSON has no numbers that are not finite: they are written as {"__float__": "nan"}, "inf" or "-inf".

    Args:
        record: plain JSON values.
        encode: what json calls for anything else.

    Raises:
        ValueError: if it has a checksum of its own.
    """
    if isinstance(record, dict) and CHECKSUM in record:
        msg = f"a record that is sealed has no entry {CHECKSUM!r} of its own"
        raise ValueError(msg)
    try:
        text = json.dumps(record, indent=1, default=encode, allow_nan=False)
    except ValueError:
        text = json.dumps(
            _finite(record),
            indent=1,
            default=encode and (lambda value: _finite(encode(value))),
            allow_nan=False,
        )
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
    value = json.loads(
        text,
        object_hook=lambda entry: _number(entry) if _FLOAT in entry else (decode or dict)(entry),
    )
    if not isinstance(value, dict) or CHECKSUM not in value:
        return value, False
    seal = _SEAL.match(text, max(text.rfind(f'\n "{CHECKSUM}"'), 0))
    if seal is None or _digest(text[: seal.start()].removesuffix(",")) != seal[1]:
        msg = "its checksum is not that of its content"
        raise ValueError(msg)
    del value[CHECKSUM]
    return value, True


def _finite(value: Any) -> Any:  # noqa: ANN401 - plain JSON values and what `encode` takes
    """Returns a value in which numbers that are not finite are objects of their text."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return (
        {_FLOAT: str(float(value))}
        if isinstance(value, float) and not math.isfinite(value)
        else value
    )


def _number(value: dict[str, Any]) -> float:
    """Returns the number of its object."""
    return float(value[_FLOAT])


def _digest(text: str) -> str:
    """Returns the checksum of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401
    """Yields every value of plain JSON that is neither a table nor a list, after the names that lead to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value
