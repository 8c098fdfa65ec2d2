"""What a rehearsal of a search has found, in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from abcsearch.bounds import amount
from abcsearch.errors import plural
from abcsearch.formats import size_text
from abcsearch.planning.inspection import counted

if TYPE_CHECKING:
    from abcsearch.runs.disk.setup import SetUp
    from abcsearch.runs.settings import Part
    from abcsearch.runs.timing import Estimate

# Below so many seconds: unit, the next smaller one, its seconds, and how many of it make one.
_UNITS: tuple[tuple[float, str, str, int, int], ...] = (
    (3600, "min", "s", 1, 60),
    (48 * 3600, "h", "min", 60, 60),
    (math.inf, "days", "h", 3600, 24),
)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """A bound of the budget, and what structures of the space have.

    Attributes:
        name: of the cost.
        low: lower end, 0 if there is none.
        high: upper end.
        smallest: of the space.
        largest: of the space.
        full: of the full network.
    """

    name: str
    low: float
    high: float
    smallest: float
    largest: float
    full: float

    @property
    def line(self) -> str:
        """The bound in words, with shares of the full network."""
        ends = [self.low, self.high] if self.low else [self.high]
        asked, reach = (
            f"{amount(self.name, *costs)} ({' to '.join(f'{100 * cost / (self.full or 1):.3g} %' for cost in costs)})"
            for costs in (ends, [self.smallest, self.largest])
        )
        line = f"{self.name} {'' if self.low else 'at most '}{asked}; this space reaches {reach}"
        unspent = self.largest < min(self.high, self.full)
        more = "; no structure spends all of it: with alpha = 1 in [space] layers may keep all channels"
        return f"{line}{more if unspent else ''}"


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a search would do, and how long that would take. All but the times follows from the config.

    Attributes:
        model: its name.
        weights: where they come from.
        macs: of the full network.
        params: likewise.
        data: its name.
        images: number of images by split.
        shape: of an image, (channels, height, width); of several inputs by name.
        setup: how the full network does on the data.
        groups: number of channel groups.
        prunable: of these.
        fixed: number of the others by the reason.
        blocks: residual blocks that could be dropped.
        dimensions: of the space.
        free: of these, those with more than one choice.
        structures: exact size of the space, as text: it is larger than most programs' numbers.
        kept: what layers may keep, in words: the settings of the space, defaults too.
        ranks: lines on layers that may be products of two smaller ones; () where ranks are not searched.
        budget: its bounds.
        prepare: name and options of what is trained before the search, or None.
        needs: what that takes of a machine besides a network's training, in a line; "" for nothing worth mentioning.
        baselines: what the winner would be compared with.
        searcher: name and options.
        mapped: structures that would be evaluated before the search begins, for its map.
        mapping: seconds of these with these workers.
        trials: structures that would be evaluated.
        batch: structures that the searcher first proposes together.
        evaluator: name and options.
        workers: evaluations at a time.
        evaluation: of one structure.
        search: seconds of all evaluations of the search with these workers.
        alone: likewise with one worker.
        baseline: seconds of the random baseline with these workers, or None.
        pretraining: of the base network, or None.
        preparing: of what is trained before the search, or None.
        finetuning: of the full network and of a pruned one.
        finetuned: number of pruned networks that are fine-tuned.
        longer: seconds that recipes of baselines' own take more than the run's, or less.
        disk: bytes of the run folder, with fine-tuned networks.
        measured_on: device and threads.
        notes: what else there is to know.
        timed: where forward time was measured for the budget, in words; "" where it was not.
        budgets: names of the budgets, where there are several; all but the times of the whole is of the first one.
    """

    model: str
    weights: str
    macs: int
    params: int
    data: str
    images: dict[str, int]
    shape: Any
    setup: SetUp
    groups: int
    prunable: int
    fixed: dict[str, int]
    blocks: int
    dimensions: int
    free: int
    structures: str
    kept: str
    ranks: tuple[str, ...]
    budget: tuple[Reach, ...]
    prepare: Part | None
    needs: str
    baselines: tuple[str, ...]
    searcher: Part
    mapped: int
    mapping: float
    trials: int
    batch: int
    evaluator: Part
    workers: int
    evaluation: Estimate
    search: float
    alone: float
    baseline: float | None
    pretraining: Estimate | None
    preparing: Estimate | None
    finetuning: tuple[Estimate, Estimate]
    finetuned: int
    longer: float
    disk: int
    measured_on: str
    notes: tuple[str, ...] = field(default=())
    budgets: tuple[str, ...] = field(default=())
    timed: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Returns all of it as plain JSON values."""
        return {**asdict(self), "total": self.total}

    @property
    def tuning(self) -> float:
        """Seconds of all fine-tunings."""
        full, pruned = self.finetuning
        return full.seconds + self.finetuned * pruned.seconds + self.longer

    @property
    def total(self) -> float:
        """Seconds of all that is estimated."""
        before = sum(
            estimate.seconds
            for estimate in (self.pretraining, self.preparing)
            if estimate is not None
        )
        return before + self.mapping + self.search + (self.baseline or 0.0) + self.tuning

    @property
    def lines(self) -> list[str]:
        """All of it in words, the notes last."""
        images = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        rounds = math.ceil(self.trials / self.batch)
        seen = (
            " that is shown all images" if self.evaluator.options.get("scoring") == "racing" else ""
        )
        together = f"{self.batch} at a time, {rounds} rounds" if rounds > 1 else "all at once"
        return [
            f"network: {self.model}, {self.macs:,} macs, {self.params:,} params; weights: {self.weights}",
            f"data: {self.data}; {images}; {_sizes(self.shape)}",
            *self.setup.lines,
            f"groups: {self.prunable} of {self.groups} prunable; {plural(self.blocks, 'block')} could be dropped",
            *(f"  {count} fixed: {reason}" for reason, count in self.fixed.items()),
            f"space: {counted(int(self.structures))}; {self.free} of {plural(self.dimensions, 'dimension')} free",
            f"  {self.kept}",
            *(f"  {line}" for line in self.ranks),
            *(f"budget: {bound.line}" for bound in self.budget),
            *([self.timed] if self.timed else []),
            *([] if self.prepare is None else [f"preparation: {_words(self.prepare)}"]),
            *([f"  {self.needs}"] if self.needs else []),
            f"searcher: {_words(self.searcher)}; {self._counts()}, {together}",
            f"evaluator: {_words(self.evaluator)}; {_estimated(self.evaluation)} per structure{seen}",
            f"baselines: {', '.join(self.baselines) or 'none'}",
            *(
                [f"budgets: {', '.join(self.budgets)}; times are of all of them"]
                if self.budgets
                else []
            ),
            *self._times(),
            f"disk: about {size_text(self.disk)}, fine-tuned networks included",
            f"measured on {self.measured_on}; nothing was written",
            *(f"note: {note}" for note in self.notes),
        ]

    def _counts(self) -> str:
        """Returns how many structures are evaluated, those of the map apart."""
        trials = plural(self.trials, "trial")
        return (
            f"{plural(self.mapped, 'evaluation')} of the map, {trials}" if self.mapped else trials
        )

    def _times(self) -> list[str]:
        """Returns the lines of estimated times."""
        several = (
            f" with {self.workers} workers, {about(self.alone)} with one"
            if self.workers > 1
            else ""
        )
        full, pruned = self.finetuning
        lines = [f"search: about {about(self.search)}{several}"]
        if self.baseline is not None:
            lines.append(f"random baseline: about {about(self.baseline)}")
        if self.mapped:
            lines.insert(0, f"map: about {about(self.mapping)}")
        if self.preparing is not None:
            lines.insert(0, f"preparing: about {_estimated(self.preparing)}")
        if self.pretraining is not None:
            lines.insert(0, f"base network: about {_estimated(self.pretraining)}")
        others = (
            "the pruned one" if self.finetuned == 1 else f"each of {self.finetuned} pruned ones"
        )
        longer = " and what recipes of their own take" if self.longer else ""
        tuned = f"full network {_estimated(full)}, {others} {_estimated(pruned)}{longer}"
        lines.append(f"fine-tuning: about {about(self.tuning)}: {tuned}")
        return [*lines, f"in all: about {about(self.total)}"]


def for_budgets(one: Rehearsal, budgets: tuple[str, ...]) -> Rehearsal:
    """Returns a rehearsal of several budgets: what each of them takes, and once what they share.

    The network, what it has learned, and the map are shared; so is the full network, once fine-tuned. What is prepared
    is prepared for each.
    """
    count = len(budgets)
    prepared = one.preparing and replace(one.preparing, seconds=count * one.preparing.seconds)
    return replace(
        one,
        search=count * one.search,
        alone=count * one.alone,
        baseline=one.baseline and count * one.baseline,
        preparing=prepared,
        finetuned=count * one.finetuned,
        longer=count * one.longer,
        disk=count * one.disk,
        budgets=budgets,
    )


def _words(chosen: Part) -> str:
    """Returns a part in words: its name, and the options that were given."""
    return called(chosen.name, chosen.options)


def called(name: str, options: Any) -> str:  # noqa: ANN401 - a mapping of plain values
    """Returns a name with options in words."""
    given = ", ".join(f"{key} = {value!r}" for key, value in options.items())
    return f"{name} ({given})" if given else name


def _estimated(estimate: Estimate) -> str:
    """Returns a time in words, and whether it was extrapolated."""
    timed = "" if estimate.share >= 1 else f" (timed: {100 * estimate.share:.2g} % of it)"
    return f"{about(estimate.seconds)}{timed}"


def about(seconds: float) -> str:
    """Returns a time in words: the largest unit and the next one."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    _, unit, smaller, one, many = next(entry for entry in _UNITS if seconds < entry[0])
    whole, rest = divmod(round(seconds / one), many)
    return f"{whole} {unit} {rest} {smaller}" if rest else f"{whole} {unit}"


def _sizes(shape: Any) -> str:  # noqa: ANN401 - two kinds
    """Returns the shape of an image in words."""
    if isinstance(shape, dict):
        return ", ".join(f"{name} {_sizes(inner)}" for name, inner in shape.items())
    return "x".join(map(str, shape)) or "a number"
