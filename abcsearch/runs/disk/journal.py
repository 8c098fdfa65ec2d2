"""The journal: one line per event, on disk before anybody is told.

A line is a checksum, which continues that of the line before, and a JSON object: see `lines`. Lines are appended and
fsynced. A last line that is torn (the process was killed while writing) is cut off when the journal is opened for
writing; damage anywhere else is an error, and so is a line that was lost, doubled or moved.

The order of the lines is the order of events:

    a finished trial   {"number", "candidate", "evaluation", "time"}
    "asked"            {"event", "number", "candidate"}: proposed (asynchronous schedule only: in rounds it follows)
    "first"            {"event", "number", "evaluation"}: the first stage of a cascade has finished
    "lost"             {"event", "number", "reason"}: the trial's worker died or hung while evaluating it
    "groups"           {"event", "number", "means"}: fitness on groups of images, of a trial that saw all of them
    "final"            {"event", "number", "evaluation"}: what one of the best trials was found to be on all images
    "timed"            {"event", "number", "share", "full_ms"}: the forward time of one of the best trials, measured in
                       turns with the full network's
    "winner"           {"event", "number", "candidate", "evaluation", "among", "alike", "of"}: who has won among the
                       best ones of so many trials; of those that were measured, "times" as well
"""

from __future__ import annotations

import os
import re
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.errors import AbcSearchError, RunError, plural, quoted
from abcsearch.files import gone, is_there, redone, same_file
from abcsearch.runs.disk.decision import Decision, Timed
from abcsearch.runs.disk.lines import (
    Chain,
    OutOfChainError,
    candidate_of,
    decode_event,
    encode_line,
    evaluation_of,
    many_objects,
    number_of,
    numbers_of,
    successful_trial,
    trial_of,
)
from abcsearch.trial import best_trial

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from abcsearch.space import Candidate
    from abcsearch.trial import Evaluation, Trial


@dataclass
class Contents:
    """What a journal holds.

    Attributes:
        trials: all finished trials by number.
        asked: proposals of the asynchronous schedule by number.
        order: the calls of the searcher, in order: a number that was asked for, or ~number, that was told.
        first: what first stages found, by number.
        staged: numbers in the order in which their first stages, or else they themselves, finished.
        lost: reasons why workers were lost, by number of the trial.
        groups: fitness on groups of images, by number of the trial.
        final: what the best trials were found to be on all images, by number.
        timed: forward times of the best trials, by number.
        decisions: who has won, by number of all trials.
        sound: length in bytes of the undamaged part.
        check: CRC-32 of these bytes, which continues what the first line follows.
        chain: what the next line follows.
    """

    trials: dict[int, Trial] = field(default_factory=dict[int, "Trial"])
    asked: dict[int, Candidate] = field(default_factory=dict[int, "Candidate"])
    order: list[int] = field(default_factory=list[int])
    first: dict[int, Evaluation] = field(default_factory=dict[int, "Evaluation"])
    staged: list[int] = field(default_factory=list[int])
    lost: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    groups: dict[int, tuple[float, ...]] = field(default_factory=dict[int, "tuple[float, ...]"])
    final: dict[int, Evaluation] = field(default_factory=dict[int, "Evaluation"])
    timed: dict[int, Timed] = field(default_factory=dict[int, "Timed"])
    decisions: dict[int, Decision] = field(default_factory=dict[int, "Decision"])
    sound: int = 0
    check: int = 0
    chain: Chain = field(default_factory=Chain, compare=False)

    def best(self, n_trials: int) -> Trial | None:
        """Returns the best of the first trials: the one that full scores have decided for, where they have.

        Args:
            n_trials: how many trials the search has, or is to have.
        """
        if n_trials in self.decisions:
            return self.decisions[n_trials].winner
        return best_trial(
            [trial for number, trial in sorted(self.trials.items()) if number < n_trials]
        )

    def take(self, event: dict[str, Any]) -> None:
        """Takes the next event.

        Raises:
            ValueError: if a trial is there twice.
            ValueError, AbcSearchError: if it is no event.
        """
        number, kind = number_of(event), event.get("event")
        if kind == "asked":
            self.asked[number] = candidate_of(event)
            self.order.append(number)
        elif kind == "first":
            self.first[number] = evaluation_of(event.get("evaluation"))
            self.staged.append(number)
        elif kind == "lost":
            self.lost.setdefault(number, []).append(str(event["reason"]))
        elif kind == "groups":
            self.groups[number] = numbers_of(event.get("means"))
        elif kind is not None:
            self._take_final(number, kind, event)
        else:
            self.add(trial_of(event))

    def _take_final(self, number: int, kind: object, event: dict[str, Any]) -> None:
        """Takes an event of the end of a search.

        Raises:
            ValueError, AbcSearchError: if it is none.
        """
        if kind == "final":
            self.final[number] = evaluation_of(event.get("evaluation"))
        elif kind == "timed":
            self.timed[number] = Timed.of(event)
        elif kind == "winner":
            self.decisions[number_of({"number": event.get("of")})] = Decision.of(event)
        else:
            msg = f"event {kind!r} is unknown to this version"
            raise ValueError(msg)

    def add(self, trial: Trial) -> None:
        """Takes a finished trial.

        Raises:
            ValueError: if it is there already.
        """
        number = trial.number
        if number in self.trials:
            msg = f"trial {number} is there twice; two processes may have written"
            raise ValueError(msg)
        self.trials[number] = trial
        self.order.append(~number)
        if number not in self.first:
            self.staged.append(number)

    def line(self, line: bytes) -> bool:
        """Takes the next line; returns False, and takes nothing, if it is damaged.

        Raises:
            ValueError: if it does not follow the line before it.
            KeyError, TypeError, AttributeError, AbcSearchError: if it is no event.
        """
        text = self.chain.text(line)
        if text is None:
            return False
        trial = successful_trial(text)
        if trial is None:
            self.take(decode_event(text))
        else:
            self.add(trial)
        self.passed(line)
        return True

    def passed(self, line: bytes) -> None:
        """Takes that a line is on disk."""
        self.sound += len(line)
        self.check = zlib.crc32(line, self.check)


