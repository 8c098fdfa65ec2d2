"""What can go wrong, one class per kind, all derived from `AbcSearchError`.

Every message says the rule, the value found, where it was found and what to do.
"""

from __future__ import annotations

import difflib
import inspect
import json
import shlex
import unicodedata
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class AbcSearchError(Exception):
    """Base of all errors that abcsearch raises on purpose; the command line answers it with exit status 2."""


class CandidateError(AbcSearchError):
    """A candidate does not fit its search space or network: wrong length, or a value that is not allowed."""


class BudgetError(AbcSearchError):
    """A budget is malformed, or no structure of the space can meet it."""


class TooSmallError(BudgetError):
    """A budget is below the smallest structure of a space.

    Attributes:
        cost: the name of the bound.
    """

    def __init__(self, message: str, cost: str) -> None:
        super().__init__(message)
        self.cost = cost


class SearcherError(AbcSearchError):
    """A searcher was called in a way its contract forbids, or was given a state that is not its own."""


class TraceError(AbcSearchError):
    """A model cannot be traced into an operation graph, or nothing in it can be pruned."""


class ExampleError(TraceError):
    """A model does not run on the example input."""


class UnsupportedOpError(TraceError):
    """An operation has no rule for channels and the caller asked for `unknown="raise"`."""


class RankingError(AbcSearchError):
    """Channels cannot be ranked: unknown criterion, data missing or unfit, or a score that is not finite."""


class ConfigError(AbcSearchError):
    """A setting is unknown, missing, of the wrong type or out of range."""


class DataError(AbcSearchError):
    """Data are missing, unreadable, or do not fit the network."""


class ModelError(AbcSearchError):
    """A model cannot be constructed, or its forward pass does not return what is needed."""


class DivergedError(ModelError):
    """The loss of a training is not finite."""


class LessonError(AbcSearchError):
    """What a training is to teach does not keep what `abcsearch.Lesson` says."""


class PreparationError(AbcSearchError):
    """What is trained before a search cannot be, or does not keep what `Preparation` says."""


class CheckpointError(AbcSearchError):
    """A weights file is missing, unreadable, or does not fit the model."""


class RunError(AbcSearchError):
    """A run folder is missing, damaged, locked, or holds a different run."""


class TrustError(RunError):
    """A run folder from elsewhere names code, files or addresses, and nobody has said that it is to be trusted."""


class FolderGoneError(RunError):
    """A folder was renamed or deleted while it was written to."""


class FailuresError(RunError):
    """More evaluations failed in a row than `max_failures` allows; the reasons are in the message."""


class ShortageError(RunError):
    """A machine ran short of memory, file descriptors or disk space, or lost its GPU: no result of any candidate."""


class WorkerLostError(AbcSearchError):
    """A worker died or hung while it evaluated; a run evaluates the candidate once more, then gives it up."""


class NodeLostError(WorkerLostError):
    """A worker was lost with its machine: no fault of the candidate, which is evaluated once more."""


class WorkerStoppedError(WorkerLostError):
    """A worker was stopped since its machine ran out of memory: once more, then the run stops."""


