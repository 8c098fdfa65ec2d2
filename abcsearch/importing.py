"""Things named by import path, package.module:callable, by the user, whose word counts, or by files from elsewhere."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from abcsearch.errors import AbcSearchError

_working: list[
    Path
] = []  # the working folder, where the command line looks for modules that the user names


def use_working_folder() -> None:
    """Has modules that the user names found in the working folder, where they are nowhere else.

    Nothing else is found there: many a package tries to import others that need not be installed, and a file of such a
    name may lie in a folder that somebody has sent.
    """
    with contextlib.suppress(OSError):  # it has been deleted: nothing lies there
        _working[:] = [Path.cwd()]


def leave_working_folder() -> None:
    """Has nothing more found in the working folder: names are those of a file that was written in another one."""
    _working.clear()


def import_callable(what: str, path: str, kind: type[AbcSearchError]) -> Callable[..., Any]:
    """Returns the class or function that "package.module:callable" leads to, for a name that the user gave.

    Args:
        what: what it stands for, for messages ("model").
        path: as the user wrote it; the callable may be an attribute of a class.
        kind: the error to raise.

    Raises:
        AbcSearchError: of that kind, if the path leads nowhere, or to something that cannot be called.
    """
    reached = import_named(what, path, kind, "callable")
    if not callable(reached):
        msg = f"{what} {path!r} is not a class or function but {reached!r:.50}; write package.module:callable"
        raise kind(msg)
    return reached


def import_named(what: str, path: str, kind: type[AbcSearchError], last: str = "name") -> Any:  # noqa: ANN401 - any object
    """Returns what "package.module:name" leads to, for a name that the user gave.

    Args:
        what: what it stands for, for messages ("objective").
        path: as the user wrote it.
        kind: the error to raise.
        last: what messages call the part behind the colon.

    Raises:
        AbcSearchError: of that kind, if the path leads nowhere.
    """
    module, _, attribute = path.partition(":")
    try:
        _check_spelling(module, attribute)
        _look_in_working_folder(module.partition(".")[0])
        reached: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            msg = f"{what} {path!r} cannot be imported: {error!r}"
            raise kind(msg) from error
        msg = f"{what} {path!r} cannot be imported: there is no module {error.name} where Python looks; give the command "
        msg += (
            f"in the folder that has it, or put that folder on PYTHONPATH (package.module:{last})"
        )
        raise kind(msg) from error
    except Exception as error:  # the user's module runs here: anything can go wrong in it
        msg = f"{what} {path!r} cannot be imported: {error!r}; write package.module:{last}"
        raise kind(msg) from error
    where = module
    for name in attribute.split("."):
        try:
            reached = getattr(reached, name)
        except Exception as error:  # modules and classes may have attributes of any kind
            advice = _nearest(where, name, reached) or f"write package.module:{last}"
            why = "" if isinstance(error, AttributeError) else f" ({error!r})"
            msg = f"{what} {path!r} cannot be imported: {where} has no {name!r}{why}; {advice}"
            raise kind(msg) from error
        where = f"{where}{':' if where == module else '.'}{name}"
    return reached


def _nearest(where: str, name: str, reached: object) -> str:
    """Returns a question for the name in a module, or in a class, that is nearest to one that is not there, or ""."""
    there = [other for other in dir(reached) if not other.startswith("__")]
    close = difflib.get_close_matches(name, there, n=1, cutoff=0.6)
    return f"did you mean '{where}{'.' if ':' in where else ':'}{close[0]}'?" if close else ""


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
    _check_spelling(module, attribute)
    first, *inner = attribute.split(".")
    with _without_working_folder():
        if module not in sys.modules:
            _check_source(module, first, packages)
        try:
            reached: object = getattr(importlib.import_module(module), first)
        except (
            Exception,
            SystemExit,
        ) as error:  # installed, but it may be damaged, or need what is missing
            msg = f"it cannot be imported: {error!r}"
            raise ValueError(msg) from error
    for name in inner:  # classes inside classes; whatever else an attribute is, it is not asked for
        inside = vars(reached).get(name) if isinstance(reached, type) else None
        if inside is None:
            msg = f"there is no class {name} in {reached!r:.50}"
            raise ValueError(msg)
        reached = inside
    return reached


def _check_spelling(module: str, attribute: str) -> None:
    """Raises ValueError unless both sides of an import path are names with dots between them."""
    if not all(name.isidentifier() for name in (*module.split("."), *attribute.split("."))):
        msg = "it is no import path"
        raise ValueError(msg)


def _look_in_working_folder(top: str) -> None:
    """Puts the working folder behind all others that modules come from, where it alone has one of this name."""
    folder = next((str(folder) for folder in _working), None)
    if (
        folder is None
        or folder in sys.path
        or top in sys.modules
        or importlib.util.find_spec(top) is not None
    ):
        return
    if PathFinder.find_spec(top, [folder]) is not None:
        sys.path.append(folder)


@contextlib.contextmanager
def _without_working_folder() -> Iterator[None]:
    """Runs a block in which nothing is found in the working folder, however it came among the others."""
    before = list(sys.path)
    try:
        here = Path.cwd().resolve()
    except OSError:  # it has been deleted
        here = None
    sys.path[:] = [
        folder
        for folder in before
        if Path(folder or "/").resolve() != here and (folder or here is None)
    ]
    try:
        yield
    finally:
        sys.path[:] = before


def _check_source(module: str, name: str, packages: frozenset[str]) -> None:
    """Raises ValueError unless a module may be imported for a class of that name."""
    top, *rest = module.split(".")
    if top in sys.stdlib_module_names or any(step.startswith("__") for step in rest):
        msg = f"{module} holds no networks"
        raise ValueError(msg)
    if top in packages:
        return
    folders: Any = list(sys.path)
    origin = None
    for depth in range(len(rest) + 1):
        spec = PathFinder.find_spec(".".join([top, *rest][: depth + 1]), folders)
        if spec is None:
            msg = f"{module} is not installed"
            raise ValueError(msg)
        folders, origin = spec.submodule_search_locations or [], spec.origin
    try:
        tree = ast.parse(Path(origin or "").read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
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
        for inner in ast.iter_child_nodes(statement):
            if isinstance(inner, ast.stmt):
                yield from _classes(inner)
