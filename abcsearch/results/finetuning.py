"""Fine-tuning of what a run found, and of what it is compared with."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.errors import ConfigError, plural
from abcsearch.results.chained import run_chain
from abcsearch.results.finetuned_files import (
    ASKED,
    FOLDER,
    command,
    read_tuned,
    unfinished,
    weights_names,
)
from abcsearch.results.intervals import SHARES, packed, packed_draws
from abcsearch.results.shelf import Home, keep, look_up, put, shelf_of, take, tidy
from abcsearch.results.status import TUNING
from abcsearch.runs.disk.weights import checkpoint_path, tensors_writer
from abcsearch.runs.progress import Progress, logged, silent
from abcsearch.runs.recipes import asked, changed, finetune_command
from abcsearch.steps import doing
from abcsearch.training.begun import begun, losses_so_far
from abcsearch.training.checkpoints import tensors_hash
from abcsearch.training.checks import check_training
from abcsearch.training.crew import Crew
from abcsearch.training.finetuning import FineTuned, finetune
from abcsearch.training.recipe import Recipe, identity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from abcsearch.results.finetuned_files import Tuned
    from abcsearch.results.open_run import FinishedRun, Structure
    from abcsearch.training.crew import Workers


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A fine-tuning that is asked for.

    Attributes:
        run: the run.
        recipe: how, unless a baseline has a recipe of its own.
        workers: who trains together; None for this process alone.
        replace: whether what is replaced is dropped.
    """

    run: FinishedRun
    recipe: Recipe
    workers: Workers | None
    replace: bool

    @property
    def size(self) -> int:
        """How many processes train together."""
        return 1 if self.workers is None else self.workers.workers

    def recipe_of(self, structure: Structure) -> Recipe:
        """Returns how a structure is fine-tuned."""
        return self.run.recipe(structure, self.recipe)

    def changes(self, structure: Structure) -> dict[str, Any]:
        """Returns what a baseline has of its own: `asked` if its recipe is another one, a hash of its `network`."""
        changes = (
            {"asked": asdict(self.recipe)}
            if structure.baseline and structure.baseline.recipe
            else {}
        )
        origin = self.run.origin(structure)
        return changes if origin is None else {**changes, "network": origin}

    def scores(self, structure: Structure) -> dict[str, Any]:
        """Returns what a file of scores says of where they come from."""
        recipe = asdict(self.recipe_of(structure))
        plain = {
            "candidate": list(structure.candidate),
            "recipe": recipe,
            "workers": self.size,
            **self.changes(structure),
        }
        identity = self.run.folder.header()["identity"]
        prepared = {"prepared": identity["prepared"]} if "prepared" in identity else {}
        return {**plain, "model": identity.get("model"), **prepared}

    def checkpoint(self, structure: Structure) -> Path:
        """Returns where the training of a structure is kept until it is finished."""
        stem = self.run.folder.path / FOLDER / structure.name
        recipe, changes = self.recipe_of(structure), self.changes(structure)
        return checkpoint_path(
            stem, structure.candidate, identity_of(recipe), self.size, *changes.values()
        )


