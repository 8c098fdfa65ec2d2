"""What a run was made with: versions, machine, and the state of the user's repository."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


_COMMIT = "# branch.oid "


def environment() -> dict[str, Any]:
    """Returns versions, machine and, if the working directory is in a git repository, its commit."""
    packages = (
        "abcsearch",
        "torch",
        "torchvision",
        "numpy",
        "scikit-learn",
        "scipy",
        "optuna",
        "cmaes",
    )
    commit, changed = _repository()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in packages},
        "git": commit,
        "git_changed": changed,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


_installed = functools.cache(metadata.version)  # which reads whole descriptions


def _version(package: str) -> str | None:
    """Returns the installed version of a package; None where it runs from a source folder."""
    try:
        return _installed(package)
    except metadata.PackageNotFoundError:
        return None


def _repository() -> tuple[str | None, bool]:
    """Returns commit and whether anything has changed since; None and False where there is no git or no repository."""
    command = ["git", "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None, False
    lines = done.stdout.splitlines()
    commits = [line.removeprefix(_COMMIT) for line in lines if line.startswith(_COMMIT)]
    commit = next((commit for commit in commits if commit != "(initial)"), None)
    return commit, not all(line.startswith("#") for line in lines)


def versions_text(header: Mapping[str, Any]) -> str:
    """Returns the versions that a run was made with, in words; none where its header holds something else."""
    known = header["environment"].get("versions")
    pairs: dict[str, Any] = known if isinstance(known, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in pairs.items())
