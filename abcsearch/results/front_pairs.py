"""Which winners of several budgets can be told apart: each smaller one against each larger one, on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from abcsearch.evaluation.racing import MARGIN, difference_error
from abcsearch.results.intervals import SHARES, difference
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.recipes import asked, changed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.results.open_run import FinishedRun

_WORDS = {
    "better": "{smaller} is at least as good as {larger}, and smaller",
    "alike": "{smaller} cannot be told apart from {larger} on these images, and is smaller",
    "unknown": "{smaller} scores no less than {larger}, and is smaller; whether by chance is not known",
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A winner against a larger one.

    Attributes:
        smaller: name of the budget of the one with fewer MACs.
        larger: name of that of the other.
        change: what charts show of the smaller minus that of the larger, in the unit of the metric.
        ends: 95 % interval of that; None where it is not known.
    """

    smaller: str
    larger: str
    change: float
    ends: tuple[float, float] | None

    @property
    def kind(self) -> str:
        """What can be said of the smaller one: "better", "alike", "worse" or "unknown"."""
        if self.ends is None:
            return "unknown" if self.change >= 0 else "worse"
        low, high = self.ends
        return "better" if low > 0 else "worse" if high < 0 else "alike"


def pairs_of(runs: Sequence[FinishedRun], *, tuned: bool) -> tuple[Pair, ...]:
    """Returns how the winners of budgets differ, the largest first.

    Args:
        runs: of the budgets, in any order.
        tuned: whether by the test metric after fine-tuning, of those that were fine-tuned with one recipe; else by
            fitness on search-validation.
    """
    ranked = sorted(runs, key=lambda run: (-_macs(run), run.folder.path.name))
    compare = _by_test if tuned else _by_fitness
    both = [(smaller, larger) for larger, smaller in combinations(ranked, 2)]
    pairs = [compare(*pair) for pair in both if _macs(pair[0]) < _macs(pair[1])]
    return tuple(pair for pair in pairs if pair is not None)


def _macs(run: FinishedRun) -> int:
    """Returns the MACs of the winner of a run."""
    return int(run.result.task.graph.costs.macs([run.winner.candidate])[0])


def _pair(
    smaller: FinishedRun, larger: FinishedRun, change: float, ends: tuple[float, float] | None
) -> Pair:
    """Returns a pair by the names of the budgets."""
    names = smaller.folder.path.name, larger.folder.path.name
    return Pair(smaller=names[0], larger=names[1], change=change, ends=ends)


def _by_test(smaller: FinishedRun, larger: FinishedRun) -> Pair | None:
    """Returns how two winners differ by the test metric after fine-tuning; None of different recipes."""
    scores, theirs = (run.tuned(run.winner).scores for run in (smaller, larger))
    if scores is None or theirs is None or changed(asked(scores), asked(theirs)):
        return None
    metric, images = smaller.metric, len(smaller.result.task.data.test)
    value, reference = float(scores["after"][metric]), float(theirs["after"][metric])
    ends = None
    if metric not in SHARES or (0 <= value <= 1 and 0 <= reference <= 1):
        one = difference(metric, ("", value, scores), ("", reference, theirs), images)
        ends = None if one is None else (one.low, one.high)
    return _pair(smaller, larger, value - reference, ends)


def _by_fitness(smaller: FinishedRun, larger: FinishedRun) -> Pair:
    """Returns how two winners differ by fitness, with the interval of two standard errors."""
    bests = [run.result.best for run in (smaller, larger)]
    groups = [
        read_journal(run.folder.journal).groups.get(run.result.best.number)
        for run in (smaller, larger)
    ]
    change = bests[0].fitness - bests[1].fitness
    error = difference_error(bests[0].evaluation, bests[1].evaluation, groups)
    ends = None if error is None else (change - MARGIN * error, change + MARGIN * error)
    return _pair(smaller, larger, change, ends)


def pairs_text(pairs: Sequence[Pair]) -> str:
    """Returns which winners a smaller one is as good as, or cannot be told from, in words; "" without any.

    Of every larger winner the smallest that is better, and the smallest that cannot be told apart, where that is
    smaller still.

    Args:
        pairs: of winners, the largest first.
    """
    said: dict[tuple[str, str], list[str]] = {}
    for larger in dict.fromkeys(pair.larger for pair in pairs):
        others = [pair for pair in pairs if pair.larger == larger and pair.kind != "worse"]
        shown = others[-1:]
        if shown and shown[0].kind != "better":
            shown = [*[pair for pair in others if pair.kind == "better"][-1:], *shown]
        for pair in shown:
            said.setdefault((pair.smaller, pair.kind), []).append(larger)
    lines = [
        _WORDS[kind].format(smaller=smaller, larger=" and ".join(names))
        for (smaller, kind), names in said.items()
    ]
    return f"{'; '.join(lines)}." if lines else ""
