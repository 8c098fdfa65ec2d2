"""Things named by import path, package.module:callable, by the user, whose word counts, or by files from elsewhere."""

from __future__ import annotations

import ast
import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from abcsearch.errors import AbcSearchError

_working: list[str] = []  # the working folder, once the command line has it among the folders of modules


def use_working_folder() -> None:
    """Has modules in the working folder found, after all others: a torch.py beside the user is not torch.

    They are found for names that the user gives, not for names in files from elsewhere.
    """
    try:
        folder = str(Path.cwd())
    except OSError:  # it has been deleted: nothing lies there
        return
    if folder not in sys.path:
        sys.path.append(folder)
        _working[:] = [folder]


def import_callable(what: str, path: str, kind: type[AbcSearchError]) -> Callable[..., Any]:
    """Returns the class or function that "package.module:callable" leads to, for a name that the user gave.

    Args:
        what: what it stands for, for messages ("model").
        path: as the user wrote it; the callable may be an attribute of a class.
        kind: the error to raise.

    Raises:
        AbcSearchError: of that kind, if the path leads nowhere, or to something that cannot be called.
    """
    module, _, attribute = path.partition(":")
    try:
        reached: Any = importlib.import_module(module)
        for name in attribute.split("."):
            reached = getattr(reached, name)
    except Exception as error:  # the user's module runs here: anything can go wrong in it
        msg = f"{what} {path!r} cannot be imported: {error!r}; write package.module:callable"
        raise kind(msg) from error
    if not callable(reached):
        msg = f"{what} {path!r} is not a class or function but {reached!r:.50}; write package.module:callable"
        raise kind(msg)
    return reached


def import_class(path: str, packages: frozenset[str]) -> object:
    """Returns what "package.module:Class" leads to, for a name out of a file from elsewhere.

    A module that is not loaded is imported only if it belongs to one of the packages, or if its source says, before
    anything of it runs, that it defines or imports a class of that name; never one of the standard library, and never
    one that only the working folder has.

    Args:
        path: as the file has it.
        packages: that may be imported without a look at their source.

    Returns:
        Whatever it leads to: the caller has to look at its type.

    Raises:
        ValueError: if it is not imported, with the reason.
    """
    module, _, attribute = path.partition(":")
    names = attribute.split(".")
    if not all(name.isidentifier() for name in (*module.split("."), *names)):
        msg = "it is no import path"
        raise ValueError(msg)
    if module not in sys.modules:
        _check_source(module, names[0], packages)
    try:
        reached: object = getattr(importlib.import_module(module), names[0])
    except Exception as error:  # installed, but it may be damaged, or need what is missing
        msg = f"it cannot be imported: {error!r}"
        raise ValueError(msg) from error
    for name in names[1:]:  # classes inside classes; whatever else an attribute is, it is not asked for
        inside = vars(reached).get(name) if isinstance(reached, type) else None
        if inside is None:
            msg = f"there is no class {name} in {reached!r:.50}"
            raise ValueError(msg)
        reached = inside
    return reached


def _check_source(module: str, name: str, packages: frozenset[str]) -> None:
    """Raises ValueError unless a module may be imported for a class of that name."""
    top, *rest = module.split(".")
    if top in sys.stdlib_module_names or any(own.startswith("__") for own in rest):
        msg = f"{module} holds no networks"
        raise ValueError(msg)
    if top in packages:
        return
    folders: Any = [folder for folder in sys.path if folder not in _working]
    origin = None
    for depth in range(len(rest) + 1):
        spec = PathFinder.find_spec(".".join([top, *rest][: depth + 1]), folders)
        if spec is None:
            msg = f"{module} is not installed"
            raise ValueError(msg)
        folders, origin = spec.submodule_search_locations or [], spec.origin
    try:
        tree = ast.parse(Path(origin or "").read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        msg = f"{module} has no source that can be looked at"
        raise ValueError(msg) from error
    if name not in {bound for statement in tree.body for bound in _classes(statement)}:
        msg = f"{module} has no class {name}"
        raise ValueError(msg)


def _classes(statement: ast.stmt) -> Iterator[str]:
    """Yields the names that a statement of a module may bind to classes."""
    if isinstance(statement, ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)
    elif isinstance(statement, ast.If | ast.Try):
        blocks = [*ast.iter_child_nodes(statement)]
        for inner in blocks:
            if isinstance(inner, ast.stmt):
                yield from _classes(inner)
