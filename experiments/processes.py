"""Work side by side, each piece in a process of its own; what experiments share with `tables`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context, parent_process
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Result = TypeVar("Result")


def side_by_side(
    pieces: Mapping[str, Callable[[], Result]],
    workers: int,
    done: Callable[[Result], object] = lambda _: None,
) -> None:
    """Does pieces of work, and names each on the error stream as it ends.

    A piece that fails is named with the cause, and ends the program with status 1 after the others; if the first two
    fail of the same cause (a folder that is missing, say), the others are left. Ctrl-C ends the program and its
    processes at once (status 130), as kill does: pieces keep what they have in files.

    Args:
        pieces: what to do by name; goes to another process, so it can be pickled.
        workers: how many processes.
        done: gets what a piece returned, in this process.
    """
    causes: list[str] = []
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin) as pool:
        try:
            tasks = {pool.submit(piece): name for name, piece in pieces.items()}
            for number, task in enumerate(as_completed(tasks), 1):
                error = task.exception()
                cause = "done" if error is None else str(error) or repr(error)
                sys.stderr.write(f"{number}/{len(tasks)} {tasks[task]}: {cause}\n")
                if error is None:
                    done(task.result())
                    continue
                causes.append(cause)
                if number == 2 and causes == [cause] * 2 and len(tasks) > 2:
                    left = len(tasks) - 2
                    sys.exit(
                        f"the other {left} would fail of this, too; when that is mended, the same command goes on"
                    )
        except BaseException as error:
            for process in active_children():  # not to wait for what they have begun
                process.kill()
            if isinstance(error, KeyboardInterrupt):
                sys.stderr.write("stopped; the same command goes on\n")
                raise SystemExit(130) from None
            raise
    if causes:
        sys.exit("what failed is named above; when that is mended, the same command goes on")


def at_least_one(text: str) -> int:
    """Returns a number from the command line.

    Raises:
        argparse.ArgumentTypeError: if it is less than one, or no number.
    """
    if not text.isdecimal() or int(text) < 1:
        msg = f"at least 1, found {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _begin() -> None:
    """Leaves Ctrl-C to the process that began this one, and ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
