"""How a run goes on that was stopped: a command, or a call with the objects that it was started with."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError
from abcsearch.registry import OBJECT
from abcsearch.runs.disk.folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def going_on(folder: RunFolder, **options: str | bool) -> str:
    """Returns what continues a run: the command, or, of one from Python, the call, which needs its objects again.

    Args:
        folder: of the run, or of a baseline or map of it.
        **options: of `resume`, as it calls them; True is a flag.
    """
    run = folder.run
    try:
        settings = RunFolder(run).header()["settings"]
    except (RunError, OSError):  # who goes on says what is wrong with it
        settings = {"model": None}
    if "model" in settings:
        words = [str(run)]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return f"abcsearch resume {shlex.join(words)}"
    given = [f"{name}=..." for name in ("model", "data", *_objects(settings))]
    given += [f"{name}={value}" for name, value in options.items()]
    return f"abcsearch.resume({str(run)!r}, {', '.join(given)}) in Python, with the same objects"


def _objects(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields which arguments the settings of a run do not name, as they were objects."""
    for argument in ("searcher", "evaluator", "prepare"):
        setting = settings.get(argument)
        name = setting.get("name") if isinstance(setting, dict) else None
        if isinstance(name, str) and name.endswith(OBJECT):
            yield argument
    criterion = settings.get("criterion")
    names = criterion if isinstance(criterion, list) else [criterion]
    if any(isinstance(name, str) and name.endswith(OBJECT) for name in names):
        yield "criterion"
