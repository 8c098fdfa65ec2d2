"""Time that a step has, and commands that are stopped when it is over, as Ctrl-C stops them."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_GRACE = 30.0  # seconds in which a command that was stopped keeps what it has


@dataclass(frozen=True)
class Limit:
    """A moment by which something ends.

    Attributes:
        end: of the clock.
        clock: returns seconds.
    """

    end: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds until then; 0 if it has passed."""
        return max(0.0, self.end - self.clock())

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return self.left == 0.0

    def within(self, seconds: float) -> Limit:
        """Returns the limit of something that may take so many seconds, and ends with this one at the latest."""
        return Limit(min(self.end, self.clock() + seconds), self.clock)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        output: what it printed, errors among it.
        code: its exit status.
        stopped: whether its time was over.
        seconds: that it took.
    """

    output: str
    code: int
    stopped: bool
    seconds: float

    @property
    def state(self) -> str:
        """How it ended, in a word or with the last line of what it said."""
        if self.stopped:
            return "stopped"
        lines = self.output.strip().splitlines() or [f"exit status {self.code}"]
        return "done" if self.code == 0 else f"failed: {lines[-1]}"


def command(words: Sequence[str], limit: Limit) -> Ended:
    """Runs a command until it ends or its time is over; then it is stopped, and keeps what it has as after Ctrl-C.

    Args:
        words: the program and its arguments.
        limit: of its time.
    """
    begun = limit.clock()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        stopped = False
        try:
            output, _ = process.communicate(timeout=limit.left)
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGINT)
            try:
                output, _ = process.communicate(timeout=_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            raise
    return Ended(output, process.returncode, stopped, limit.clock() - begun)
