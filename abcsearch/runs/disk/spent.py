"""What a preparation has cost, beside its result, of which it is no part: seconds of all that were needed for it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError, plural
from abcsearch.formats import duration_text
from abcsearch.records import problems, setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from abcsearch.runs.disk.folder import RunFolder

FILE = "prepared-seconds.json"
_LONGEST = 1e12  # seconds; more is damage


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a preparation has taken so far; pauses between its processes do not count.

    Attributes:
        of: what tells the preparation from others, as prepared.json has it.
        seconds: on the clock.
        cpu_seconds: of the processor, over all threads; None where several processes train together.
        processes: that have prepared one after another: more than one where it was stopped.
        passes: forward passes that a training step takes; None: not said.
        done: whether nothing of it is left to do.
    """

    of: str
    seconds: float = setting(0.0, at_least=0, at_most=_LONGEST)
    cpu_seconds: float | None = setting(None, at_least=0, at_most=_LONGEST)
    processes: int = setting(0, at_least=0, at_most=10**9)
    passes: int | None = setting(None, at_least=0, at_most=10**6)
    done: bool = False

    @property
    def words(self) -> str:
        """The time in words."""
        cpu = "" if self.cpu_seconds is None else f", {duration_text(self.cpu_seconds)} of CPU"
        resumed = f", in {self.processes} processes" if self.processes > 1 else ""
        return f"{duration_text(self.seconds)}{cpu}{resumed}"

    @property
    def line(self) -> str:
        """All of it in words."""
        passes = self.passes
        said = "" if passes is None else f"; {plural(passes, 'forward pass')} per step"
        return f"{self.words}{said}"


class Meter:
    """Counts what this process adds to what those before it have spent.

    What is written at the end of an epoch and of a block is all that a kill leaves.

    Attributes:
        of: what tells the preparation from others.
    """

    def __init__(self, folder: RunFolder, of: str, *, alone: bool, passes: int | None) -> None:
        """Begins to count.

        Args:
            folder: of the run, locked.
            of: what tells the preparation from others. What was spent on another one, or on one that was done and is
                made again, does not count.
            alone: whether this process does all the work; otherwise its own CPU time says little.
            passes: forward passes that a training step takes.
        """
        self._folder, self.of, self._alone = folder, of, alone
        before = _read(folder)
        self._before = before if before and before.of == of and not before.done else Spent(of=of)
        self._passes = passes
        self._began = time.perf_counter(), time.process_time()

    def spent(self) -> Spent:
        """Returns what all processes have taken up to now."""
        clock, cpu = self._began
        used = (self._before.cpu_seconds or 0.0) + time.process_time() - cpu
        return replace(
            self._before,
            seconds=self._before.seconds + time.perf_counter() - clock,
            cpu_seconds=used if self._alone else None,
            passes=self._passes,
            processes=self._before.processes + 1,
        )

    def note(self, *, done: bool = False) -> None:
        """Writes that down."""
        spent = replace(self.spent(), done=done)
        self._folder.write_json(FILE, asdict(spent), lasting=False)


@contextlib.contextmanager
def metered(folder: RunFolder, of: str, *, alone: bool, passes: int | None) -> Iterator[Meter]:
    """Counts what a block takes, also of one that is stopped or fails; arguments as of `Meter`."""
    meter = Meter(folder, of, alone=alone, passes=passes)
    try:
        yield meter
    except BaseException:
        with contextlib.suppress(RunError, OSError):  # what was raised says more
            meter.note()
        raise
    meter.note(done=True)


def read_spent(folder: RunFolder) -> Spent | None:
    """Returns what was spent on what the folder has prepared; None if it does not say: of an earlier version, damaged."""
    spent = _read(folder)
    try:
        record = folder.read_json("prepared.json")
    except (RunError, OSError):
        return None
    of = record.get("of") if isinstance(record, dict) else None
    return spent if spent is not None and spent.of == of else None


def _read(folder: RunFolder) -> Spent | None:
    """Returns what the file says, or None without one that can be read."""
    try:
        plain: Any = folder.read_json(FILE)
        spent = Spent(**{one.name: plain[one.name] for one in fields(Spent)})
    except (RunError, OSError, KeyError, TypeError):
        return None
    return None if problems(spent) else spent
