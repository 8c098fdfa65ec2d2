"""What fine-tuning has left in a run folder: scores, which vouch for their weights, and trainings cut short.

One function, `read_tuned`, decides what counts as fine-tuned: for `status`, `export` and `report` alike. Without torch:
`status` looks every second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.baselines.registry import following
from abcsearch.errors import RunError
from abcsearch.files import CHECKSUM
from abcsearch.runs.disk.shapes import baseline_names, winner_name
from abcsearch.runs.recipes import asked, changed, finetune_command
from abcsearch.stored import content_hash, read_header
from abcsearch.training.begun import begun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from abcsearch.runs.disk.folder import RunFolder

FOLDER = "finetuned"
ASKED = "finetuning.json"  # in the run folder: what was asked for, until all of it is done
SHELVES = "recipe-*"  # folders in it: what was fine-tuned by other recipes


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What there is of the fine-tuning of one structure.

    Attributes:
        scores: what its file of scores holds; None where the structure does not count as fine-tuned.
        wrong: which file is missing or damaged, so that it does not count; "" without such a one.
        beside: what is wrong with the weights that the recipe does not keep: it counts all the same.
        recorded: the scores as far as they can be read, whatever has become of the weights.
    """

    scores: dict[str, Any] | None = None
    wrong: str = ""
    beside: str = ""
    recorded: dict[str, Any] | None = None


def weights_path(folder: RunFolder, name: str) -> Path:
    """Returns where the fine-tuned weights of a structure lie."""
    return folder.path / FOLDER / f"{name}.safetensors"


def weights_names(name: str) -> tuple[str, ...]:
    """Returns the names that files of weights of a structure may have, those that count first."""
    return (f"{name}.safetensors", f"{name}.best.safetensors", f"{name}.last.safetensors")


def read_tuned(
    folder: RunFolder,
    name: str,
    *,
    candidate: Sequence[int] | None = None,
    metric: str | None = None,
    network: Callable[[], nn.Module] | None = None,
    where: str = FOLDER,
) -> Tuned:
    """Returns what there is of a structure's fine-tuning: whether it counts, and what is wrong.

    It counts if the scores are whole, of this structure and this run, and the weights beside them are whole and those
    that the scores vouch for. Scores of another candidate, as those of a winner that has been beaten since, are no
    mistake: the structure has not been fine-tuned.

    Args:
        folder: of the run.
        name: of the structure.
        candidate: what the structure is now; None if that is not known.
        metric: of which there must be scores before and after.
        network: makes one of its shapes, which the weights of older versions must have: their scores vouch for none.
        where: the folder with scores and weights, in the run folder.
    """
    file = folder.path / where / f"{name}.json"
    try:
        plain = folder.read_json(f"{where}/{name}.json")
    except (RunError, OSError) as error:
        return Tuned(wrong=f"{file} is damaged: {error.__cause__ or error}")
    weights = file.with_name(f"{name}.safetensors")
    if plain is None:
        return Tuned(
            wrong=f"{weights} is there without its scores: {file.name} is missing"
            if weights.exists()
            else ""
        )
    wrong = _wrong_scores(plain, metric) or _wrong_origin(folder, name, plain)
    if wrong:
        return Tuned(wrong=f"{file} is damaged: {wrong}")
    if candidate is not None and plain["candidate"] != list(candidate):
        return Tuned(recorded=plain)
    vouched = plain.get("weights", {})
    wrong = _wrong_weights(weights, vouched.get(weights.name), network)
    if wrong:
        return Tuned(wrong=f"{weights} {wrong}", recorded=plain)
    beside = [
        file.with_name(other) for other in weights_names(name)[1:] if file.with_name(other).exists()
    ]
    told = (
        (path, _wrong_weights(path, vouched.get(path.name, "none"))) for path in beside if vouched
    )
    return Tuned(
        scores=plain,
        recorded=plain,
        beside="; ".join(f"{path} {what}" for path, what in told if what),
    )


def problems(folder: RunFolder, name: str, tuned: Tuned) -> list[str]:
    """Returns what has to be said of a structure's fine-tuning, each with what to do."""
    if not (tuned.wrong or tuned.beside):
        return []
    again = _again(folder, name, tuned)
    told = [f"{tuned.wrong}; {name} counts as not fine-tuned, run: {again}"] if tuned.wrong else []
    return told + ([f"{tuned.beside}; it is made again by: {again}"] if tuned.beside else [])


