"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunDir = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN_DIR", show_default=False)]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Evaluations at a time, each in a process; 0: in this one.", show_default=False
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="Evaluate on the Ray cluster there.", show_default=False),
]
UseTensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write scalars to RUN_DIR/tensorboard.")
]
OptunaStorage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Mirror the trials into an Optuna study, for optuna-dashboard URL.",
        show_default=False,
    ),
]
MLflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow", metavar="URI", help="Write the trials into MLflow there.", show_default=False
    ),
]
WandB = Annotated[
    str | None,
    typer.Option(
        "--wandb",
        metavar="PROJECT",
        help="Write the trials into Weights & Biases.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead, for scripts.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be done, and how long it would take.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Take what comes from elsewhere at its word: what it names is imported, read and run.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Changes one setting; repeatable."),
]
Loss = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="Of several budgets: accuracy that may be lost; 1.",
        show_default=False,
    ),
]
