"""What the tables of experiments share."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from abcsearch import export, load
from abcsearch.channels.latency import torch_threads
from abcsearch.errors import ConfigError
from abcsearch.files import replace_file
from abcsearch.runs.base import train_base
from abcsearch.runs.disk.weights import checkpoint_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.runs.config_run import LoadedOnce
    from abcsearch.runs.settings import RunConfig


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Returns mean and standard deviation, over seeds."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def into_page(page: Path, name: str, text: str) -> None:
    """Writes a text into a Markdown file, between the lines `<!-- NAME -->` and `<!-- /NAME -->`, if it has them."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_text() if page.exists() else ""
    if first in old and last in old:
        before, after = old.partition(first)[0], old.partition(last)[2]
        replace_file(page, lambda path: path.write_text(f"{before}{first}\n{text}\n{last}{after}"))


def processors() -> str:
    """Returns what this machine computes with."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def versions(*packages: str) -> str:
    """Returns the versions of installed packages, in words."""
    return ", ".join(
        f"{package} {importlib.metadata.version(package).partition('+')[0]}" for package in packages
    )


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
    if missing := [
        name
        for name in ("onnx", "onnxruntime", "onnxscript")
        if importlib.util.find_spec(name) is None
    ]:
        msg = f"forward times need {', '.join(missing)}: pip install 'abcsearch[onnx]'"
        raise ConfigError(msg)


def in_onnxruntime(made: Sequence[nn.Module], example: torch.Tensor) -> list[nn.Module]:
    """Returns the networks as ONNX Runtime runs them, on one thread."""
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        return [
            load(export(network, Path(folder) / f"{number}.onnx", example_input=example))
            for number, network in enumerate(made)
        ]


def with_base(config: RunConfig, stem: Path, load: LoadedOnce) -> RunConfig:
    """Returns settings that start from a file of weights, which are trained once for all searches with one seed.

    Args:
        config: of a search.
        stem: where the file is, its name to be completed by what tells one base network from another.
        load: returns its data.
    """
    if config.pretrain is None:
        return config
    file = checkpoint_path(stem.absolute(), repr((config.pretrain, config.model, config.data)))
    file = file.with_suffix(".safetensors")
    # The others wait; its folder is made if missing
    with FileLock(file.with_name(f".{stem.name}.lock")):
        train_base(config, file, config.model.build(config.seed), load(config))
    return replace(config, pretrain=None, model=replace(config.model, checkpoint=str(file)))
