"""Where a module's tests are: in the file of its name, at the same place of the tree, or where tests/README.md says."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
MODULES = TESTS.parent / "abcsearch"


def told() -> dict[str, list[str]]:
    """Returns the rows of the table: the test files of every module that it lists."""
    rows = re.findall(
        r"^\| (`\S+\.py`.*?) \| (`\S+\.py`.*?) \|$", (TESTS / "README.md").read_text(), re.MULTILINE
    )
    return {
        module: re.findall(r"`(.*?)`", files)
        for modules, files in rows
        for module in re.findall(r"`(.*?)`", modules)
    }


def test_every_module_has_tests_of_its_name_or_a_row():
    listed, missing = told(), []
    for path in MODULES.rglob("*.py"):
        module = path.relative_to(MODULES)
        own = TESTS / module.parent / f"test_{module.name}"
        if module.name != "__init__.py" and not own.exists() and module.as_posix() not in listed:
            missing.append(module.as_posix())
    assert not missing


def test_rows_are_of_modules_and_files_that_are_there_and_needed():
    for module, files in told().items():
        path = Path(module)
        assert (MODULES / path).exists(), module
        assert not (TESTS / path.parent / f"test_{path.name}").exists(), (
            f"{module} has a file of its name"
        )
        for file in files:
            assert (TESTS / file).exists(), file
