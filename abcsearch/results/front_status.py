"""How far a front is, seen from outside: that of each budget, and how small a network can be so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError, quoted
from abcsearch.results.finetuned_files import read_tuned
from abcsearch.results.front_answer import LOSS, Standing, answer
from abcsearch.results.status import RunStatus, RunWatch
from abcsearch.runs.disk.shapes import winner_name
from abcsearch.runs.front_folder import FrontFolder

if TYPE_CHECKING:
    from pathlib import Path

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.trial import Trial

_METRIC = "top1"  # what the answer is about; of other tasks the report has the table


@dataclass(frozen=True, kw_only=True)
class FrontStatus:
    """How far a front is.

    Attributes:
        budgets: of every budget, by name; None of one that has not begun, or cannot be read.
        damaged: why the run of a budget cannot be read, by its name.
        running: whether a process works on one of them now.
        finished: whether nothing is left to search, and nobody writes.
        evaluations: how many structures have been evaluated in all: of the map, and of the trials those that were not
            known already. Those of baselines are not among them, as in the report.
        answer: how small a network can be at a loss of accuracy, once winners and the full network are fine-tuned;
            before, what answers it.
        next: the command that goes on.
    """

    budgets: dict[str, RunStatus | None]
    damaged: dict[str, str]
    running: bool
    finished: bool
    evaluations: int
    answer: str
    next: str

    def to_plain(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return asdict(self)


class FrontWatch:
    """Looks at the folder of a front again and again.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, loss: float = LOSS) -> None:
        """Takes the folder, and how many points of accuracy may be lost."""
        self.path, self._loss = path, loss
        self._watches: dict[str, RunWatch] = {}

    @property
    def title(self) -> str:
        """What is run, and since when."""
        there = FrontFolder.of(self.path)
        settings, started = (
            there.record["settings"],
            there.record["environment"].get("started", "at an unknown time"),
        )
        searcher = settings.get("searcher", {}).get("name")
        return f"{self.path}: {searcher}, {len(there.names)} budgets, seed {settings.get('seed')}, started {started}"

    def look(self) -> FrontStatus:
        """Returns how far the front is now.

        Raises:
            RunError: if the folder holds no front, or its front.json is damaged.
        """
        there = FrontFolder.of(self.path)
        budgets: dict[str, RunStatus | None] = dict.fromkeys(there.names)
        damaged: dict[str, str] = {}
        for run in there.begun:
            name = run.path.name
            try:
                budgets[name] = self._watches.setdefault(name, RunWatch(run.path)).look()
            except RunError as error:
                damaged[name] = str(error)
        known = [status for status in budgets.values() if status is not None]
        running = there.folder.in_use() or any(status.running for status in known)
        finished = (
            len(known) == len(budgets) and all(status.finished for status in known) and not running
        )
        return FrontStatus(
            budgets=budgets,
            damaged=damaged,
            running=running,
            finished=finished,
            evaluations=sum(_evaluated(status) for status in known),
            answer=self._answer(there, budgets) if finished else "",
            next=self._next(budgets, finished=finished, running=running),
        )

    def _next(self, budgets: dict[str, RunStatus | None], *, finished: bool, running: bool) -> str:
        """Returns the command that goes on; "" while it runs."""
        if running:
            return ""
        if not finished:
            return f"abcsearch resume {quoted(self.path)}"
        tuned = all(
            status is not None and _tuned(status) and not status.interrupted
            for status in budgets.values()
        )
        return f"abcsearch {'report' if tuned else 'finetune'} {quoted(self.path)}"

    def _answer(self, there: FrontFolder, budgets: dict[str, RunStatus | None]) -> str:
        """Returns how small a network can be by scores after fine-tuning; what answers it where one is missing."""
        full: float | None = None
        winners: list[Standing] = []
        images = 0
        for run in there.begun:
            status = budgets[run.path.name]
            best = None if status is None else status.searches[0].best
            header = run.header()
            images = int(header["identity"].get("split", {}).get("test", 0))
            accuracy = _accuracy(run, winner_name(header["settings"]["searcher"]["name"]), best)
            if best is not None and accuracy is not None:
                point = Standing(name=run.path.name, macs=best.evaluation.macs, accuracy=accuracy)
                winners.append(point)
            full = _accuracy(run, "full") if full is None else full
        if full is None or len(winners) < len(budgets):
            return self._unanswered(budgets)
        return answer(
            full, winners, loss=self._loss, images=images, split="test, after fine-tuning"
        )

    def _unanswered(self, budgets: dict[str, RunStatus | None]) -> str:
        """Returns what answers before all winners are fine-tuned; "" where accuracy is not what the trials measured."""
        bests = [None if status is None else status.searches[0].best for status in budgets.values()]
        if any(best is None or _METRIC not in best.evaluation.metrics for best in bests):
            return ""
        asked = f"{self._loss:g} {'point' if self._loss == 1 else 'points'}"
        until = f"abcsearch report {quoted(self.path)} --loss {self._loss:g}"
        return f"at a loss of at most {asked}: answered here once all winners are fine-tuned; by fitness: {until}"


def _evaluated(status: RunStatus) -> int:
    """Returns how many structures the search of a run and its map have evaluated."""
    mapped = 0 if status.map is None else status.map.evaluated
    return mapped + status.searches[0].evaluated


def _tuned(status: RunStatus) -> bool:
    """Returns whether the winner of a run has been fine-tuned."""
    return status.searches[0].name in status.tuned


def _accuracy(run: RunFolder, name: str, best: Trial | None = None) -> float | None:
    """Returns the accuracy of a structure after fine-tuning; None where it has not been."""
    scores = read_tuned(run, name, candidate=None if best is None else best.candidate).scores
    value = None if scores is None else scores["after"].get(_METRIC)
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
