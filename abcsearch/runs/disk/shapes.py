"""What run.json must hold for those who only show a run: every value is of the kind that they take it for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abcsearch.baselines.registry import short
from abcsearch.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from abcsearch.runs.disk.folder import RunFolder

_WORDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    dict: "a table",
    list: "a list",
    bool: "true or false",
}
_NEEDED: dict[str, type] = {
    "settings.searcher": dict,
    "settings.searcher.name": str,
    "settings.n_trials": int,
    "settings.seed": int,
    "environment.started": str,
}
# Looked at where it is there: settings from Python, and old runs, lack some of it.
_OPTIONAL: dict[str, type] = {
    **{
        f"settings.{name}": dict
        for name in ("budget", "evaluator", "space", "latency", "execution", "model", "data")
    },
    **{f"settings.{name}.name": str for name in ("evaluator", "model", "data")},
    **{f"settings.{name}.options": dict for name in ("searcher", "evaluator", "model", "data")},
    "settings.baselines": list,
    "settings.known": list,
    "settings.finetune": dict,
    "environment.versions": dict,
    "environment.command": list,
    "environment.platform": str,
    "identity.split": dict,
    "identity.model": str,
    "identity.data": str,
    **{f"identity.split.{name}": int for name in ("train", "validation", "test")},
}


def winner_name(searcher: str) -> str:
    """Returns what files and tables call the winner of a searcher: its name, or the last word of its import path."""
    return short(searcher)


def baseline_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns what files and tables call the baselines of plain settings, by what the settings call them."""
    taken = [winner_name(settings["searcher"]["name"])]
    names: dict[str, str] = {}
    for name in settings.get("baselines", ()):
        names[name] = short(name, [*taken, *names.values()])
    return names


def shown_header(folder: RunFolder) -> dict[str, Any]:
    """Returns run.json for those who show a run.

    Raises:
        RunError: as `RunFolder.header`; if something that is shown is missing or of another kind.
    """
    header = folder.header()
    wrong = [*_problems(header)]
    if wrong:
        msg = f"{folder.path / 'run.json'} is damaged: {'; '.join(wrong)}; restore it from a copy, or start a new run"
        raise RunError(msg)
    return header


# What settings of a baseline are those of its run, besides the seed; older ones lack what came later.
_SHARED = ("budget", "space")


def other_baseline(folder: RunFolder, name: str, header: dict[str, Any]) -> str:
    """Returns that a baseline in a folder is that of another run, in words; "" if it belongs to it, or is not there.

    Args:
        folder: of the run.
        name: of the baseline.
        header: run.json of the run.

    Raises:
        RunError: if run.json of the baseline is damaged.
    """
    baseline = folder.baseline(name)
    if baseline.read_json("run.json") is None:
        return ""
    there = baseline.header()
    both = [
        (key, there["identity"].get(key), header["identity"].get(key)) for key in ("model", "data")
    ]
    both.append(("seed", there["settings"].get("seed"), header["settings"].get("seed")))
    both.append(("prepared", there["identity"].get("prepared"), header["identity"].get("prepared")))
    shared = [key for key in _SHARED if key in there["settings"] and key in header["settings"]]
    both += [(key, there["settings"][key], header["settings"][key]) for key in shared]
    others = [f"{key} {value}, not {wanted}" for key, value, wanted in both if value != wanted]
    if not others:
        return ""
    return (
        f"{baseline.path} belongs to another run ({'; '.join(others)}); restore it from a copy, or delete it: this "
        f"baseline is then searched again"
    )


def _problems(header: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is missing, and what is of another kind than it is taken for."""
    for path, kind in {**_NEEDED, **_OPTIONAL}.items():
        there, value = _value(header, path.split("."))
        if not there and path in _NEEDED:
            yield f"{path} is missing"
        elif there and not (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
            yield f"{path} is {_WORDS[kind]}, found {value!r:.60}"
    for name in ("pretrain", "prepare"):
        table = header["settings"].get(name)
        if not isinstance(table, dict | None):
            yield f"settings.{name} is a table, found {table!r:.60}"
    yield from _criterion_problems(header["settings"])
    for path in ("settings.baselines", "settings.known", "environment.command"):
        there, value = _value(header, path.split("."))
        if there and isinstance(value, list) and not all(isinstance(one, str) for one in value):
            yield f"{path} is a list of texts, found {value!r:.60}"


def _criterion_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields that the criterion of settings is neither a name nor a list of names."""
    criterion = settings.get("criterion", "")
    listed: Any = criterion if isinstance(criterion, list) else [criterion]
    if not all(isinstance(one, str) for one in listed):
        yield f"settings.criterion is a text or a list of texts, found {criterion!r:.60}"


def _value(plain: Any, path: Sequence[str]) -> tuple[bool, Any]:  # noqa: ANN401 - whatever run.json holds
    """Returns whether plain values have one at a path, and that one."""
    for key in path:
        if not isinstance(plain, dict) or key not in plain:
            return False, None
        plain = plain[key]
    return True, plain
