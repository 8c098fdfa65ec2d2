"""What follows the search of a front: each budget's run is finished in turn, and shares what they have in common."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from abcsearch.errors import ConfigError, RunError, quoted, unknown_name
from abcsearch.files import link
from abcsearch.results.finetuned_files import FOLDER, read_tuned, weights_names
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.runs.config_run import LoadedOnce
from abcsearch.runs.front_folder import FrontFolder
from abcsearch.runs.progress import Progress, silent
from abcsearch.runs.recipes import changed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from abcsearch.results.open_run import FinishedRun
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.training.crew import Workers
    from abcsearch.training.recipe import Recipe

_FULL = "full"


def open_front(
    run_dir: str | Path, *, trust: bool = False, baselines: bool = True
) -> list[FinishedRun]:
    """Returns the runs of a front whose searches are finished, in its order; arguments as of `open_run`.

    Raises:
        RunError: if one of them is not, or front.json is damaged.
    """
    there = FrontFolder.of(run_dir)
    there.trusted(trust=trust)
    waiting = [
        run.path.name
        for run in there.runs
        if run not in there.begun and not (run.path / "run.json").exists()
    ]
    waiting += [
        run.path.name
        for run in there.begun
        if not run.finished(run.header()["settings"]["n_trials"])
    ]
    if waiting:
        msg = f"the search of {', '.join(waiting)} in {there.folder.path} is not finished; continue it with: "
        raise RunError(f"{msg}abcsearch resume {quoted(there.folder.path)}")
    load = LoadedOnce()
    return [open_run(run.path, load=load, trust=trust, baselines=baselines) for run in there.runs]


def chosen(runs: Sequence[FinishedRun], budget: str | None) -> list[FinishedRun]:
    """Returns the runs of a budget, by its name or its place from 1; all without one.

    Raises:
        ConfigError: if there is no such budget.
    """
    names = [run.folder.path.name for run in runs]
    chosen_runs = [
        run
        for index, run in enumerate(runs, start=1)
        if budget in (None, names[index - 1], str(index))
    ]
    if not chosen_runs:
        raise ConfigError(unknown_name("budget", str(budget), names))
    return chosen_runs


def finetune_front(  # noqa: PLR0913 - those of finetune_run
    runs: Sequence[FinishedRun],
    recipe: Recipe,
    *,
    workers: Workers | None = None,
    progress: Progress = silent,
    tell: Callable[[str], object] = str,
    only: Collection[str] = (),
    replace: bool = False,
) -> None:
    """Fine-tunes the winners of all budgets, and what they are compared with; the full network once for all.

    Args:
        runs: of the front, in order.
        recipe: as of `finetune_run`, like all other arguments.
        workers: likewise.
        progress: likewise; stages say of which budget they are.
        tell: likewise.
        only: likewise.
        replace: likewise.

    Raises:
        AbcSearchError: as `finetune_run`.
    """
    for index, run in enumerate(runs):
        name = run.folder.path.name
        for other in runs[:index] if not only or _FULL in only else ():
            _share_full(other, run, recipe)

        def shown(stage: str, done: int, total: int, note: str, name: str = name) -> None:
            progress(f"{name}: {stage}", done, total, note)

        def told(line: str, name: str = name) -> None:
            tell(f"{name}: {line}")

        finetune_run(
            run, recipe, workers=workers, progress=shown, tell=told, only=only, replace=replace
        )


def _share_full(there: FinishedRun, run: FinishedRun, recipe: Recipe) -> None:
    """Has a run take the full network that another budget has fine-tuned by the same recipe, unless it has its own."""
    scores = read_tuned(there.folder, _FULL, candidate=run.structures[0].candidate).scores
    source = run.folder.path / FOLDER / f"{_FULL}.json"
    if scores is None or source.exists() or changed(scores["recipe"], asdict(recipe)):
        return
    with run.folder.locked():
        run.folder.inside(f"{FOLDER}/{_FULL}.json")
        # The scores, which vouch for the weights, last
        for name in (*weights_names(_FULL), f"{_FULL}.json"):
            link(there.folder.path / FOLDER / name, run.folder.path / FOLDER / name)


def export_paths(
    folder: RunFolder,
    runs: Sequence[FinishedRun],
    out: str | None,
    network: str | None,
    *,
    single: bool,
) -> list[Path]:
    """Returns where the networks of budgets are exported to: a folder for each.

    Args:
        folder: of the front.
        runs: what is exported.
        out: a folder for all of them; of a single one, its own folder or file.
        network: other than the winners.
        single: whether one budget was named.

    Raises:
        ConfigError: if several would be written to one file.
    """
    if out is not None and single:
        return [Path(out)]
    if out is not None and Path(out).suffix in (".onnx", ".pt2"):
        msg = f"--out {out} is one file for {len(runs)} budgets: name a folder, with --format, or a --budget"
        raise ConfigError(msg)
    target = folder.path / "export" if out is None else Path(out)
    return [target / run.folder.path.name / (network or "") for run in runs]
