"""Memory that stays with the process while forward time is measured, so that a pass does not depend on the one before.

glibc gives large blocks back to the system when they are freed, and gets them anew, page by page, for the next pass.
For ResNet-20 in batches of 64 that is 0 to 9,000 pages, a third of the pass: which of it depends on what was on the
heap, and so on the network that had its turn before. Networks that are measured together would share what the largest
of them has paid for. ONNX Runtime, jemalloc and tcmalloc keep memory anyway, as servers do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
# What glibc adapts itself to, at most, in a process that frees large blocks; it does not once it was told anything
_AFTERWARDS = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
_CHOSEN = ("MALLOC_", "GLIBC_TUNABLES")  # variables by which users set this themselves


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Runs a block in which freed memory stays with the process; all of it goes back afterwards.

    Nothing is changed without glibc, or where variables of the environment set its allocator.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    _set(libc, _KEEPING)
    try:
        yield
    finally:
        _set(libc, _AFTERWARDS)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    """Sets options of the allocator."""
    for option, value in options.items():
        libc.mallopt(option, value)


def _glibc() -> ctypes.CDLL | None:
    """Returns the library of the allocator, or None where it is not glibc's, or is left alone."""
    if sys.platform != "linux" or any(name.startswith(_CHOSEN) for name in os.environ):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
