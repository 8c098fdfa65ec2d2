"""Rows in a file, with the settings and versions that they were measured by; what `peers` and `criteria` share."""

from __future__ import annotations

import importlib.metadata
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from abcsearch.config import toml_of
from abcsearch.errors import ConfigError, differences
from abcsearch.files import replace_file
from abcsearch.tables import set_override
from experiments.tables import processors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

Row = dict[str, Any]
PACKAGES = ("abcsearch", "torch", "numpy")  # what every row depends on
_DECIDING = ("seed", "model", "data", "pretrain", "space", "finetune")  # of a config
_PATHS = (("data", "path"), ("model", "checkpoint"))  # where this machine has them decides nothing


def decided(file: str | Path, given: Sequence[str]) -> dict[str, Any]:
    """Returns what of a config rows depend on, as plain values: what it says, and the caller's changes.

    Args:
        file: TOML.
        given: changes, "key=value".

    Raises:
        ConfigError: if the file cannot be read, or a change is none.
    """
    plain = toml_of(file)
    for change in given:
        set_override(plain, change)
    for table, key in _PATHS:
        if isinstance(plain.get(table), dict):
            plain[table].pop(key, None)
    return {key: plain[key] for key in _DECIDING if key in plain}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    versions: dict[str, str] = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package).partition("+")[0]
    return versions


def stamped(row: Row, packages: Iterable[str] = PACKAGES) -> Row:
    """Returns a row with the machine and the versions of packages that it was measured with."""
    return {**row, "machine": processors(), "versions": installed(packages)}


def measured_with(rows: Iterable[Row]) -> str:
    """Returns the machines and versions of rows in words, each once."""
    texts = {
        f"{row['machine']}; {', '.join(' '.join(pair) for pair in row['versions'].items())}"
        for row in rows
        if "skipped" not in row
    }
    return " / ".join(sorted(texts))


class Kept:
    """The rows that are known, in a file that is written after every row.

    Rows of a kind have settings and versions in common; what could not be measured says why, under "skipped".

    Attributes:
        file: JSON.
        rows: by what each is of.
        settings: plain values by kind.
    """

    def __init__(
        self, file: Path, key: Sequence[str], kind: Sequence[str], held: AbstractSet[str]
    ) -> None:
        """Reads the file, if it is there.

        Args:
            file: of the rows.
            key: what a row is of.
            kind: what rows that have settings in common are of.
            held: what a row has besides, unless it was skipped.

        Raises:
            ConfigError: if it holds something else.
        """
        self.file = file
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self._key, self._kind, self._held = tuple(key), tuple(kind), held
        if not file.exists():
            return
        try:
            read = json.loads(file.read_text())
            self.settings = {kind: dict(shared) for kind, shared in read["settings"].items()}
            self.rows = {self.key(row): self._checked(row) for row in read["rows"]}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            msg = f"{file} is damaged ({error!r}); restore it, or give another --results"
            raise ConfigError(msg) from error

    def _checked(self, row: Row) -> Row:
        """Returns a row of the file.

        Raises:
            ValueError: if it lacks something.
        """
        if self.kind(row) not in self.settings:
            msg = f"rows of {self.kind(row)} have no settings"
            raise ValueError(msg)
        missing = {*self._held, "machine", "versions"} - {*row}
        if missing and "skipped" not in row:
            msg = f"a row has no {', '.join(sorted(missing))}"
            raise ValueError(msg)
        dict(row.get("versions", {}))
        return row

    def key(self, row: Row) -> tuple[Any, ...]:
        """Returns what a row is of."""
        return tuple(row[name] for name in self._key)

    def kind(self, row: Row) -> str:
        """Returns the name of what rows have settings in common with a row."""
        return ", ".join(str(row[name]) for name in self._kind)

    def begin(
        self, kind: str, settings: dict[str, Any], packages: Iterable[str], *, anew: bool
    ) -> None:
        """Takes up what rows of a kind that are to come have in common.

        Args:
            kind: as `kind` returns it.
            settings: plain values.
            packages: what the rows to come depend on.
            anew: whether the rows of the kind that are there are dropped.

        Raises:
            ConfigError: if rows of the kind are there by other settings or versions, with what differs, and are not
                dropped. A version that a row does not state is not compared.
        """
        if anew:
            self.rows = {key: row for key, row in self.rows.items() if self.kind(row) != kind}
        known = [row for row in self.rows.values() if self.kind(row) == kind]
        changed = differences(self.settings[kind], settings, "there") if known else []
        changed += _other_versions(known, installed(packages))
        if changed:
            msg = f"{self.file} has rows ({kind}) by other settings or versions: {'; '.join(changed)}. Change that back, "
            raise ConfigError(f"{msg}give another --name or --results, or drop these rows (--anew)")
        self.settings[kind] = settings

    def add(self, row: Row) -> None:
        """Adds a row, and writes the file.

        Raises:
            ConfigError: if it cannot be written.
        """
        self.rows[self.key(row)] = row
        lines = ",\n".join(json.dumps(known) for known in self.rows.values())
        head = json.dumps({"settings": self.settings}).removesuffix("}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(
                self.file, lambda path: path.write_text(f'{head}, "rows": [\n{lines}\n]}}\n')
            )
        except OSError as error:
            msg = f"{self.file} cannot be written: {error}"
            raise ConfigError(msg) from error

    def known(self) -> list[Row]:
        """Returns the rows.

        Raises:
            ConfigError: if there are none.
        """
        if not self.rows:
            msg = f"{self.file} has no rows yet; without --redraw they are made"
            raise ConfigError(msg)
        return list(self.rows.values())


def _other_versions(rows: Iterable[Row], now: Mapping[str, str]) -> list[str]:
    """Returns "package: old there, new now" for every version that rows state and that is another one now."""
    stated = {pair for row in rows for pair in row.get("versions", {}).items()}
    return [
        f"{package}: {version} there, {now[package]} now"
        for package, version in sorted(stated)
        if now.get(package, version) != version
    ]
