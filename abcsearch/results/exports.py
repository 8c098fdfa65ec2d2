"""Networks of a run as files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import RunError
from abcsearch.example import sizes_of
from abcsearch.exporting import Exported, export
from abcsearch.results.finetuned_files import problems, refusal
from abcsearch.runs.config_run import seeded_data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.data.splits import Data
    from abcsearch.results.open_run import FinishedRun, Structure


def export_run(
    run: FinishedRun,
    path: str | Path | None = None,
    *,
    format: str | None = None,  # noqa: A002 - as of `export`
    network: str | None = None,
) -> tuple[Exported, bool]:
    """Exports the winner or what it is compared with, fine-tuned if it has been.

    Args:
        run: the run.
        path: folder or file; by default `export_folder`, in which every format has files of its own.
        format: see `export`.
        network: name of a structure of the run, e.g. full or uniform; by default the winner.

    Returns:
        What was written, and whether the network was fine-tuned.

    Raises:
        ConfigError: if the run has no structure of that name.
        RunError: if that is a link in the run folder.
        RunError: if it has been fine-tuned and what there is of that is damaged: it is not passed over.
        ExportError: see `export`.

    Warns:
        UserWarning: if the weights that are not kept are damaged.
    """
    if path is None:
        run.folder.inside(str(export_folder(Path(), network)))
    structure = run.winner if network is None else run.named(network)
    tuned = run.tuned(structure)
    if tuned.wrong:
        raise RunError(refusal(run.folder, structure.name, tuned))
    for line in problems(run.folder, structure.name, tuned):
        warnings.warn(line, UserWarning, stacklevel=2)
    scores = tuned.scores
    model = run.network(structure, tuned=scores is not None)
    if run.tuned(structure) != tuned:
        msg = f"{structure.name} has been fine-tuned anew while it was exported; run it again"
        raise RunError(msg)
    made = export(
        model,
        export_folder(run.folder.path, network) if path is None else path,
        format=format,
        example_input=run.result.task.data.example,
        constructor=run.config.model.name,
        options=run.config.model.options,
        info=_info(run, structure, scores),
    )
    return made, scores is not None


def export_folder(run_dir: Path, network: str | None = None) -> Path:
    """Returns where a run keeps its exports: of the winner, or of another network by name."""
    return run_dir / "export" / (network or "")


def _info(run: FinishedRun, structure: Structure, scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what an export says of its network: what it expects, what it is, where it comes from.

    Costs are those of one image; mean and std are of pixels in [0, 1], per channel, null where that is not known.
    """
    config, task, data = run.config, run.result.task, run.result.task.data
    part = seeded_data(config.data, config.seed)
    scale = getattr(data.train, "scale", None)
    return {
        "model": config.model.name,
        "data": {"name": part.name, **part.options},
        "objective": data.objective,
        "classes": _classes(data),
        "input": {
            "shape": sizes_of(data.example),
            "mean": list(scale.mean) if scale and scale.mean else None,
            "std": list(scale.std) if scale and scale.std else None,
        },
        "candidate": list(structure.candidate),
        "widths": {name: list(pair) for name, pair in task.space.widths(structure.candidate).items()},
        **({"criteria": chosen} if (chosen := task.space.criteria(structure.candidate)) else {}),
        "macs": int(task.graph.costs.macs([structure.candidate])[0]),
        "params": int(task.graph.costs.params([structure.candidate])[0]),
        "fine_tuned": scores is not None,
        "metric": run.metric,
        "test": None if scores is None else scores["after"],
    }


def _classes(data: Data) -> int | None:
    """Returns the number of classes; None where labels are values."""
    whole = all(part.labels.dtype == torch.int64 for part in (data.train, data.validation, data.test))
    return data.classes if whole else None
