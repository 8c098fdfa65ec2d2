"""What is trained before a run's search: made once, kept in the folder, and from then on read from there."""

from __future__ import annotations

import contextlib
import shutil
import warnings
import zlib
from typing import TYPE_CHECKING, Any

from abcsearch.errors import (
    AbcSearchError,
    CandidateError,
    PreparationError,
    RunError,
    callers,
    differences,
    one_line,
    plural,
)
from abcsearch.formats import first_line
from abcsearch.preparation.base import Trainer, check_restored, check_start, run_preparation
from abcsearch.preparation.needs import check_needs
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.structures import INSIDE, missed_bounds
from abcsearch.runs.disk.spent import metered
from abcsearch.runs.disk.stages import FAILED, PREPARING
from abcsearch.runs.disk.weights import checkpoint_path, load_tensors, tensors_writer
from abcsearch.runs.header import data_identity
from abcsearch.runs.prepared_record import RECORD, WEIGHTS, read_record, refusal
from abcsearch.runs.progress import Progress, silent
from abcsearch.runs.settings import deciding, to_plain
from abcsearch.runs.task import Made
from abcsearch.steps import doing
from abcsearch.training.begun import losses_so_far
from abcsearch.training.checkpoints import network_hash, tensors_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

    from abcsearch.preparation.base import Preparation, Prepared
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.disk.spent import Meter
    from abcsearch.runs.settings import SearchSettings
    from abcsearch.runs.task import Task
    from abcsearch.space import Candidate
    from abcsearch.training.crew import Workers
    from abcsearch.training.recipe import Recipe

# Of the settings, what a preparation may depend on.
_SEEN = ("prepare", "budget", "space", "criterion", "latency", "seed")


def preparation_of(
    settings: SearchSettings, given: Preparation | None = None
) -> Preparation | None:
    """Returns the preparation that the caller brought, or makes the one that the settings name; None without.

    Raises:
        ConfigError, PreparationError: as `make_preparation`.
    """
    if settings.prepare is None or given is not None:
        return given
    return make_preparation(settings.prepare.name, **settings.prepare.options)


def check_room(folder: RunFolder, task: Task, preparation: Preparation) -> None:
    """Raises PreparationError if this machine has less memory than it takes to prepare what the folder has not yet."""
    needs = None if (folder.path / RECORD).exists() else preparation.needs(task)
    if needs is not None:
        check_needs(type(preparation).__name__, needs)


def crew_of(
    preparation: Preparation, settings: SearchSettings, log: Callable[[str], object] = str
) -> Workers | None:
    """Returns who trains together what a preparation trains; None: this process alone.

    Args:
        preparation: of the run; the option `workers` says how many, also of one's own.
        settings: of the run: the cluster.
        log: takes what Ray has to say.

    Raises:
        ConfigError: if Ray Train is not installed.
    """
    size = getattr(preparation.options, "workers", 1)
    if size == 1:
        return None
    from abcsearch.execution.ray_training import RayTraining

    return RayTraining(workers=size, address=settings.execution.ray_address, log=log)


def prepared(
    folder: RunFolder,
    settings: SearchSettings,
    task: Task,
    preparation: Preparation | None,
    progress: Progress = silent,
) -> Task:
    """Returns a task whose candidates come from what is prepared, which is made now unless the folder has it.

    Args:
        folder: of the run, locked.
        settings: of the run.
        task: with the trained network.
        preparation: of the run; None: the task is as it was.
        progress: of its trainings.

    Raises:
        PreparationError: if the preparation does not keep its word, or a search of nothing but its structures has none.
        RunError: as `opened`.
        AbcSearchError: whatever a training raises.
    """
    if preparation is None:
        return task
    if not (folder.path / RECORD).exists():
        of, alone = _mark(settings, task), getattr(preparation.options, "workers", 1) == 1
        with (
            _why_it_failed(folder),
            metered(folder, of, alone=alone, passes=preparation.passes) as meter,
        ):
            _prepare_into(folder, settings, task, preparation, progress, meter)
    ready = opened(folder, settings, task, preparation)
    if settings.searcher.name == "given" and not (
        ready.starts or settings.searcher.options.get("initial")
    ):
        msg = f"preparation {type(preparation).__name__} proposes no structure, and searcher 'given' has no other: set "
        msg += "searcher.initial, or take another searcher"
        raise PreparationError(msg)
    return ready


