"""What winners are compared with in their own runs: network by network, and over runs that differ by their seeds."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.results.finetuned_files import FOLDER, command
from abcsearch.results.intervals import Difference, difference
from abcsearch.results.report import test_intervals, tested_metrics
from abcsearch.runs.recipes import asked, changed
from abcsearch.runs.seeds import Spread
from abcsearch.training.named import is_share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.results.compared import Structure
    from abcsearch.results.finetuned_files import Tuned
    from abcsearch.results.open_run import FinishedRun

    Tunings = Mapping[str, Tuned]

WINNER = "winner"  # over runs


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One fine-tuned network of a run: its winner, the full network, or a baseline.

    Attributes:
        run: label of the run.
        seed: of the run.
        network: its name in the run.
        kind: "winner", "full" or "baseline".
        macs: of its structure, batch 1.
        macs_share: against the full network.
        epochs: of its fine-tuning; a baseline may have a number of its own.
        cost: of these, in epochs of the full network with as many MACs.
        metric: that is compared.
        before: this metric on the test split before fine-tuning.
        after: the same after it.
        tests: all metrics on the test split by name, each before and after fine-tuning.
        intervals: 95 % intervals of these after fine-tuning, as far as they are known.
        asked: the recipe that was asked for, plain values.
        otherwise: in what that differs from the winner's, whereupon they cannot be compared.
        difference: of the metric after fine-tuning, the winner minus this one, on the same images; None where it is not
            known.
    """

    run: str
    seed: int
    network: str
    kind: str
    macs: int
    macs_share: float
    epochs: float
    cost: float
    metric: str
    before: float
    after: float
    tests: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict[str, "Mapping[str, float]"]
    )
    intervals: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, "tuple[float, float]"]
    )
    asked: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    otherwise: tuple[str, ...] = ()
    difference: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A network in runs with the same settings but the seed.

    Attributes:
        group: name of these runs.
        network: its name.
        kind: as of `Arm`.
        runs: labels of those in which it was fine-tuned by the recipe of the first of them.
        several: how many runs the group has.
        repeated: whether two of `runs` have the same seed, so that their number says nothing.
        metric: what `before`, `after` and `difference` are of.
        macs_share: against the full network.
        epochs: as of `Arm`.
        cost: as of `Arm`.
        before: fine-tuning.
        after: fine-tuning.
        difference: the winner minus this one, each time in the same run; None of the winner, and where no run has both.
    """

    group: str
    network: str
    kind: str
    runs: tuple[str, ...]
    several: int
    repeated: bool
    metric: str
    macs_share: Spread
    epochs: Spread
    cost: Spread
    before: Spread
    after: Spread
    difference: Spread | None = None

    @property
    def apart(self) -> Difference | None:
        """The difference with the 95 % interval of its mean; None with fewer than two runs."""
        mean = self.difference
        if mean is None or mean.count < 2:
            return None
        low, high = mean.mean - mean.half, mean.mean + mean.half
        return Difference(
            first="the winner",
            second=self.network,
            change=mean.mean,
            low=low,
            high=high,
            paired=True,
        )

    def plain(self) -> dict[str, Any]:
        """Returns it as plain values: None for intervals of a single run, which JSON has no number for."""
        return json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)


def arms_of(label: str, run: FinishedRun, tunings: Tunings) -> tuple[Arm, ...]:
    """Returns the fine-tuned networks of a run, the winner first.

    Args:
        label: of the run.
        run: the run.
        tunings: what there is of the fine-tuning of its structures, by name. What does not count, or whose metric
            cannot be one, is left out, see `unsound`.
    """
    ordered = (run.winner, *run.structures[:-1])
    scores = {one.name: tunings[one.name].scores for one in ordered}
    known = [one for one in ordered if _sound(run.metric, scores[one.name])]
    candidates = [one.candidate for one in (run.structures[0], *known)]
    full, *macs = run.result.task.graph.costs.macs(candidates).tolist()
    winner = scores[run.winner.name] if run.winner in known else None
    return tuple(
        _arm(label, run, one, (count, full), (scores[one.name] or {}, winner))
        for one, count in zip(known, macs, strict=True)
    )


def unsound(run: FinishedRun, tunings: Tunings) -> dict[str, str]:
    """Returns by the name of a structure why its scores do not count here, though nothing is wrong with their file."""
    told: dict[str, str] = {}
    for name, tuned in tunings.items():
        if tuned.scores is not None and not _sound(run.metric, tuned.scores):
            values = " => ".join(
                str(tuned.scores[when][run.metric]) for when in ("before", "after")
            )
            told[name] = (
                f"{run.folder.path / FOLDER / name}.json is left out, as {run.metric} {values} cannot be; move it "
                f"elsewhere, then: {command(run.folder, name, tuned.scores, asdict(run.config.finetune))}"
            )
    return told


def _kind(run: FinishedRun, structure: Structure) -> str:
    """Returns what a structure of a run is."""
    if structure is run.winner:
        return "winner"
    return "full" if structure.baseline is None else "baseline"


def _sound(metric: str, scores: Mapping[str, Any] | None) -> bool:
    """Returns whether there are scores, and the metric in them can be one."""
    if scores is None:
        return False
    values = [float(scores[when][metric]) for when in ("before", "after")]
    inside = not is_share(metric) or all(0 <= value <= 1 for value in values)
    return inside and all(map(math.isfinite, values))


def _arm(
    label: str,
    run: FinishedRun,
    structure: Structure,
    macs: tuple[int, int],
    scores: tuple[dict[str, Any], dict[str, Any] | None],
) -> Arm:
    """Returns a network of a run.

    Args:
        label: of the run.
        run: the run.
        structure: of the network.
        macs: of it, and of the full network.
        scores: of it, and of the winner, None where that has none.
    """
    (kept, full), (its, winner) = macs, scores
    otherwise, apart = (), None
    if winner is not None and structure is not run.winner:
        otherwise = changed(asked(its), asked(winner))
        best, other = (
            (name, float(one["after"][run.metric]), one)
            for name, one in ((run.winner.name, winner), (structure.name, its))
        )
        images = len(run.result.task.data.test)
        apart = None if otherwise else difference(run.metric, best, other, images)
    return Arm(
        run=label,
        seed=run.config.seed,
        network=structure.name,
        kind=_kind(run, structure),
        macs=kept,
        macs_share=kept / full,
        epochs=its["recipe"]["epochs"],
        cost=its["recipe"]["epochs"] * kept / full,
        metric=run.metric,
        before=float(its["before"][run.metric]),
        after=float(its["after"][run.metric]),
        tests=tested_metrics(run, its),
        intervals=test_intervals(run, its),
        asked=asked(its),
        otherwise=otherwise,
        difference=apart,
    )


def shown(groups: Sequence[Sequence[str]], arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Returns the networks of those groups of runs, given as labels, in which a baseline is among them."""
    compared = {arm.run for arm in arms if arm.kind == "baseline"}
    labels = {label for group in groups if compared.intersection(group) for label in group}
    return tuple(arm for arm in arms if arm.run in labels)


