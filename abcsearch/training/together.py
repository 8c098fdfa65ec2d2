"""One training by several processes: they write its checkpoint, and this process takes it up from there."""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import CheckpointError
from abcsearch.training.begun import losses_so_far
from abcsearch.training.checks import check_lesson, fitted
from abcsearch.training.crew import Crew, Workers
from abcsearch.training.lesson import lesson_of
from abcsearch.training.loop import train
from abcsearch.training.objectives import registered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from abcsearch.data.split import Images
    from abcsearch.training.lesson import Lesson
    from abcsearch.training.loop import OnEpoch
    from abcsearch.training.recipe import Recipe
    from abcsearch.training.state import Trained

_LOOK = 0.5  # seconds between looks at the checkpoint


def train_together(  # noqa: PLR0913 - as `train`
    model: nn.Module | Lesson,
    split: Images,
    recipe: Recipe,
    *,
    workers: Workers,
    objective: str = "classification",
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    on_epoch: OnEpoch | None = None,
    **options: Any,  # noqa: ANN401 - of `train`
) -> Trained:
    """Trains a network or a lesson in place, by several processes; without batch norm, as `train` up to rounding.

    Args:
        model: as for `train`.
        split: likewise; passed to every process.
        recipe: its batch is shared by the workers, and counts as a whole.
        workers: who trains.
        objective: of `OBJECTIVES`.
        teacher: as for `train`.
        checkpoint: a file that all processes can reach; without it, one in this machine's temporary folder.
        on_epoch: progress, seen with half a second's delay.
        options: others of `train`.

    Raises:
        AbcSearchError: as `train`, and of the workers.
    """
    lesson = lesson_of(model, objective, teacher)
    check_lesson(lesson, recipe, split, scored=options.get("validation") is not None)
    crew = Crew(size=workers.workers)
    crew.check(fitted(recipe, len(split), crew.size).batch_size)
    with contextlib.ExitStack() as stack:
        if checkpoint is None:
            checkpoint = (
                Path(stack.enter_context(tempfile.TemporaryDirectory())) / "training.checkpoint"
            )
        file = Path(checkpoint).absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        options |= {"checkpoint": file}
        if crew.size > 1 and len(losses_so_far(file)) < recipe.epochs:
            twin = copy.deepcopy(lesson)
            for module in (*twin.modules.values(), *twin.teachers.values()):
                module.cpu()
            with _watched(file, recipe.epochs, on_epoch):
                share = functools.partial(_share, twin, split, recipe, options)
                workers.run(share, file.parent, gpu=recipe.device != "cpu", setup=registered())
            if not losses_so_far(file):
                msg = f"{file} is gone or damaged, though the workers have trained to the end; run it again to go on"
                raise CheckpointError(msg)
            on_epoch = None
        return train(lesson, split, recipe, crew=crew, on_epoch=on_epoch, **options)


def _share(
    lesson: Lesson, split: Images, recipe: Recipe, options: dict[str, Any], rank: int, size: int
) -> None:
    """Trains as one process among several."""
    train(lesson, split, recipe, crew=Crew(rank=rank, size=size), **options)


@contextlib.contextmanager
def _watched(file: Path, epochs: int, on_epoch: OnEpoch | None) -> Iterator[None]:
    """Runs a block, and tells of every epoch that is written meanwhile."""
    told, ended = len(losses_so_far(file)), threading.Event()

    def tell() -> None:
        nonlocal told
        losses = losses_so_far(file)
        for loss in losses[told:] if on_epoch is not None else ():
            told += 1
            on_epoch(told, epochs, loss)  # pyright: ignore[reportOptionalCall] - no losses then

    def look() -> None:
        while not ended.wait(_LOOK):
            tell()

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
    tell()
