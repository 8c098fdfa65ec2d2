"""Whose a record is: what this user has written carries a signature with a key that nobody else has.

A record is plain JSON values. Its signature says that the names in it are those of the user, who may import what they
lead to; it says nothing of damage, which a checksum tells (see `files.sealed`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

SIGNATURE = "signature"
_WRITTEN_IN = "written_in"  # what stands for the working folder in which a record was signed
_BYTES = 32


def key_file() -> Path:
    """Returns where the user's key lies: in the configuration folder, which machines with a shared home share.

    Raises:
        RuntimeError: if the user has no home.
    """
    usual = "APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME"
    folder = Path(os.environ.get(usual) or Path.home() / ".config")
    return folder / "abcsearch" / "key"


def signed(kind: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with the user's signature; without one, and with a warning, where no key can be kept.

    Args:
        kind: of the record: a signature counts for no other kind.
        record: plain JSON values; an older signature is replaced.
    """
    plain = unsigned(record)
    try:
        key = _key() or _new_key()
    except (OSError, RuntimeError, ValueError) as error:
        msg = f"what is written cannot be marked as your own ({error}), so that --trust will be asked for later"
        warnings.warn(msg, stacklevel=2)
        return plain
    plain[_WRITTEN_IN] = _place(key)
    return {**plain, SIGNATURE: _signature(key, kind, plain)}


def is_own(kind: str, record: Mapping[str, Any]) -> bool:
    """Returns whether a record of a kind has been signed with the user's key."""
    plain = {name: value for name, value in record.items() if name != SIGNATURE}
    try:
        key = _key()
    except (OSError, RuntimeError, ValueError):
        return False
    given = record.get(SIGNATURE)
    try:
        return (
            key is not None
            and isinstance(given, str)
            and given.isascii()
            and _same(key, kind, plain, given)
        )
    # Arrays and the like: nothing that `signed` has written
    except (TypeError, ValueError, RecursionError):
        return False


def unsigned(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record as it was before it was signed."""
    return {name: value for name, value in record.items() if name not in (SIGNATURE, _WRITTEN_IN)}


def written_here(record: Mapping[str, Any]) -> bool:
    """Returns whether a record that is the user's own was signed in this working folder, or one of the same path.

    Names in it are then those of modules that lie there; elsewhere, somebody may have put others of the same name.
    """
    try:
        key = _key()
    except (OSError, RuntimeError, ValueError):
        return False
    return key is not None and record.get(_WRITTEN_IN) == _place(key)


def _place(key: bytes) -> str:
    """Returns what stands for the working folder: its path is told to nobody who has not the key."""
    try:
        folder = str(Path.cwd().resolve())
    except OSError:  # it has been deleted
        folder = ""
    return hmac.new(key, folder.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:16]


def _same(key: bytes, kind: str, plain: Mapping[str, Any], given: str) -> bool:
    return hmac.compare_digest(_signature(key, kind, plain), given)


def _signature(key: bytes, kind: str, plain: Mapping[str, Any]) -> str:
    text = json.dumps([kind, plain], sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """Returns the user's key, or None if there is none yet.

    Raises:
        ValueError: if it is not the user's alone, or no key.
        OSError: if it cannot be read.
    """
    path = key_file()
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if os.name == "posix" and (
        status.st_uid not in (os.getuid(), 0) or stat.S_IMODE(status.st_mode) & 0o077
    ):
        msg = f"{path} can be read or changed by others; run: chmod 600 {quoted(path)}, or delete it for a new one"
        raise ValueError(msg)
    key = bytes.fromhex(path.read_text(encoding="ascii"))
    if len(key) != _BYTES:
        msg = f"{path} holds no key of {_BYTES} bytes; delete it for a new one"
        raise ValueError(msg)
    return key


def _new_key() -> bytes:
    """Makes the user's key, or takes that of another process which was faster.

    Raises:
        OSError, ValueError: if it cannot be kept.
    """
    path = key_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    sibling = path.with_name(f".key-{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            with contextlib.suppress(FileExistsError):
                os.link(sibling, path)  # whole or not at all, and never over another one
        except OSError:  # a file system without links
            sibling.replace(path)
    finally:
        sibling.unlink(missing_ok=True)
    key = _key()
    if key is None:
        msg = f"{path} is gone as soon as it is written"
        raise ValueError(msg)
    return key
