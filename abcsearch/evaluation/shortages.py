"""What a machine can run short of: whose trouble an exception is, the candidate's or the machine's."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

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
