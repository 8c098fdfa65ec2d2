"""The winner of a run as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from abcsearch.exporting import Exported, export
from abcsearch.runs.configured import seeded_data

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from abcsearch.data.splits import Data
    from abcsearch.runs.finished import FinishedRun


def export_run(
    run: FinishedRun,
    path: str | Path | None = None,
    *,
    format: str | None = None,  # noqa: A002 - as of `export`
) -> tuple[Exported, bool]:
    """Exports the winner, fine-tuned if it has been.

    Args:
        run: the run.
        path: folder or file; by default the run's folder export/, in which every format has files of its own.
        format: see `export`.

    Returns:
        What was written, and whether the winner was fine-tuned.

    Raises:
        ExportError: see `export`.
    """
    scores = run.scores(run.winner)
    made = export(
        run.network(run.winner, tuned=scores is not None),
        run.folder.path / "export" if path is None else path,
        format=format,
        example_input=run.result.task.data.example,
        constructor=run.config.model.name,
        options=run.config.model.options,
        info=_info(run, scores),
    )
    return made, scores is not None


def _info(run: FinishedRun, scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what an export says of its network: what it expects, what it is, where it comes from.

    Costs are those of one image; mean and std are of pixels in [0, 1], per channel, null where that is not known.
    """
    result, config, data = run.result, run.config, run.result.task.data
    part = seeded_data(config.data, config.seed)
    scale = getattr(data.train, "scale", None)
    return {
        "model": config.model.name,
        "data": {"name": part.name, **part.options},
        "objective": data.objective,
        "classes": _classes(data),
        "input": {
            "shape": list(data.example.shape[1:]),
            "mean": list(scale.mean) if scale and scale.mean else None,
            "std": list(scale.std) if scale and scale.std else None,
        },
        "candidate": list(run.winner.candidate),
        "widths": {name: list(pair) for name, pair in result.widths.items()},
        "macs": result.best.evaluation.macs,
        "params": result.best.evaluation.params,
        "fine_tuned": scores is not None,
        "metric": run.metric,
        "test": None if scores is None else scores["after"],
    }


def _classes(data: Data) -> int | None:
    """Returns the number of classes; None where labels are values."""
    whole = all(part.labels.dtype == torch.int64 for part in (data.train, data.validation, data.test))
    return data.classes if whole else None
