"""The command line. torch and the rest are imported by the commands that need them, so that help is instant."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abcsearch.terminal import (
    EXHAUSTED,
    answering,
    console,
    print_json,
    print_status,
    print_table,
    progress_shown,
    set_up,
    watch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.execution.ray_training import RayTraining
    from abcsearch.runs.run import SearchResult
    from abcsearch.runs.settings import RunConfig
    from abcsearch.runs.watching import WatcherFactory

EXAMPLES = """Examples:

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

# Of `list`; the catalog itself would import torch.
KINDS = ("searchers", "evaluators", "criteria", "models", "datasets", "recipes")

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead, for scripts.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, and how long it would take.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes one setting; repeatable.")]


def main() -> None:
    """Runs the command line; the entry point of the `abcsearch` script."""
    set_up()
    sys.path.insert(0, str(Path.cwd()))  # so that "package.module:callable" finds the user's own model
    app()


def _version(*, asked: bool) -> None:
    """Prints the version and ends."""
    if asked:
        from importlib.metadata import version

        console.print(version("abcsearch"))
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[bool, typer.Option("--version", callback=lambda v: _version(asked=v), is_eager=True)] = False,  # noqa: FBT002 - an option
) -> None:
    """Search-based structured pruning: the smallest network that still does the job."""


SEARCH_EXAMPLE = """Example: abcsearch search experiments/digits/config.toml --set n_trials=50 --set budget.macs=0.5

Before: abcsearch search experiments/digits/config.toml --dry-run"""


@app.command(epilog=SEARCH_EXAMPLE)
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
    dry_run: DryRun = False,  # noqa: FBT002 - an option
    as_json: AsJson = False,  # noqa: FBT002 - an option
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
        if dry_run or as_json:
            _rehearse(settings, folder, dry_run=dry_run, as_json=as_json)
            return
        watchers = _watchers(optuna_storage, tensorboard=tensorboard)
        with progress_shown() as progress:
            result = run_config(settings, folder, progress=progress, **watchers)
        _print_best(result)


def _rehearse(settings: RunConfig, folder: Path, *, dry_run: bool, as_json: bool) -> None:
    """Prints what a search would do."""
    from abcsearch.errors import ConfigError
    from abcsearch.runs.rehearsal import rehearse

    if not dry_run:
        msg = "--json belongs to --dry-run: add that, or leave --json out"
        raise ConfigError(msg)
    found = rehearse(settings, folder)
    if as_json:
        console.print(json.dumps(found.to_plain(), indent=1))
        return
    for line in found.lines:
        console.print(line)


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
    as_json: AsJson = False,  # noqa: FBT002 - an option
) -> None:
    """Shows how far a run is, while it runs or afterwards. --watch --json prints a line whenever something changes."""
    with answering():
        from abcsearch.runs.status import RunWatch

        show = watch if watching else print_status
        show(RunWatch(run_dir), as_json=as_json)


@app.command(epilog="Example: abcsearch finetune runs/digits --set preset=cifar --set epochs=20 --workers 4")
def finetune(
    run_dir: RunDir,
    overrides: Set = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of Ray Train that share every batch.", show_default=False)
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Train on the Ray cluster there.", show_default=False)
    ] = None,
) -> None:
    """Fine-tunes the winner and the baselines with one recipe; --set changes fields of the recipe. It continues.

    --set preset=NAME takes a recipe of `abcsearch list recipes`, with further --set as changes to it.
    """
    with answering(run_dir, "finetune"):
        from abcsearch.config import parse_recipe
        from abcsearch.runs.finetuning import finetune_run
        from abcsearch.runs.finished import open_run

        run = open_run(run_dir)
        recipe = parse_recipe(overrides or (), run.config.finetune)
        together = _together(workers, ray_address, run.folder.log)
        with progress_shown() as progress:
            finetune_run(run, recipe, workers=together, progress=progress)
        for structure in run.structures:
            scores = run.scores(structure)
            if scores is not None:
                console.print(f"{structure.name}: test {run.metric} {run.change(scores)}")


def _together(workers: int | None, ray_address: str | None, log: Callable[[str], object]) -> RayTraining | None:
    """Returns who trains, where it is not this process alone."""
    if ray_address is not None and workers is None:
        from abcsearch.errors import ConfigError

        msg = f"--ray-address {ray_address} without workers: say how many, e.g. --workers 4"
        raise ConfigError(msg)
    if workers is None or (workers == 1 and ray_address is None):
        return None
    from abcsearch.execution.ray_training import RayTraining

    return RayTraining(workers=workers, address=ray_address, log=log)


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


@app.command(epilog="Example: abcsearch export runs/digits --format onnx --out digits.onnx")
def export(
    run_dir: RunDir,
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(
            help="safetensors: a folder for abcsearch.load; onnx; pt2: for torch.export.load. "
            "By default what --out ends in, else safetensors.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder or file; by default in RUN_DIR/export.", show_default=False)
    ] = None,
) -> None:
    """Exports the winner (fine-tuned if it has been) and checks that it loads back with the same outputs."""
    with answering(run_dir, "export"):
        from abcsearch.exporting.files import check_target
        from abcsearch.runs.exports import export_run
        from abcsearch.runs.finished import open_run

        check_target(out or run_dir, format)
        made, tuned = export_run(open_run(run_dir), out, format=format)
        console.print(f"exported to {made}")
        state = "fine-tuned" if tuned else f"not fine-tuned yet (abcsearch finetune {run_dir})"
        console.print(f"{state}; try it with: abcsearch evaluate {made.path}; load it with: {made.how_to_load}")


@app.command(epilog="Example: abcsearch evaluate digits.onnx --data runs/digits")
def evaluate(  # noqa: PLR0913 - one argument per option
    model: Annotated[
        Path,
        typer.Argument(
            help="What export wrote: a folder, an .onnx or a .pt2 file.", metavar="MODEL", show_default=False
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="CONFIG|RUN_DIR|NAME", help="Its data; by default those of its run.", show_default=False),
    ] = None,
    overrides: Set = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per pass when time is measured.")] = 64,
    split: Annotated[str, typer.Option(help="test or validation (that of the search).")] = "test",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto; .onnx and .pt2 run on the CPU.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU when time is measured.")] = 1,
    as_json: AsJson = False,  # noqa: FBT002 - an option
) -> None:
    """Prints metrics on the test images, forward time and size of an export; --set changes options of --data."""
    with answering():
        from abcsearch.config import read_data
        from abcsearch.runs.evaluating import EvaluationOptions, evaluate_export

        options = EvaluationOptions(batch=batch, split=split, device=device, threads=threads)
        found = evaluate_export(model, read_data(data, overrides or ()), options)
        if as_json:
            print_json(asdict(found))
            return
        for line in found.lines():
            console.print(line)


@app.command("list", epilog="Example: abcsearch list searchers, or with all there is to say: list searchers bee_colony")
def list_(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.", autocompletion=lambda: KINDS),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, whole.", show_default=False)
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002 - an option
) -> None:
    """Lists what a config can name, with options and their defaults."""
    with answering():
        from abcsearch.catalog import catalog

        entries = catalog(kind, name)
        if as_json:
            print_json([asdict(entry) for entry in entries])
            return
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
    as_json: AsJson = False,  # noqa: FBT002 - an option
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
        if png is not None:
            found.draw(png)
        if as_json:
            print_json(asdict(found))
            return
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
