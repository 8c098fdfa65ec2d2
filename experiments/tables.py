"""What the tables of experiments share."""

from __future__ import annotations

import json
import os
import platform
import statistics
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Returns mean and standard deviation, over seeds."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def processors() -> str:
    """Returns what this machine computes with."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def machine_of(run: Path) -> tuple[str, str]:
    """Returns this machine, and the versions that a run folder was made with."""
    environment = json.loads((run / "run.json").read_text())["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"{processors()}, Python {environment['python']}", versions
