"""search, resume and status."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from abcsearch.bars import progress_shown, wait_shown
from abcsearch.cli.options import (
    AsJson,
    DryRun,
    Loss,
    MLflow,
    OptunaStorage,
    RayAddress,
    RunDir,
    Set,
    Trust,
    UseTensorBoard,
    WandB,
    Workers,
)
from abcsearch.errors import plural, quoted
from abcsearch.terminal import answering, console, print_json, print_status, print_table, watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.runs.front import FrontResult
    from abcsearch.runs.front_settings import Front
    from abcsearch.runs.progress import Progress
    from abcsearch.runs.result import SearchResult
    from abcsearch.runs.seeds import SeedsResult
    from abcsearch.runs.settings import RunConfig
    from abcsearch.runs.watching import WatcherFactory

app = typer.Typer()

SEARCH_EXAMPLE = """Example: abcsearch search experiments/digits/config.toml --set n_trials=50 --set budget.macs=0.5

Several budgets: tables [[budgets]] in the config, instead of [budget]

Before: abcsearch search experiments/digits/config.toml --dry-run"""


class _SeveralSeeds(TyperCommand):
    """Takes all numbers after --seeds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - of click, which typer may bring along
        """Parses the command line."""
        given: list[str] = []
        within = False
        for word in args:
            within = word == "--seeds" or (within and word.isdecimal())
            given += ["--seeds", word] if within and word != "--seeds" else [] if within else [word]
        return super().parse_args(ctx, given)


@app.command(epilog=SEARCH_EXAMPLE, cls=_SeveralSeeds)
def search(  # noqa: PLR0913 - one argument per option
    config: Annotated[
        Path, typer.Argument(help="Config file (TOML).", metavar="CONFIG", show_default=False)
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Run folder; by default runs/ and the config's name.", show_default=False
        ),
    ] = None,
    overrides: Set = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N ...",
            min=0,
            help="Run with each of these seeds, in RUN_DIR/seed-N.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    tensorboard: UseTensorBoard = False,  # noqa: FBT002 - an option
    optuna_storage: OptunaStorage = None,
    mlflow: MLflow = None,
    wandb: WandB = None,
    dry_run: DryRun = False,  # noqa: FBT002 - an option
    as_json: AsJson = False,  # noqa: FBT002 - an option
    rebuild: Annotated[  # noqa: FBT002 - an option
        bool,
        typer.Option(
            "--rebuild",
            help="This is the config of the run whose run.json is lost, though none shows it.",
        ),
    ] = False,
) -> None:
    """Trains the base network if needed, searches, and runs the baselines. Run again, it continues.

    Where run.json of the run folder is lost, it is made again, if the journal shows that this is the run's config.
    """
    name = config.parent.resolve().name if config.stem == "config" else config.stem
    folder = run_dir or Path("runs") / name
    shown = wait_shown if dry_run or as_json else progress_shown
    with answering(folder), shown() as progress:
        from abcsearch.config import read_run
        from abcsearch.errors import ConfigError
        from abcsearch.runs.config_run import run_config, run_front_config
        from abcsearch.runs.front_settings import Front

        if (config / "run.json").is_file():
            msg = f"{config} is a run folder, not a config; continue its run with: abcsearch resume {quoted(config)}"
            raise ConfigError(msg)
        given = _execution(workers, ray_address)
        changes = [f"execution.{key}={json.dumps(value)}" for key, value in given.items()]
        settings = read_run(config, [*(overrides or ()), *changes])
        watchers = _watchers(optuna_storage, mlflow, wandb, tensorboard=tensorboard)
        if seeds:
            result = _with_seeds(
                settings, folder, seeds, progress, watchers, dry_run=dry_run or as_json
            )
        elif dry_run or as_json:
            _rehearse(
                settings, folder, dry_run=dry_run, as_json=as_json, chosen=run_dir is not None
            )
            if not as_json:
                console.print(f"next: {_same_search(config, run_dir, [*(overrides or ())], given)}")
            return
        elif isinstance(settings, Front):
            result = run_front_config(settings, folder, progress=progress, **watchers)
        else:
            result = run_config(
                settings, folder, progress=progress, **_given(rebuild=rebuild or None), **watchers
            )
    _print_found(result)


