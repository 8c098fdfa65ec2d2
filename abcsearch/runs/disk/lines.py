"""The lines of a journal: written so that damage shows, and read fast.

    BEFORE-CHECK {...}     since lines are chained
    CHECK {...}            older ones

CHECK is the CRC-32 of the JSON object, as eight hex digits; it continues that of the line before, BEFORE (in the first
line the CRC-32 of the run's id; zeros where it has none, as older runs). So a line tells by itself whether it is whole,
with the one before it whether one is missing, doubled or moved, and the first one of which run it is. Older journals go
on with chained lines.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import sys
import zlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from abcsearch.files import unsealed
from abcsearch.trial import Evaluation, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OUT_OF_CHAIN = (
    "does not follow the line before it: one is missing between them, or was doubled or moved"
)
_OTHER_RUN = "does not begin the journal of this run: it is that of another one (or its first lines are missing)"
# A trial that succeeded, as it is written here, of numbers that are finite by their length: `trial_of` would take all
# that matches. What else a line may be, json reads, and `trial_of` decides.
_WHOLE = rb"\d{1,19}+"
_NUMBER = rb"-?\d{1,18}+(?:\.\d++)?(?:e(?:-\d{2,3}|\+(?:1?\d\d|2[0-7]\d)))?"
_METRIC = rb'"[ !#-\[\]-~]*+": (?:' + _NUMBER + rb'|"nan"|"-?inf"|true|false)'
_SUCCESS = re.compile(
    rb'\{"number": (%(whole)s), "candidate": \[((?:\d{1,9}+, )*+\d{1,9}+)\], "evaluation": \{'
    rb'"fitness": (%(number)s), "metrics": (\{(?:%(metric)s(?:, %(metric)s)*+)?\}), '
    rb'"macs": (%(whole)s), "params": (%(whole)s), "seconds": (%(number)s), "failure": null\}, "time": (%(number)s)\}'
    % {b"whole": _WHOLE, b"number": _NUMBER, b"metric": _METRIC}
)
_LARGEST = 10**19  # no count or number of a trial is larger
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
    try:
        return decode_event(line.rstrip(b"\n").partition(b" ")[2]) if _is_whole(line) else None
    except ValueError:
        return None


def _is_whole(line: bytes) -> bool:
    """Returns whether a line is as it was written, wherever it stands."""
    head, _, text = line.rstrip(b"\n").partition(b" ")
    before, dash, check = head.rpartition(b"-")
    start = int(before, 16) if re.fullmatch(rb"[0-9a-f]{8}", before) else 0
    return (
        line.endswith(b"\n")
        and check == b"%08x" % zlib.crc32(text, start)
        and before == (dash and b"%08x" % start)
    )


def decode_event(text: bytes) -> dict[str, Any]:
    """Returns the event that the JSON of a line holds.

    Raises:
        ValueError: if it is no JSON object.
    """
    try:
        event = json.loads(text)
    except RecursionError as error:
        msg = "it is nested too deep"
        raise ValueError(msg) from error
    if not isinstance(event, dict):
        msg = f"an object was expected, found {event!r:.40}"
        raise ValueError(msg)  # noqa: TRY004 - whatever the file holds
    return event


def trial_of(event: dict[str, Any]) -> Trial:
    """Returns the trial that an event holds.

    Raises:
        ValueError: if something is missing, or of another kind than it is written with.
        AbcSearchError: if it has both a fitness and a failure, or neither.
    """
    number_of(event)
    if "time" in event:
        _check(_is_number(event["time"]), "time is a number", event["time"])
    evaluation = evaluation_of(event.get("evaluation"))
    return Trial(event["number"], candidate_of(event), evaluation)


def number_of(event: dict[str, Any]) -> int:
    """Returns the number of the trial of an event; raises ValueError if it is none."""
    number = event.get("number")
    _check(
        _is_whole_number(number) and int(number or 0) >= 0,
        "number is a whole number from 0",
        number,
    )
    return event["number"]


def numbers_of(values: Any) -> tuple[float, ...]:  # noqa: ANN401 - whatever a line holds
    """Returns numbers; raises ValueError if they are none."""
    _check(
        isinstance(values, list) and all(map(_is_number, values)),
        "means are a list of numbers",
        values,
    )
    return tuple(map(float, values))


def candidate_of(event: dict[str, Any]) -> tuple[int, ...]:
    """Returns the structure of an event; raises ValueError if it is none."""
    candidate = event.get("candidate")
    sound = isinstance(candidate, list) and all(map(_is_whole_number, candidate))
    _check(sound, "candidate is a list of whole numbers", candidate)
    return tuple(event["candidate"])


def evaluation_of(plain: Any) -> Evaluation:  # noqa: ANN401 - whatever a line holds
    """Returns an evaluation; raises ValueError if it is none, AbcSearchError as `Evaluation`."""
    _check(
        isinstance(plain, dict) and plain.keys() <= _FIELDS,
        "evaluation is a table of an evaluation",
        plain,
    )
    fitness, failure, metrics = plain.get("fitness"), plain.get("failure"), plain.get("metrics", {})
    _check(fitness is None or _is_number(fitness), "fitness is a number or null", fitness)
    _check(failure is None or isinstance(failure, str), "failure is a text or null", failure)
    for name, numbers in (("metrics", metrics), ("diagnostics", plain.get("diagnostics", {}))):
        sound = isinstance(numbers, dict) and all(map(_is_metric, numbers.values()))
        _check(sound, f"{name} are numbers by name", numbers)
    for name in ("macs", "params", "seconds"):
        value = plain.get(name, 0)
        _check(
            _is_number(value) and (name == "seconds" or abs(value) < _LARGEST),
            f"{name} is a number",
            value,
        )
    return Evaluation.from_plain({"fitness": None, **plain})


_FIELDS = frozenset(field.name for field in fields(Evaluation))


def _check(sound: bool, rule: str, value: object) -> None:  # noqa: FBT001 - what is checked
    """Raises ValueError unless a value is sound."""
    if not sound:
        try:
            shown = f"{value!r:.40}"
        except ValueError:  # of too many digits
            shown = "one of very many digits"
        msg = f"{rule}, found {shown}"
        raise ValueError(msg)


def _is_number(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Returns whether a JSON value is a finite number."""
    largest = sys.float_info.max
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -largest <= value <= largest
    )


