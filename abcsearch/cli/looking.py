"""list and inspect: what there is, and what can be pruned."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abcsearch.bars import wait_shown
from abcsearch.cli.options import AsJson, Set
from abcsearch.errors import ExampleError, quoted
from abcsearch.terminal import answering, console, print_json, print_table

if TYPE_CHECKING:
    from abcsearch.example import Inputs

# Of `list`; the catalog itself would import numpy.
KINDS = (
    "searchers",
    "evaluators",
    "preparations",
    "transforms",
    "criteria",
    "models",
    "datasets",
    "recipes",
    "metrics",
    "objectives",
)
# The last ones: tables of a config
KINDS += ("baselines", "space", "budget", "latency", "execution")

app = typer.Typer()


@app.command(
    "list",
    epilog="Example: abcsearch list searchers, or with all there is to say: list searchers bee_colony",
)
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}; without one, these are listed.",
            autocompletion=lambda: KINDS,
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, whole.", show_default=False)
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002 - an option
) -> None:
    """Lists what a config can name, and the settings of its tables, with their defaults."""
    with answering():
        if kind is None:
            print_json(KINDS) if as_json else console.print(
                "\n".join(f"abcsearch list {known}" for known in KINDS)
            )
            return
        from abcsearch.catalog import catalog

        entries = catalog(kind, name)
        if as_json:
            print_json([asdict(entry) for entry in entries])
            return
        if name is not None:
            console.print(entries[0].text)
            return
        for entry in entries:
            console.print(
                f"{entry.name}: {entry.description}"
                + (f" ({entry.source})" if entry.source else "")
            )
            if entry.options:
                console.print(f"    {', '.join(entry.options)}")


@app.command(
    epilog="Example: abcsearch inspect torchvision.models:resnet50 --input 3x224x224 --png widths.png"
)
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            help="Name of a model, package.module:callable, or config file.", metavar="MODEL|CONFIG"
        ),
    ],
    shape: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="CxHxW", help="One input of a MODEL; by default what suits it."
        ),
    ] = None,
    overrides: Set = None,
    png: Annotated[
        Path | None, typer.Option(help="Draws the widths along the network.", show_default=False)
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002 - an option
) -> None:
    """Prints what can be pruned: groups, blocks, choices, shares of macs and params; and why the rest stays.

    For a MODEL, --set changes its options (classes=100) and the space (space.alpha=1).
    """
    with answering(), wait_shown():
        from abcsearch.asked import read_inspected
        from abcsearch.planning.inspection import Inspection, inspect_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what has no rule is printed below the table
            model, example, space, criteria = read_inspected(target, shape, overrides or ())
            try:
                inspection = inspect_model(model, example, space, criteria)
            except ExampleError as error:
                raise _with_input(error, target, example) from error
        if png is not None:
            inspection.draw(png)
        if as_json:
            print_json(asdict(inspection))
            return
        print_table(Inspection.HEAD, *(group.cells() for group in inspection.groups))
        for line in inspection.totals:
            console.print(line)
        if inspection.unsupported:
            console.print(
                "Operations without a rule; what they touch is fixed. Rules of your own: docs/prunable.md"
            )
        for line in inspection.unsupported:
            console.print(f"  {line}")
        if png is not None:
            console.print(f"drawn in {png}")
        console.print(f"next: {_after_inspect(target)}")


def _after_inspect(target: str) -> str:
    """Returns the command that comes after a look at a network."""
    if target.endswith(".toml") or Path(target).is_file():
        return f"abcsearch search {quoted(target)} --dry-run"
    return f"abcsearch init --model {quoted(target)}"


def _with_input(error: ExampleError, target: str, example: Inputs) -> ExampleError:
    """Returns the error of a network that does not run on an input, in words of the command line."""
    from abcsearch.example import Example

    if isinstance(example, Example):  # of a config, whose data say what is fed
        return ExampleError(str(error))
    shape = tuple(example.shape[1:])
    reason = str(error).partition(": ")[2].partition("; pass one batch")[0]
    return ExampleError(
        f"{target} does not run on one input of {'x'.join(map(str, shape))}; say what one of its inputs is: --input "
        f"CHANNELSxHEIGHTxWIDTH, e.g. --input 1x28x28, or --input 12 for 12 numbers (it says: {reason})"
    )
