"""trials: the trials of a run as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abcsearch.cli.options import RunDir
from abcsearch.errors import plural
from abcsearch.terminal import answering, console

if TYPE_CHECKING:
    from abcsearch.reporting.history import History

app = typer.Typer()


@app.command(epilog="Example: abcsearch trials runs/digits --out trials.parquet")
def trials(
    run_dir: RunDir,
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(
            help="csv, parquet or json; by default what --out ends in, else csv.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file; without, it is printed.", show_default=False)
    ] = None,
) -> None:
    """Writes the trials of a run as a table: fitness, costs, metrics, widths; also while it runs, and of old runs.

    Of several budgets, those of all, with the budget's name.
    """
    with answering():
        from abcsearch.files import replace_file
        from abcsearch.reporting.history import read_history
        from abcsearch.runs.front_folder import is_front, runs_of
        from abcsearch.runs.trials import FORMATS, format_of

        name = format_of(out, format)
        rows: list[dict[str, Any]] = []
        for run in runs_of(run_dir):
            first = {"budget": run.path.name} if is_front(run_dir) else {}
            rows += [first | row for row in _rows(read_history(run.path))]
        columns = dict.fromkeys(key for row in rows for key in row)
        made = FORMATS[name]([{key: row.get(key) for key in columns} for row in rows])
        if out is None:
            console.file.write(made.decode())
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, lambda path: path.write_bytes(made))
        console.print(f"{plural(len(rows), 'trial')} written to {out}")


def _rows(history: History) -> list[dict[str, Any]]:
    """Returns the rows of a run's own search."""
    from abcsearch.runs.trials import rows_of

    search = history.own
    names = history.names if len(history.names) == history.n_dims or history.criteria else ()
    return rows_of(search.trials, names, history.criteria, search.finished)
