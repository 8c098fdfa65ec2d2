"""Plain values of TOML checked, and made into frozen records."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.records import no_table


def typed(where: str, annotation: Any, value: Any) -> Any:  # noqa: ANN401 - plain values
    """Returns a value of exactly the annotated type; a list (TOML knows no tuples) counts as a tuple.

    Raises:
        ConfigError: saying what is wrong with it.
    """
    try:
        return TypeAdapter(annotation).validate_python(
            tuple(value) if isinstance(value, list) else value, strict=True
        )
    except ValidationError as error:
        if {"dict_type", "mapping_type", "dataclass_type"} & {
            item["type"] for item in error.errors()
        }:
            raise ConfigError(no_table(where, value)) from error
        texts = [item["msg"].replace("tuple", "list") for item in error.errors()]
        reasons = dict.fromkeys(text[0].lower() + text[1:] for text in texts)
        raise ConfigError(f"{where} = {value!r}: {', or '.join(reasons)}") from error


def checked_table(key: str, value: Any) -> dict[str, Any]:  # noqa: ANN401 - a plain value
    """Returns a table, or raises ConfigError where there is something else."""
    if not isinstance(value, dict):
        raise ConfigError(no_table(key, value))
    return value


def record_of(kind: type, plain: dict[str, Any], where: str) -> Any:  # noqa: ANN401 - the record
    """Returns a frozen record with every key and type checked.

    Raises:
        ConfigError: with all unknown keys and wrong types of the table.
    """
    known = {f.name: f for f in fields(kind)}
    problems = [
        unknown_name(f"setting in [{where}]:", key, known) for key in plain if key not in known
    ]
    problems += [
        f"setting {name!r} in [{where}] is missing"
        for name, f in known.items()
        if f.default is MISSING and f.default_factory is MISSING and name not in plain
    ]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key in known:
        if key in plain:
            try:
                values[key] = typed(f"{where}.{key}", hints[key], plain[key])
            except ConfigError as error:
                problems.append(str(error))
    if not problems:
        try:
            return kind(**values)
        except ConfigError as error:
            problems = [
                f"[{where}]: {line.removeprefix(f'{where}: ')}" for line in str(error).split("\n")
            ]
    raise ConfigError("\n".join(problems))


def set_override(plain: dict[str, Any], override: str) -> None:
    """Sets one dotted key in place."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set takes dotted.key=value, found {override!r}")
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        read = {"value": text.strip()}
    if len(read) != 1:
        raise ConfigError(f"--set changes one setting at a time, found {override!r}")
    value = read["value"]
    *tables, key = path.strip().split(".")
    table: Any = plain
    for name in tables:
        inner = table.get(name, {})
        table[name] = {"name": inner} if isinstance(inner, str) else inner
        table = table[name]
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {name} is not a table")
    table[key] = value
