"""How a command is stopped from outside: Ctrl-C, SIGTERM, or a terminal that is closed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Has the first Ctrl-C drop what is under way and save, and the second one end the process at once.

    SIGTERM does so, too, and SIGHUP (the terminal was closed), unless it is ignored, as it is under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    _outlive_terminal()

    def first(*_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            # Not through the console: it may be in the middle of writing. And before the other handler stands: a
            # second signal right behind the first would end the process without a word.
            os.write(
                2,
                b"\nstopping: what is under way is dropped, the rest is saved; Ctrl-C again stops at once\n",
            )
        for number in numbers:
            signal.signal(number, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    before = [signal.signal(number, first) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Lasting:
    """A stream of a terminal; what is written to it when the terminal is gone is dropped."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - of texts
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of the stream
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        """Runs a block; at the error that a closed terminal gives, the stream leads nowhere from then on."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def _outlive_terminal() -> None:
    """Has the process go on without its terminal, as after `disown`; also the end of a run may have a line to say."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Lasting) and stream.isatty():
            setattr(sys, name, _Lasting(stream))
