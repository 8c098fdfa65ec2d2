"""Where worker processes import from: as the process does that sends them work.

Ray would put the working folder first, so that a file named torch.py in it would be everybody's torch.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_HOME = Path(__file__).resolve().parents[2]  # what abcsearch is imported from
_STANDARD = sysconfig.get_path("stdlib")


def first_paths() -> list[str]:
    """Returns what workers need before anything else: the folder of abcsearch, where it is not installed."""
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return [] if _HOME in installed else [str(_HOME)]


def own_paths() -> list[str]:
    """Returns where this process imports from, in order; folders as absolute paths."""
    return [str(Path(path).absolute()) if Path(path).exists() else path for path in sys.path]


def take_paths(theirs: Sequence[str]) -> None:
    """Has this process import from where another one does, in its order.

    With the same Python, what only this one has comes last. Another installation, on a node that has its own, keeps
    its order, and what only the other process has comes last.

    Args:
        theirs: `own_paths` of that process.
    """
    ours = [path for path in own_paths() if path not in first_paths()]
    if _STANDARD in theirs:
        sys.path[:] = [*theirs, *(path for path in ours if path not in theirs)]
    else:
        sys.path[:] = [*ours, *(path for path in [*theirs, *first_paths()] if path not in ours)]
