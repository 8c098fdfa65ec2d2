"""What fine-tuning has left in a run folder: scores, which count only with their weights, and trainings cut short."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from abcsearch.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from abcsearch.runs.folder import RunFolder

FOLDER = "finetuned"


def weights_path(folder: RunFolder, name: str) -> Path:
    """Returns where the fine-tuned weights of a structure lie."""
    return folder.path / FOLDER / f"{name}.safetensors"


def read_scores(folder: RunFolder, name: str, candidate: Sequence[int], metric: str) -> dict[str, Any] | None:
    """Returns recipe and test metrics before and after, or None where there are none of this structure.

    Args:
        folder: of the run.
        name: of the structure.
        candidate: that was fine-tuned; the scores of another one do not count.
        metric: that both must have.

    Warns:
        UserWarning: if the file is damaged, which counts as if it were not there.
    """
    file = f"{FOLDER}/{name}.json"
    try:
        found = folder.read_json(file)
    except RunError as error:
        _warn(folder, name, f"{folder.path / file} is damaged: {error.__cause__}")
        return None
    if found is None:
        return None
    wrong = _wrong_scores(found, metric)
    if wrong:
        _warn(folder, name, f"{folder.path / file} is damaged: {wrong}")
        return None
    return found if found["candidate"] == list(candidate) else None


def weights_there(folder: RunFolder, name: str, network: nn.Module) -> bool:
    """Returns whether the weights of a fine-tuned structure can be loaded, as far as their header says.

    Args:
        folder: of the run.
        name: of the structure.
        network: of its shapes.

    Warns:
        UserWarning: if they cannot.
    """
    path = weights_path(folder, name)
    wrong = _wrong_weights(path, network)
    if wrong:
        _warn(folder, name, f"{path} {wrong}")
    return not wrong


def unfinished(folder: RunFolder, name: str) -> list[Path]:
    """Returns the checkpoints of fine-tunings of a structure that were stopped."""
    return sorted((folder.path / FOLDER).glob(f"{name}-*.checkpoint"))


def tuned_names(folder: RunFolder) -> list[str]:
    """Returns the names of the structures that have been fine-tuned: of which there are scores and weights."""
    names = sorted(path.stem for path in (folder.path / FOLDER).glob("*.json"))
    return [name for name in names if weights_path(folder, name).exists()]


def command(folder: RunFolder, name: str, identity: Mapping[str, Any], recipe: Any) -> str:  # noqa: ANN401 - whatever run.json holds
    """Returns the command line that goes on with a fine-tuning, and replaces none that is done.

    Args:
        folder: of the run.
        name: of the structure.
        identity: of its checkpoint.
        recipe: of the run; what differs from it is given by --set.
    """
    from abcsearch.runs.recipes import changed, finetune_command  # they load torch

    own, workers = identity.get("recipe"), int(identity.get("workers", 1))
    done = (_recipe(folder, other) for other in tuned_names(folder) if other != name)
    others = any(changed(found, own) for found in done if found is not None)
    return finetune_command(folder.path, own, recipe, workers, only=[name] if others else [])


def _recipe(folder: RunFolder, name: str) -> Any:  # noqa: ANN401 - whatever the file holds
    """Returns the recipe of a fine-tuning that is done, or None if the file is damaged."""
    try:
        found = folder.read_json(f"{FOLDER}/{name}.json")
    except RunError:
        return None
    return found.get("recipe") if isinstance(found, dict) else None


def interrupted(folder: RunFolder, recipe: Any) -> str | None:  # noqa: ANN401 - whatever run.json holds
    """Returns the command that goes on with the last fine-tuning, or None if it was not stopped.

    Args:
        folder: of the run, to which nobody writes.
        recipe: of the run.
    """
    times = {path: path.stat().st_mtime_ns for path in (folder.path / FOLDER).glob("*-*.checkpoint")}
    done = max((path.stat().st_mtime_ns for path in (folder.path / FOLDER).glob("*.json")), default=0)
    last = max(times, key=lambda path: times[path], default=None)
    if last is None or times[last] < done:  # another recipe has been taken since
        return None
    from abcsearch.training.checkpoints import begun  # it loads torch

    found = begun(last)
    name = last.name.rpartition("-")[0]
    return command(folder, name, {"recipe": recipe} if found is None else found[0], recipe)


def _warn(folder: RunFolder, name: str, wrong: str) -> None:
    """Warns of a damaged file."""
    warnings.warn(
        f"{wrong}; {name} counts as not fine-tuned, run: abcsearch finetune {folder.path}", UserWarning, stacklevel=2
    )


def _wrong_scores(found: Any, metric: str) -> str:  # noqa: ANN401 - any JSON value
    """Returns what is wrong with the content of a file of scores, or ""."""
    if not isinstance(found, dict):
        return f"it holds no scores but {found!r:.40}"
    missing = [key for key in ("candidate", "recipe", "before", "after") if key not in found]
    if missing:
        return f"{', '.join(missing)} missing"
    recipe = found["recipe"]
    if not isinstance(recipe, dict) or not _is_number(recipe.get("epochs")):
        return "recipe is none"
    for when in ("before", "after"):
        own = found[when]
        if not isinstance(own, dict) or metric not in own:
            return f"{when} has no {metric}"
        wrong = [key for key, value in own.items() if not _is_number(value)]
        if wrong:
            return f"{when}: {', '.join(wrong)} is no number"
    return ""


def _is_number(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Returns whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong_weights(path: Path, network: nn.Module) -> str:
    """Returns what is wrong with a file of weights, or ""."""
    if not path.is_file():
        return "is missing"
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except Exception as error:  # noqa: BLE001 - what is raised depends on the damage
        return f"is damaged: {(str(error) or type(error).__name__).splitlines()[0]}"
    others = _others(shapes, network)
    return f"does not fit the network: {', '.join(others[:3])}" if others else ""


def _others(shapes: Mapping[str, tuple[int, ...]], network: nn.Module) -> list[str]:
    """Returns the names of the tensors that a network has, or a file, but not both with the same shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return [
        name
        for name in dict.fromkeys([*expected, *shapes])
        if expected.get(name) != shapes.get(name)
        and not (name not in shapes and name.endswith("num_batches_tracked"))  # old files have none
    ]