def finetune_run(  # noqa: PLR0913 - all but the first have a default
    run: FinishedRun,
    recipe: Recipe | None = None,
    *,
    workers: Workers | None = None,
    progress: Progress = silent,
    tell: Callable[[str], object] = str,  # drops it
    only: Collection[str] = (),
    replace: bool = False,
) -> None:
    """Fine-tunes the winner, then what it is compared with; what is done already is left alone.

    All by one recipe, but for baselines that make another one of it. Then the transforms of the config, if there are
    any, are applied to the winner, see `run_chain`.

    A fine-tuning that was killed goes on after its last whole epoch, also if others, with another recipe, have been
    done since. The teacher, if the recipe distils, is the full network as it was searched in. The folder holds, for
    every structure, in finetuned/: NAME.safetensors (the weights that the recipe keeps), NAME.best.safetensors or
    NAME.last.safetensors (the others), and the scores in NAME.json, which vouch for both. What another recipe has made
    is kept in a folder of its own, finetuned/recipe-*, and put back in its place when it is asked for again.

    Args:
        run: the run.
        recipe: other than the run's.
        workers: several processes that train each network together; all must reach the run folder.
        progress: shown after every epoch.
        tell: takes a line, before anything is trained, for every fine-tuning by another recipe: what is replaced and
            where it is kept, what is taken from there, and what was stopped and waits.
        only: names of the structures to fine-tune; none: all.
        replace: whether what is replaced is dropped instead of kept.

    Raises:
        ConfigError, DataError: if the recipe does not suit the data, or there is no structure of a name in `only`.
        CheckpointError: if the file of a fine-tuning that was stopped is damaged.
        RunError: if finetuned/ is lost meanwhile, or cannot be written to.

    Warns:
        UserWarning: of files that are damaged, and are made again.
    """
    wanted = _Wanted(
        run=run, recipe=recipe or run.config.finetune, workers=workers, replace=replace
    )
    recipe, task = wanted.recipe, run.result.task
    chosen = _chosen(run, only)
    for planned in map(wanted.recipe_of, chosen):
        check_training(
            planned, task.data.train, task.data.objective, taught=planned.taught, scored=True
        )
        if workers is not None:
            Crew(size=workers.workers).check(planned.batch_size)
    progress = logged(run.folder, progress)
    again = finetune_command(
        run.folder.path,
        asdict(recipe),
        asdict(run.config.finetune),
        wanted.size,
        list(only),
        replace=replace,
    )
    with run.folder.locked():
        home = Home(run.folder, again)
        for stale in home.path.glob(".ray-*"):  # of workers whose driver was killed
            shutil.rmtree(stale, ignore_errors=True)
        plain = {
            "recipe": asdict(recipe),
            "workers": wanted.size,
            "only": list(only),
            "replace": replace,
        }
        run.folder.write_json(ASKED, plain)
        due: list[tuple[Structure, str | None]] = []
        for structure in chosen:
            tuned = run.tuned(structure)
            if (
                tuned.scores is not None
                and not tuned.beside
                and _is_it(wanted, structure, tuned.scores)
            ):
                _tidy(wanted, structure, tuned.scores)
                continue
            shelf = look_up(run.folder, structure.name, wanted.scores(structure), run.metric)
            due.append((structure, shelf))
            for line in _others(wanted, structure, tuned, shelf):
                tell(line)
                run.folder.log(line)
        for structure, shelf in due:
            with home.kept():
                home.check()
                _put_in_place(
                    wanted,
                    structure,
                    shelf or _finetune_to_shelf(wanted, structure, progress, home),
                )
    _finish(run, chosen, progress, tell)


def _finish(
    run: FinishedRun, chosen: Sequence[Structure], progress: Progress, tell: Callable[[str], object]
) -> None:
    """Applies the transforms of the config to the winner, if it was asked for; then nothing is left to be done."""
    if run.winner in chosen:
        run_chain(run, progress=progress, tell=tell)
    run.folder.inside(ASKED).unlink(missing_ok=True)


def _chosen(run: FinishedRun, only: Collection[str]) -> list[Structure]:
    """Returns the structures of these names, or all without any; the winner first."""
    chosen = [run.named(name) for name in only] or run.structures
    return [structure for structure in (run.winner, *run.structures[:-1]) if structure in chosen]


def _others(
    wanted: _Wanted, structure: Structure, tuned: Tuned, shelf: str | None
) -> Iterator[str]:
    """Yields what there is of a structure: what will be replaced, what is taken, and what was stopped.

    Warns:
        UserWarning: of what is damaged, unless the same lies on a shelf.
    """
    run, name, recipe = wanted.run, structure.name, asdict(wanted.recipe_of(structure))
    for wrong in filter(None, (tuned.wrong, tuned.beside)) if shelf is None else ():
        warnings.warn(f"{wrong}; {name} is fine-tuned again", UserWarning, stacklevel=3)
    scores = read_tuned(run.folder, name).scores
    if scores is not None and not _is_it(wanted, structure, scores):
        other = "structure" if scores["candidate"] != list(structure.candidate) else "network"
        changes = "; ".join(changed(scores["recipe"], recipe)) or f"as another {other}"
        where = "replaced" if wanted.replace else f"kept in {shelf_of(run.folder, name, scores)}"
        yield f"{name} was fine-tuned by another recipe ({changes}): {where}"
    if shelf is not None:
        yield f"{name} has been fine-tuned by this recipe: taken from {shelf}"
    for path in unfinished(run.folder, name):
        told = None if path == wanted.checkpoint(structure) else begun(path)
        if told is None:
            continue
        identity, losses = told
        before = {**identity.get("recipe", {}), "workers": identity.get("workers", 1)}
        changes = (
            "; ".join(changed(before, recipe | {"workers": wanted.size})) or "another structure"
        )
        yield (
            f"{name}: a fine-tuning with other settings ({changes}) "
            f"was stopped after epoch {len(losses)}; it stays, continue it with: "
            f"{command(run.folder, name, identity, asdict(run.config.finetune))}"
        )


