"""What comes next: the command that goes on with a run, by what its folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from abcsearch.errors import AbcSearchError, quoted
from abcsearch.results.finetuned_files import read_tuned
from abcsearch.results.front_status import FrontWatch
from abcsearch.results.links import FOLDER as CHAIN_FOLDER
from abcsearch.results.links import chain_for
from abcsearch.results.status import RunWatch
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.shapes import winner_name
from abcsearch.runs.front_folder import is_front

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.results.status import RunStatus
    from abcsearch.runs.result import SearchResult


def after_search(path: Path, results: Sequence[SearchResult]) -> str:
    """Returns the command that goes on where the searches of all budgets have ended.

    Args:
        path: the folder, of a run or of several budgets.
        results: of the searches. Their journals can be long, and are not read again.
    """
    tuned = all(
        read_tuned(
            RunFolder(one.run_dir),
            winner_name(one.settings.searcher.name),
            candidate=one.best.candidate,
        ).scores
        and not _chain_due(Path(one.run_dir), winner_name(one.settings.searcher.name))
        for one in results
    )
    return _next(path, tuned=tuned)


def following(status: RunStatus, path: Path) -> str:
    """Returns the command that goes on with a run of one budget; "" while it runs."""
    if status.running:
        return ""
    if not status.finished:
        return f"abcsearch resume {quoted(path)}"
    if status.interrupted is not None:
        return status.interrupted
    name = status.searches[0].name
    return _next(path, tuned=name in status.tuned and not _chain_due(path, name))


def _chain_due(path: Path, name: str) -> bool:
    """Returns whether the config has transforms that have not been applied to the fine-tuned winner of this name."""
    folder = RunFolder(path)
    transforms = folder.header()["settings"].get("transform", [])
    scores = read_tuned(folder, name).scores
    if not transforms or scores is None:
        return False
    try:
        wanted = [(transform["name"], transform["options"]) for transform in transforms]
    except (TypeError, KeyError):  # who opens the run says what is wrong with its settings
        return False
    return (
        chain_for(path / CHAIN_FOLDER, wanted, scores.get("weights", {}).get(f"{name}.safetensors"))
        is None
    )


def _next(path: Path, *, tuned: bool) -> str:
    """Returns the command that goes on once everything has been searched."""
    last = "export" if (path / "report.html").exists() else "report"
    return f"abcsearch {last if tuned else 'finetune'} {quoted(path)}"


def after_report(path: Path) -> str:
    """Returns the command that goes on with a run, or with several budgets, whose report has been written."""
    try:
        command = (
            FrontWatch(path).look().next
            if is_front(path)
            else following(RunWatch(path).look(), path)
        )
    except AbcSearchError:  # the report has been written; status says what is wrong with the folder
        return f"abcsearch status {quoted(path)}"
    words = command.split(" ")
    return " ".join(
        [*words[:1], *("export" if word == "report" else word for word in words[1:2]), *words[2:]]
    )