class ExportError(AbcSearchError):
    """A network cannot be exported, or an export cannot be loaded back."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that is not registered: the nearest valid name, or else all of them.

    Args:
        kind: what the name stands for, in the singular ("searcher", "setting").
        name: the name as the user wrote it.
        known: the valid names.
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    called = [candidate for candidate in names if candidate == _ELSEWHERE.get(_letters(str(name)))]
    if close or called:
        return f"unknown {kind} {name!r}; did you mean {(called or close)[0]!r}?"
    far = _far(str(name), names)
    guess = f"did you mean {' or '.join(map(repr, far))}? " if far else ""
    return f"unknown {kind} {name!r}; {guess}choose one of: {', '.join(names) or '(none)'}"


# What people call things elsewhere, and the name here that is spelled otherwise.
_ELSEWHERE = {
    "abc": "bee_colony",
    "acc": "top1",
    "accuracy": "top1",
    "adam": "adamw",
    "bayesian": "response_surface",
    "bayes": "response_surface",
    "bo": "response_surface",
    "ga": "evolution",
    "genetic": "evolution",
    "gp": "optuna",
    "learningrate": "lr",
    "learnrate": "lr",
    "imagefolder": "image_folder",
    "numtrials": "n_trials",
    "trials": "n_trials",
    "parameters": "params",
    "latency": "latency_ms",
    "time": "latency_ms",
    "tpe": "optuna",
    "weights": "checkpoint",
}


def _far(name: str, names: list[str], most: int = 3) -> list[str]:
    """Returns the valid names that a name which is spelled otherwise may mean: few, or none.

    Those of the same letters whatever the case and the signs between them, and those that hold it or are held by it.
    """
    plain = {candidate: _letters(candidate) for candidate in names}
    word = _letters(name)
    same = [candidate for candidate in names if plain[candidate] == word]
    if same or len(word) < 3:
        return same
    holding = [
        candidate
        for candidate in names
        if word in plain[candidate] or (len(plain[candidate]) > 2 and plain[candidate] in word)
    ]
    close = difflib.get_close_matches(word, plain.values(), n=1, cutoff=0.6)
    return (
        holding
        if 0 < len(holding) <= most
        else [candidate for candidate in names if plain[candidate] in close]
    )


def _letters(name: str) -> str:
    """Returns letters and digits of a name, in lower case."""
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def plural(count: int, word: str) -> str:
    """Returns a count and what is counted: "1 trial", "2,000 trials"."""
    # Batches, but epochs
    ending = "" if count == 1 else "es" if word.endswith(("s", "tch", "x")) else "s"
    return f"{count:,} {word}{ending}"


def one_line(text: str, longest: int = 1000) -> str:
    """Returns a text as one line without control characters, cut where it is too long: for logs and records.

    Args:
        text: any text, of any length.
        longest: so many characters stay.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * longest]).split())
    return line if len(line) <= longest else f"{line[:longest]} ..."


# Unicode's categories of what steers and is not seen
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escaped(text: str) -> str:
    r"""Returns a text whose characters all show: a control character as \x1b, one that turns the line as \u202e.

    A name or a message out of a file could otherwise move the cursor, colour or hide what stands beside it. Newlines
    and tabs stay; what cannot be encoded (bytes in a file's name that are no UTF-8) is escaped as well.

    Args:
        text: any text.
    """
    if text.isprintable():
        return text
    return "".join(
        _escape(c) if c not in "\n\t" and unicodedata.category(c) in _UNSEEN else c for c in text
    )


def _escape(character: str) -> str:
    """Returns a character's number as Python writes it in a text."""
    code = ord(character)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def quoted(word: object) -> str:
    """Returns a path, a name or a value as one word of a command line, for a command that a message suggests.

    A folder may be called `$(rm x)` or have spaces in its name, and what a message says is pasted into a shell.

    Args:
        word: what the command is given; an ordinary path stays as it is.
    """
    return shlex.quote(str(word))


def differences(before: Any, now: Any, there: str = "in the folder", where: str = "") -> list[str]:  # noqa: ANN401
    """Returns "path: old in the folder, new now" for every plain JSON value that differs.

    Args:
        before: plain values.
        now: likewise.
        there: where the old ones are.
        where: path of both.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        before, now = cast("dict[str, Any]", before), cast("dict[str, Any]", now)
        keys = dict.fromkeys([*before, *now])
        pairs = ((f"{where}.{key}".lstrip("."), before.get(key), now.get(key)) for key in keys)
        return [line for path, old, new in pairs for line in differences(old, new, there, path)]
    # As text: 1 and 1.0 are different budgets, tuples and lists are the same.
    same = json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True)
    return [] if same else [f"{where}: {before!r} {there}, {now!r} now"]


def option_problems(function: Callable[..., object], options: Iterable[str]) -> list[str]:
    """Returns the message for every option that a function does not take, and for all that it needs and misses.

    Args:
        function: takes the options as keyword arguments.
        options: their names.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have none
        return []
    named = {
        n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = list(options)
    problems = [
        unknown_name("option", name, named) for name in given if name not in named and not takes_all
    ]
    missing = [name for name, p in named.items() if p.default is p.empty and name not in given]
    return problems + ([f"option missing: {', '.join(missing)}"] if missing else [])


def callers() -> int:
    """Returns how many calls away the code is that uses this package, as `warnings.warn` counts in the caller's place.

    Work begins at many depths, so that no number is right for all.
    """
    frame, level = inspect.currentframe(), 0
    while (
        frame is not None
        and frame.f_back is not None
        and frame.f_globals.get("__name__", "").startswith("abcsearch.")
    ):
        frame, level = frame.f_back, level + 1
    return level
