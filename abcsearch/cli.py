"""The command line. torch and the rest are imported by the commands that need them, so that help is instant."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from abcsearch.errors import AbcSearchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from abcsearch.runs.folder import RunFolder
    from abcsearch.runs.run import SearchResult

EXAMPLES = """Examples:

  abcsearch inspect resnet56

  abcsearch list searchers

  abcsearch search experiments/digits/config.toml --run-dir runs/digits

  abcsearch finetune runs/digits

  abcsearch report runs/digits

  abcsearch export runs/digits --out digits-pruned

Add --debug to any command to see the traceback of an error."""

EXHAUSTED = "all {} structures inside the budget are evaluated"

app = typer.Typer(
    help="Search-based structured pruning: the smallest network that still does the job.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
_debug = False

RunDir = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN_DIR", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes one setting; repeatable.")]


def main() -> None:
    """Runs the command line; the entry point of the `abcsearch` script."""
    global _debug  # noqa: PLW0603 - one switch for the whole process
    _debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    sys.path.insert(0, str(Path.cwd()))  # so that "package.module:callable" finds the user's own model
    warnings.showwarning = _show_warning
    app()


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning as one line."""
    _err.print(f"warning: {message}")


@contextlib.contextmanager
def _answering(run_dir: Path | None = None, again: str = "resume") -> Iterator[None]:
    """Turns errors into one clear message and an exit status: 2 the user's, 1 ours, 130 Ctrl-C after saving."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt as error:
        started = run_dir is not None and (run_dir / "run.json").exists()
        hint = f"everything finished is saved, continue with: abcsearch {again} {run_dir}"
        _err.print(f"stopped; {hint if started else 'nothing was started yet'}")
        raise typer.Exit(130) from error
    except Exception as error:
        if _debug:
            traceback.print_exc()
        text, status = _explained(error)
        _err.print(text)
        raise typer.Exit(status) from error


def _explained(error: Exception) -> tuple[str, int]:
    """Returns the message and the exit status of an error."""
    if isinstance(error, AbcSearchError):
        return f"error: {error}", 2
    if isinstance(error, OSError):  # a full disk, a folder without permission
        return f"error: {error.filename or 'system'}: {error.strerror or error}; what is finished is kept", 2
    advice = "" if _debug else "; please report it with what --debug prints"
    return f"internal error: {type(error).__name__}: {error}{advice}", 1


class _Bar:
    """Progress as one bar per stage on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, note=note)
            self._progress.reset(self._tasks[stage], completed=max(done - 1, 0), total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total, note=note)


class _Lines:
    """Progress as plain lines: the first and the last step of a stage and, in between, about every tenth part."""

    def __init__(self) -> None:
        self._stage = ""
        self._start, self._first = 0.0, 0

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        from abcsearch.runs.loop import milestone

        first = stage != self._stage
        if first:
            self._stage, self._start, self._first = stage, time.monotonic(), done
        if not (first or milestone(done, total)):
            return
        left = ""
        if not first and done < total:
            seconds = (time.monotonic() - self._start) / (done - self._first) * (total - done)
            left = f", {_duration(seconds)} left"
        _out.print(f"{stage}: {done}/{total}, {note}{left}")


