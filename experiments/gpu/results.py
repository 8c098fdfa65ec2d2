"""What is known, in a file that is written after every row; and the page that is made of it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ConfigError, differences
from abcsearch.files import replace_file
from experiments.tables import processors, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.gpu.steps import Row, Setting

PACKAGES = ("abcsearch", "torch", "torchvision", "ray", "numpy")
# What tells a row of a step from others of it
KEYS = {
    "tests": (),
    "workers": ("precision", "workers"),
    "abcpruner": ("phase",),
    "searchers": ("name",),
}


def machine(device: str) -> str:
    """Returns what this machine computes with."""
    gpu = ""
    if device != "cpu" and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        gpu = f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB), CUDA {torch.version.cuda}, "
    return f"{gpu}{processors()}, Python {platform.python_version()}"


def common(setting: Setting) -> dict[str, Any]:
    """Returns what all rows of a page share."""
    settings = {
        "device": setting.device,
        "network": setting.network,
        "evaluations": setting.evaluations,
        "workers": list(setting.workers),
        "set": list(setting.given),
    }
    return {
        "settings": settings,
        "machine": machine(setting.device),
        "versions": versions(*PACKAGES),
    }


class Results:
    """Rows by step."""

    def __init__(self, file: Path) -> None:
        """Reads the file, if it is there.

        Raises:
            ConfigError: if it holds something else.
        """
        self.file = file
        self.common: dict[str, Any] = {}
        self.steps: dict[str, list[Row]] = {}
        if not file.exists():
            return
        try:
            held = json.loads(file.read_text())
            self.common, self.steps = dict(held["common"]), dict(held["steps"])
            for step, rows in self.steps.items():
                wanted = {*KEYS[step], "state"}
                if not all(row.keys() >= wanted for row in rows):
                    msg = f"a row of {step} is not complete"
                    raise ValueError(msg)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            msg = (
                f"{file} is damaged ({error!r}); restore it, or begin other results with --results"
            )
            raise ConfigError(msg) from error

    def begin(self, shared: dict[str, Any]) -> None:
        """Takes up what rows that are to come share, and writes the file.

        Raises:
            ConfigError: if rows are there that were measured elsewhere or otherwise, with what differs; if the file
                cannot be written.
        """
        if self.steps and (changed := differences(self.common, shared, "there")):
            msg = f"{self.file} was measured otherwise: {'; '.join(changed)}. Begin other results with --results and --runs"
            raise ConfigError(msg)
        self.common = shared
        self._write()

    def complete(self, step: str) -> bool:
        """Returns whether nothing of a step is left to do."""
        rows = self.steps.get(step, [])
        return bool(rows) and all(row["state"] == "done" for row in rows)

    def known(self, step: str) -> Sequence[Row]:
        """Returns the rows of a step that need not be measured again."""
        return [row for row in self.steps.get(step, []) if row["state"] == "done"]

    def add(self, step: str, row: Row) -> None:
        """Adds a row in the place of one of the same kind, and writes the file.

        What was stopped and goes on has taken the seconds of both.
        """
        rows = self.steps.get(step, [])
        same = [old for old in rows if all(old.get(key) == row.get(key) for key in KEYS[step])]
        before = sum(old["seconds"] for old in same if old["state"] == "stopped")
        if before and "seconds" in row:
            row = {**row, "seconds": row["seconds"] + before}
        self.steps[step] = [*(old for old in rows if old not in same), row]
        self._write()

    def _write(self) -> None:
        text = json.dumps({"common": self.common, "steps": self.steps}, indent=1)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.file, lambda path: path.write_text(f"{text}\n"))
        except OSError as error:
            msg = f"{self.file} cannot be written: {error}"
            raise ConfigError(msg) from error
