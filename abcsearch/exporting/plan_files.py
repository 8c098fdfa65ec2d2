"""The files of a folder that holds an exported network, read and checked."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from abcsearch.errors import ExportError, one_line
from abcsearch.exporting.archives import facts_in, read_entries
from abcsearch.exporting.compressed import unpack
from abcsearch.exporting.plan_checks import plan_problems
from abcsearch.files import unsealed
from abcsearch.signing import is_own

if TYPE_CHECKING:
    from pathlib import Path

    import torch

FORMAT = 1
PLAN = "plan.json"
WEIGHTS = {"safetensors": "model.safetensors", "compressed": "model.compressed"}  # by format
_DAMAGED = "export {} is damaged: {}; write it again with: abcsearch export RUN_DIR"


def files_of(kind: str) -> tuple[str, str]:
    """Returns the files of a folder of some format, in the order of writing: a plan alone is known as ours."""
    return (PLAN, WEIGHTS[kind])


def export_files(folder: Path) -> list[Path]:
    """Returns the files of the export that a folder holds, without reading its weights.

    Raises:
        ExportError: if there is none, or its plan is damaged.
    """
    return [folder / PLAN, folder / _weights_name(_read_json(folder), folder)]


def read_plan(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], bool]:
    """Returns plan and tensors of an export, and whether the user has written it."""
    plan, tensors = _read_files(folder)
    newer = plan.get("format") if isinstance(plan, dict) else None
    if type(newer) is int and newer > FORMAT:
        msg = f"export {folder} has format {newer}, this version reads up to {FORMAT}; update abcsearch"
        raise ExportError(msg)
    if isinstance(plan, dict):
        plan.setdefault("dropped", [])
    problem = next(plan_problems(plan, tensors), None)
    if problem is not None:
        raise ExportError(_DAMAGED.format(folder, f"in plan.json, {problem}"))
    constructor = {key: plan["constructor"][key] for key in ("name", "options")}
    return {**plan, "constructor": constructor}, tensors, is_own("export", plan)


def _read_files(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Returns what the files of an export hold."""
    plan = _read_json(folder)
    name = _weights_name(plan, folder)
    if not (folder / name).is_file():
        msg = f"{folder} is not an export: {name} is missing; write one with: abcsearch export RUN_DIR"
        raise ExportError(msg)
    try:
        if name == WEIGHTS["safetensors"]:
            return plan, load_file(folder / name)
        return plan, unpack((folder / name).read_bytes())[0]
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ExportError(_DAMAGED.format(folder, f"{name} cannot be read, {error!r}")) from error


def _read_json(folder: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Returns what the plan of an export holds."""
    if not folder.exists():
        raise ExportError(_missing(folder))
    if not (folder / PLAN).is_file():
        raise ExportError(_no_plan(folder))
    try:
        return unsealed((folder / PLAN).read_text(encoding="utf-8"))[0]
    except (ValueError, RecursionError) as error:
        raise ExportError(_DAMAGED.format(folder, f"{PLAN} cannot be read, {error!r}")) from error


def _no_plan(folder: Path) -> str:
    """Returns the message for what has no plan: another file may lie there, which is loaded and cannot be pruned."""
    files = [folder] if folder.is_file() else sorted(folder.iterdir())
    traced = [file for file in files if file.suffix.lower() in (".pt2", ".onnx")]
    if not traced:
        return f"{folder} is not an export: {PLAN} is missing; write one with: abcsearch export RUN_DIR"
    file = traced[0]
    names = _links_in(file) if file.suffix.lower() == ".pt2" else []
    options, what = "--format safetensors", ""
    if names[-1:] == ["quantize"]:
        options = f"--link {len(names) - 1}"
        what = f", of {names[-2] if names[1:] else 'the network'} before int8"
    return (
        f"{folder} has no {PLAN}: {file.name} is a traced computation, which abcsearch.load({str(file)!r}) reads and which "
        f"cannot be trained or pruned again; take a folder{what}: abcsearch export RUN_DIR {options} --out FOLDER"
    )


def _links_in(file: Path) -> list[str]:
    """Returns the names of the links of a chain that a .pt2 file is the last of; [] where it does not say."""
    try:
        told: Any = unsealed(facts_in(read_entries(file)) or "{}")[0]
        return [one_line(str(link["name"]), 60) for link in told["info"]["chain"]]
    except (ExportError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _weights_name(plan: Any, folder: Path) -> str:  # noqa: ANN401 - any JSON value
    """Returns the name of the file of weights, which a plan names if it is not the usual one."""
    name = (
        plan.get("file", WEIGHTS["safetensors"])
        if isinstance(plan, dict)
        else WEIGHTS["safetensors"]
    )
    if name not in list(WEIGHTS.values()):
        raise ExportError(_DAMAGED.format(folder, f"in {PLAN}, file is {name!r:.80}"))
    return name


def _missing(path: Path) -> str:
    """Returns the message for an export that does not exist, with the nearest one beside it."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    exports = [
        p.name
        for p in beside
        if p.suffix.lower() in {".onnx", ".pt2"} or (p / "plan.json").is_file()
    ]
    close = difflib.get_close_matches(path.name, exports, n=1, cutoff=0.6)
    if close:
        return f"export {path} does not exist; did you mean {str(path.with_name(close[0]))!r}?"
    return f"export {path} does not exist; write one with: abcsearch export RUN_DIR"