def _is_whole_number(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_metric(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Returns whether a JSON value is one of a metric, which need not be finite."""
    return isinstance(value, bool | float) or _is_number(value) or value in ("nan", "inf", "-inf")


class OutOfChainError(ValueError):
    """A whole line does not follow the line before it."""


class Chain:
    """Lines one after the other, from the first one on.

    Attributes:
        last: CHECK of the last one.
        chained: whether that was a chained one: no older ones follow.
    """

    def __init__(self, run: str | None = None) -> None:
        """Begins before the first line of the journal of a run with an id, or of an older one."""
        self.last, self.chained = (0, False) if run is None else (zlib.crc32(run.encode()), True)
        self._start = self.last

    @classmethod
    def of(cls, journal: Path) -> Chain:
        """Returns the chain of the run that run.json beside a journal tells; of an older one where it tells none."""
        return cls(run_id(journal.parent))

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
        if _is_whole(line):
            raise OutOfChainError(_OTHER_RUN if self.last == self._start else _OUT_OF_CHAIN)
        return None


def run_id(folder: Path) -> str | None:
    """Returns the id of the run in a folder; None where run.json has none (older runs), is missing or unreadable."""
    path = folder / "run.json"
    try:
        header = unsealed(path.read_text(encoding="utf-8"))[0] if path.is_file() else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    name = header.get("id") if isinstance(header, dict) else None
    return name if isinstance(name, str) and name.isascii() else None


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
        return cls(
            int(number),
            float(fitness),
            float(seconds),
            float(time),
            (candidate, metrics, macs, params),
        )

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


class _Widths(dict[bytes, int]):
    """Whole numbers by how they are written, remembered: most of a long journal are the same few widths."""

    def __missing__(self, text: bytes) -> int:
        number = int(text)
        if len(self) < _REMEMBERED:
            self[text] = number
        return number


_REMEMBERED = 100_000
_WIDTHS = _Widths()


def _trial(  # noqa: PLR0913 - a record's
    number: int,
    fitness: float,
    seconds: float,
    candidate: bytes,
    metrics: bytes,
    macs: bytes,
    params: bytes,
) -> Trial:
    """Returns a trial without the checks of its records: the line was whole, and as `_SUCCESS` has it."""
    values: dict[str, Any] = _scan(metrics.decode(), 0)[0]
    for name, value in values.items():
        if type(value) is not float:
            values[name] = float(value)  # nan and inf are texts
    evaluation, trial = object.__new__(Evaluation), object.__new__(Trial)
    fields = evaluation.__dict__
    fields["fitness"], fields["metrics"], fields["macs"], fields["params"] = (
        fitness,
        values,
        int(macs),
        int(params),
    )
    fields["seconds"], fields["failure"], fields["diagnostics"] = seconds, None, {}
    structure = tuple(map(_WIDTHS.__getitem__, candidate.split(b", ")))
    trial.__dict__.update(number=number, candidate=structure, evaluation=evaluation)
    return trial


@contextlib.contextmanager
def many_objects() -> Iterator[None]:
    """Spares a block that makes very many objects, which stay, the search for garbage among them, then and later.

    They are in no cycles, so that they go all the same when nobody needs them any more.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if before:
            gc.enable()
