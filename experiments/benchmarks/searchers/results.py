"""Finished runs on disk: a JSON line each, a file per row of the table, so that a benchmark that was cut goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from abcsearch.errors import DataError
from experiments.benchmarks.searchers.play import Job, Played


class Results:
    """The runs in a folder. A run counts only for the code and the problem that it was made with.

    Lines are appended and flushed; a torn last line (the process was killed) is dropped when the file is read.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a folder; it is made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._known: dict[str, dict[str, Played]] = {}

    def get(self, job: Job, made_with: str) -> Played | None:
        """Returns a finished run, or None. `made_with` identifies code and problem."""
        return self._row(job.row).get(_key(job, made_with))

    def add(self, job: Job, made_with: str, played: Played) -> None:
        """Writes a finished run down."""
        key = _key(job, made_with)
        self._row(job.row)[key] = played
        with self._path(job.row).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **asdict(played)}) + "\n")

    def forget(self, rows: Iterable[str]) -> None:
        """Deletes all runs of some rows."""
        for row in rows:
            self._path(row).unlink(missing_ok=True)
            self._known.pop(row, None)

    def _path(self, row: str) -> Path:
        return self._folder / (re.sub(r"[^\w.=-]+", "_", row) + ".jsonl")

    def _row(self, row: str) -> dict[str, Played]:
        """Returns the runs of a row by key, from the file the first time."""
        if row not in self._known:
            path = self._path(row)
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            self._known[row] = {}
            for number, line in enumerate(whole.splitlines(), start=1):
                try:
                    entry = json.loads(line)
                    steps = [(int(n), float(value)) for n, value in entry["steps"]]
                    played = Played(
                        steps=steps, evaluations=entry["evaluations"], seconds=entry["seconds"]
                    )
                    self._known[row][entry["key"]] = played
                except (KeyError, TypeError, ValueError) as error:
                    msg = f"{path}, line {number} is damaged: {error!r}; delete the line, and its run is made again"
                    raise DataError(msg) from error
        return self._known[row]


def _key(job: Job, made_with: str) -> str:
    """Returns what identifies a run."""
    return json.dumps([asdict(job), made_with], sort_keys=True)
