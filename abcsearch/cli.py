"""The command line. torch and the rest are imported by the commands that need them, so that help is instant."""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abcsearch.terminal import EXHAUSTED, answering, console, print_status, print_table, progress_shown, set_up, watch

if TYPE_CHECKING:
    from abcsearch.runs.run import SearchResult
    from abcsearch.runs.watching import WatcherFactory

EXAMPLES = """Examples:

  abcsearch inspect resnet56

  abcsearch list searchers

  abcsearch search experiments/digits/config.toml --run-dir runs/digits

  abcsearch finetune runs/digits

  abcsearch report runs/digits

  abcsearch compare runs/digits runs/digits-evolution

  abcsearch export runs/digits --out digits-pruned

Add --debug to any command to see the traceback of an error."""

app = typer.Typer(
    help="Search-based structured pruning: the smallest network that still does the job.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RunDir = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN_DIR", show_default=False)]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Evaluations at a time, each in a process; 0: in this one.", show_default=False),
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDR", help="Evaluate on the Ray cluster there.", show_default=False)
]
UseTensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write scalars to RUN_DIR/tensorboard.")]
OptunaStorage = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Mirror the trials into an Optuna study, for optuna-dashboard URL.", show_default=False
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes one setting; repeatable.")]


def main() -> None:
    """Runs the command line; the entry point of the `abcsearch` script."""
    set_up()
    sys.path.insert(0, str(Path.cwd()))  # so that "package.module:callable" finds the user's own model
    app()


def _version(*, asked: bool) -> None:
    """Prints the version and ends."""
    if asked:
        console.print(version("abcsearch"))
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[bool, typer.Option("--version", callback=lambda v: _version(asked=v), is_eager=True)] = False,  # noqa: FBT002 - an option
) -> None:
    """Search-based structured pruning: the smallest network that still does the job."""


@app.command(epilog="Example: abcsearch search experiments/digits/config.toml --set n_trials=50 --set budget.macs=0.5")
def search(  # noqa: PLR0913 - one argument per option
    config: Annotated[Path, typer.Argument(help="Config file (TOML).", metavar="CONFIG", show_default=False)],
    run_dir: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/ and the config's name.", show_default=False)
    ] = None,
    overrides: Set = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    tensorboard: UseTensorBoard = False,  # noqa: FBT002 - an option
    optuna_storage: OptunaStorage = None,
) -> None:
    """Trains the base network if needed, searches, and runs the baselines. Run again, it continues."""
    name = config.parent.resolve().name if config.stem == "config" else config.stem
    folder = run_dir or Path("runs") / name
    with answering(folder):
        from abcsearch.config import read_config
        from abcsearch.runs.configured import run_config

        given = _execution(workers, ray_address)
        own = [f"execution.{key}={json.dumps(value)}" for key, value in given.items()]
        settings = read_config(config, [*(overrides or ()), *own])
        watchers = _watchers(optuna_storage, tensorboard=tensorboard)
        with progress_shown() as progress:
            result = run_config(settings, folder, progress=progress, **watchers)
        _print_best(result)


