"""Fine-tuned networks that another recipe has replaced, kept beside those that count, and put back in their place.

Whatever is made or replaced lies whole on its shelf, finetuned/recipe-*, before anything is changed in its place, and
goes from there when it is whole in its place: a kill at any instant loses neither. Scores are written last and removed
first: files of weights without them are of no account.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError
from abcsearch.files import Anchor, is_there, replace_file
from abcsearch.results.finetuned_files import FOLDER, SHELVES, read_tuned, weights_names
from abcsearch.runs.recipes import filled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from abcsearch.runs.disk.folder import RunFolder


class Home:
    """finetuned/ while something is fine-tuned: made once; one that is lost meanwhile is not made anew, half filled.

    Attributes:
        path: the folder.
    """

    def __init__(self, folder: RunFolder, again: str) -> None:
        """Makes it if missing.

        Args:
            folder: of the run.
            again: the command that goes on.
        """
        self.path, self._folder, self._again = folder.path / FOLDER, folder, again
        with self.kept():
            self.path.mkdir(exist_ok=True)
            self._anchor = Anchor.of(self.path)

    def check(self) -> None:
        """Raises RunError if it is not there any more, or another one; FolderGoneError if that is so of the run."""
        self._folder.check()
        if not self._anchor.holds:
            msg = f"{self.path} has been moved, removed or replaced while it was written to; put it back"
            raise RunError(f"{msg}, then go on after the last whole epoch with: {self._again}")

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Runs a block that writes to it; says in one message what has become of it, if that is why the block fails.

        Raises:
            RunError: if it has been lost, or cannot be written to.
        """
        try:
            yield
        except (OSError, RunError) as error:
            if hasattr(self, "_anchor"):
                self.check()  # says more, if that is why
            if isinstance(error, RunError) or not _inside(error.filename, self.path):
                raise
            msg = f"{error.filename} cannot be written: {error.strerror or error}; mend that"
            raise RunError(
                f"{msg}, then go on after the last whole epoch with: {self._again}"
            ) from error


def _inside(name: object, folder: Path) -> bool:
    """Returns whether an error names a file in a folder, or the folder."""
    return isinstance(name, str | os.PathLike) and Path(name).absolute().is_relative_to(
        folder.absolute()
    )


def shelf_of(folder: RunFolder, name: str, scores: Mapping[str, Any]) -> str:
    """Returns the folder, in that of the run, in which a fine-tuning is kept: by recipe and number of workers.

    That of another candidate of this name, as of a winner that has been beaten since, is kept as well.

    Args:
        folder: of the run.
        name: of the structure.
        scores: with its candidate, recipe and workers, and what its baseline has of its own.
    """
    usual, other = _shelves(scores)
    recorded = read_tuned(folder, name, where=usual).recorded
    return (
        usual if recorded is None or recorded["candidate"] == list(scores["candidate"]) else other
    )


