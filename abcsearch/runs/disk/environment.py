"""What a run was made with: versions, machine, and the state of the user's repository."""

from __future__ import annotations

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
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in packages},
        "git": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain")),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _version(package: str) -> str | None:
    """Returns the installed version of a package; None where it runs from a source folder."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Returns what git prints, or None where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions_text(header: Mapping[str, Any]) -> str:
    """Returns the versions that a run was made with, in words; none where its header holds something else."""
    known = header["environment"].get("versions")
    pairs: dict[str, Any] = known if isinstance(known, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in pairs.items())
