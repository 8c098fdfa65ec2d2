"""The rows that are known, in a file: of one network, one set of settings, and one set of versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from abcsearch.config import toml_of
from abcsearch.errors import ConfigError, differences
from abcsearch.files import replace_file
from abcsearch.tables import set_override
from experiments.tables import versions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from experiments.survey.measuring import Job, Row

PACKAGES = ("abcsearch", "torch", "torchvision", "numpy", "scikit-learn", "scipy", "optuna")
_PLACES = (("data", "path"), ("model", "checkpoint"))  # where this machine has them decides nothing
_KEY = ("method", "budget", "seed")
_WHOLE = {
    "candidate",
    "macs",
    "params",
    "before",
    "after",
    "full",
    "images",
    "trials",
    "epochs",
    "search",
    "training",
}


def decided(file: Path, given: Sequence[str]) -> dict[str, Any]:
    """Returns what all rows of a table have in common, as plain values: the config, and the caller's changes."""
    plain = toml_of(file)
    for change in given:
        set_override(plain, change)
    for table, key in _PLACES:
        plain.get(table, {}).pop(key, None)
    return {"settings": plain, "versions": versions(*PACKAGES)}


class Results:
    """The rows, and what they have in common."""

    def __init__(self, file: Path, held: AbstractSet[str] = _WHOLE) -> None:
        """Reads the file, if it is there.

        Args:
            file: of the rows.
            held: what a row has besides what it is of.

        Raises:
            ConfigError: if it holds something else.
        """
        self.file = file
        self.common: dict[str, Any] = {}
        self.rows: list[Row] = []
        if not file.exists():
            return
        try:
            read = json.loads(file.read_text())
            self.rows = read.pop("rows")
            self.common = {
                **read,
                "settings": dict(read["settings"]),
                "versions": str(read["versions"]),
            }
            wanted = [
                {*_KEY, "kind", "changes"} | (set[str]() if "skipped" in row else held)
                for row in self.rows
            ]
            if not all({*row} >= required for row, required in zip(self.rows, wanted, strict=True)):
                msg = "a row is not that of a method"
                raise ValueError(msg)
        except (OSError, ValueError, LookupError, TypeError) as error:
            msg = (
                f"{file} is damaged ({error!r}); restore it, or begin other results with --results"
            )
            raise ConfigError(msg) from error

    def begin(self, common: dict[str, Any], *, anew: bool = False) -> None:
        """Takes up what rows that are to come have in common, and writes the file.

        Args:
            common: as `decided` returns it.
            anew: whether rows of other settings or versions are dropped.

        Raises:
            ConfigError: if the rows that are there have other settings or versions, and are not dropped; with what
                differs. If the file cannot be written.
        """
        changed = differences(self.common, common, "there") if self.rows else []
        if changed and not anew:
            msg = f"{self.file} has rows of other settings or versions: {'; '.join(changed)}. Change that back, begin "
            raise ConfigError(
                f"{msg}other results (--results FOLDER --runs FOLDER), or drop these rows (--anew)"
            )
        self.rows = [] if anew else self.rows
        self.common = common
        self._write()

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Returns the jobs whose rows are not known; what could not be run is tried again.

        Raises:
            ConfigError: if a row is known, and its method was another one.
        """
        known = {tuple(row[key] for key in _KEY): row for row in self.rows if "skipped" not in row}
        for job in jobs:
            row = known.get(tuple(job.key.values()))
            if row is not None and row["changes"] != job.changes:
                was, now = (
                    " ".join(words) or "no changes" for words in (row["changes"], job.changes)
                )
                msg = f"{self.file} has {job.name}, run with {was}, now {now}: begin other results with --results and "
                raise ConfigError(f"{msg}--runs, or drop the rows (--anew)")
        return [job for job in jobs if tuple(job.key.values()) not in known]

    def add(self, row: Row) -> None:
        """Adds a row in the place of one of the same method, budget and seed, and writes the file."""
        same = [known for known in self.rows if all(known[key] == row[key] for key in _KEY)]
        self.rows = [*(known for known in self.rows if known not in same), row]
        self._write()

    def _write(self) -> None:
        """Writes the file, a line for each row.

        Raises:
            ConfigError: if it cannot be written.
        """
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        head = json.dumps(self.common, indent=1).removesuffix("\n}")
        text = f'{head},\n "rows": [\n{lines}\n]}}\n'
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.file, lambda path: path.write_text(text))
        except OSError as error:
            msg = f"{self.file} cannot be written: {error}"
            raise ConfigError(msg) from error