def _shelves(scores: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the shelf of a recipe, and the one where that is taken by another candidate."""
    usual = [_floats(scores["recipe"]), scores.get("workers", 1)]
    usual += [_floats(scores["asked"])] if "asked" in scores else []
    usual += [scores["network"]] if "network" in scores else []
    shelf = f"{FOLDER}/{SHELVES.removesuffix('*')}{_digits(usual)}"
    return shelf, f"{shelf}-{_digits(list(scores['candidate']))}"


def _floats(recipe: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever files hold
    """Returns a recipe with the defaults of what it lacks, its numbers with a point: 1 and 1.0 are the same."""
    return {key: _float(value) for key, value in filled(recipe).items()}


def _float(value: Any) -> Any:  # noqa: ANN401 - a plain JSON value
    """Returns a whole number as one with a point, anything else as it is."""
    return float(value) if type(value) is int else value


def _digits(value: Any) -> str:  # noqa: ANN401 - a plain JSON value
    """Returns eight hex digits that stand for a value."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def look_up(folder: RunFolder, name: str, wanted: Mapping[str, Any], metric: str) -> str | None:
    """Returns the shelf on which a fine-tuning lies whole, in the folder of the run; None if there is none.

    Args:
        folder: of the run.
        name: of the structure.
        wanted: its candidate, recipe and workers.
        metric: of which there must be scores.

    Warns:
        UserWarning: of one that is damaged, and made again.
    """
    for shelf in _shelves(wanted):
        tuned = read_tuned(folder, name, candidate=wanted["candidate"], metric=metric, where=shelf)
        if tuned.scores is not None and not tuned.beside:
            return shelf
        wrong = tuned.wrong or tuned.beside
        # Without scores, a kill has left it
        if wrong and (folder.path / shelf / f"{name}.json").exists():
            warnings.warn(f"{wrong}; {name} is fine-tuned again", UserWarning, stacklevel=3)
    return None


def put(
    folder: RunFolder,
    name: str,
    scores: Mapping[str, Any],
    writers: Mapping[str, Callable[[Path], object]],
) -> str:
    """Writes a fine-tuning onto its shelf, and returns that.

    Args:
        folder: of the run.
        name: of the structure.
        scores: what NAME.json is to hold.
        writers: of the files of weights, by name.
    """
    shelf = _cleared(folder, name, scores)
    for file, writer in writers.items():
        folder.write(f"{shelf}/{file}", writer)
    folder.write_json(f"{shelf}/{name}.json", scores)
    return shelf


def keep(folder: RunFolder, name: str, scores: Mapping[str, Any]) -> str:
    """Puts what is in its place onto its shelf as well, and returns that; takes no room where files can have two names.

    Args:
        folder: of the run.
        name: of the structure.
        scores: what NAME.json holds.
    """
    home, shelf = folder.path / FOLDER, _cleared(folder, name, scores)
    for file in weights_names(name):
        if (home / file).exists():
            _link(home / file, folder.path / shelf / file)
    _copy(home / f"{name}.json", folder.path / shelf / f"{name}.json")
    return shelf


def _cleared(folder: RunFolder, name: str, scores: Mapping[str, Any]) -> str:
    """Returns the shelf of a fine-tuning, made if missing, with nothing of this name on it."""
    shelf = shelf_of(folder, name, scores)
    # Not the folder above it, which is lost if it is missing
    (folder.path / shelf).mkdir(exist_ok=True)
    _remove(folder.path / shelf, name)
    return shelf


def take(folder: RunFolder, name: str, shelf: str) -> None:
    """Puts what lies on a shelf in its place; what is there goes.

    Args:
        folder: of the run.
        name: of the structure.
        shelf: the folder on which its fine-tuning lies whole.
    """
    home, source = folder.path / FOLDER, folder.path / shelf
    (home / f"{name}.json").unlink(missing_ok=True)
    for file in weights_names(name):
        if (source / file).exists():
            _link(source / file, home / file)
        else:
            (home / file).unlink(missing_ok=True)
    _copy(source / f"{name}.json", home / f"{name}.json")
    drop(folder, name, shelf)


def drop(folder: RunFolder, name: str, shelf: str) -> None:
    """Removes a fine-tuning from a shelf, and a shelf on which nothing is left."""
    _remove(folder.path / shelf, name)
    with contextlib.suppress(OSError):
        (folder.path / shelf).rmdir()


def tidy(folder: RunFolder, name: str, scores: Mapping[str, Any]) -> None:
    """Removes from its shelf what lies whole in its place: a kill came between.

    Args:
        folder: of the run.
        name: of the structure.
        scores: what NAME.json holds.
    """
    shelf = shelf_of(folder, name, scores)
    if (folder.path / shelf).exists():
        drop(folder, name, shelf)


def _remove(shelf: Path, name: str) -> None:
    """Removes the files of a structure, the scores first."""
    for file in (f"{name}.json", *weights_names(name)):
        (shelf / file).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where it cannot have two."""

    def write(path: Path) -> None:
        # It may be the same file by another name: nothing is written into that
        path.unlink(missing_ok=True)
        try:
            path.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, path)

    replace_file(target, write, make_folder=False)


def _copy(source: Path, target: Path) -> None:
    """Copies a file: its time tells when it was put there."""
    is_there(source)  # a pipe would be waited for
    content = source.read_bytes()
    replace_file(target, lambda path: path.write_bytes(content), make_folder=False)
