"""What makes a run folder this very run: settings, model and data."""

from __future__ import annotations

import json
import re
import secrets
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from abcsearch.errors import RunError, TrustError, differences, quoted
from abcsearch.files import is_map, leaves, redone
from abcsearch.importing import leave_working_folder
from abcsearch.runs.disk.environment import environment
from abcsearch.runs.disk.folder import FORMAT, RunFolder
from abcsearch.runs.disk.missing import AGAIN, again
from abcsearch.runs.settings import (
    UNSAID,
    RunConfig,
    SearchSettings,
    deciding,
    from_plain,
    to_plain,
)
from abcsearch.signing import is_own, signed, written_here
from abcsearch.training.checkpoints import network_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from abcsearch.data.splits import Data
    from abcsearch.runs.task import Task


S = TypeVar("S", bound=SearchSettings)
KIND = "run"
_PATHS = ("path", "checkpoint")


def trusted_header(folder: RunFolder, *, trust: bool = False) -> dict[str, Any]:
    """Returns run.json for one who means to do what it says: to import, read and reach what its settings name.

    Args:
        folder: of the run.
        trust: whether a folder from elsewhere is taken at its word.

    Raises:
        RunError: as `RunFolder.header`.
        TrustError: if the user has not written it and its settings name code, files or addresses.

    Warns:
        UserWarning: if it is of an older version, and nothing of it has a checksum.
    """
    header = folder.header()
    if not folder.sealed("run.json"):
        msg = f"{folder.path} was written by an older version: its files have no checksums yet, damage may go unseen"
        warnings.warn(msg, stacklevel=3)
    ours = is_own(KIND, header)
    if not trust and not (ours and written_here(header)):
        leave_working_folder()
    if trust or ours:
        return header
    reached = [*reached_by(header["settings"])]
    if reached:
        msg = (
            f"{folder.path} comes from elsewhere (or from before folders were signed): it would have "
            f"{', '.join(dict.fromkeys(reached))}. If you trust it, say so: --trust, or trust=True; "
            f"without code it is shown by: abcsearch status {quoted(folder.path)}, and by report and compare"
        )
        raise TrustError(msg)
    return header


def reached_by(settings: dict[str, Any]) -> Iterator[str]:
    """Yields what settings would have imported, read, or reached: any of their texts that is a path of some kind."""
    for path, leaf in leaves(settings):
        if not isinstance(leaf, str):
            continue
        if path[-1] == "ray_address":
            yield f"Ray reached at {leaf!r}"
        elif ":" in leaf:
            yield f"{leaf!r} imported"
        elif path[-1] in _PATHS or "/" in leaf or "\\" in leaf:
            yield f"{leaf!r} read"


def identity(task: Task) -> dict[str, Any]:
    """Returns hashes of the trained network, of what was prepared and the data, to recognise them when it goes on."""
    made = {} if task.made is None else {"prepared": task.made.mark}
    return {"model": network_hash(task.base), **data_identity(task.data), **made}


def data_identity(data: Data) -> dict[str, Any]:
    """Returns what a run records of its data: hash, name, and how they are split."""
    counts = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    split = {"seed": data.seed, **counts, "objective": data.objective}
    return {"data": data.fingerprint(), "data_name": data.name, "split": split}


_OTHERS = {
    "model": "the model has other weights (trained anew, or with another seed?)",
    "data": "the data have other images or labels",
    "checkpoint": "the checkpoint file has changed",
    "map": "the searcher wants to know the fitness of other structures before it begins (another version?)",
    "prepared": "what was prepared is other weights or structures (prepared anew, with other versions?)",
}


def _other(key: str, settings: SearchSettings) -> str:
    """Returns what differs, in words."""
    model = settings.model if isinstance(settings, RunConfig) else None
    if key == "checkpoint" and model is not None and model.sizes is not None:
        return (
            f"the export that model.export names has changed: {Path(model.checkpoint or '').parent}"
        )
    return _OTHERS[key]


def as_begun(settings: S, folder: RunFolder) -> S:
    """Returns settings as the run that a folder holds was begun with, where that is older than an option.

    Before there was `space.renormalise`, norms over channels fixed them, and before there was `space.bake`, weights that
    are computed: such a run keeps its space. Before there was `latency.finalists`, the best trials were not measured:
    such a run keeps its winner.
    """
    try:
        records = [folder.read_json(name) for name in ("run.json", "front.json")]
    except RunError:  # damaged: whoever needs it says so
        return settings
    held = [record["settings"] for record in records if record is not None and "settings" in record]
    for table, options in UNSAID.items():
        before = {name: old for name, old in options.items() if _lacks(held, table, name)}
        if before:
            settings = replace(settings, **{table: replace(getattr(settings, table), **before)})
    return settings


