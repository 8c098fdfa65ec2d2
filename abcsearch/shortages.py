"""What a machine can run short of: whose trouble an exception is, the candidate's or the machine's."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import AbcSearchError, RankingError
from abcsearch.formats import first_line, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_SIZES = Path("/proc/self/statm")  # in pages, the first is the address space

_ERRNOS = {
    errno.ENOMEM: "memory",
    errno.EMFILE: "file descriptors",
    errno.ENFILE: "file descriptors",
    errno.ENOSPC: "disk space",
    errno.EDQUOT: "disk space",
}
# Libraries raise errors of their own kinds, of which only the text says what was missing. Memory of a GPU is not among
# them: a candidate may be too large for it. After most other errors of CUDA nothing works any more in the process, and
# neither the candidate nor the next one can be judged; a few are about one call and its arguments.
_TEXTS = {
    "memory": (
        r"could not create a (primitive|memory)|DefaultCPUAllocator: (can't allocate|not enough) memory|"
        r"Cannot allocate memory|std::bad_alloc|low on memory|can't start new thread"
    ),
    "file descriptors": r"Too many open files",
    "disk space": r"No space left on device|Disk quota exceeded",
    "a GPU that works": (
        r"CUDA error: (?!out of memory|invalid argument|invalid configuration|too many resources requested)|"
        r"no CUDA-capable device|No CUDA GPUs are available|Found no NVIDIA driver|CUDA unknown error|"
        r"CUDA driver initialization failed|CUDA-capable device\(s\) is/are busy"
    ),
}


def shortage(error: BaseException) -> str | None:
    """Returns what a machine was short of when an error was raised, in words; None where it is the candidate's.

    What the error was raised from, or while it was handled, counts as well, and so do the members of a group.
    """
    for link in _chain(error):
        if isinstance(link, MemoryError):
            return "memory"
        if isinstance(link, OSError) and link.errno in _ERRNOS:
            return _ERRNOS[link.errno]
        text = words(link)
        for what, pattern in _TEXTS.items():
            if re.search(pattern, text):
                return what
    return None


def words(error: Any) -> str:  # noqa: ANN401 - whatever an evaluator raises or returns
    """Returns the text of an object, whose own code for it may fail."""
    for text in (str, repr):
        try:
            return text(error)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - of whatever kind, there is no text
            continue
    return "(it has no text that can be shown)"


def described(error: BaseException) -> str:
    """Returns an exception as "Kind: text", or its kind alone where it has no text."""
    return ": ".join(filter(None, [type(error).__name__, words(error)]))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and all that it was raised from, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting += [link.__cause__, None if link.__suppress_context__ else link.__context__]
        if isinstance(link, BaseExceptionGroup):
            waiting += link.exceptions


@contextlib.contextmanager
def machine_suffices(doing: str, instead: str) -> Iterator[None]:
    """Says what a machine was short of where a block fails by that; errors of other kinds go through as they are.

    Args:
        doing: what the block does, as the message begins.
        instead: what to do.

    Raises:
        RankingError: in place of an error that tells of a shortage, which it is raised from.
    """
    try:
        yield
    except AbcSearchError:
        raise
    except Exception as error:
        missing = shortage(error)
        if missing is None:
            raise
        msg = f"{doing}: this machine is short of {missing} ({first_line(error)}); {instead}"
        raise RankingError(msg) from error


def check_memory(wanted: int, what: str, instead: str) -> None:
    """Raises RankingError, from a MemoryError, if this machine has less memory than some things take.

    Args:
        wanted: bytes.
        what: takes them, as the message begins.
        instead: what to do.
    """
    free = free_memory()
    if free is not None and wanted > free:
        msg = (
            f"{what} take {size_text(wanted)} of memory, and {size_text(free)} are free; {instead}"
        )
        raise RankingError(msg) from MemoryError(msg)


def free_memory() -> int | None:
    """Returns the bytes of main memory that a process can still have: of the machine, of its container, of `ulimit -v`.

    None where the system does not say.
    """
    free = _container() + _address_space()
    try:
        lines = dict(
            line.split(":", 1) for line in _MEMINFO.read_text(encoding="utf-8").splitlines()
        )
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, ValueError, KeyError, IndexError):
        free += _all_memory()
    return min(free, default=None)


def _container() -> list[int]:
    """Returns what is left of a container's limit, where there is one: what the system would give up is not used."""
    try:
        limit, used = (
            int((_CGROUP / f"memory.{name}").read_text(encoding="utf-8"))
            for name in ("max", "current")
        )
        entries = (_CGROUP / "memory.stat").read_text(encoding="utf-8").split()
        given_up = int(entries[entries.index("inactive_file") + 1])
    except (OSError, ValueError, IndexError):  # "max": no limit
        return []
    return [max(0, limit - used + given_up)]


def _address_space() -> list[int]:
    """Returns what is left of the process' own limit, where there is one: batch systems set it."""
    try:
        import resource  # not on Windows

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(_SIZES.read_text(encoding="utf-8").split()[0])
    except (ImportError, OSError, ValueError, IndexError):
        return []
    if limit == resource.RLIM_INFINITY:
        return []
    return [max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))]


def _all_memory() -> list[int]:
    """Returns how much memory the machine has, where only that is known."""
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return []
