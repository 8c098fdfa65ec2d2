"""Reading files and folders: whatever the system answers becomes one clear message."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from abcsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def reading(path: str | Path, expected: str = "") -> Iterator[None]:
    """Runs a block that reads a file or folder.

    Args:
        path: what is read.
        expected: what should be there, for the message that it is missing.

    Raises:
        DataError: if it is missing, may not be read, or cannot be.
    """
    hint = f"; expected {expected}" if expected else ""
    try:
        yield
    except PermissionError as error:
        msg = f"{error.filename or path} may not be read: no permission; give this user the right to, or another path"
        raise DataError(msg) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        msg = f"{path} is missing{hint} (check the path option of [data])"
        raise DataError(msg) from error
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}{hint}"
        raise DataError(msg) from error
