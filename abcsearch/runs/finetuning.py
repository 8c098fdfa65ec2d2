"""Fine-tuning of what a run found, and of what it is compared with."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abcsearch.errors import ConfigError
from abcsearch.runs.loop import Progress, logged, silent
from abcsearch.runs.recipes import changed
from abcsearch.runs.status import TUNING
from abcsearch.runs.tuned import FOLDER, command, unfinished
from abcsearch.runs.weights import checkpoint_path, tensors_writer, weights_writer
from abcsearch.training.checkpoints import begun, losses_so_far
from abcsearch.training.crew import Crew
from abcsearch.training.finetuning import FineTuned, finetune
from abcsearch.training.loop import check_training
from abcsearch.training.recipe import KEPT, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from abcsearch.runs.finished import FinishedRun, Structure
    from abcsearch.training.crew import Workers


def finetune_run(
    run: FinishedRun,
    recipe: Recipe | None = None,
    *,
    workers: Workers | None = None,
    progress: Progress = silent,
    tell: Callable[[str], object] = str,  # drops it
    only: Collection[str] = (),
) -> None:
    """Fine-tunes the winner, then what it is compared with, with one recipe; what is done already is left alone.

    A fine-tuning that was killed goes on after its last whole epoch, also if others, with another recipe, have been
    done since. The teacher, if the recipe distils, is the full network as it was searched in. The folder holds, for
    every structure, in finetuned/: NAME.safetensors (the weights that the recipe keeps), NAME.best.safetensors or
    NAME.last.safetensors (the others), and the scores in NAME.json.

    Args:
        run: the run.
        recipe: other than the run's.
        workers: several processes that train each network together; all must reach the run folder.
        progress: shown after every epoch.
        tell: takes a line, before anything is trained, for every fine-tuning by another recipe: what is replaced, and
            what was stopped and waits.
        only: names of the structures to fine-tune; none: all.

    Raises:
        ConfigError, DataError: if the recipe does not suit the data, or there is no structure of a name in `only`.
        CheckpointError: if the file of a fine-tuning that was stopped is damaged.
    """
    recipe = recipe or run.config.finetune
    task = run.result.task
    chosen = _chosen(run, only)
    check_training(recipe, task.data.train, task.data.objective, taught=bool(recipe.distillation), scored=True)
    if workers is not None:
        Crew(size=workers.workers).check(recipe.batch_size)
    progress = logged(run.folder, progress)
    size = 1 if workers is None else workers.workers
    with run.folder.locked():
        for stale in (run.folder.path / FOLDER).glob(".ray-*"):  # of workers whose driver was killed
            shutil.rmtree(stale, ignore_errors=True)
        due: list[Structure] = []
        for structure in chosen:
            done = run.scores(structure)
            if done is None or not _same(done["recipe"], recipe):
                due.append(structure)
                for line in _others(run, structure, recipe, done, size):
                    tell(line)
                    run.folder.log(line)
        for structure in due:
            _finetune(run, structure, recipe, workers, progress)


def _chosen(run: FinishedRun, only: Collection[str]) -> list[Structure]:
    """Returns the structures of these names, or all without any; the winner first."""
    chosen = [run.named(name) for name in only] or run.structures
    return [structure for structure in (run.winner, *run.structures[:-1]) if structure in chosen]


def _others(
    run: FinishedRun, structure: Structure, recipe: Recipe, done: dict[str, Any] | None, size: int
) -> Iterator[str]:
    """Yields what there is of a structure by other recipes: what will be replaced, and what was stopped."""
    name, own = structure.name, _checkpoint(run, structure, recipe, size)
    if done is not None:
        changes = "; ".join(changed(done["recipe"], asdict(recipe)))
        yield f"{name} was fine-tuned by another recipe ({changes}): replaced"
    for path in unfinished(run.folder, name):
        found = None if path == own else begun(path)
        if found is None:
            continue
        identity, losses = found
        now = asdict(recipe) | {"workers": size}
        before = {**identity.get("recipe", {}), "workers": identity.get("workers", 1)}
        yield (
            f"{name}: a fine-tuning with other settings ({'; '.join(changed(before, now)) or 'another structure'}) "
            f"was stopped after epoch {len(losses)}; it stays, continue it with: "
            f"{command(run.folder, name, identity, asdict(run.config.finetune))}"
        )


def _checkpoint(run: FinishedRun, structure: Structure, recipe: Recipe, size: int) -> Path:
    """Returns where the fine-tuning of a structure by some recipe and number of processes is kept."""
    stem = run.folder.path / FOLDER / structure.name
    return checkpoint_path(stem, structure.candidate, asdict(recipe), size)


def _same(plain: Any, recipe: Recipe) -> bool:  # noqa: ANN401 - whatever the file holds
    """Returns whether a recipe in a file is this one; older files lack what came later."""
    try:
        return Recipe(**plain) == recipe
    except (TypeError, ConfigError):
        return False


def _finetune(
    run: FinishedRun, structure: Structure, recipe: Recipe, workers: Workers | None, progress: Progress
) -> None:
    """Fine-tunes one structure, and writes weights and scores."""
    folder, name, stage = run.folder, f"{FOLDER}/{structure.name}", f"{TUNING} {structure.name}"
    size = 1 if workers is None else workers.workers
    checkpoint = _checkpoint(run, structure, recipe, size)

    def show(done: int) -> None:
        now = f"{stage}, epoch {min(done + 1, recipe.epochs)} of {recipe.epochs}"
        folder.write_progress(now, done, recipe.epochs, busy=size, workers=size)

    def on_epoch(done: int, total: int, loss: float) -> None:
        show(done)
        progress(stage, done, total, f"loss {loss:.4f}")

    show(len(losses_so_far(checkpoint)))
    tuned: FineTuned = finetune(
        run.network(structure, tuned=False),
        run.result.task.data,
        recipe,
        seed=run.config.seed,
        on_epoch=on_epoch,
        teacher=run.result.task.model if recipe.distillation else None,
        checkpoint=checkpoint,
        workers=workers,
    )
    # Scores vouch for the weights beside them: the old ones go first.
    for old in ("json", *(f"{kept}.safetensors" for kept in KEPT)):
        (folder.path / f"{name}.{old}").unlink(missing_ok=True)
    folder.write(f"{name}.safetensors", weights_writer(tuned.model))
    other, training = ("last" if recipe.keep == "best" else "best"), tuned.training
    folder.write(f"{name}.{other}.safetensors", tensors_writer(getattr(training, other)))
    scores = {
        "candidate": list(structure.candidate),
        "recipe": asdict(recipe),
        "before": tuned.before,
        "after": tuned.after,
        "losses": training.losses,
        "validation": training.scores,
        "best_epoch": training.best_epoch,
    }
    folder.write_json(f"{name}.json", scores)
    checkpoint.unlink(missing_ok=True)
    folder.log(f"{stage}: test {run.metric} {run.change(scores)}")
