"""Failed trials, evaluated again: a run goes back to before the first of them, and loses no evaluation by it.

A searcher that was told of a failure may have proposed something else ever since, so all trials behind the first
failure are up for another turn. What they found is not lost: the journal as it was stays beside the new one, and a
trial of the same number and structure, so of the same seed, is taken from there instead of being evaluated again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.baselines.registry import BASELINES
from abcsearch.errors import AbcSearchError
from abcsearch.runs.disk.journal import lines_of, read_journal
from abcsearch.runs.disk.lines import Chain, OutOfChainError, decode_line, many_objects, trial_of

if TYPE_CHECKING:
    from pathlib import Path

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.disk.journal import Contents
    from abcsearch.space import Candidate
    from abcsearch.trial import Evaluation

ATTEMPTS = 2  # a candidate that loses so many workers has failed
_COPY = "before-retry"


def set_back(folder: RunFolder) -> int:
    """Takes a run, its map and its searched baselines back to before their first failures; returns how many failed.

    The journals as they were are put beside the new ones.

    Args:
        folder: of the run, locked.

    Raises:
        RunError: if a journal is damaged.
    """
    search, failed = _first_failure(folder.journal)
    probe, more = _first_failure(folder.map.journal)
    failed += more
    if probe is not None:
        folder.map.cut(probe, _COPY)
        # What it was told may be something else now
        search = 0 if folder.journal.exists() else None
    # Baselines first: a run whose search is set back alone would end with a baseline that does not belong to it.
    for name in [name for name in BASELINES if folder.baseline(name).journal.exists()]:
        baseline = folder.baseline(name)
        other, more = _first_failure(baseline.journal)
        if search is not None:
            other = 0  # it took over what the search had found, which may find something else now
        if other is not None:
            baseline.cut(other, _COPY)
        failed += more
    if search is not None:
        folder.cut(search, _COPY)
    return failed


def _first_failure(path: Path) -> tuple[int | None, int]:
    """Returns how many lines of a journal stand before the first one of a failed trial, and how many trials failed.

    Without a failure these are None and 0.

    Raises:
        RunError: if the journal is damaged.
    """
    contents = read_journal(path)
    failed = _failed(contents)
    if not failed:
        return None, 0
    lines = lines_of(path)
    first = next(index for index, line in enumerate(lines) if _of_failure(line, failed))
    return first, len(failed)


def _failed(contents: Contents) -> set[int]:
    """Returns the numbers of failed trials, also of those that will be when the run goes on."""
    failed = {
        number for number, trial in contents.trials.items() if trial.evaluation.failure is not None
    }
    for others in (contents.first, contents.final):
        failed |= {
            number for number, evaluation in others.items() if evaluation.failure is not None
        }
    lost = {number for number, reasons in contents.lost.items() if len(reasons) >= ATTEMPTS}
    return failed | (lost - contents.trials.keys())


def _of_failure(line: bytes, failed: set[int]) -> bool:
    """Returns whether a line says that one of these trials failed, or lost a worker."""
    event = decode_line(line) or {}
    if event.get("number") not in failed or event.get("event") == "asked":
        return False
    return event.get("event") == "lost" or event.get("evaluation", {}).get("failure") is not None


def _of_run(lines: list[bytes], journal: Path) -> list[bytes]:
    """Returns the lines of a copy of a run's journal; [] if it is that of another run."""
    try:
        for line in lines[:1]:
            Chain.of(journal).text(line)
    except OutOfChainError:
        return []
    return lines


def earlier(folder: RunFolder) -> dict[tuple[int, Candidate], Evaluation]:
    """Returns evaluations of trials that a run was set back over, by number and structure: those that were made.

    What was taken over from another trial is left out: whether it would be again shows when the trial comes up. Lines
    that are damaged are left out, too, and copies of the journal of another run: such trials are evaluated again.
    """
    known: dict[tuple[int, Candidate], Evaluation] = {}
    with many_objects():
        for path in sorted(folder.path.glob(f"{folder.journal.name}.{_COPY}-*")):
            for line in _of_run(lines_of(path), folder.journal):
                event = decode_line(line) or {"event": "damaged"}
                if "event" in event:
                    continue
                try:
                    trial = trial_of(event)
                except (ValueError, AbcSearchError):
                    continue
                if trial.evaluation.failure is None and trial.evaluation.seconds > 0:
                    known[trial.number, trial.candidate] = trial.evaluation
    return known