def refusal(folder: RunFolder, name: str, tuned: Tuned) -> str:
    """Returns why a structure that has been fine-tuned cannot be taken as such, and all that can be done about it."""
    files = folder.path / FOLDER / f"{name}.*"
    others = "; ".join(_kept_text(folder, name, shelf) for shelf in kept(folder, name))
    return (
        f"{tuned.wrong}. It is not passed over, as {name} has been fine-tuned: train it again with: "
        f"{_again(folder, name, tuned)}; or take another network (--network); or move {files} elsewhere to have {name} "
        f"as it was before fine-tuning{f'; or take what was fine-tuned by another recipe: {others}' if others else ''}"
    )


def _again(folder: RunFolder, name: str, tuned: Tuned) -> str:
    """Returns the command that makes damaged files again.

    With their recipe; if that is lost, with that of a training that was stopped, perhaps as it was put in their place;
    else with that of other structures.
    """
    usual = folder.header()["settings"].get("finetune")
    stopped = sorted(unfinished(folder, name), key=lambda path: path.stat().st_mtime_ns)
    told = [identity for identity, _ in filter(None, map(begun, reversed(stopped)))]
    others = (scores for _, scores in _all_scores(folder))
    return command(
        folder,
        name,
        tuned.recorded or next(iter(told), None) or next(others, {"recipe": usual}),
        usual,
    )


def kept(folder: RunFolder, name: str | None = None) -> list[Path]:
    """Returns the folders of what was fine-tuned by other recipes, of one structure or of any."""
    shelves = sorted((folder.path / FOLDER).glob(SHELVES))
    return [
        shelf
        for shelf in shelves
        if any(shelf.glob("*.json") if name is None else [_there(shelf, name)])
    ]


def _there(shelf: Path, name: str) -> bool:
    """Returns whether there are scores of a structure."""
    return (shelf / f"{name}.json").exists()


def _kept_text(folder: RunFolder, name: str, shelf: Path) -> str:
    """Returns which one it is, and the command that puts it in its place."""
    usual = folder.header()["settings"].get("finetune")
    recorded = read_tuned(folder, name, where=f"{FOLDER}/{shelf.name}").recorded
    return f"{shelf.name}: {'damaged, too' if recorded is None else command(folder, name, recorded, usual)}"


def unfinished(folder: RunFolder, name: str) -> list[Path]:
    """Returns the checkpoints of fine-tunings of a structure that were stopped."""
    return sorted((folder.path / FOLDER).glob(f"{name}-*.checkpoint"))


def tuned_names(
    folder: RunFolder, settings: Mapping[str, Any], best: Mapping[str, Sequence[int] | None]
) -> list[str]:
    """Returns the names of the structures of a run that have been fine-tuned, as `tunings`."""
    return [
        name for name, tuned in tunings(folder, settings, best).items() if tuned.scores is not None
    ]


def tunings(
    folder: RunFolder, settings: Mapping[str, Any], best: Mapping[str, Sequence[int] | None]
) -> dict[str, Tuned]:
    """Returns what there is of the fine-tunings of a run, by the name of the structure, as `read_tuned` decides.

    Args:
        folder: of the run.
        settings: of the run, plain. Whoever changes what full and uniform are begins another run.
        best: what the best structures of the searches are now, by name.
    """
    called, winner = baseline_names(settings), winner_name(settings["searcher"]["name"])
    names = {"full", *called.values(), winner}
    best = {**best, **{called[name]: best.get(winner) for name in following(called)}}
    there = sorted(name for name in names if name not in best or best[name] is not None)
    return {name: read_tuned(folder, name, candidate=best.get(name)) for name in there}


def recipes(
    folder: RunFolder,
    tuned: Mapping[str, Tuned],
    usual: Any,  # noqa: ANN401
) -> dict[str, tuple[str, ...]]:
    """Returns in what recipes of fine-tunings differ from the run's own, by the files of scores without their endings.

    Args:
        folder: of the run.
        tuned: what counts, by the name of the structure; what lies on shelves is looked up.
        usual: the run's own, from its table [finetune].
    """
    made = {name: one.scores["recipe"] for name, one in tuned.items() if one.scores is not None}
    for path in sorted((folder.path / FOLDER).glob(f"{SHELVES}/*.json")):
        try:
            plain = folder.read_json(str(path.relative_to(folder.path)))
        except (RunError, OSError):  # whoever takes it says so
            continue
        recipe = plain.get("recipe") if isinstance(plain, dict) else None
        made |= {f"{path.parent.name}/{path.stem}": recipe} if isinstance(recipe, dict) else {}
    return {name: changed(recipe, usual) for name, recipe in made.items()}


def command(folder: RunFolder, name: str, identity: Mapping[str, Any], recipe: Any) -> str:  # noqa: ANN401 - whatever run.json holds
    """Returns the command line that goes on with a fine-tuning, and replaces none that is done.

    Args:
        folder: of the run.
        name: of the structure.
        identity: of its checkpoint, or its scores.
        recipe: of the run; what differs from it is given by --set.
    """
    settings, workers = asked(identity), int(identity.get("workers", 1))
    done = (asked(scores) for other, scores in _all_scores(folder) if other != name)
    others = any(changed(recipe_done, settings) for recipe_done in done)
    return finetune_command(folder.path, settings, recipe, workers, only=[name] if others else [])


