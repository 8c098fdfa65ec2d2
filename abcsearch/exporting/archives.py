"""A .pt2 archive from anywhere, looked through before torch reads it: torch would run code that some of it names.

torch.export.load unpickles, compiles, looks names of functions up inside torch and the modules that torch imports,
evaluates texts of sizes as Python, and has operations that read and write files. So nothing is read but archives of
which every entry is known by its very name, and graphs whose every text is a plain name, an operation that computes,
or a size.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ExportError
from abcsearch.files import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FACTS = "abcsearch"  # key of what an export says of itself, in either file
_MOST = 4 * 2**30  # bytes of an archive
# Entries by what they hold, behind the archive's own name. Anything else is not read.
_TEXTS = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/version|\.data/serialization_id"
)
_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_CONFIGS = re.compile(r"data/(weights/model_weights|constants/model_constants)_config\.json")
_GRAPH, _EMPTY, _EXTRA = "models/model.json", "data/sample_inputs/model.pt", "extra/"
_OLD = re.compile(
    r"serialized_(exported_program\.json|(state_dict|constants|example_inputs)\.(pt|json))|version"
)
_TENSOR = re.compile(r"(weight|tensor)_\d+")

_SPACES = ("aten", "quantized_decomposed", "torchvision")
_OPERATION = re.compile(rf"torch\.ops\.({'|'.join(_SPACES)})\.(_?[A-Za-z]\w*)\.([A-Za-z]\w*)")
# Operations that read files, print, or change what a tensor is made of.
_NOT_CALLED = frozenset(
    {"from_file", "record_stream", "set", "set_", "set_data", "shallow_copy_data_", "_print"}
)
_SMALL = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pos|abs|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|sqrt|trunc)|torch\.sym_(int|float|max|min|not|sqrt|ite|sum)"
)
_CALLED = ("target", "as_operator")  # keys of what torch looks up and calls
_SIZE = re.compile(r"(?!.*\*\*)(?:[A-Za-z_]\w*|\d{1,9}|'[a-z]+\d+'|[-+*/%(),= ]){1,300}")
_WORD = re.compile(r"[A-Za-z_]\w*")  # in sizes
_SIZES = frozenset(
    {
        "Symbol",
        "Integer",
        "Mul",
        "Add",
        "Max",
        "Min",
        "Mod",
        "Abs",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
    }
    | {
        "Not",
        "FloorDiv",
        "CleanDiv",
        "CeilDiv",
        "PythonMod",
        "ModularIndexing",
        "TruncToInt",
        "IntTrueDiv",
        "Identity",
    }
    | {"positive", "integer", "nonnegative", "True", "False"}
)
_SYMBOL = re.compile(r"[su]\d+")
_NAME = re.compile(r"[\w.\-+/: ]*")
_SPECS = ("in_spec", "out_spec")
_SPEC_TYPES = ("builtins.tuple", "builtins.list", "builtins.dict", None)


def read_entries(path: Path) -> dict[str, bytes]:
    """Returns the entries of an archive by name, each as its checksum says.

    Raises:
        ExportError: if it is damaged or none, or its entries are not plainly there: packed, twice, or too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            plain = all(
                info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
                for info in infos
            )
            if (
                not plain
                or len(set(names)) < len(names)
                or sum(info.file_size for info in infos) > _MOST
            ):
                msg = f"{path} is not read: its entries are compressed, twice there, or too large, which could run code "
                raise ExportError(f"{msg}or fill the memory, and which no exported network needs")
            return {name: archive.read(name) for name in names}
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        OSError,
        EOFError,
        NotImplementedError,
        ValueError,
    ) as error:
        msg = f"{path} is damaged, or no archive: {error}; write it again with: abcsearch export RUN_DIR --format pt2"
        raise ExportError(msg) from error


def content_of(entries: Mapping[str, bytes]) -> list[Any]:
    """Returns how many entries hold a network, and their hash: all but what is written beside it, and ids."""
    held = {
        name: entry
        for name, entry in entries.items()
        if "extra" not in name and ".data/" not in name
    }
    digest = hashlib.sha256()
    for name, entry in sorted(held.items()):
        digest.update(f"{name}\0{len(entry)}\0".encode() + entry)
    return [len(held), digest.hexdigest()[:16]]


def facts_in(entries: Mapping[str, bytes]) -> str | None:
    """Returns what an archive says of itself, or None."""
    facts = [
        entry
        for name, entry in entries.items()
        if name.endswith((f"extra/{FACTS}.json", f"files/{FACTS}.json"))
    ]
    return facts[0].decode(errors="replace") if facts else None