def contrasts_of(name: str, labels: Sequence[str], arms: Sequence[Arm]) -> tuple[Contrast, ...]:
    """Returns the networks of runs with the same settings but the seed, the winner first.

    Args:
        name: of the group.
        labels: of its runs.
        arms: of all runs.
    """
    alike = _comparable([arm for arm in arms if arm.run in labels])
    winners = {arm.run: arm.after for arm in alike if arm.kind == "winner"}
    made: list[Contrast] = []
    for network, kind in _networks(alike).items():
        each = [arm for arm in alike if _name(arm) == network]
        both = [winners[arm.run] - arm.after for arm in each if arm.run in winners]
        numbers = ("macs_share", "epochs", "cost", "before", "after")
        made.append(
            Contrast(
                group=name,
                network=network,
                kind=kind,
                runs=tuple(arm.run for arm in each),
                several=len(labels),
                repeated=len({arm.seed for arm in each}) < len(each),
                metric=each[0].metric,
                difference=Spread.of("difference", both) if both and kind != "winner" else None,
                **{one: Spread.of(one, [getattr(arm, one) for arm in each]) for one in numbers},
            )
        )
    return tuple(made)


def _comparable(arms: Sequence[Arm]) -> list[Arm]:
    """Returns those that were fine-tuned by the recipe of the first winner, or of the first of them without one."""
    first = next((arm for arm in arms if arm.kind == "winner"), arms[0] if arms else None)
    return [arm for arm in arms if first is not None and not changed(arm.asked, first.asked)]


def _networks(arms: Sequence[Arm]) -> dict[str, str]:
    """Returns what networks there are and of what kind: the winner first, others as the first run that has them."""
    order = sorted(arms, key=lambda arm: ("winner", "full", "baseline").index(arm.kind))
    return {_name(arm): arm.kind for arm in order}


def _name(arm: Arm) -> str:
    """Returns what a network is called over runs, whose winners may have several names."""
    return WINNER if arm.kind == "winner" else arm.network


def missing(labels: Sequence[str], label: str, arms: Sequence[Arm]) -> list[str]:
    """Returns the names of the networks that a run lacks and others of its group have.

    Args:
        labels: of the runs of the group.
        label: of the run.
        arms: of all runs.
    """
    there = {_name(arm) for arm in arms if arm.run == label}
    every = _networks([arm for arm in arms if arm.run in labels])
    return [name for name in every if name not in there]