def as_held(settings: dict[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the plain settings of a run that goes on, without those that its record does not say, being older.

    So it is known as older whenever it goes on.

    Args:
        settings: as `as_begun` left them.
        held: those of the record.
    """
    shorter = dict(settings)
    for table, options in UNSAID.items():
        if isinstance(held.get(table), dict):
            missing = options.keys() - held[table].keys()
            shorter[table] = {k: v for k, v in settings[table].items() if k not in missing}
    return shorter


def _lacks(held: Sequence[dict[str, Any]], table: str, name: str) -> bool:
    """Returns whether recorded settings have a table without a setting, which there was not yet."""
    tables = [settings.get(table) for settings in held]
    return any(isinstance(one, dict) and name not in one for one in tables)


def held_header(
    folder: RunFolder, settings: SearchSettings, same: dict[str, Any]
) -> dict[str, Any] | None:
    """Returns run.json of the run that a folder holds and these settings continue; None where a new one begins.

    Raises:
        RunError: if the folder holds a different run (with the differences), or files of something else.
    """
    if folder.read_json("run.json") is None:
        _refuse_foreign(folder.path)
        return None
    before = folder.header()
    # With defaults for what is new since
    same_kind = to_plain(from_plain(type(settings), before["settings"], folder.path / "run.json"))
    differing = differences(deciding(same_kind), deciding(to_plain(settings)))
    differing += [
        f"{_other(key, settings)} (hash {value} in the folder, {same[key]} now)"
        for key, value in before["identity"].items()
        if key in _OTHERS and same.get(key, value) != value
    ]
    preparing = only_preparing(differing)
    if differing and not lost_by(folder, preparing=preparing):
        return None  # nothing to lose yet
    if [text.split(" (hash ")[0] for text in differing] == [
        _OTHERS["model"]
    ] and folder.base.exists():
        msg = (
            f"the weights in {folder.base} are others than those that the run began with; restore the file from a "
            f"copy, or delete it: {AGAIN} abcsearch resume {quoted(folder.path)}"
        )
        raise RunError(msg)
    if differing:
        msg = (
            f"{folder.path} already holds a different run: {'; '.join(differing)}. "
            f"Choose another folder, or delete this one"
        )
        if preparing and folder.base.exists():
            msg += f"; in another one its network need not be trained again: checkpoint = {json.dumps(str(folder.base))} "
            msg += "in [model], without [pretrain]"
        raise RunError(msg)
    return before


def only_preparing(differing: Sequence[str]) -> bool:
    """Returns whether settings differ in [prepare] alone, as `differences` says it."""
    return all(re.match(r"prepare[.:]", text) for text in differing)


def lost_by(folder: RunFolder, *, preparing: bool) -> bool:
    """Returns whether a run of other settings would lose something of the one that a folder holds.

    Args:
        folder: of the run.
        preparing: whether [prepare] alone is other, of which the base network knows nothing.
    """
    begun = (folder.path / "prepared.json", folder.journal)
    begun += (folder.map.journal,) if preparing else (folder.base,)
    return any(path.exists() and path.stat().st_size for path in begun)


def write_header(folder: RunFolder, settings: SearchSettings, same: dict[str, Any]) -> None:
    """Writes run.json, or checks that the folder holds this very run and updates what may change.

    Raises:
        RunError: if the folder holds a different run (with the differences), or files of something else.
    """
    before, now = held_header(folder, settings, same), to_plain(settings)
    if before is None:
        start = {"format": FORMAT, "id": secrets.token_hex(16), "settings": now, "identity": same}
        start["environment"] = environment()
        folder.fitness.unlink(missing_ok=True)  # of another run, whose trials are gone
        folder.write_json("run.json", signed(KIND, start))
        return
    continued = {
        **before,
        "format": FORMAT,
        "settings": as_held(now, before["settings"]),
        "identity": {**before["identity"], **same},
    }
    if "command" in before["environment"] and not is_own(KIND, before):
        # The command that is said to have started it is nobody's word, and reports show what is signed.
        kept = {name: value for name, value in before["environment"].items() if name != "command"}
        continued["environment"] = {**kept, "command_elsewhere": before["environment"]["command"]}
    continued = signed(KIND, continued)  # who continues a run takes its settings as their own
    if continued != before:
        folder.write_json("run.json", continued)


def _refuse_foreign(path: Path) -> None:
    """Raises RunError if a folder without run.json holds files that no run has put there."""
    there = path.iterdir() if path.exists() else ()
    others: Sequence[str] = sorted(entry.name for entry in there if not entry.name.startswith("."))
    if others and (again_by := redone(path)):
        what = "the map of a run" if is_map(path) else "a baseline"
        raise RunError(
            f"{path} is {what} whose run.json is missing; restore that from a copy, or {again_by}"
        )
    if "front.json" in others:
        msg = f"{path} holds several budgets; choose another folder for one, or name one of those in {path / 'budgets'}"
        raise RunError(msg)
    if others:
        msg = f"{path} is not empty and holds no run ({', '.join(others[:3])}); choose a new folder"
        if "journal.jsonl" in others:
            msg = f"run.json of {path} is missing; restore it from a copy, or {again(path)}"
        raise RunError(msg)
