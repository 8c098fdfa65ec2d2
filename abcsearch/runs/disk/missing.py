"""What to say where a run folder has no run.json that can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.errors import quoted

if TYPE_CHECKING:
    from pathlib import Path

# What comes of a base network's file that has been deleted.
AGAIN = "it is then loaded from the checkpoint, or trained again with the same result, by:"


_NAMED = 5  # folders of runs


def again(path: Path) -> str:
    """Returns how run.json of a run is made again."""
    return f"have it made again from the run's config by: abcsearch search CONFIG --run-dir {quoted(path)}"


def no_run(path: Path) -> str:
    """Returns what something is that holds no run, and which command takes it."""
    inside = (
        "" if not (path.parent / "run.json").is_file() else f"; the run folder is {path.parent}"
    )
    if path.suffix == ".toml" and path.is_file():
        return f"is a config, not a run folder; start or continue its run with: abcsearch search {quoted(path)}"
    if path.suffix in (".onnx", ".pt2") or (path / "plan.json").is_file():
        return f"is an export, not a run folder{inside}; measure it with: abcsearch evaluate {quoted(path)}"
    if path.is_file():
        return f"is a file, not a run folder{inside}; a run is started by: abcsearch search CONFIG"
    if not path.is_dir():
        return f"does not exist; start a run with: abcsearch search CONFIG --run-dir {quoted(path)}"
    if (path / "front.json").is_file():
        return (
            f"is the folder of several budgets, each a run in {path / 'budgets'}: name one of these"
        )
    new = f"start a run with: abcsearch search CONFIG --run-dir {quoted(path)}"
    if (path / "journal.jsonl").exists():
        new = f"it was a run: restore run.json from a copy, or {again(path)}"
    elif not inside and (runs := _runs_in(path)):
        more = f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
        return f"is not a run folder, but holds some: {', '.join(map(quoted, runs[:_NAMED]))}{more}; name these"
    return f"is not a run folder (it has no run.json){inside}; {new}"


def _runs_in(path: Path) -> list[Path]:
    """Returns the run folders in a folder, as `--seeds` and budgets make them; none where it may not be read."""
    try:
        both = [*path.glob("*/run.json"), *path.glob("budgets/*/run.json")]
        return sorted(file.parent for file in both)
    except OSError:
        return []
