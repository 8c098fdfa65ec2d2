"""What `inspect` and `evaluate` are asked about: a config, a run folder, or a name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels.widths import LEVELS
from abcsearch.config import read_run, section, toml_of
from abcsearch.data.registry import load_data
from abcsearch.errors import ConfigError, RunError, quoted
from abcsearch.models.registry import IMAGENET_SHAPE, INPUT_SHAPES
from abcsearch.runs.config_run import seeded_data
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.front_folder import FRONT
from abcsearch.runs.front_settings import Front
from abcsearch.runs.header import trusted_header
from abcsearch.tables import set_override

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.runs.settings import Part, SpaceOptions


def read_inspected(
    target: str, shape: str | None, overrides: Sequence[str]
) -> tuple[nn.Module, torch.Tensor, SpaceOptions, tuple[str, ...]]:
    """Returns the network that `inspect` is asked about, one example input, and space and criteria of the search.

    Args:
        target: the path of a config file; otherwise a model's name or package.module:callable.
        shape: "3x224x224", or None for the config's data, or for what suits the model.
        overrides: of a config, as in `read_config`; of a model, its options, and space.key=value.

    Raises:
        ConfigError: if the shape or the overrides cannot be read.
        ModelError, DataError: if the network cannot be built, or the data not read.
    """
    if Path(target).is_dir() and any(
        (Path(target) / name).is_file() for name in ("run.json", FRONT)
    ):
        msg = f"{target} is a run folder; inspect takes a config, or a network by name. What the run has to say of its "
        msg += f"network: abcsearch report {quoted(target)}; how far it is: abcsearch status {quoted(target)}"
        raise ConfigError(msg)
    if target.endswith(".toml") or Path(target).is_file():
        run = read_run(target, overrides)
        config = run.settings if isinstance(run, Front) else run
        example = (
            load_data(config.data.name, **config.data.options).example
            if shape is None
            else _example(shape)
        )
        return config.model.build(config.seed).eval(), example, config.space, config.criteria
    plain: dict[str, Any] = {"model": {"name": target}, "space": {"levels": list(LEVELS)}}
    for override in overrides:
        prefixed = override.startswith(("space.", "model."))
        set_override(plain, override if prefixed else f"model.{override}")
    settings, space = section("model", plain["model"]), section("space", plain["space"])
    example = _example(
        "x".join(map(str, INPUT_SHAPES.get(target, IMAGENET_SHAPE))) if shape is None else shape
    )
    return settings.build(0).eval(), example, space, ()


def _example(shape: str) -> torch.Tensor:
    """Returns a batch of one input of zeros for "3x224x224"."""
    sizes = shape.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise ConfigError(f"--input is the shape of one input, such as 3x224x224, found {shape!r}")
    return torch.zeros(1, *(int(size) for size in sizes))


def read_data(target: str | None, overrides: Sequence[str], *, trust: bool = False) -> Part | None:
    """Returns the data set that `evaluate` is asked for.

    Args:
        target: a config file, a run folder, or the name of a data set; None: that of the export.
        overrides: "path=..." or "data.path=...", options of the data set.
        trust: whether a run folder from elsewhere is taken at its word.

    Raises:
        ConfigError, DataError, RunError: if it cannot be read, options are wrong, or it is from elsewhere (TrustError).
    """
    if target is None and overrides:
        raise ConfigError("--set changes options of the data set that --data names: give both")
    if target is None:
        return None
    plain: dict[str, Any] = {"data": {"name": target}}
    if Path(target).is_dir():
        header = trusted_header(RunFolder(target), trust=trust)["settings"]
        if "data" not in header:
            msg = f"{target} was started from Python: its data have no name; score the network there (load, score)"
            raise RunError(msg)
        plain = {
            "data": {"name": header["data"]["name"], **header["data"]["options"]},
            "seed": header["seed"],
        }
    elif target.endswith(".toml") or Path(target).is_file():
        plain = toml_of(target)
    for override in overrides:
        set_override(plain, override if override.startswith("data.") else f"data.{override}")
    if "data" not in plain:
        raise ConfigError(f"config {target} has no table [data]")
    return seeded_data(section("data", plain["data"]), plain.get("seed", 0))