def lines_of(path: Path) -> list[bytes]:
    """Returns the lines of a journal, [] where there is none; the last one may be torn.

    Raises:
        RunError: if it is no regular file.
    """
    return re.findall(rb"[^\n]*\n|[^\n]+", path.read_bytes()) if is_there(path) else []


def read_journal(path: Path) -> Contents:
    """Returns what a journal holds.

    Raises:
        RunError: if a line other than the last is damaged, one does not follow the line before it, a number occurs
            twice, or the journal is that of another run than run.json beside it.
    """
    chain = Chain.of(path)
    contents = Contents(check=chain.last, chain=chain)
    with many_objects():
        lines = lines_of(path)
        for number, line in enumerate(lines, start=1):
            try:
                taken = contents.line(line)
                reason = "is damaged"
            except OutOfChainError as error:
                taken, reason = False, str(error)
            except (KeyError, TypeError, ValueError, AttributeError, AbcSearchError) as error:
                taken, reason = False, f"is not an event of a run: {error}"
            if not taken and reason == "is damaged" and number == len(lines):
                break  # torn
            if not taken:
                msg = f"{path}, line {number} of {len(lines)} {reason}; {_advice(path, number - 1)}"
                raise RunError(msg)
    return contents


def _advice(path: Path, sound: int) -> str:
    """Returns what can be done about a damaged journal."""
    if again := redone(path.parent):
        return f"restore the file from a copy, or {again}"
    return (
        f"restore the file from a copy, or keep the {plural(sound, 'line')} before it (the others are put aside) with: "
        f"abcsearch resume {quoted(path.parent)} --until {sound}"
    )


def cut_journal(path: Path, until: int, name: str = "before-cut") -> Path | None:
    """Keeps the first lines of a journal; the whole file as it was is put beside it.

    Args:
        path: the journal.
        until: how many lines stay.
        name: of the copy, to which a number is added.

    Returns:
        The path of the copy, or None if there is nothing to cut off.

    Raises:
        RunError: if it has fewer lines.
    """
    lines = lines_of(path)
    if not 0 <= until <= len(lines):
        msg = f"--until {until}: {path} has {plural(len(lines), 'line')}; give a number from 0 to {len(lines)}"
        raise RunError(msg)
    if until == len(lines):
        return None
    copies = (path.with_name(f"{path.name}.{name}-{number}") for number in range(1, 10_000))
    copy = next(copy for copy in copies if not copy.exists())
    for target, kept in ((copy, lines), (path, lines[:until])):
        sibling = target.with_name(f".{target.name}.tmp")
        with sibling.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        sibling.replace(target)
    return copy


class Journal:
    """A journal open for appending.

    Attributes:
        contents: what it holds, kept current.
        repaired: number of bytes of a torn last line that were cut off when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates a journal and cuts a torn last line off.

        Raises:
            RunError: as `read_journal`.
        """
        self._path = path
        self.contents = read_journal(path)
        self._start = Chain.of(path).last
        self.repaired = path.stat().st_size - self.contents.sound if path.exists() else 0
        self._file = path.open("ab", buffering=0)
        if self.repaired:
            self._file.truncate(self.contents.sound)

    @property
    def trials(self) -> dict[int, Trial]:
        """All finished trials by number."""
        return self.contents.trials

    def mark(self) -> list[int]:
        """Returns what tells this journal, as far as it goes now, from any other."""
        return [self.contents.sound, self.contents.check]

    def passes(self, mark: list[int]) -> bool:
        """Returns whether a mark is of this journal, now or earlier."""
        length, check = mark
        with self._path.open("rb") as file:
            return (
                0 <= length <= self.contents.sound
                and zlib.crc32(file.read(length), self._start) == check
            )

    def append(self, trial: Trial) -> None:
        """Writes a finished trial to disk before it returns.

        Raises:
            FolderGoneError: if the file, or a folder that it is in, was renamed or deleted.
            RunError: if somebody else has written to the file.
            OSError: if it cannot be written; then it is as before.
        """
        self._write({**trial.to_plain(), "time": time.time()})

    def note(self, kind: str, number: int, **values: object) -> None:
        """Writes another event to disk before it returns; see the module for kinds and values. Raises as `append`."""
        self._write({"event": kind, "number": number, **values})

    def _write(self, event: dict[str, Any]) -> None:
        line = encode_line(event, self.contents.chain.last)
        if not same_file(self._path, self._file.fileno()):
            raise gone(self._path, self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        if size != self.contents.sound:
            msg = (
                f"{self._path} has {size} bytes, but this process left it with {self.contents.sound}: somebody else "
                f"writes to it; stop one of the two, then continue the run"
            )
            raise RunError(msg)
        try:
            if self._file.write(line) != len(line):
                msg = "no space left on device"
                raise OSError(28, msg, str(self._path))
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(size)  # part of the line may be there
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self.contents.line(line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