def _same_search(
    config: Path, run_dir: Path | None, overrides: list[str], given: dict[str, Any]
) -> str:
    """Returns the command that searches as was asked for, without --dry-run."""
    words = [
        "abcsearch",
        "search",
        str(config),
        *(("--run-dir", str(run_dir)) if run_dir is not None else ()),
    ]
    words += [word for override in overrides for word in ("--set", override)]
    words += [
        word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    return shlex.join(words)


def _with_seeds(
    settings: RunConfig | Front[RunConfig],
    folder: Path,
    seeds: Sequence[int],
    progress: Progress,
    watchers: dict[str, Any],
    *,
    dry_run: bool,
) -> SeedsResult:
    """Returns what the same search finds with several seeds."""
    from abcsearch.errors import ConfigError
    from abcsearch.runs.config_run import LoadedOnce, run_config
    from abcsearch.runs.front_settings import Front
    from abcsearch.runs.seeds import run_seeds

    if dry_run or isinstance(settings, Front):
        what = (
            "--dry-run looks at one search"
            if dry_run
            else "[[budgets]] are several searches already"
        )
        msg = f"{what}: leave --seeds out"
        raise ConfigError(msg)
    load = LoadedOnce()

    def run(seed: int, path: Path) -> SearchResult:
        def shown(stage: str, done: int, total: int, note: str) -> None:
            progress(f"seed {seed}: {stage}", done, total, note)

        return run_config(replace(settings, seed=seed), path, load=load, progress=shown, **watchers)

    return run_seeds(seeds, folder, run)


def _rehearse(
    settings: RunConfig | Front[RunConfig],
    folder: Path,
    *,
    dry_run: bool,
    as_json: bool,
    chosen: bool,
) -> None:
    """Prints what a search would do."""
    from abcsearch.errors import ConfigError
    from abcsearch.planning.dry_run import rehearse, rehearse_front
    from abcsearch.runs.front_settings import Front

    if not dry_run:
        msg = "--json belongs to --dry-run: add that, or leave --json out"
        raise ConfigError(msg)
    if isinstance(settings, Front):
        rehearsal = rehearse_front(settings, folder, chosen=chosen)
    else:
        rehearsal = rehearse(settings, folder, chosen=chosen)
    if as_json:
        print_json(rehearsal.to_plain())
        return
    for line in rehearsal.lines:
        console.print(line)


@app.command(epilog="Example: abcsearch resume runs/digits --workers 4")
def resume(  # noqa: PLR0913 - one argument per option
    run_dir: RunDir,
    n_trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Structures to evaluate in all, other than before.", show_default=False
        ),
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(
            min=0, help="Keep only the first lines of a damaged journal.", show_default=False
        ),
    ] = None,
    retry_failed: Annotated[  # noqa: FBT002 - an option
        bool,
        typer.Option(
            "--retry-failed", help="Evaluate failed trials again, and what depends on them."
        ),
    ] = False,
    shorten: Annotated[  # noqa: FBT002 - an option
        bool, typer.Option("--shorten", help="Let --n-trials be less than what is done.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="Evaluate there from now on, e.g. cpu where the GPU is gone.", show_default=False
        ),
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    tensorboard: UseTensorBoard = False,  # noqa: FBT002 - an option
    optuna_storage: OptunaStorage = None,
    mlflow: MLflow = None,
    wandb: WandB = None,
    trust: Trust = False,  # noqa: FBT002 - an option
) -> None:
    """Continues a run that was stopped or killed; a finished one is only shown.

    --retry-failed is for failures that have passed, such as those of a full cluster: the run ends as if they had not
    been. Trials before the first failure stay, later ones are evaluated again only where they come out differently.
    """
    with answering(run_dir), progress_shown() as progress:
        from abcsearch.runs.resuming import resume as resume_run

        changes = _given(
            n_trials=n_trials,
            until=until,
            retry_failed=retry_failed or None,
            shorten=shorten or None,
            trust=trust or None,
            device=device,
            execution=_execution(workers, ray_address) or None,
        )
        watchers = _watchers(optuna_storage, mlflow, wandb, tensorboard=tensorboard)
        result = resume_run(run_dir, progress=progress, **changes, **watchers)
    _print_found(result)


