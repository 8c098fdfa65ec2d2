"""Where an export goes: format, path, and what must not be overwritten."""

from __future__ import annotations

import contextlib
import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from abcsearch.errors import ExportError, unknown_name
from abcsearch.exporting.plan_files import PLAN, WEIGHTS
from abcsearch.files import CHECKSUM
from abcsearch.stored import content_hash, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("safetensors", "onnx", "pt2", "compressed")
FOLDERS = tuple(WEIGHTS)  # formats that are a folder; the others are one file, and its ending:
_FILES = ("onnx", "pt2")
# Of files of models, so that a folder of such a name is a mistake; names like run-1.2 are none.
_FOREIGN = (
    {
        "bin",
        "ckpt",
        "pickle",
        "pkl",
        "pt",
        "pt1",
        "pt3",
        "pte",
        "pth",
        "safetensors",
        "torchscript",
        "ts",
        "weights",
    }
    | {"engine", "h5", "hdf5", "keras", "mlmodel", "pb", "tflite"}
    | {"npz", "tar", "zip"}
)


def check_target(path: str | Path, kind: str | None) -> tuple[str, Path]:
    """Returns the format, and the folder or file to write; called before anything slow is done.

    Raises:
        ExportError: if the format is unknown, the path ends in another one's ending or in that of no export, a folder
            is where a file is to be or the other way round, or the folder holds files of others under our names.
    """
    if not str(path):
        msg = "the path of an export is empty; give a folder, or a file that ends in .onnx or .pt2"
        raise ExportError(msg)
    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in _FILES:
        _refuse_unknown(path, ending)
        ending = ""
    kind = kind or ending or FORMATS[0]
    if kind not in FORMATS:
        raise ExportError(unknown_name("export format", kind, FORMATS))
    if ending and ending != kind:
        msg = f"{path} is to be written as {kind} but ends in .{ending}; give it another name, or format {ending!r}"
        raise ExportError(msg)
    target = path if ending or kind in FOLDERS else path / f"model.{kind}"
    _refuse_taken(kind, target)
    return kind, target


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder, and removes what it made of it again where the block fails, unless something else is in it."""
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in new:
                parent.rmdir()
        raise


def _refuse_unknown(path: Path, ending: str) -> None:
    """Raises ExportError for an ending that looks like a file's but is that of no export."""
    if path.is_dir() or not (
        ending in _FOREIGN or difflib.get_close_matches(ending, _FILES, n=1, cutoff=0.75)
    ):
        return
    close = difflib.get_close_matches(ending, _FILES, n=1, cutoff=0.5)
    advice = (
        f"did you mean '.{close[0]}'?"
        if close
        else "an export is a folder, or a file that ends in .onnx or .pt2;"
    )
    msg = f"{path}: unknown ending {path.suffix!r}; {advice} a folder has none"
    raise ExportError(msg)


def _refuse_taken(kind: str, target: Path) -> None:
    """Raises ExportError where something else is in the place of an export."""
    whole = kind in FOLDERS
    if not whole and target.is_dir():
        msg = (
            f"{target} is a folder, but {kind} is one file; give another name, or remove the folder"
        )
        raise ExportError(msg)
    folder = target if whole else target.parent
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), None)
    if there is not None and not there.is_dir():
        msg = f"export folder {folder} cannot be written: {there} is a file; give another name"
        raise ExportError(msg + (", or one that ends in .onnx or .pt2 for a file" if whole else ""))
    taken = [
        folder / name for name in (PLAN, *WEIGHTS.values()) if whole and (folder / name).exists()
    ]
    if taken and not (_is_ours(folder / "plan.json") or _has_lost_its_plan(folder)):
        msg = f"{taken[0]} would be overwritten, and {folder} is not an export of abcsearch; choose a new folder, or "
        raise ExportError(f"{msg}remove the file")


def _is_ours(plan: Path) -> bool:
    """Returns whether a file is the plan of an export; a damaged one is not."""
    try:
        plain = json.loads(plan.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(plain, dict) and {"format", "constructor", "layers", "tensors"} <= plain.keys()
    )


def _has_lost_its_plan(folder: Path) -> bool:
    """Returns whether a folder holds the weights of an export, whole and with our checksum, without a plan."""
    weights = folder / "model.safetensors"
    try:
        return not (folder / "plan.json").exists() and read_header(weights).metadata[
            CHECKSUM
        ] == content_hash(weights)
    except (OSError, ValueError, KeyError):
        return False