@app.command(epilog="Example: abcsearch resume runs/digits --workers 4")
def resume(  # noqa: PLR0913 - one argument per option
    run_dir: RunDir,
    n_trials: Annotated[
        int | None, typer.Option(min=1, help="Structures to evaluate in all, other than before.", show_default=False)
    ] = None,
    until: Annotated[
        int | None, typer.Option(min=0, help="Keep only the first lines of a damaged journal.", show_default=False)
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    tensorboard: UseTensorBoard = False,  # noqa: FBT002 - an option
    optuna_storage: OptunaStorage = None,
) -> None:
    """Continues a run that was stopped or killed; a finished one is only shown."""
    with answering(run_dir):
        from abcsearch.runs.configured import resume as resume_run

        changes = _given(n_trials=n_trials, until=until, execution=_execution(workers, ray_address) or None)
        watchers = _watchers(optuna_storage, tensorboard=tensorboard)
        with progress_shown() as progress:
            result = resume_run(run_dir, progress=progress, **changes, **watchers)
        _print_best(result)


def _given(**options: Any) -> dict[str, Any]:  # noqa: ANN401 - of any option
    """Returns the options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def _execution(workers: int | None, ray_address: str | None) -> dict[str, Any]:
    """Returns the settings of the execution that the user gave."""
    return _given(workers=workers, ray_address=ray_address)


def _watchers(optuna_storage: str | None, *, tensorboard: bool) -> dict[str, Any]:
    """Returns who watches the search, as an argument, if anybody does."""
    found: list[WatcherFactory] = []
    if tensorboard:
        from abcsearch.runs.watching import tensorboard_watcher

        found.append(tensorboard_watcher())
    if optuna_storage is not None:
        from abcsearch.runs.mirror import optuna_watcher

        found.append(optuna_watcher(optuna_storage))
    return {"watchers": found} if found else {}


@app.command(epilog="Example: abcsearch status runs/digits --watch")
def status(
    run_dir: RunDir,
    watching: Annotated[bool, typer.Option("--watch", help="Look every second until it is finished.")] = False,  # noqa: FBT002
) -> None:
    """Shows how far a run is, while it runs or afterwards."""
    with answering():
        from abcsearch.runs.status import RunWatch

        show = watch if watching else print_status
        show(RunWatch(run_dir))


@app.command(epilog="Example: abcsearch finetune runs/digits --set epochs=20")
def finetune(run_dir: RunDir, overrides: Set = None) -> None:
    """Fine-tunes the winner and the baselines with one recipe; --set changes fields of the recipe."""
    with answering(run_dir, "finetune"):
        from abcsearch.config import parse_recipe
        from abcsearch.runs.finetuning import finetune_run
        from abcsearch.runs.finished import open_run

        run = open_run(run_dir)
        recipe = parse_recipe(overrides or (), run.config.finetune)
        with progress_shown() as progress:
            finetune_run(run, recipe, progress=progress)
        for structure in run.structures:
            scores = run.scores(structure)
            if scores is not None:
                console.print(f"{structure.name}: test {run.metric} {run.change(scores)}")


@app.command(epilog="Example: abcsearch report runs/digits")
def report(run_dir: RunDir) -> None:
    """Writes report.html: charts, and the table full / uniform / random / winner; also of an unfinished run."""
    with answering(run_dir, "report"):
        from abcsearch.reporting.gathering import gather
        from abcsearch.reporting.report_page import state_of, title_of, write_page
        from abcsearch.runs.report import FRONT

        found = gather(run_dir)
        path = write_page(found)
        console.print(title_of(found))
        if found.report is not None:
            print_table(*found.report.cells(short=True))
            for note in found.report.notes:
                console.print(note)
            console.print(FRONT)
            print_table(*found.report.front_cells())
        else:
            console.print(f"{state_of(found)} No table of networks: {found.missing}")
        console.print(f"written to {path}; the pictures as PNG files to {path.with_suffix('')}")


@app.command(epilog="Example: abcsearch compare runs/digits runs/digits-random --out compare.html")
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN_DIR RUN_DIR ...")],
    out: Annotated[Path, typer.Option(help="The page; pictures and numbers go beside it.")] = Path("compare.html"),
) -> None:
    """Puts several runs side by side: best fitness over trials, fronts, widths, and a table of the winners."""
    with answering():
        from abcsearch.reporting.compare_page import winner_cells, write_comparison
        from abcsearch.reporting.comparison import compare_runs

        found = compare_runs(run_dirs)
        path = write_comparison(found, out)
        print_table(*winner_cells(found.winners))
        for warning in found.warnings:
            console.print(f"note: {warning}")
        console.print(f"written to {path}")


@app.command(epilog="Example: abcsearch export runs/digits --out digits-pruned")
def export(
    run_dir: RunDir,
    format: Annotated[str, typer.Option(help="safetensors: weights and plan.json for abcsearch.load.")] = "safetensors",  # noqa: A002 - the option's name
    out: Annotated[Path | None, typer.Option(help="Folder; by default RUN_DIR/export.", show_default=False)] = None,
) -> None:
    """Exports the winner (fine-tuned if it has been) and checks that it loads back with the same outputs."""
    with answering(run_dir, "export"):
        from abcsearch.errors import ConfigError, unknown_name
        from abcsearch.runs.exports import export_run
        from abcsearch.runs.finished import open_run

        if format != "safetensors":
            raise ConfigError(unknown_name("export format", format, ["safetensors"]))
        path, tuned = export_run(open_run(run_dir), out)
        state = "fine-tuned" if tuned else "not fine-tuned yet"
        console.print(f"exported to {path} ({state}); load it with: abcsearch.load({str(path)!r})")


@app.command("list", epilog="Example: abcsearch list searchers, or with all there is to say: list searchers bee_colony")
def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="searchers, evaluators, criteria, models or datasets.")],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, whole.", show_default=False)
    ] = None,
) -> None:
    """Lists what a config can name, with options and their defaults."""
    with answering():
        from abcsearch.catalog import catalog

        entries = catalog(kind, name)
        if name is not None:
            console.print(entries[0].text)
            return
        for entry in entries:
            console.print(f"{entry.name}: {entry.description}" + (f" ({entry.source})" if entry.source else ""))
            if entry.options:
                console.print(f"    {', '.join(entry.options)}")


@app.command(epilog="Example: abcsearch inspect torchvision.models:resnet50 --input 3x224x224 --png widths.png")
def inspect(
    target: Annotated[
        str,
        typer.Argument(help="Name of a model, package.module:callable, or config file.", metavar="MODEL|CONFIG"),
    ],
    shape: Annotated[
        str | None, typer.Option("--input", metavar="CxHxW", help="One input of a MODEL; by default what suits it.")
    ] = None,
    overrides: Set = None,
    png: Annotated[Path | None, typer.Option(help="Draws the widths along the network.", show_default=False)] = None,
) -> None:
    """Prints what can be pruned: groups, blocks, choices, shares of macs and params; and why the rest stays.

    For a MODEL, --set changes its options (classes=100) and the space (space.alpha=1).
    """
    with answering():
        from abcsearch.config import read_inspected
        from abcsearch.runs.inspection import Inspection, inspect_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what has no rule is printed below the table
            found = inspect_model(*read_inspected(target, shape, overrides or ()))
        print_table(Inspection.HEAD, *(group.cells() for group in found.groups))
        for line in found.totals:
            console.print(line)
        if found.unsupported:
            console.print(
                "Operations without a rule; what they touch is fixed. Your own rule: see README, Rules of your own."
            )
        for line in found.unsupported:
            console.print(f"  {line}")
        if png is not None:
            found.draw(png)
            console.print(f"drawn in {png}")


def _print_best(result: SearchResult) -> None:
    """Prints the winner of a search: layer before => after, and its costs."""
    from abcsearch.runs.folder import RunFolder

    task, best = result.task, result.best
    full = task.space.full
    console.print(f"run folder: {result.run_dir}")
    if RunFolder(result.run_dir).exhausted():
        console.print(EXHAUSTED.format(len(result.trials)))
    console.print(f"best of {len(result.trials)} trials: trial {best.number}, fitness {best.fitness:.4f}")
    for dimension, (name, (kept, channels)) in zip(task.space.dimensions, result.widths.items(), strict=True):
        change = ("kept" if kept else "dropped") if dimension.kind == "block" else f"{channels} => {kept}"
        console.print(f"  {name}: {change}")
    for name in ("macs", "params"):
        cost = getattr(task.graph.costs, name)
        before, after = int(cost([full])[0]), int(cost([best.candidate])[0])
        console.print(f"  {name}: {before:,} => {after:,} ({after / before:.1%})")
