"""Where a run keeps early weights of its base network, for late rewinding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def early_path(folder: Path, epoch: int) -> Path | None:
    """Returns where a run keeps the weights of its base network after an epoch; None of epoch 0, before any."""
    return folder / f"early-{epoch}.safetensors" if epoch else None
