"""The winner of a run as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.exporting import export

if TYPE_CHECKING:
    from pathlib import Path

    from abcsearch.runs.finished import FinishedRun


def export_run(run: FinishedRun, directory: str | Path | None = None) -> tuple[Path, bool]:
    """Exports the winner, fine-tuned if it has been; returns the folder, and whether it was fine-tuned."""
    tuned = run.scores(run.winner) is not None
    path = export(
        run.network(run.winner, tuned=tuned),
        directory or run.folder.path / "export",
        example_input=run.result.task.data.example,
        constructor=run.config.model.name,
        options=run.config.model.options,
        info={
            "candidate": list(run.winner.candidate),
            "widths": {name: list(pair) for name, pair in run.result.widths.items()},
            "macs": run.result.best.evaluation.macs,
            "params": run.result.best.evaluation.params,
            "fine_tuned": tuned,
        },
    )
    return path, tuned
