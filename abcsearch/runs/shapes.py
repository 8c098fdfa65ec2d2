"""What run.json must hold for those who only show a run: every value is of the kind that they take it for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from abcsearch.runs.folder import RunFolder

_WORDS: dict[type, str] = {str: "a text", int: "a whole number", dict: "a table", list: "a list", bool: "true or false"}
_NEEDED: dict[str, type] = {
    "settings.searcher": dict,
    "settings.searcher.name": str,
    "settings.n_trials": int,
    "settings.seed": int,
    "environment.started": str,
}
# Looked at where it is there: settings from Python, and old runs, lack some of it.
_OPTIONAL: dict[str, type] = {
    **{f"settings.{name}": dict for name in ("budget", "evaluator", "space", "latency", "execution", "model", "data")},
    **{f"settings.{name}.name": str for name in ("evaluator", "model", "data")},
    **{f"settings.{name}.options": dict for name in ("searcher", "evaluator", "model", "data")},
    "settings.baselines": list,
    "settings.criterion": str,
    "settings.finetune": dict,
    "environment.versions": dict,
    "environment.command": list,
    "environment.platform": str,
    "identity.split": dict,
    "identity.model": str,
    "identity.data": str,
    **{f"identity.split.{name}": int for name in ("train", "validation", "test")},
}


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


def _problems(header: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is missing, and what is of another kind than it is taken for."""
    for path, kind in {**_NEEDED, **_OPTIONAL}.items():
        there, value = _value(header, path.split("."))
        if not there and path in _NEEDED:
            yield f"{path} is missing"
        elif there and not (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
            yield f"{path} is {_WORDS[kind]}, found {value!r:.60}"
    pretrain = header["settings"].get("pretrain")
    if not isinstance(pretrain, dict | None):
        yield f"settings.pretrain is a table, found {pretrain!r:.60}"
    for path in ("settings.baselines", "environment.command"):
        there, value = _value(header, path.split("."))
        if there and isinstance(value, list) and not all(isinstance(one, str) for one in value):
            yield f"{path} is a list of texts, found {value!r:.60}"


def _value(plain: Any, path: Sequence[str]) -> tuple[bool, Any]:  # noqa: ANN401 - whatever run.json holds
    """Returns whether plain values have one at a path, and that one."""
    for key in path:
        if not isinstance(plain, dict) or key not in plain:
            return False, None
        plain = plain[key]
    return True, plain