def _duration(seconds: float) -> str:
    """Returns a duration as 42 s, 3:07 or 1:02:03."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if whole < 60:
        return f"{whole} s"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """Yields a bar on a terminal, plain lines otherwise."""
    if not _out.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=_out) as progress:
        yield _Bar(progress)


def _version(*, asked: bool) -> None:
    """Prints the version and ends."""
    if asked:
        _out.print(version("abcsearch"))
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[bool, typer.Option("--version", callback=lambda v: _version(asked=v), is_eager=True)] = False,  # noqa: FBT002 - an option
) -> None:
    """Search-based structured pruning: the smallest network that still does the job."""


@app.command(epilog="Example: abcsearch search experiments/digits/config.toml --set n_trials=50 --set budget.macs=0.5")
def search(
    config: Annotated[Path, typer.Argument(help="Config file (TOML).", metavar="CONFIG", show_default=False)],
    run_dir: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/ and the config's name.", show_default=False)
    ] = None,
    overrides: Set = None,
) -> None:
    """Trains the base network if needed, searches, and runs the baselines. Run again, it continues."""
    name = config.parent.resolve().name if config.stem == "config" else config.stem
    folder = run_dir or Path("runs") / name
    with _answering(folder):
        from abcsearch.config import read_config
        from abcsearch.runs.configured import run_config

        settings = read_config(config, overrides or ())
        with _progress() as progress:
            result = run_config(settings, folder, progress=progress)
        _print_best(result)


@app.command(epilog="Example: abcsearch resume runs/digits")
def resume(run_dir: RunDir) -> None:
    """Continues a run that was stopped or killed; a finished one is only shown."""
    with _answering(run_dir):
        from abcsearch.runs.configured import resume as resume_run

        with _progress() as progress:
            result = resume_run(run_dir, progress=progress)
        _print_best(result)


@app.command(epilog="Example: abcsearch status runs/digits")
def status(run_dir: RunDir) -> None:
    """Shows how far a run is, while it runs or afterwards."""
    with _answering():
        from abcsearch.runs.folder import RunFolder

        folder = RunFolder(run_dir)
        header = folder.header()
        settings = header["settings"]
        searcher, n_trials = settings["searcher"]["name"], settings["n_trials"]
        _out.print(f"{run_dir}: {searcher}, seed {settings['seed']}, started {header['environment']['started']}")
        found = _print_status(searcher, folder, n_trials)
        for path in sorted((Path(run_dir) / "baselines").glob("*/run.json")):
            _print_status(f"baseline {path.parent.name}", RunFolder(path.parent), n_trials)
        ended = f"finished: {EXHAUSTED.format(found)}" if folder.exhausted() else "not running"
        _out.print("running now" if folder.in_use() else ended)


def _print_status(name: str, folder: RunFolder, n_trials: int) -> int:
    """Prints the trials, failures and best of one search; returns how many trials there are."""
    from abcsearch.runs.journal import read_journal
    from abcsearch.trial import best_trial

    found = read_journal(folder.journal).trials
    trials = [trial for number, trial in sorted(found.items()) if number < n_trials]
    failed = sum(trial.evaluation.failure is not None for trial in trials)
    best = best_trial(trials)
    line = f"{name}: {len(trials)} of {n_trials} trials, {failed} failed"
    if best is not None:
        line += f", best {best.fitness:.4f} (trial {best.number}, {best.evaluation.macs:,} MACs)"
    seconds = sum(trial.evaluation.seconds for trial in trials)
    _out.print(f"{line}; {_duration(seconds)} of evaluations")
    return len(trials)


@app.command(epilog="Example: abcsearch finetune runs/digits --set epochs=20")
def finetune(run_dir: RunDir, overrides: Set = None) -> None:
    """Fine-tunes the winner and the baselines with one recipe; --set changes fields of the recipe."""
    with _answering(run_dir, "finetune"):
        from abcsearch.config import parse_recipe
        from abcsearch.runs.configured import finetune_run, open_run

        run = open_run(run_dir)
        recipe = parse_recipe(overrides or (), run.config.finetune)
        with _progress() as progress:
            finetune_run(run, recipe, progress=progress)
        for structure in run.structures:
            scores = run.scores(structure)
            if scores is not None:
                _out.print(f"{structure.name}: test {run.metric} {run.change(scores)}")


@app.command(epilog="Example: abcsearch report runs/digits")
def report(run_dir: RunDir) -> None:
    """Prints the table full / uniform / random / winner and writes it to report.md and report.json."""
    with _answering(run_dir, "report"):
        from abcsearch.runs.configured import open_run
        from abcsearch.runs.report import FRONT, make_report, write_report

        run = open_run(run_dir)
        made = make_report(run)
        path = write_report(made, run)
        _out.print(made.title)
        _print_table(*made.cells(short=True))
        for note in made.notes:
            _out.print(note)
        _out.print(FRONT)
        _print_table(*made.front_cells())
        _out.print(f"written to {path}")


@app.command(epilog="Example: abcsearch export runs/digits --out digits-pruned")
def export(
    run_dir: RunDir,
    format: Annotated[str, typer.Option(help="safetensors: weights and plan.json for abcsearch.load.")] = "safetensors",  # noqa: A002 - the option's name
    out: Annotated[Path | None, typer.Option(help="Folder; by default RUN_DIR/export.", show_default=False)] = None,
) -> None:
    """Exports the winner (fine-tuned if it has been) and checks that it loads back with the same outputs."""
    with _answering(run_dir, "export"):
        from abcsearch.errors import ConfigError, unknown_name
        from abcsearch.runs.configured import export_run, open_run

        if format != "safetensors":
            raise ConfigError(unknown_name("export format", format, ["safetensors"]))
        path, tuned = export_run(open_run(run_dir), out)
        state = "fine-tuned" if tuned else "not fine-tuned yet"
        _out.print(f"exported to {path} ({state}); load it with: abcsearch.load({str(path)!r})")


@app.command("list", epilog="Example: abcsearch list searchers, or with all there is to say: list searchers bee_colony")
def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="searchers, evaluators, criteria, models or datasets.")],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, whole.", show_default=False)
    ] = None,
) -> None:
    """Lists what a config can name, with options and their defaults."""
    with _answering():
        from abcsearch.catalog import catalog

        entries = catalog(kind, name)
        if name is not None:
            _out.print(entries[0].text)
            return
        for entry in entries:
            _out.print(f"{entry.name}: {entry.description}" + (f" ({entry.source})" if entry.source else ""))
            if entry.options:
                _out.print(f"    {', '.join(entry.options)}")


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
    with _answering():
        from abcsearch.config import read_inspected
        from abcsearch.runs.inspection import Inspection, inspect_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what has no rule is printed below the table
            found = inspect_model(*read_inspected(target, shape, overrides or ()))
        _print_table(Inspection.HEAD, *(group.cells() for group in found.groups))
        for line in found.totals:
            _out.print(line)
        if found.unsupported:
            _out.print(
                "Operations without a rule; what they touch is fixed. Your own rule: see README, Rules of your own."
            )
        for line in found.unsupported:
            _out.print(f"  {line}")
        if png is not None:
            found.draw(png)
            _out.print(f"drawn in {png}")


def _print_table(head: Iterable[str], *rows: Iterable[str]) -> None:
    """Prints a table without ever cutting a cell: a terminal that is too narrow wraps the lines."""
    table = Table(*head, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*row)
    wide = Console(width=1000, highlight=False, markup=False, emoji=False)
    wide.width = wide.measure(table).maximum
    wide.print(table)


def _print_best(result: SearchResult) -> None:
    """Prints the winner of a search: layer before => after, and its costs."""
    from abcsearch.runs.folder import RunFolder

    task, best = result.task, result.best
    full = task.space.full
    _out.print(f"run folder: {result.run_dir}")
    if RunFolder(result.run_dir).exhausted():
        _out.print(EXHAUSTED.format(len(result.trials)))
    _out.print(f"best of {len(result.trials)} trials: trial {best.number}, fitness {best.fitness:.4f}")
    for dimension, (name, (kept, channels)) in zip(task.space.dimensions, result.widths.items(), strict=True):
        change = ("kept" if kept else "dropped") if dimension.kind == "block" else f"{channels} => {kept}"
        _out.print(f"  {name}: {change}")
    for name in ("macs", "params"):
        cost = getattr(task.graph.costs, name)
        before, after = int(cost([full])[0]), int(cost([best.candidate])[0])
        _out.print(f"  {name}: {before:,} => {after:,} ({after / before:.1%})")
