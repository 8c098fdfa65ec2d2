"""The lines of a journal: written so that damage shows, and read fast.

    BEFORE-CHECK {...}     since lines are chained
    CHECK {...}            older ones

CHECK is the CRC-32 of the JSON object, as eight hex digits; it continues that of the line before, BEFORE (zeros in the
first line). So a line tells by itself whether it is whole, and with the one before it whether one is missing, doubled
or moved. Older journals go on with chained lines.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from abcsearch.trial import Evaluation, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator

_OUT_OF_CHAIN = "does not follow the line before it: one is missing between them, or was doubled or moved"
# A trial that succeeded, as it is written here: what else a line may be, json reads.
_SUCCESS = re.compile(
    rb'\{"number": (\d+), "candidate": \[([\d, ]+)\], "evaluation": \{"fitness": ([-+.e\d]+), "metrics": (\{[^{}]*\}), '
    rb'"macs": (\d+), "params": (\d+), "seconds": ([-+.e\d]+), "failure": null\}, "time": ([-+.e\d]+)\}'
)
_scan: Any = vars(json.JSONDecoder())["scan_once"]  # what `raw_decode` calls


def encode_line(event: dict[str, object], before: int | None = None) -> bytes:
    """Returns the line of an event.

    Args:
        event: plain JSON values.
        before: CHECK of the line before, 0 for the first one; None writes a line as older versions did.

    Raises:
        ValueError: if a number in it is not finite.
    """
    text = json.dumps(event, allow_nan=False).encode()
    if before is None:
        return b"%08x %s\n" % (zlib.crc32(text), text)
    return b"%08x-%08x %s\n" % (before, zlib.crc32(text, before), text)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Returns the event of a line, wherever it stands; None if the line is damaged."""
    head, _, text = line.rstrip(b"\n").partition(b" ")
    before, dash, check = head.rpartition(b"-")
    start = int(before, 16) if re.fullmatch(rb"[0-9a-f]{8}", before) else 0
    whole = line.endswith(b"\n") and check == b"%08x" % zlib.crc32(text, start) and before == (dash and b"%08x" % start)
    return json.loads(text) if whole else None


class OutOfChainError(ValueError):
    """A whole line does not follow the line before it."""


class Chain:
    """Lines one after the other, from the first one on.

    Attributes:
        last: CHECK of the last one.
        chained: whether that was a chained one: no older ones follow.
    """

    def __init__(self) -> None:
        """Begins before the first line."""
        self.last, self.chained = 0, False

    def text(self, line: bytes) -> bytes | None:
        """Returns the JSON of the next line; None if the line is damaged: then it is not taken.

        Raises:
            OutOfChainError: if the line is whole, but not the one that followed when it was written.
        """
        text = line[18:-1]
        check = zlib.crc32(text, self.last)
        if line[:18] == b"%08x-%08x " % (self.last, check) and line[-1:] == b"\n":
            self.last, self.chained = check, True
            return text
        old = line[9:-1]
        check = zlib.crc32(old)
        if not self.chained and line[:9] == b"%08x " % check and line[-1:] == b"\n":
            self.last = check
            return old
        if decode_line(line) is not None:
            raise OutOfChainError(_OUT_OF_CHAIN)
        return None


class Success(NamedTuple):
    """A trial that succeeded, as its line has it, of which little is looked at yet.

    Attributes:
        number: of the trial.
        fitness: of the trial.
        seconds: that its evaluation took.
        time: when it was written down, in unix seconds.
        rest: candidate, metrics, macs and params as they are written.
    """

    number: int
    fitness: float
    seconds: float
    time: float
    rest: tuple[bytes, bytes, bytes, bytes]

    @classmethod
    def of(cls, text: bytes) -> Success | None:
        """Returns what the JSON of a line says; None if it is anything else than a trial that succeeded."""
        match = _SUCCESS.fullmatch(text)
        if match is None:
            return None
        number, candidate, fitness, metrics, macs, params, seconds, time = match.groups()
        return cls(int(number), float(fitness), float(seconds), float(time), (candidate, metrics, macs, params))

    def trial(self) -> Trial:
        """Returns the trial."""
        return _trial(self.number, self.fitness, self.seconds, *self.rest)


def successful_trial(text: bytes) -> Trial | None:
    """Returns the trial that the JSON of a line holds; None if it is anything else than a trial that succeeded."""
    match = _SUCCESS.fullmatch(text)
    if match is None:
        return None
    number, candidate, fitness, metrics, macs, params, seconds, _ = match.groups()
    return _trial(int(number), float(fitness), float(seconds), candidate, metrics, macs, params)


def _trial(  # noqa: PLR0913 - a record's
    number: int, fitness: float, seconds: float, candidate: bytes, metrics: bytes, macs: bytes, params: bytes
) -> Trial:
    """Returns a trial without the checks of its records: they passed before the line was written, which is whole."""
    values: dict[str, Any] = _scan(metrics.decode(), 0)[0]
    for name, value in values.items():
        if type(value) is not float:
            values[name] = float(value)  # nan and inf are texts
    evaluation, trial = object.__new__(Evaluation), object.__new__(Trial)
    own = evaluation.__dict__
    own["fitness"], own["metrics"], own["macs"], own["params"] = fitness, values, int(macs), int(params)
    own["seconds"], own["failure"] = seconds, None
    own = trial.__dict__
    own["number"], own["candidate"], own["evaluation"] = number, tuple(map(int, candidate.split(b","))), evaluation
    return trial


@contextlib.contextmanager
def many_objects() -> Iterator[None]:
    """Spares a block that makes very many objects, all of which stay, the search for garbage among them."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
