"""The folder of a front: several budgets in one run, each of them a run folder of its own.

front.json         settings of a run with the first budget alone, the budgets, their names; written first
budgets/NAME/      the run folders, in the order in which they are searched: 1-macs-0.7, 2-macs-0.5, ...
report.html, report/, report.md, report.json, export/
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError, TrustError, quoted
from abcsearch.importing import leave_working_folder
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.soundness import unsound
from abcsearch.runs.header import reached_by
from abcsearch.signing import is_own, written_here

if TYPE_CHECKING:
    from collections.abc import Mapping

FRONT, BUDGETS = "front.json", "budgets"
KIND = "front"
FORMAT = 1
_KINDS: dict[str, type] = {
    "format": int,
    "settings": dict,
    "budgets": list,
    "names": list,
    "environment": dict,
}


def is_front(path: str | Path) -> bool:
    """Returns whether a folder is that of a front."""
    return (Path(path) / FRONT).is_file() and not (Path(path) / "run.json").exists()


@dataclass(frozen=True, kw_only=True)
class FrontFolder:
    """What front.json holds.

    Attributes:
        folder: of the front.
        record: all of it, plain.
    """

    folder: RunFolder
    record: Mapping[str, Any]

    @classmethod
    def of(cls, path: str | Path) -> FrontFolder:
        """Returns what the folder of a front holds.

        Raises:
            RunError: if there is none, or front.json is damaged.
        """
        folder = RunFolder(path)
        record = folder.read_json(FRONT)
        wrong = f"{folder.path / FRONT} is missing" if record is None else _wrong(record)
        if wrong or record is None:
            msg = f"{folder.path / FRONT} is damaged: {wrong}; restore it from a copy, or give the command that began "
            msg += "the front again, with the same config"
            raise RunError(msg)
        return cls(folder=folder, record=record)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the budgets, in order."""
        return tuple(self.record["names"])

    @property
    def runs(self) -> tuple[RunFolder, ...]:
        """The run folders of all budgets, in order, whether they are there yet or not."""
        return tuple(run_folder(self.folder, name) for name in self.names)

    @property
    def begun(self) -> tuple[RunFolder, ...]:
        """Those of the budgets whose run has begun."""
        return tuple(run for run in self.runs if (run.path / "run.json").exists())

    def trusted(self, *, trust: bool = False) -> Mapping[str, Any]:
        """Returns the record for one who means to do what it says, as `trusted_header`.

        Raises:
            TrustError: if the user has not written it and its settings name code, files or addresses.
        """
        ours = is_own(KIND, self.record)
        if not trust and not (ours and written_here(self.record)):
            leave_working_folder()
        reached = [] if trust or ours else [*reached_by(self.record["settings"])]
        if reached:
            msg = (
                f"{self.folder.path} comes from elsewhere: it would have {', '.join(dict.fromkeys(reached))}. If you "
                f"trust it, say so: --trust, or trust=True; without code it is shown by: abcsearch status "
                f"{quoted(self.folder.path)}"
            )
            raise TrustError(msg)
        if not self.folder.sealed(FRONT):
            warnings.warn(
                f"{self.folder.path / FRONT} has no checksum, damage may go unseen", stacklevel=2
            )
        return self.record


def run_folder(folder: RunFolder, name: str) -> RunFolder:
    """Returns the run folder of a budget of a front."""
    return RunFolder(folder.path / BUDGETS / name)


def runs_of(path: str | Path) -> tuple[RunFolder, ...]:
    """Returns the run folders that a path stands for: those of a front that have begun, or the one that it is."""
    return FrontFolder.of(path).begun if is_front(path) else (RunFolder(path),)


def _wrong(record: Any) -> str:  # noqa: ANN401 - any JSON value
    """Returns what is wrong with the content of front.json, or ""."""
    if not isinstance(record, dict):
        return f"it holds {record!r:.40}"
    wrong = [key for key, kind in _KINDS.items() if not isinstance(record.get(key), kind)]
    if wrong:
        return f"{', '.join(wrong)} missing or wrong"
    if record["format"] > FORMAT:
        return (
            f"it has format {record['format']}, this version reads up to {FORMAT}: update abcsearch"
        )
    names = record["names"]
    sound = all(
        isinstance(name, str) and name[:1].isdigit() and not set(name) & set("/\\\0")
        for name in names
    )
    if not (names and sound and len(set(names)) == len(names) == len(record["budgets"])):
        return "names are one for each budget"
    return unsound(record)
