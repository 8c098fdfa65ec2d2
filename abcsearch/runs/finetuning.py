"""Fine-tuning of what a run found, and of what it is compared with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from abcsearch.runs.loop import Progress, logged, silent
from abcsearch.runs.weights import weights_writer
from abcsearch.training.loop import FineTuned, Recipe, check_images, finetune

if TYPE_CHECKING:
    from abcsearch.runs.finished import FinishedRun


def finetune_run(run: FinishedRun, recipe: Recipe | None = None, *, progress: Progress = silent) -> None:
    """Fine-tunes the winner and the baselines with one recipe; what is done already is left alone.

    Args:
        run: the run.
        recipe: other than the run's.
        progress: shown after every epoch.
    """
    recipe = recipe or run.config.finetune
    check_images(recipe, run.result.task.data.train)
    progress = logged(run.folder, progress)
    with run.folder.locked():
        for structure in run.structures:
            done = run.scores(structure)
            wanted = {"candidate": list(structure.candidate), "recipe": asdict(recipe)}
            if done is not None and {key: done[key] for key in wanted} == wanted:
                continue
            stage = f"fine-tuning {structure.name}"
            tuned: FineTuned = finetune(
                run.network(structure, tuned=False),
                run.result.task.data,
                recipe,
                seed=run.config.seed,
                on_epoch=lambda d, total, loss, stage=stage: progress(stage, d, total, f"loss {loss:.4f}"),
            )
            # Scores vouch for the weights beside them: the old ones go first.
            (run.folder.path / "finetuned" / f"{structure.name}.json").unlink(missing_ok=True)
            run.folder.write(f"finetuned/{structure.name}.safetensors", weights_writer(tuned.model))
            scores = {**wanted, "before": tuned.before, "after": tuned.after}
            run.folder.write_json(f"finetuned/{structure.name}.json", scores)
            run.folder.log(f"{stage}: test {run.metric} {run.change(scores)}")