def _is_it(wanted: _Wanted, structure: Structure, scores: dict[str, Any]) -> bool:
    """Returns whether scores are those of what is asked for."""
    changes = wanted.changes(structure)
    return (
        scores["candidate"] == list(structure.candidate)
        and _same(scores["recipe"], wanted.recipe_of(structure))
        and _same(asked(scores), wanted.recipe)
        and scores.get("network") == changes.get("network")
    )


def _same(plain: Any, recipe: Recipe) -> bool:  # noqa: ANN401 - whatever the file holds
    """Returns whether a recipe in a file is this one; older files lack what came later."""
    try:
        return Recipe(**plain) == recipe
    except (TypeError, ConfigError):
        return False


def _tidy(wanted: _Wanted, structure: Structure, scores: dict[str, Any]) -> None:
    """Removes what led to a fine-tuning that is in its place, where a kill has come before that."""
    tidy(wanted.run.folder, structure.name, scores)
    if scores.get("workers") == wanted.size:
        wanted.checkpoint(structure).unlink(missing_ok=True)


def _put_in_place(wanted: _Wanted, structure: Structure, shelf: str) -> None:
    """Puts a fine-tuning that lies whole on its shelf in its place, and keeps what is there, if that is another one."""
    folder, name = wanted.run.folder, structure.name
    scores = read_tuned(folder, name).scores
    if scores is not None and not wanted.replace and not _is_it(wanted, structure, scores):
        keep(folder, name, scores)
    take(folder, name, shelf)
    wanted.checkpoint(structure).unlink(missing_ok=True)
    scores = wanted.run.tuned(structure).scores
    if scores is not None:
        folder.log(f"{TUNING} {name}: test {wanted.run.metric} {wanted.run.change(scores)}")


def _finetune_to_shelf(
    wanted: _Wanted, structure: Structure, progress: Progress, home: Home
) -> str:
    """Fine-tunes one structure, writes weights and scores onto its shelf, and returns that."""
    run, recipe, size = wanted.run, wanted.recipe_of(structure), wanted.size
    folder, stage = run.folder, f"{TUNING} {structure.name}"
    checkpoint = wanted.checkpoint(structure)

    def show(done: int) -> None:
        now = f"{stage}, epoch {min(done + 1, recipe.epochs)} of {recipe.epochs}"
        folder.write_progress(now, done, recipe.epochs, busy=size, workers=size)

    def on_epoch(done: int, total: int, loss: float) -> None:
        home.check()
        show(done)
        progress(stage, done, total, f"loss {loss:.4f}")

    doing(f"{stage}: scoring it on test images, then the first of {plural(recipe.epochs, 'epoch')}")
    show(len(losses_so_far(checkpoint)))
    tuned: FineTuned = finetune(
        run.network(structure, tuned=False),
        run.result.task.data,
        recipe,
        seed=run.config.seed,
        on_epoch=on_epoch,
        teacher=run.result.task.base if recipe.taught else None,
        checkpoint=checkpoint,
        workers=wanted.workers,
        same=wanted.changes(structure),
    )
    home.check()
    training = tuned.training
    file, *others = weights_names(structure.name)
    other = next(name for name in others if f".{recipe.keep}." not in name)
    states = {
        file: tuned.model.state_dict(),
        other: training.last if recipe.keep == "best" else training.best,
    }
    # For intervals, image by image
    scores = wanted.scores(structure) | {
        "before": tuned.before,
        "after": tuned.after,
        "losses": training.losses,
        "validation": training.scores,
        "best_epoch": training.best_epoch,
        **({} if tuned.hits is None else {"hits": packed(tuned.hits.numpy())}),
        "resampled": {
            metric: packed_draws(draws, len(run.result.task.data.test))
            for metric, draws in tuned.resampled.items()
            if metric not in SHARES
        },
        "weights": {name: tensors_hash(state) for name, state in states.items()},
    }
    return put(
        folder,
        structure.name,
        scores,
        {name: tensors_writer(state) for name, state in states.items()},
    )
