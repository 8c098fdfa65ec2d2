"""Several budgets in one run: what they share is made once, and each knows what those before it have found."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.budget import Budget
from abcsearch.errors import AbcSearchError, RunError, differences, plural, quoted
from abcsearch.runs.disk.environment import environment
from abcsearch.runs.front_folder import (
    BUDGETS,
    FORMAT,
    FRONT,
    KIND,
    FrontFolder,
    is_front,
    run_folder,
)
from abcsearch.runs.front_settings import Front, S
from abcsearch.runs.header import as_held, lost_by, only_preparing
from abcsearch.runs.settings import deciding
from abcsearch.runs.shared import Shared
from abcsearch.runs.summaries import Summarised
from abcsearch.runs.workers import check_workers, workers_for
from abcsearch.signing import signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.progress import Progress
    from abcsearch.runs.result import SearchResult
    from abcsearch.space import Candidate

_NSGA2 = (
    "searcher 'nsga2' looks for a front inside of each budget, whose winner is the structure of the highest fitness "
    "there; for one front against a cost, search the largest budget alone"
)
# Files of what took time: evaluations and trainings
_COSTLY = (".jsonl", ".safetensors", ".checkpoint")


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """The winner of one budget.

    Attributes:
        name: of the budget: its place and its bounds.
        budget: the budget.
        candidate: the structure.
        fitness: on search-validation.
        macs: of the structure.
        params: of the structure.
    """

    name: str
    budget: Budget
    candidate: Candidate
    fitness: float
    macs: int
    params: int


@dataclass(frozen=True, kw_only=True, repr=False)
class FrontResult(Summarised):
    """A finished search of several budgets.

    Attributes:
        run_dir: its folder.
        names: of the budgets.
        results: of their searches, in the same order.
    """

    run_dir: Path
    names: tuple[str, ...]
    results: tuple[SearchResult, ...] = field(repr=False)

    @property
    def summary(self) -> tuple[tuple[str, str], ...]:
        """What it is in a few lines, names and values."""
        points = self.front()
        best = "; ".join(
            f"{point.name}: fitness {point.fitness:.4f}, {point.macs:,} macs" for point in points
        )
        trials = sum(len(result.trials) for result in self.results)
        return (
            ("run folder", str(self.run_dir)),
            ("searcher", self.results[0].settings.searcher.name if self.results else "none"),
            ("budgets", f"{len(self.names)}, {plural(trials, 'trial')} in all"),
            ("best", best),
            ("next", "result.results[0].model(), one result for each budget"),
        )

    def front(self) -> tuple[FrontPoint, ...]:
        """Returns the winners, the largest first."""
        points = [
            FrontPoint(
                name=name,
                budget=result.settings.budget,
                candidate=result.best.candidate,
                fitness=result.best.fitness,
                macs=result.best.evaluation.macs,
                params=result.best.evaluation.params,
            )
            for name, result in zip(self.names, self.results, strict=True)
        ]
        return tuple(sorted(points, key=lambda point: (-point.macs, point.name)))


def run_front(
    front: Front[S],
    folder: RunFolder,
    run_one: Callable[[S, RunFolder, Shared, Executor, Progress], SearchResult],
    *,
    executor: Executor | None,
    progress: Progress,
    before: Callable[[RunFolder], object] = str,  # nothing
) -> FrontResult:
    """Runs or continues the searches of a front, one after the other.

    Args:
        front: the budgets.
        folder: of the front; made if missing.
        run_one: runs or continues the search of one budget in its folder.
        executor: where evaluations run; by default as the settings say, the same for all.
        progress: shown after every trial.
        before: called with every run folder that is there, before it goes on.

    Raises:
        RunError: if the folder holds another front, or something else.
        AbcSearchError: whatever a search raises.

    Warns:
        UserWarning: of a searcher that looks for a front itself.
    """
    if front.settings.searcher.name == "nsga2":
        warnings.warn(_NSGA2, UserWarning, stacklevel=2)
    if executor is None:
        check_workers(front.settings.execution)
    with _withdrawn_if_refused(folder), folder.locked():
        _write_record(folder, front)
        shared = Shared(front, folder)
        results: list[SearchResult] = []
        with workers_for(front.settings, folder, executor) as where:
            for index, name in enumerate(front.names):
                folder.check()
                subfolder = run_folder(folder, name)
                if subfolder.path.is_dir():
                    before(subfolder)
                elif index:
                    subfolder.path.mkdir(parents=True)
                shown = _named(progress, name)
                results.append(run_one(front.run(index), subfolder, shared, where, shown))
    return FrontResult(run_dir=folder.path, names=front.names, results=tuple(results))


@contextlib.contextmanager
def _withdrawn_if_refused(folder: RunFolder) -> Iterator[None]:
    """Leaves a folder as it was where a front is refused before anything of it has begun."""
    made = not folder.path.exists()
    before = set() if made else {entry.name for entry in folder.path.iterdir()}
    try:
        yield
    except AbcSearchError:
        costly = any(
            file.suffix in _COSTLY and file.stat().st_size
            for file in (folder.path / BUDGETS).rglob("*")
        )
        if not costly:
            for name in {FRONT, ".lock"} - before:
                (folder.path / name).unlink(missing_ok=True)
            if BUDGETS not in before:
                shutil.rmtree(folder.path / BUDGETS, ignore_errors=True)
        if made and folder.path.is_dir() and not any(folder.path.iterdir()):
            folder.path.rmdir()
        raise


def _named(progress: Progress, name: str) -> Progress:
    """Returns a progress whose stages say of which budget they are."""

    def shown(stage: str, done: int, total: int, note: str) -> None:
        progress(f"{name}: {stage}", done, total, note)

    return shown


def _write_record(folder: RunFolder, front: Front[Any]) -> None:
    """Writes front.json, or checks that the folder holds this very front and takes what may change.

    Raises:
        RunError: if it holds another front, a run of one budget, or files of something else.
    """
    plain = front.to_plain()
    before = _held(folder, front)
    if before is None:
        record = {
            "format": FORMAT,
            "id": secrets.token_hex(16),
            **plain,
            "environment": environment(),
        }
    else:
        record = {**before, **plain, "settings": as_held(plain["settings"], before["settings"])}
    record = signed(KIND, record)
    if record != before:
        folder.write_json(FRONT, record)


def check_front(folder: RunFolder, front: Front[Any]) -> None:
    """Raises RunError if a folder that is there holds another front, a run of one budget, or something else."""
    _held(folder, front)


def _held(folder: RunFolder, front: Front[Any]) -> dict[str, Any] | None:
    """Returns front.json of the front that a folder holds and this one continues; None where a new one begins."""
    if (folder.path / "run.json").exists():
        msg = f"{folder.path} holds a run of one budget; choose another folder for {plural(len(front.budgets), 'budget')}"
        raise RunError(msg)
    if not is_front(folder.path):
        others = sorted(
            entry.name for entry in folder.path.iterdir() if not entry.name.startswith(".")
        )
        if others and others != [BUDGETS]:
            msg = f"{folder.path} is not empty and holds no front ({', '.join(others[:3])}); choose a new folder"
            raise RunError(msg)
        return None
    there = FrontFolder.of(folder.path)
    known = Front.from_plain(there.record, folder.path / FRONT)
    differing = differences(_decides(known), _decides(front))
    if not differing:
        return dict(there.record)
    preparing = only_preparing(differing)
    if not any(lost_by(run, preparing=True) if preparing else _begun(run) for run in there.runs):
        return None  # nothing to lose yet
    msg = f"{folder.path} already holds another front: {'; '.join(differing)}. Choose another folder, or delete this "
    msg += f"one; what it holds goes on with: abcsearch resume {quoted(folder.path)}"
    raise RunError(msg)


def _decides(front: Front[Any]) -> dict[str, Any]:
    """Returns what decides the trials of a front, as plain values."""
    plain = front.to_plain()
    return {
        "budgets": plain["budgets"],
        **{k: v for k, v in deciding(plain["settings"]).items() if k != "budget"},
    }


def _begun(run: RunFolder) -> bool:
    """Returns whether anything of a run would be lost."""
    return any(
        path.exists() and path.stat().st_size for path in (run.base, run.journal, run.map.journal)
    )
