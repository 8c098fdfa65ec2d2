"""The same search with several seeds: what comes of it on average, and how far chance goes."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import t

from abcsearch.errors import ConfigError
from abcsearch.runs.summaries import Summarised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from abcsearch.runs.result import SearchResult


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number of several runs.

    Attributes:
        name: what it is.
        count: how many runs have it.
        mean: over these.
        deviation: standard deviation of one run, with one degree of freedom less; 0 of a single run.
        half: half of the 95 % interval of the mean, by Student's t; infinite of a single run.
        low: smallest.
        high: largest.
    """

    name: str
    count: int
    mean: float
    deviation: float
    half: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: Iterable[float]) -> Spread:
        """Returns that of one number or more."""
        known = list(values)
        count = len(known)
        deviation = statistics.stdev(known) if count > 1 else 0.0
        half = (
            float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count) if count > 1 else math.inf
        )
        return cls(
            name=name,
            count=count,
            mean=statistics.fmean(known),
            deviation=deviation,
            half=half,
            low=min(known),
            high=max(known),
        )

    @property
    def cells(self) -> list[str]:
        """It as a row of a table."""
        whole = all(float(value).is_integer() for value in (self.low, self.high))
        large = min(abs(self.low), abs(self.high)) >= (10 if whole else 1000)
        form = "{:,.0f}" if large else "{:.4f}"
        interval = "-" if math.isinf(self.half) else f"\u00b1{form.format(self.half)}"
        ends = f"{form.format(self.low)} to {form.format(self.high)}"
        return [
            self.name,
            str(self.count),
            form.format(self.mean),
            form.format(self.deviation),
            interval,
            ends,
        ]


HEAD = (
    "of the winners",
    "seeds",
    "mean",
    "spread (one seed)",
    "95 % of the mean",
    "lowest to highest",
)


@dataclass(frozen=True, kw_only=True, repr=False)
class SeedsResult(Summarised):
    """Finished searches that differ in nothing but the seed.

    Attributes:
        run_dir: folder with a run folder for each: seed-0, seed-1 ...
        seeds: in the order in which they ran.
        results: of the searches, likewise.
    """

    run_dir: Path
    seeds: tuple[int, ...]
    results: tuple[SearchResult, ...] = field(repr=False)

    def table(self) -> list[Spread]:
        """Returns fitness, MACs, parameters and seconds of evaluations over the seeds."""
        best = [result.best for result in self.results]
        rows = {
            "fitness": [trial.fitness for trial in best],
            "macs": [float(trial.evaluation.macs) for trial in best],
            "params": [float(trial.evaluation.params) for trial in best],
            "seconds of evaluations": [
                sum(trial.evaluation.seconds for trial in result.trials) for result in self.results
            ],
        }
        return [Spread.of(name, values) for name, values in rows.items()]

    @property
    def summary(self) -> tuple[tuple[str, str], ...]:
        """What it is in five lines, names and values."""
        fitness, macs, *_ = (" ".join(row.cells[2:5]) for row in self.table())
        return (
            ("run folder", str(self.run_dir)),
            ("searcher", self.results[0].settings.searcher.name),
            ("seeds", ", ".join(map(str, self.seeds))),
            ("best", f"fitness {fitness} (mean, spread, 95 %), macs {macs}"),
            ("next", "result.table(); result.results[0].model()"),
        )


def run_seeds(
    seeds: Iterable[int], run_dir: str | Path, run: Callable[[int, Path], SearchResult]
) -> SeedsResult:
    """Runs or continues the same search with several seeds, one after the other.

    Args:
        seeds: each once.
        run_dir: folder of all.
        run: a seed and a run folder to the result of that search.

    Raises:
        ConfigError: if there is no seed, one is no whole number from 0, or one is there twice.
        AbcSearchError: whatever a search raises.
    """
    listed = checked_seeds(seeds)
    home = Path(run_dir)
    results = tuple(run(seed, home / f"seed-{seed}") for seed in listed)
    return SeedsResult(run_dir=home, seeds=listed, results=results)


def checked_seeds(seeds: Any) -> tuple[int, ...]:  # noqa: ANN401 - whatever was given
    """Returns seeds, one at least, each once.

    Raises:
        ConfigError: if they are something else.
    """
    try:
        listed = tuple(seeds)
    except TypeError:
        listed = ()
    sound = all(
        isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in listed
    )
    if not listed or not sound or len(set(listed)) < len(listed):
        msg = f"seeds are whole numbers from 0, each once, e.g. range(5) or [0, 1, 2], found {seeds!r:.80}"
        raise ConfigError(msg)
    return listed
