"""A .pt2 archive from anywhere, looked through before torch reads it: torch would run code that some of it names.

torch.export.load unpickles, resolves names of functions inside torch and the modules that torch imports, evaluates
texts of sizes as Python, and compiles names of values into code. So nothing is read but archives that hold what traced
networks hold: tensors as raw bytes, and graphs whose every text is a plain name, an operation or a size.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ExportError
from abcsearch.files import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OPERATIONS = re.compile(
    r"torch\.ops\.(aten|prim|prims|quantized_decomposed|torchvision|higher_order)\.\w+(\.\w+)?"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pos|pow|abs|index|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|sqrt|trunc)|torch\.sym_\w+|torch\._sym_sqrt"
)
_CALLED = ("target", "as_operator")  # keys of what torch looks up and calls
_SIZE = re.compile(r"(?:[A-Za-z_]\w*|\d+(?:\.\d+)?|'[A-Za-z_]\w*'|[-+*/%(),<>=!&|~ ])*")
_WORDS = re.compile(r"[A-Za-z_]\w*")  # in sizes
_SIZES = frozenset(
    {"Symbol", "Integer", "Float", "Rational", "Mul", "Add", "Pow", "Max", "Min", "Mod", "Abs", "Eq", "Ne", "Lt", "Le"}
    | {"Gt", "Ge", "And", "Or", "Not", "FloorDiv", "CleanDiv", "CeilDiv", "PythonMod", "ModularIndexing", "Where"}
    | {"TruncToInt", "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "ToFloat", "Identity"}
    | {"positive", "integer", "nonnegative", "real", "evaluate", "True", "False"}
)
_SYMBOL = re.compile(r"[su]\d+|zuf\d+|zf\d+")
_NAME = re.compile(r"[\w.\-+/: ]*")
_SHOWN = frozenset({"nn_module_stack", "source_fn_stack", "torch_fn", "stack_trace", "from_node"})  # only for people
_SPECS = ("in_spec", "out_spec")
_SPEC_TYPES = ("builtins.tuple", "builtins.list", "builtins.dict", None)
_OLD_PICKLE = re.compile(r"serialized_(state_dict|constants|example_inputs)\.(pt|json)")  # of torch before 2.8


def checked_archive(path: Path) -> io.BytesIO:
    """Returns a .pt2 file that holds a traced network and nothing that would run code, packed anew.

    What is returned is made of the entries that were looked at, so that no other reading of the file counts.

    Raises:
        ExportError: if it holds anything else, or is damaged.
    """
    packed = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as copy:
            names = archive.namelist()
            problem = _first(_name_problems(names))
            for name in names if problem is None else ():
                content = archive.read(name)  # compares it with its checksum
                problem = problem or _first(_entry_problems(name, content))
                copy.writestr(name, content)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        msg = f"{path} is damaged, or no archive: {error}; write it again"
        raise ExportError(msg) from error
    if problem is not None:
        msg = f"{path} is not read: {problem}, which no exported network needs and which could run code"
        raise ExportError(msg)
    packed.seek(0)
    return packed


def _first(problems: Iterator[str]) -> str | None:
    return next(problems, None)


def _name_problems(names: list[str]) -> Iterator[str]:
    """Yields what is wrong with the names of the entries."""
    if len(set(names)) < len(names):
        yield "it holds entries of one name"
    if not any(("/models/" in name or name.startswith("serialized_exported_program")) for name in names):
        yield "it holds no traced network (a .pt2 is written by torch.export.save)"
    for name in names:
        if not _NAME.fullmatch(name) or ".." in name or name.startswith("/"):
            yield f"it holds an entry {name!r:.60}"


def _entry_problems(name: str, content: bytes) -> Iterator[str]:
    """Yields what is wrong with an entry."""
    inside = name.partition("/")[2] or name
    pickled = content.startswith((b"PK", b"\x80")) or (content and name.endswith((".pt", ".pkl", ".pickle")))
    raw = inside.startswith(("data/weights/weight_", "data/constants/tensor_"))
    if _OLD_PICKLE.fullmatch(name) and pickled:
        yield from _unsafe_pickle(name, content)
    elif pickled and not raw:
        yield f"it holds a pickle, {name}"
    elif name.endswith(".json"):
        try:
            value: Any = json.loads(content or b"{}")
        except (ValueError, RecursionError) as error:
            yield f"{name} is no JSON ({error})"
            return
        if inside.startswith("extra/"):
            return  # ours, or of others: never given to torch's readers
        yield from _text_problems(value, name)
    elif not raw and len(content) > 1024:
        yield f"it holds an entry {name} of {len(content):,} bytes"


def _unsafe_pickle(name: str, content: bytes) -> Iterator[str]:
    """Yields what is wrong with tensors as older versions of torch write them."""
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it is, it holds more than tensors
        yield f"it holds a pickle of more than tensors, {name}"


def _text_problems(value: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Yields what a graph holds besides plain names, numbers, operations and sizes."""
    for path, leaf in leaves(value):
        names = [name for name in path if not _NAME.fullmatch(name)]
        if names:
            yield f"{where} holds a name {names[0]!r:.60}"
        if path and path[-1] == "use_pickle" and leaf:
            yield f"{where} says that a tensor is pickled"
        if isinstance(leaf, str) and leaf and not _SHOWN.intersection(path):
            problem = _text_problem(leaf, path[-1] if path else "")
            if problem:
                yield f"{where} holds {problem} {leaf!r:.60}"


def _text_problem(value: str, key: str) -> str:
    """Returns what a text of a graph is that it must not be, or ""."""
    if key in _CALLED:
        return "" if _OPERATIONS.fullmatch(value) else "an operation"
    if key == "expr_str":
        words = _WORDS.findall(value)
        known = all(word in _SIZES or _SYMBOL.fullmatch(word) for word in words)
        return "" if known and _SIZE.fullmatch(value) else "a size"
    if key in _SPECS:
        return "" if _plain_spec(value) else "a structure"
    return "" if _NAME.fullmatch(value) else "a text"


def _plain_spec(text: str) -> bool:
    """Returns whether a text describes nested tuples, lists and tables only."""
    try:
        spec: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    todo = spec[1:] if isinstance(spec, list) else [None]
    while todo:
        node = todo.pop()
        if not isinstance(node, dict) or node.get("type") not in _SPEC_TYPES:
            return False
        context = node.get("context")
        if context is not None and not re.fullmatch(r'[\w\[\]", ]*', str(context)):
            return False
        todo.extend(node.get("children_spec", ()))
    return True
