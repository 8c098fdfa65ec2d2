"""How far a training that was stopped had come: what its checkpoint's header says, read without torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from abcsearch.stored import read_header

if TYPE_CHECKING:
    from pathlib import Path

KEY = "training"  # of the metadata: identity and state as JSON


def begun(path: Path) -> tuple[dict[str, Any], list[float]] | None:
    """Returns what training a checkpoint is of, and the mean losses of its epochs; None where it cannot be read.

    Only the file's first bytes are read, so that damage behind them is not seen: who reads it whole says so.
    """
    try:
        plain = json.loads(read_header(path).metadata[KEY])
        return dict(plain["identity"]), list(plain["state"]["losses"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def losses_so_far(path: Path) -> list[float]:
    """Returns the mean losses of the epochs that a checkpoint holds; [] where there is none, or a damaged one."""
    told = begun(path)
    return [] if told is None else told[1]
