"""No module needs, directly or through others, one that needs it: imports for types count as well."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import abcsearch

ROOT = Path(abcsearch.__file__).parent


def test_no_module_of_a_circle_of_imports():
    modules = {name_of(path): path for path in ROOT.rglob("*.py")}
    imports = {name: imported(path, modules) - {name} for name, path in modules.items()}
    # The package's own names are found when they are asked for, and those of a room are in its registry.
    del imports["abcsearch"]
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def name_of(path: Path) -> str:
    """Returns the dotted name of a module."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """Returns what a module imports of this package, anywhere in it; of a package, its module of that name."""
    wanted = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            wanted |= {
                full if (full := f"{node.module}.{alias.name}") in modules else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
    return wanted & modules.keys()