def _given(**options: Any) -> dict[str, Any]:  # noqa: ANN401 - of any option
    """Returns the options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def _execution(workers: int | None, ray_address: str | None) -> dict[str, Any]:
    """Returns the settings of the execution that the user gave."""
    return _given(workers=workers, ray_address=ray_address)


def _watchers(
    optuna_storage: str | None, mlflow: str | None, wandb: str | None, *, tensorboard: bool
) -> dict[str, Any]:
    """Returns who watches the search, as an argument, if anybody does."""
    watchers: list[WatcherFactory] = []
    if tensorboard:
        from abcsearch.runs.watching import tensorboard_watcher

        watchers.append(tensorboard_watcher())
    if optuna_storage is not None:
        from abcsearch.runs.optuna_mirror import optuna_watcher

        watchers.append(optuna_watcher(optuna_storage))
    if mlflow is not None:
        from abcsearch.runs.trackers import mlflow_watcher

        watchers.append(mlflow_watcher(mlflow))
    if wandb is not None:
        from abcsearch.runs.trackers import wandb_watcher

        watchers.append(wandb_watcher(wandb))
    return {"watchers": watchers} if watchers else {}


@app.command(epilog="Example: abcsearch status runs/digits --watch")
def status(
    run_dir: RunDir,
    watching: Annotated[  # noqa: FBT002
        bool, typer.Option("--watch", help="Look every second until it is finished.")
    ] = False,
    as_json: AsJson = False,  # noqa: FBT002 - an option
    loss: Loss = None,
) -> None:
    """Shows how far a run is, while it runs or afterwards. --watch --json prints a line whenever something changes.

    Of several budgets it also says how small a network can be, once they are fine-tuned.
    """
    with answering():
        from abcsearch.cli.fronts import check_loss, show_status
        from abcsearch.results.status import RunWatch
        from abcsearch.runs.front_folder import is_front

        check_loss(loss, several=is_front(run_dir))
        if is_front(run_dir):
            show_status(run_dir, watching=watching, as_json=as_json, loss=loss)
            return
        show = watch if watching else print_status
        show(RunWatch(run_dir), as_json=as_json)


def _print_found(result: SearchResult | FrontResult | SeedsResult) -> None:
    """Prints what a search has found, of one budget or of several, or with several seeds."""
    from abcsearch.results.following import after_search
    from abcsearch.runs.front import FrontResult
    from abcsearch.runs.seeds import HEAD, SeedsResult

    if isinstance(result, SeedsResult):
        console.print(f"run folders: {', '.join(str(one.run_dir) for one in result.results)}")
        print_table(HEAD, *(row.cells for row in result.table()))
        console.print(
            f"next: {shlex.join(['abcsearch', 'compare', *(str(one.run_dir) for one in result.results)])}"
        )
        return

    if not isinstance(result, FrontResult):
        _print_best(result)
        return
    console.print(f"run folder: {result.run_dir}")
    cells = [
        [point.name, f"{point.macs:,}", f"{point.params:,}", f"{point.fitness:.4f}"]
        for point in result.front()
    ]
    print_table(["budget", "MACs", "params", "fitness"], *cells)
    for name, one in zip(result.names, result.results, strict=True):
        if one.decision is not None:
            console.print(f"{name}: {one.decision.words}")
    console.print(f"next: {after_search(result.run_dir, result.results)}")


def _print_best(result: SearchResult) -> None:
    """Prints the winner of a search: layer before => after, and its costs."""
    from abcsearch.results.following import after_search
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.searchers.registry import nothing_left

    task, best = result.task, result.best
    full = task.space.full
    console.print(f"run folder: {result.run_dir}")
    if RunFolder(result.run_dir).exhausted():
        console.print(nothing_left(result.settings.searcher.name, len(result.trials)))
    console.print(
        f"best of {plural(len(result.trials), 'trial')}: trial {best.number}, fitness {best.fitness:.4f}"
    )
    if result.decision is not None:
        console.print(f"  {result.decision.words}")
    for dimension in task.space.dimensions[: len(result.widths)]:
        kept, channels = result.widths[dimension.name]
        change = f"{channels} => {kept}"
        if dimension.kind == "block":
            change = "kept" if kept else "dropped"
        if dimension.kind == "rank" and kept == channels:
            change = "whole"
        label = result.criteria.get(dimension.name)
        console.print(f"  {dimension.name}: {change}" + (f", by {label}" if label else ""))
    for name in ("macs", "params"):
        cost = getattr(task.graph.costs, name)
        before, after = int(cost([full])[0]), int(cost([best.candidate])[0])
        console.print(f"  {name}: {before:,} => {after:,} ({after / before:.1%})")
    failed = sum(trial.evaluation.failure is not None for trial in result.trials)
    if failed:
        again = f"abcsearch resume {quoted(result.run_dir)} --retry-failed"
        console.print(
            f"{plural(failed, 'trial')} failed, the reasons are in log.txt; to evaluate them again: {again}"
        )
    console.print(f"next: {after_search(result.run_dir, [result])}")
