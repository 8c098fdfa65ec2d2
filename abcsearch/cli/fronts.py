"""What commands do for the folder of a front: the same as for a run, for each of its budgets."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from abcsearch.errors import plural, quoted
from abcsearch.steps import doing
from abcsearch.terminal import console, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from abcsearch.results.exports import RunExport
    from abcsearch.results.front_status import FrontStatus, FrontWatch
    from abcsearch.results.open_run import FinishedRun
    from abcsearch.runs.progress import Progress
    from abcsearch.training.crew import Workers


def check_loss(loss: float | None, *, several: bool) -> None:
    """Raises ConfigError if a loss is asked for where there is one budget, or is none."""
    from abcsearch.errors import ConfigError

    if loss is not None and not several:
        msg = f"--loss {loss:g} asks which of several budgets is small enough; this is a run of one"
        raise ConfigError(msg)
    if loss is not None and not 0 <= loss <= 100:
        msg = f"--loss is in points of accuracy, from 0 to 100, found {loss:g}"
        raise ConfigError(msg)


def show_status(path: Path, *, watching: bool, as_json: bool, loss: float | None) -> None:
    """Prints how far a front is; while it is watched, whenever something changes."""
    from abcsearch.results.front_answer import LOSS
    from abcsearch.results.front_status import FrontWatch

    watched = FrontWatch(path, LOSS if loss is None else loss)
    if not watching:
        _print_status(watched, watched.look(), as_json=as_json)
        return
    with contextlib.suppress(KeyboardInterrupt):  # the run goes on
        _watch(watched, as_json=as_json)


def _watch(watched: FrontWatch, every: float = 1.0, *, as_json: bool) -> None:
    """Prints the front whenever something has changed, until it is finished."""
    shown: Any = None
    while True:
        status = watched.look()
        now = [_lines(name, status) for name in status.budgets], status.running
        if now != shown:
            _print_status(watched, status, as_json=as_json, indent=None)
        if status.finished:
            return
        shown = now
        time.sleep(every)


def _print_status(
    watched: FrontWatch, status: FrontStatus, *, as_json: bool, indent: int | None = 1
) -> None:
    """Prints how far a front is."""
    if as_json:
        print_json(status.to_plain(), indent=indent)
        return
    console.print(watched.title)
    for name, budget in status.budgets.items():
        for line in _lines(name, status):
            console.print(line)
        for warning in () if budget is None else budget.damaged:
            console.print(f"warning: {warning}")
    console.print(f"{plural(status.evaluations, 'evaluation')} in all")
    if status.answer:
        console.print(status.answer)
    state = (
        "running now"
        if status.running
        else "searches finished"
        if status.finished
        else "not running"
    )
    console.print(f"{state}; next: {status.next}" if status.next else state)


def _lines(name: str, front: FrontStatus) -> list[str]:
    """Returns how far one budget is, and how sure its winner once that is decided."""
    status = front.budgets[name]
    if status is None:
        return [f"{name}: {front.damaged.get(name, 'not begun')}"]
    search = status.searches[0]
    mapped = "" if status.map is None else f"map {status.map.done} of {status.map.total}, "
    best = (
        "no success yet"
        if search.best is None
        else f"best {search.best.fitness:.4f}, {search.best.evaluation.macs:,} MACs"
    )
    tuned = f"; fine-tuned: {', '.join(status.tuned)}" if status.tuned else ""
    done = f"{mapped}{search.done} of {plural(search.total, 'trial')}, {search.failed} failed, {best}{tuned}"
    sure = [] if search.decision is None else [f"  {search.decision.words}"]
    return [f"{name}: {done}", *sure]


def finetune_all(  # noqa: PLR0913 - what the command line was given
    path: Path,
    overrides: Sequence[str],
    together: Callable[[Callable[[str], object]], Workers | None],
    only: Sequence[str],
    progress: Progress,
    *,
    trust: bool,
    replace: bool,
) -> None:
    """Fine-tunes the winners of a front, and what they are compared with, and prints what became of them."""
    from abcsearch.config import parse_recipe
    from abcsearch.results.front_finishing import finetune_front, open_front
    from abcsearch.runs.disk.folder import RunFolder

    runs = open_front(path, trust=trust)
    recipe = parse_recipe(overrides, runs[0].config.finetune)
    workers = together(RunFolder(path).log)
    finetune_front(
        runs,
        recipe,
        workers=workers,
        progress=progress,
        tell=console.print,
        only=only,
        replace=replace,
    )
    for run in runs:
        for structure in run.structures:
            scores = None if only and structure.name not in only else run.scores(structure)
            if scores is not None:
                console.print(
                    f"{run.folder.path.name}, {structure.name}: test {run.metric} {run.change(scores)}"
                )
        print_chain(run)
    console.print(f"next: abcsearch report {quoted(path)}")


def report_all(path: Path, out: Path | None, *, trust: bool, loss: float | None) -> None:
    """Writes the report of every budget that has one, and the page of the front."""
    from abcsearch.reporting.front_page import write_front
    from abcsearch.reporting.gathering import gather
    from abcsearch.reporting.report_page import check_place, write_page
    from abcsearch.results.following import after_report
    from abcsearch.results.front_answer import LOSS
    from abcsearch.results.front_report import make_front_report
    from abcsearch.runs.config_run import LoadedOnce
    from abcsearch.runs.front_folder import FrontFolder

    check_place(path, out)
    there, load = FrontFolder.of(path), LoadedOnce()
    for run in there.begun if out is None else ():
        if run.journal.exists() and run.journal.stat().st_size:
            doing(f"{run.path.name}: measuring and evaluating what is compared")
            write_page(gather(run.path, load=load, trust=trust))
    doing("measuring all networks in turns")
    report = make_front_report(there, load=load, trust=trust, loss=LOSS if loss is None else loss)
    page = write_front(report, out or path / "report.html")
    console.print(report.title)
    print_table(*report.cells(short=True))
    for note in report.notes:
        console.print(note)
    console.print(f"written to {page}; the pictures as PNG files to {page.with_suffix('')}")
    console.print(f"next: {after_report(path)}")


def export_all(
    path: Path,
    out: str | None,
    chosen: Mapping[str, str | None],
    *,
    budget: str | None,
    trust: bool,
) -> None:
    """Exports a network of every budget, or of one, and says where; `chosen` are further arguments of `export_run`."""
    from abcsearch.exporting.targets import check_target
    from abcsearch.results.exports import export_run
    from abcsearch.results.front_finishing import chosen as chosen_runs
    from abcsearch.results.front_finishing import export_paths, open_front
    from abcsearch.runs.disk.folder import RunFolder

    network: Any = chosen["network"]
    runs = chosen_runs(open_front(path, trust=trust, baselines=network == "random"), budget)
    places = export_paths(RunFolder(path), runs, out, network, single=budget is not None)
    for target in places:
        check_target(target, chosen["format"])
    options: dict[str, Any] = dict(chosen)
    for run, target in zip(runs, places, strict=True):
        done = export_run(run, target, **options)
        console.print(f"{run.folder.path.name}: exported to {done.made}; {state_of(done, path)}")
        console.print(f"model card: {done.card}")
    console.print(f"next: abcsearch evaluate {quoted(places[0])}")


def state_of(done: RunExport, path: Path) -> str:
    """Returns what was exported, in a few words: fine-tuned or not, and which link of a chain."""
    if done.link:
        return f"fine-tuned, after {done.link}"
    if done.tuned:
        return "fine-tuned"
    command = f"abcsearch finetune {quoted(path)}"
    if not done.waiting:
        return f"not fine-tuned yet ({command})"
    return f"not fine-tuned yet ({command} applies {', '.join(done.waiting)} as well)"


def print_chain(run: FinishedRun) -> None:
    """Prints the table of a run's chain, if there is one."""
    from abcsearch.results.chained import known_chain

    chain = known_chain(run)
    if chain is not None:
        print_table(*chain.cells(short=True))
        for line in chain.lines():
            console.print(line)