@contextlib.contextmanager
def _why_it_failed(folder: RunFolder) -> Iterator[None]:
    """Keeps in the log, and in what status shows, why a block could not prepare."""
    try:
        yield
    except (
        RunError
    ):  # a worker that was lost, or the folder itself: it goes on where it was stopped
        raise
    except AbcSearchError as error:
        why = f"{FAILED}: {one_line(str(error))}"
        folder.log(why)
        folder.write_progress(why, 0, 1, busy=0, workers=1)
        raise


def _prepare_into(
    folder: RunFolder,
    settings: SearchSettings,
    task: Task,
    preparation: Preparation,
    progress: Progress,
    meter: Meter,
) -> None:
    """Prepares, and writes the weights, then the record that vouches for them."""
    of = meter.of
    name = settings.prepare.name if settings.prepare else type(preparation).__name__
    crew = crew_of(preparation, settings, folder.log)
    size = 1 if crew is None else crew.workers
    folder.write_progress(f"{PREPARING}: {name}", 0, 1, busy=size, workers=size)
    needs = preparation.needs(task)
    if needs is not None:
        doing(needs.line)
        folder.log(f"{PREPARING}: {needs.line}")

    def show(name: str, done: int, total: int, loss: str = "") -> None:
        now = f"{PREPARING}: {name}, epoch {min(done + 1, total)} of {total}{loss and ', '}{loss}"
        folder.write_progress(now, done, total, busy=size, workers=size)

    def checkpoint(name: str, recipe: Recipe) -> Path:
        path = checkpoint_path(folder.path / "prepared", of, name)
        show(name, len(losses_so_far(path)), recipe.epochs)
        return path

    def on_epoch(name: str, done: int, total: int, loss: float) -> None:
        folder.check()
        meter.note()
        show(name, done, total, f"loss {loss:.4f}")
        progress(f"{PREPARING}: {name}", done, total, f"loss {loss:.4f}")

    for stale in folder.path.glob(".ray-*"):  # of workers whose driver was killed
        shutil.rmtree(stale, ignore_errors=True)
    images = task.data.train
    trainer = Trainer(images, settings.seed, checkpoint=checkpoint, on_epoch=on_epoch, workers=crew)
    made = run_preparation(preparation, task, trainer)
    states = {name: dict(module.state_dict()) for name, module in made.source.modules.items()}
    check_restored(preparation, task, made.source, states)
    tensors = {
        f"{name}.{key}": tensor for name, state in states.items() for key, tensor in state.items()
    }
    folder.write(WEIGHTS, tensors_writer(tensors))
    folder.write_json(RECORD, {**_record(made, of, tensors), "settings": seen(settings)})
    for done in folder.path.glob("prepared-*.checkpoint"):
        done.unlink()
    took = meter.spent().words
    folder.log(
        f"prepared in {took}: {plural(len(made.starts), 'structure')} to begin with; {_told(made)}"
    )
    if made.facts.get(INSIDE) is False and made.starts:
        line = _outside(name, made.starts[0], task)
        folder.log(f"warning: {line}")
        warnings.warn(line, UserWarning, stacklevel=callers())


