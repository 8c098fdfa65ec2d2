"""init: a config to begin with."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from abcsearch.bars import wait_shown
from abcsearch.errors import quoted
from abcsearch.terminal import answering, console

app = typer.Typer()


@app.command(
    epilog="Example: abcsearch init --model torchvision.models:resnet18 --checkpoint mine.pt --data flowers/"
)
def init(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Name of a model, or package.module:callable.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Folder with train/CLASS/IMAGE and val/CLASS/IMAGE, an .npz file, a data set's name, or "
            "package.module:function.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Trained weights; without, it is trained first.",
            show_default=False,
        ),
    ] = None,
    macs: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of the MACs that may be left.")
    ] = 0.5,
    n_trials: Annotated[int, typer.Option(min=1, help="Structures to evaluate.")] = 200,
    out: Annotated[Path, typer.Option(help="The file that is written.")] = Path("config.toml"),
) -> None:
    """Writes a config to begin with, every line explained, for a network and a folder of images.

    What is needed and not given is asked for on a terminal.
    """
    with answering():
        model, data = (
            _answered("--model", model, "resnet20"),
            _answered("--data", data, "data/flowers"),
        )
        with wait_shown():
            from abcsearch.config import parse_run
            from abcsearch.errors import ConfigError
            from abcsearch.starter import Wish, starter

            if out.exists():
                msg = f"{out} is there already and stays as it is; name another file: --out {quoted('other.toml')}"
                raise ConfigError(msg)
            weights = None if checkpoint is None else str(checkpoint)
            wish = Wish(model=model, data=data, checkpoint=weights, macs=macs, trials=n_trials)
            text = starter(wish, quoted(out))
            parse_run(tomllib.loads(text), str(out))
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("x", encoding="utf-8") as file:
                file.write(text)
        console.print(f"written to {out}")
        console.print(f"next: abcsearch search {quoted(out)} --dry-run")


def _answered(option: str, value: str | None, example: str) -> str:
    """Returns what was given or, on a terminal, is answered now.

    Raises:
        ConfigError: if it was not given, and there is nobody to ask.
    """
    if value is not None:
        return value
    if sys.stdin.isatty() and console.is_terminal:
        words = {
            "--model": "network (name, or package.module:callable)",
            "--data": "data (folder of images, or name)",
        }
        return str(typer.prompt(words[option]))
    from abcsearch.errors import ConfigError

    msg = f"{option} is missing, and there is no terminal to ask on: e.g. {option} {example}"
    raise ConfigError(msg)
