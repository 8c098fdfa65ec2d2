"""How to load what a run found, and how to run it again: texts for the report."""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import TYPE_CHECKING, Any

from abcsearch.errors import escaped, quoted
from abcsearch.runs.recipes import finetune_command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.reporting.history import History

# Their options stand beside their names in a config
_PARTS = ("model", "data", "searcher", "evaluator", "prepare")


def config_toml(settings: Mapping[str, Any]) -> str:
    """Returns the settings of a configured run as a config file; read again, it is the same run.

    Args:
        settings: as `to_plain` has them.
    """
    plain: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _PARTS and value is not None:
            kept = {name: setting for name, setting in value.items() if name != "options"}
            plain[key] = {**kept, **(value.get("options") or {})}
        else:
            plain[key] = value
    singles = {
        key: value
        for key, value in plain.items()
        if not isinstance(value, dict) and value is not None
    }
    tables = {key: value for key, value in plain.items() if isinstance(value, dict)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in singles.items()]
    for key, table in tables.items():
        lines += ["", f"[{_key(key)}]"]
        lines += [
            f"{_key(name)} = {_value(value)}" for name, value in table.items() if value is not None
        ]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """Returns a key, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(value: str) -> str:
    """Returns a text as TOML has it, which is as JSON has it; what is not seen is escaped as TOML reads it again."""
    return escaped(
        re.sub(
            "[\x7f-\x9f\xad]",
            lambda c: f"\\u{ord(c[0]):04x}",
            json.dumps(value, ensure_ascii=False),
        )
    )


def _value(value: Any) -> str:  # noqa: ANN401 - a plain JSON value
    """Returns a plain value as TOML has it."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


def command_line(history: History) -> str | None:
    """Returns the command that started a run, or None if that was no command of ours, or is not the user's."""
    given = [str(word) for word in history.environment.get("command") or []]
    if len(given) < 2 or given[1] not in ("search", "resume") or not history.vouched:
        return None
    return shlex.join(["abcsearch", *given[1:]])


def again_text(history: History, recipe: Mapping[str, Any] | None = None) -> str:
    """Returns the commands that run it again with its settings as config.toml.

    Args:
        history: of a run of a config file.
        recipe: that its winner was fine-tuned with, if it was.
    """
    lines = [
        "abcsearch search config.toml --run-dir NEW_FOLDER   # with the settings below as config.toml"
    ]
    return "\n".join(
        lines
        + (
            [finetune_command("NEW_FOLDER", recipe, history.settings.get("finetune", {}))]
            if recipe
            else []
        )
    )


def load_text(history: History, *, configured: bool, tuned: bool = False) -> str:
    """Returns how to get at the network that a run found: commands and Python.

    Args:
        history: of the run.
        configured: whether it is a run of a config file.
        tuned: whether its winner has been fine-tuned.
    """
    folder = str(history.path)
    if not configured:
        return (
            "from abcsearch import export, finetune, load, resume\n\n"
            f"result = resume({folder!r}, model=model, data=data)  # the same model and data as before\n"
            "network = result.model()  # a torch.nn.Module, pruned and calibrated\n"
            "tuned = finetune(network, data)"
        )
    exported = str(history.path / "export")
    return (
        f"{'' if tuned else finetune_command(folder, None, None) + chr(10)}"
        f"abcsearch export {quoted(folder)}     # to the folder export in it\n\n"
        "# then, in Python:\n"
        "from abcsearch import load\n\n"
        f"network = load({exported!r})  # a torch.nn.Module in evaluation mode; an ordinary, smaller network\n"
        "outputs = network(images)  # normalised as the data set of the run gives them"
    )


def facts(history: History) -> list[tuple[str, str]]:
    """Returns what a run was made with: versions, machine, commit, seed."""
    here, settings = history.environment, history.settings
    versions = ", ".join(
        f"{name} {version}" for name, version in here.get("versions", {}).items() if version
    )
    commit = here.get("git")
    changed = " with changes that are not committed" if here.get("git_changed") else ""
    identity = history.header["identity"]
    split = identity.get("split", {})
    counts = ", ".join(
        f"{split[name]:,} {name}" for name in ("train", "validation", "test") if name in split
    )
    rows = {
        "started": here.get("started"),
        "seed": settings["seed"],
        "Python": here.get("python"),
        "packages": versions,
        "platform": here.get("platform"),
        "processors": here.get("processors"),
        "GPU": here.get("cuda") or "none",
        "git commit of the working directory": None if commit is None else f"{commit}{changed}",
        "hash of the network's weights": identity.get("model"),
        "hash of the data": identity.get("data"),
        "images": counts or None,
    }
    return [(name, str(value)) for name, value in rows.items() if value not in (None, "")]