def _record(made: Prepared, of: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Returns what prepared.json holds."""
    starts = [list(start) for start in made.starts]
    return {"of": of, "weights": tensors_hash(tensors), "starts": starts, "facts": dict(made.facts)}


def _told(made: Prepared) -> str:
    """Returns the facts in a line."""
    return ", ".join(f"{name} {value}" for name, value in made.facts.items()) or "no facts"


def _outside(name: str, structure: Candidate, task: Task) -> str:
    """Returns that what a preparation has chosen is outside of the budget, by how much, and what to do."""
    return (
        f"preparation {name}: its structure is outside of the budget ({missed_bounds(structure, task.constraint)}): the "
        "search begins with what repair makes of it, which is another one than was trained for; allow narrower layers "
        "(space.lowest), or raise the budget"
    )


def seen(settings: SearchSettings) -> dict[str, Any]:
    """Returns what of the settings a preparation may depend on, as plain values."""
    plain = deciding(to_plain(settings))
    # What earlier versions did not have, where it has no effect: what they have prepared is of the same settings
    del plain["latency"]["finalists"]
    new = (("latency", "runtime", "torch"), ("space", "hardware", False), ("space", "bake", False))
    for key, name, usual in new:
        if plain[key][name] == usual:
            del plain[key][name]
    return {key: plain[key] for key in _SEEN}


def _mark(settings: SearchSettings, task: Task) -> str:
    """Returns what tells one preparation's result from another's: all that it follows from."""
    text = repr((seen(settings), network_hash(task.base), data_identity(task.data)["data"]))
    return f"{zlib.crc32(text.encode()):08x}"


def opened(
    folder: RunFolder, settings: SearchSettings, task: Task, preparation: Preparation | None
) -> Task:
    """Returns a task whose candidates come from what was prepared, as the folder holds it.

    Args:
        folder: of the run; only read.
        settings: of the run.
        task: with the trained network.
        preparation: of the run; None: the task is as it was.

    Raises:
        RunError: if something is missing or damaged, or of another run.
    """
    if preparation is None:
        return task
    record = _checked(folder, settings, task)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for path, tensor in _weights(folder, record["weights"]).items():
        name, _, key = path.partition(".")
        states.setdefault(name, {})[key] = tensor
    try:
        source = preparation.source(task, states)
    except (KeyError, RuntimeError) as error:  # as torch says it
        raise RunError(
            refusal(folder, WEIGHTS, f"does not fit {type(preparation).__name__}: {error!r:.200}")
        ) from error
    starts = tuple(tuple(start) for start in record["starts"])
    mark = f"{record['weights']} {zlib.crc32(repr(starts).encode()):08x}"
    return task.prepared(source, Made(starts=starts, facts=record["facts"], mark=mark))


def _checked(folder: RunFolder, settings: SearchSettings, task: Task) -> dict[str, Any]:
    """Returns what prepared.json holds; raises RunError if it is missing, damaged, or of another run."""
    record, wrong = read_record(folder)
    wrong = wrong or _wrong_starts(record, task)
    if wrong:
        raise RunError(refusal(folder, RECORD, wrong))
    if record["of"] != _mark(settings, task):
        raise RunError(
            refusal(folder, RECORD, f"is of another run: {_otherwise(record, settings)}")
        )
    return record


def _otherwise(record: dict[str, Any], settings: SearchSettings) -> str:
    """Returns in which settings a record is of another run; where in none, what else it may be."""
    told = record.get("settings")
    changed = differences(told, seen(settings), "there") if isinstance(told, dict) else []
    return "; ".join(changed) or "of another network or other data"


def _wrong_starts(record: dict[str, Any], task: Task) -> str:
    """Returns what is wrong with the structures of prepared.json, or ""."""
    try:
        for start in record["starts"]:
            check_start(task.space, start)
    except CandidateError as error:
        return f"is damaged: starts: {error}"
    return ""


def _weights(folder: RunFolder, vouched: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of prepared.safetensors; raises RunError unless the record vouches for them."""
    path = folder.path / WEIGHTS
    if not path.exists():
        raise RunError(refusal(folder, WEIGHTS, "is missing"))
    try:
        tensors = load_tensors(path)
    except Exception as error:  # what is raised depends on the damage
        reason = first_line(error).removeprefix("damaged: ")
        raise RunError(refusal(folder, WEIGHTS, f"is damaged: {reason}")) from error
    if tensors_hash(tensors) != vouched:
        raise RunError(refusal(folder, WEIGHTS, f"holds other weights than {RECORD} vouches for"))
    return tensors
