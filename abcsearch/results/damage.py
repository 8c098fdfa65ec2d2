"""What is wrong with the weights in a run folder, seen from outside: cheap enough for `status`, and without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abcsearch.errors import quoted
from abcsearch.files import CHECKSUM
from abcsearch.results.finetuned_files import problems
from abcsearch.runs.disk.missing import AGAIN
from abcsearch.runs.prepared_record import RECORD, WEIGHTS, read_record, refusal
from abcsearch.stored import content_hash, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from abcsearch.results.finetuned_files import Tuned
    from abcsearch.runs.disk.folder import RunFolder

_LARGEST = 2**28  # bytes: of larger files the header alone is looked at


def damaged(
    folder: RunFolder, header: Mapping[str, Any], tunings: Mapping[str, Tuned]
) -> tuple[str, ...]:
    """Returns which files of weights or scores are damaged or missing, a line each, with what to do.

    Args:
        folder: of the run, to which nobody writes.
        header: its run.json.
        tunings: what there is of the fine-tunings, by structure.
    """
    base = _wrong_base(folder, header)
    again = f"restore it from a copy, or delete it: {AGAIN} abcsearch resume {quoted(folder.path)}"
    lines = [f"{folder.base} {base}; {again}"] if base else []
    lines += [refusal(folder, name, what) for name, what in _wrong_prepared(folder, header)]
    return (
        *lines,
        *(line for name, tuned in tunings.items() for line in problems(folder, name, tuned)),
    )


def _wrong_prepared(folder: RunFolder, header: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields which file of a preparation that is done is damaged or missing, and what is wrong with it."""
    done = "prepared" in header["identity"]
    if not done and not (folder.path / RECORD).exists():
        return
    record, wrong = read_record(folder)
    if wrong:
        yield RECORD, wrong
    elif reason := _wrong_weights(folder.path / WEIGHTS, record["weights"]):
        yield WEIGHTS, reason


def _wrong_base(folder: RunFolder, header: Mapping[str, Any]) -> str:
    """Returns what is wrong with the weights of the trained network, or ""."""
    if "model" not in header["settings"] or not folder.journal.exists():
        return ""  # it has none, or is not trained yet
    begun = header["identity"].get("model")
    return _wrong_weights(folder.base, begun)


def _wrong_weights(path: Path, begun: str | None = None) -> str:
    """Returns what is wrong with a file of weights, or "".

    Args:
        path: of the file.
        begun: hash of the weights that the run began with, if it is known.
    """
    if not path.is_file():
        return "is missing"
    try:
        stored, large = read_header(path), path.stat().st_size > _LARGEST
        content = stored.metadata.get(CHECKSUM) if large else content_hash(path)
    except (ValueError, OSError) as error:
        return f"is damaged: {error}"
    if stored.metadata.get(CHECKSUM, content) != content:
        return "is damaged: its checksum is not that of its content"
    return (
        ""
        if content in (None, begun or content)
        else "holds other weights than those that the run began with"
    )
