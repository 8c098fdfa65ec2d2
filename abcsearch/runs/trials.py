"""The trials of a search as a table: a row each, for pandas, spreadsheets and programs."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import TYPE_CHECKING, Any

from abcsearch.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from abcsearch.trial import Trial

_FIXED = ("number", "fitness", "best_so_far", "macs", "params", "seconds", "finished", "failure")
_MISSING = (
    "{what} needs {package}, which is not installed ({error}); run: pip install 'abcsearch[tables]'"
)


def rows_of(
    trials: Sequence[Trial],
    names: Sequence[str] = (),
    criteria: Sequence[str] = (),
    finished: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Returns a row for every trial, all with the same columns.

    Columns are number, fitness (None of a failed trial), best_so_far, macs, params, seconds (of the evaluation),
    finished (unix seconds), failure (None of a success); metric.NAME; width.LAYER, kept channels, of a block 1 or 0;
    and, where criteria are searched, criterion.LAYER.

    Args:
        trials: in the order of asking.
        names: of widths and blocks, as far as they are known; else layers are numbered.
        criteria: the criteria that every width chooses from; () where there is no choice.
        finished: when each was on disk, by number; None: nobody knows.
    """
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.evaluation.metrics))
    rows: list[dict[str, Any]] = []
    best = -math.inf
    for trial in trials:
        evaluation = trial.evaluation
        best = best if evaluation.fitness is None else max(best, evaluation.fitness)
        values = (
            *(
                trial.number,
                evaluation.fitness,
                best if best > -math.inf else None,
                evaluation.macs,
                evaluation.params,
                evaluation.seconds,
            ),
            *((finished or {}).get(trial.number), evaluation.failure),
        )
        row: dict[str, Any] = dict(zip(_FIXED, values, strict=True))
        row |= {f"metric.{name}": evaluation.metrics.get(name) for name in metrics}
        rows.append(row | _structure(trial.candidate, names, criteria))
    return rows


def _structure(
    candidate: Sequence[int], names: Sequence[str], criteria: Sequence[str]
) -> dict[str, Any]:
    """Returns the columns of a structure: widths and blocks, then the criteria that have chosen the channels."""
    count = len(names) or len(candidate)
    called = [*(names or (f"layer {index + 1}" for index in range(count)))]
    columns: dict[str, Any] = {
        f"width.{name}": kept for name, kept in zip(called, candidate, strict=False)
    }
    chosen = zip(called, candidate[count:], strict=False) if names else ()
    known = dict(enumerate(criteria))
    return columns | {f"criterion.{name}": known.get(number, number) for name, number in chosen}


def frame_of(rows: Sequence[Mapping[str, Any]]) -> Any:  # noqa: ANN401 - a DataFrame, of a package that need not be there
    """Returns rows as a pandas DataFrame with the trials' numbers as its index.

    Raises:
        ConfigError: if pandas is not installed.
    """
    try:
        import pandas as pd  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise ConfigError(
            _MISSING.format(what="a frame of trials", package="pandas", error=error)
        ) from error
    frame = pd.DataFrame(list(rows))
    return frame.set_index("number") if len(frame) else frame


def _as_json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns rows as a JSON list; numbers that are not finite become null."""
    finite = [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        for row in rows
    ]
    return (json.dumps(finite, indent=1, allow_nan=False) + "\n").encode()


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns rows as CSV; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_harmless(name) for name in rows[0]] if rows else _FIXED)
    writer.writerows([_harmless(value) for value in row.values()] for row in rows)
    return text.getvalue().encode()


def _harmless(value: Any) -> Any:  # noqa: ANN401 - a plain value
    return (
        f"'{value}"
        if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
        else value
    )


def _as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns rows as a Parquet file.

    Raises:
        ConfigError: if pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports] - an extra
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            _MISSING.format(what="--format parquet", package="pyarrow", error=error)
        ) from error
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
    return file.getvalue()


FORMATS: dict[str, Callable[[Sequence[Mapping[str, Any]]], bytes]] = {
    "csv": _as_csv,
    "parquet": _as_parquet,
    "json": _as_json,
}


def format_of(out: Path | None, asked: str | None) -> str:
    """Returns the format that is asked for, by name or by what a file's name ends in; csv by default.

    Raises:
        ConfigError: if there is none of that name, or Parquet, which is no text, has no file.
    """
    name = asked or ("csv" if out is None else out.suffix.removeprefix(".") or "csv")
    if name not in FORMATS:
        raise ConfigError(unknown_name("format", name, FORMATS))
    if name == "parquet" and out is None:
        raise ConfigError("--format parquet is no text: name a file, e.g. --out trials.parquet")
    return name