def _all_scores(folder: RunFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the names of all fine-tunings that are whole, of any structure, with their scores."""
    for path in sorted((folder.path / FOLDER).glob("*.json")):
        scores = read_tuned(folder, path.stem).scores
        if scores is not None:
            yield path.stem, scores


def interrupted(folder: RunFolder, recipe: Any) -> str | None:  # noqa: ANN401 - whatever run.json holds
    """Returns the command that goes on with the last fine-tuning, as it was asked for, or None if it was not stopped.

    Args:
        folder: of the run, to which nobody writes.
        recipe: of the run.
    """
    if asked := _asked(folder, recipe):
        return asked
    times = {
        path: path.stat().st_mtime_ns for path in (folder.path / FOLDER).glob("*-*.checkpoint")
    }
    done = max(
        (path.stat().st_mtime_ns for path in (folder.path / FOLDER).glob("*.json")), default=0
    )
    last = max(times, key=lambda path: times[path], default=None)
    if last is None or times[last] < done:  # another recipe has been taken since
        return None
    told = begun(last)
    name = last.name.rpartition("-")[0]
    return command(folder, name, {"recipe": recipe} if told is None else told[0], recipe)


def _asked(folder: RunFolder, usual: Any) -> str | None:  # noqa: ANN401 - whatever run.json holds
    """Returns the command of a fine-tuning that has not done all that it was asked for; older versions left none."""
    try:
        plain = folder.read_json(ASKED)
        recipe, workers, only, replace = (
            plain[key] for key in ("recipe", "workers", "only", "replace")
        )
    except (RunError, OSError, KeyError, TypeError):
        return None
    names = isinstance(only, list) and all(isinstance(name, str) for name in only)
    if not (isinstance(recipe, dict) and isinstance(workers, int) and names):
        return None
    return finetune_command(folder.path, recipe, usual, workers, only, replace=replace is True)


def _wrong_scores(plain: Any, metric: str | None) -> str:  # noqa: ANN401 - any JSON value
    """Returns what is wrong with the content of a file of scores, or ""."""
    if not isinstance(plain, dict):
        return f"it holds no scores but {plain!r:.40}"
    missing = [key for key in ("candidate", "recipe", "before", "after") if key not in plain]
    if missing:
        return f"{', '.join(missing)} missing"
    recipe, vouched = plain["recipe"], plain.get("weights", {})
    if any(
        not isinstance(one, dict) or not _is_count(one.get("epochs"))
        for one in (recipe, asked(plain))
    ):
        return "recipe is none"
    if not isinstance(vouched, dict) or not all(
        isinstance(value, str) for value in vouched.values()
    ):
        return "weights are no hashes by name"
    for when in ("before", "after"):
        scores = plain[when]
        if not isinstance(scores, dict) or metric not in (None, *scores):
            return f"{when} has no {metric or 'scores'}"
        wrong = [key for key, value in scores.items() if not _is_number(value)]
        if wrong:
            return f"{when}: {', '.join(wrong)} is no number"
    return ""


def _wrong_origin(folder: RunFolder, name: str, plain: Mapping[str, Any]) -> str:
    """Returns whose scores a file holds, if they are of another structure or another run; older files do not say."""
    identity, vouched = folder.header()["identity"], plain.get("weights")
    if vouched is not None and f"{name}.safetensors" not in vouched:
        return f"its scores are those of {', '.join(vouched) or 'no weights'}"
    if plain.get("model", identity.get("model")) != identity.get("model"):
        return "it is of another run, whose full network has other weights"
    return (
        ""
        if plain.get("prepared") == identity.get("prepared")
        else "it is of another run, with other prepared weights"
    )


def _is_count(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Returns whether a JSON value is a whole number, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Returns whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong_weights(
    path: Path, vouched: str | None, network: Callable[[], nn.Module] | None = None
) -> str:
    """Returns what is wrong with a file of weights, or ""."""
    if not path.is_file():
        return "is missing"
    try:
        header, content = read_header(path), content_hash(path)
    except (ValueError, OSError) as error:
        return f"is damaged: {error}"
    if header.metadata.get(CHECKSUM, content) != content:
        return "is damaged: its checksum is not that of its content"
    if vouched is not None:
        return (
            ""
            if vouched == content
            else f"is another file than that of its scores (hash {content}, not {vouched})"
        )
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    others = [] if network is None else _others(shapes, network())
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
