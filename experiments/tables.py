"""What the tables of experiments share."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from abcsearch import export, load
from abcsearch.channels.latency import torch_threads
from abcsearch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Returns mean and standard deviation, over seeds."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def processors() -> str:
    """Returns what this machine computes with."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def versions(*packages: str) -> str:
    """Returns the versions of installed packages, in words."""
    return ", ".join(f"{package} {importlib.metadata.version(package).partition('+')[0]}" for package in packages)


def machine_of(run: Path) -> tuple[str, str]:
    """Returns this machine, and the versions that a run folder was made with."""
    environment = json.loads((run / "run.json").read_text())["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"{processors()}, Python {environment['python']}", versions


def check_onnx() -> None:
    """Checks that `in_onnxruntime` will work, before hours are spent.

    Raises:
        ConfigError: if a package is missing.
    """
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]:
        msg = f"forward times need {', '.join(missing)}: pip install 'abcsearch[onnx]'"
        raise ConfigError(msg)


def in_onnxruntime(made: Sequence[nn.Module], example: torch.Tensor) -> list[nn.Module]:
    """Returns the networks as ONNX Runtime runs them, on one thread."""
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        return [
            load(export(network, Path(folder) / f"{number}.onnx", example_input=example))
            for number, network in enumerate(made)
        ]
