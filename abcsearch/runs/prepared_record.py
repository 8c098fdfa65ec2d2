"""What a run folder says of its preparation in prepared.json, beside the weights: read and judged without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError
from abcsearch.runs.going_on import going_on

if TYPE_CHECKING:
    from abcsearch.runs.disk.folder import RunFolder

RECORD, WEIGHTS = "prepared.json", "prepared.safetensors"
_KINDS = {"of": str, "weights": str, "starts": list, "facts": dict}


def read_record(folder: RunFolder) -> tuple[dict[str, Any], str]:
    """Returns what prepared.json holds, and what is wrong with it, or "": then it holds nothing that may be used."""
    try:
        record = folder.read_json(RECORD)
    except (RunError, OSError) as error:
        return {}, f"is damaged: {error.__cause__ or error}"
    if record is None:
        return {}, "is missing"
    if not isinstance(record, dict):
        return {}, f"is damaged: it holds {record!r:.40}"
    wrong = [name for name, kind in _KINDS.items() if not isinstance(record.get(name), kind)]
    return record, f"is damaged: {', '.join(wrong)} missing or wrong" if wrong else ""


def refusal(folder: RunFolder, name: str, what: str) -> str:
    """Returns what is wrong with one of the two files, and what to do.

    Args:
        folder: of the run.
        name: of the file.
        what: is wrong with it, as "is missing".
    """
    return (
        f"{folder.path / name} {what}; restore {RECORD} and {WEIGHTS} from a copy, or delete both: all is then "
        f"prepared again with the same result, by: {going_on(folder)}"
    )
