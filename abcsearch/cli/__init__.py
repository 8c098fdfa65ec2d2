"""The command line. torch and the rest are imported by the commands that need them, so that help is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from abcsearch.cli import finishing, looking, searching, starting, tabling
from abcsearch.importing import use_working_folder
from abcsearch.terminal import console, set_up

EXAMPLES = """Examples:

  abcsearch init --model resnet20 --data flowers/

  abcsearch inspect resnet56

  abcsearch list searchers

  abcsearch search experiments/digits/config.toml --run-dir runs/digits

  abcsearch finetune runs/digits

  abcsearch report runs/digits

  abcsearch compare runs/digits runs/digits-evolution

  abcsearch export runs/digits --out digits-pruned

  abcsearch evaluate digits-pruned

Anywhere on the line:

  -q, --quiet: no progress

  -v, --verbose: also what a run writes to its log

  --debug: the traceback of an error"""

app = typer.Typer(
    help="Search-based structured pruning: the smallest network that still does the job.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (starting, searching, finishing, tabling, looking):
    app.add_typer(commands.app)


def main() -> None:
    """Runs the command line; the entry point of the `abcsearch` script."""
    set_up()
    use_working_folder()  # so that "package.module:callable" finds the user's own model
    app()


def _version(*, asked: bool) -> None:
    """Prints the version and ends."""
    if asked:
        from importlib.metadata import version

        console.print(version("abcsearch"))
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[  # noqa: FBT002
        bool, typer.Option("--version", callback=lambda v: _version(asked=v), is_eager=True)
    ] = False,
) -> None:
    """Search-based structured pruning: the smallest network that still does the job."""