def checked_archive(entries: Mapping[str, bytes], path: Path) -> io.BytesIO:
    """Returns an archive of a traced network that holds nothing that would run code, packed anew.

    What is returned is made of the entries that were looked at, so that no other reading of the file counts; what
    people may read in a graph, such as where in the source an operation comes from, is left out.

    Args:
        entries: of the file.
        path: for messages.

    Raises:
        ExportError: if it holds anything else.
    """
    root = next(iter(entries), "").partition("/")[0]
    inside = {name.removeprefix(f"{root}/"): entry for name, entry in entries.items()}
    old = _GRAPH not in inside
    kept: dict[str, bytes] = {}
    problem = None if len(inside) == len(entries) else "it holds entries of one name"
    for name, entry in inside.items():
        problem = problem or next(
            _old_problems(name, entry) if old else _problems(name, entry), None
        )
        if problem is None and _EXTRA not in name and "extra_files/" not in name:
            kept[name] = (
                _cleaned(entry) if name in (_GRAPH, "serialized_exported_program.json") else entry
            )
    if problem is None and not any(
        name in kept for name in (_GRAPH, "serialized_exported_program.json")
    ):
        problem = "it holds no traced network (a .pt2 is written by torch.export.save)"
    if problem is not None:
        msg = f"{path} is not read: {problem}, which could run code; if you trust it, say so: trust=True, --trust"
        raise ExportError(msg)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as copy:
        for name, entry in kept.items():
            copy.writestr(name if old else f"{root}/{name}", entry)
    packed.seek(0)
    return packed


def _problems(name: str, entry: bytes) -> Iterator[str]:
    """Yields what is wrong with an entry."""
    if name == _GRAPH:
        yield from _json_problems(name, entry)
    elif _CONFIGS.fullmatch(name):
        yield from _json_problems(name, entry)
        yield from _config_problems(name, entry)
    elif name == _EMPTY and entry:
        yield f"it holds a pickle, {name}"
    elif _TEXTS.fullmatch(name) and len(entry) > 100:
        yield f"it holds an entry {name} of {len(entry):,} bytes"
    elif not (
        name == _EMPTY or _TEXTS.fullmatch(name) or _TENSORS.fullmatch(name) or _is_extra(name)
    ):
        yield f"it holds an entry {name!r:.60}"


def _old_problems(name: str, entry: bytes) -> Iterator[str]:
    """Yields what is wrong with an entry of an archive as torch before 2.8 writes it, with tensors as pickles."""
    if name == "serialized_exported_program.json":
        yield from _json_problems(name, entry)
    elif not (
        _OLD.fullmatch(name) or _TEXTS.fullmatch(name) or name == f"extra_files/{FACTS}.json"
    ):
        yield f"it holds an entry {name!r:.60}"
    elif _OLD.fullmatch(name) and name != "version":
        try:
            torch.load(io.BytesIO(entry), map_location="cpu", weights_only=True)
        except Exception:  # noqa: BLE001 - whatever it is, it holds more than tensors
            yield f"it holds a pickle of more than tensors, {name}"


def _is_extra(name: str) -> bool:
    """Returns whether an entry is what was written beside a network, which is not handed to torch."""
    return name.startswith(_EXTRA) and bool(_NAME.fullmatch(name)) and ".." not in name


def _config_problems(name: str, entry: bytes) -> Iterator[str]:
    """Yields what is wrong with a list of tensors: each must be raw bytes in an entry of tensors."""
    for path, leaf in leaves(json.loads(entry)):
        if path[-1] == "path_name" and not (isinstance(leaf, str) and _TENSOR.fullmatch(leaf)):
            yield f"{name} takes a tensor from {leaf!r:.60}"
        if path[-1] == "use_pickle" and leaf is not False:
            yield f"{name} says that a tensor is pickled"


def _cleaned(entry: bytes) -> bytes:
    """Returns a graph without what it tells people of its operations."""
    graph: Any = json.loads(entry)
    todo = [graph]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if "target" in value and isinstance(value.get("metadata"), dict):
                value["metadata"] = {}
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
    return json.dumps(graph).encode()


def _json_problems(where: str, entry: bytes) -> Iterator[str]:
    """Yields what JSON holds besides plain names, numbers, operations and sizes."""
    try:
        listed = [*leaves(json.loads(_cleaned(entry)))]
    except (ValueError, RecursionError) as error:
        yield f"{where} is no JSON ({error!r:.60})"
        return
    for path, leaf in listed:
        names = [name for name in path if not _NAME.fullmatch(name)]
        if names:
            yield f"{where} holds a name {names[0]!r:.60}"
        problem = (
            _text_problem(leaf, path[-1] if path else "") if isinstance(leaf, str) and leaf else ""
        )
        if problem:
            yield f"{where} holds {problem} {leaf!r:.60}"


def _text_problem(value: str, key: str) -> str:
    """Returns what a text of a graph is that it must not be, or ""."""
    if key in _CALLED:
        return "" if _SMALL.fullmatch(value) or _computes(value) else "an operation"
    if key == "expr_str":
        known = all(word in _SIZES or _SYMBOL.fullmatch(word) for word in _WORD.findall(value))
        return "" if known and _SIZE.fullmatch(value) else "a size"
    if key in _SPECS:
        return "" if _plain_spec(value) else "a structure"
    return "" if _NAME.fullmatch(value) else "a text"


def _computes(target: str) -> bool:
    """Returns whether a name is that of an operation on tensors that torch's dispatcher knows."""
    named = _OPERATION.fullmatch(target)
    if named is None or named[2] in _NOT_CALLED:
        return False
    space, name, overload = named.groups()
    full = f"{space}::{name}" if overload == "default" else f"{space}::{name}.{overload}"
    return torch._C._dispatch_has_kernel(full)  # there is no public list of them


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
