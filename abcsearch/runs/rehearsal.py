"""A search before it is run: what would be searched, what can be reached, and how long it would take."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.baselines.registry import searched
from abcsearch.bounds import amount
from abcsearch.errors import SearcherError
from abcsearch.runs.configured import config_identity, prepare
from abcsearch.runs.executing import evaluation_threads
from abcsearch.runs.folder import RunFolder
from abcsearch.runs.header import held_header
from abcsearch.runs.inspection import counted
from abcsearch.runs.preparing import preparation_of
from abcsearch.runs.timing import PATIENCE, Estimate, evaluation_time, full_macs, preparation_time, training_time
from abcsearch.runs.weights import state_bytes
from abcsearch.searchers.registry import make_searcher
from abcsearch.training.computing import find_device

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.budget import Constraint
    from abcsearch.runs.settings import Part, RunConfig
    from abcsearch.runs.task import Task
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate

# Below so many seconds: unit, the next smaller one, its seconds, and how many of it make one.
_UNITS: tuple[tuple[float, str, str, int, int], ...] = (
    (3600, "min", "s", 1, 60),
    (48 * 3600, "h", "min", 60, 60),
    (math.inf, "days", "h", 3600, 24),
)
_JOURNAL = 600  # bytes per trial, more than most take


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
        return f"{self.name} {'' if self.low else 'at most '}{asked}; this space reaches {reach}"


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
        shape: of an image, (channels, height, width).
        groups: number of channel groups.
        prunable: of these.
        fixed: number of the others by the reason.
        blocks: residual blocks that could be dropped.
        dimensions: of the space.
        free: of these, those with more than one choice.
        structures: exact size of the space, as text: it is larger than most programs' numbers.
        budget: its bounds.
        searcher: name and options.
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
        disk: bytes of the run folder, with fine-tuned networks.
        measured_on: device and threads.
        notes: what else there is to know.
    """

    model: str
    weights: str
    macs: int
    params: int
    data: str
    images: dict[str, int]
    shape: tuple[int, ...]
    groups: int
    prunable: int
    fixed: dict[str, int]
    blocks: int
    dimensions: int
    free: int
    structures: str
    budget: tuple[Reach, ...]
    searcher: Part
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
    disk: int
    measured_on: str
    notes: tuple[str, ...] = field(default=())

    def to_plain(self) -> dict[str, Any]:
        """Returns all of it as plain JSON values."""
        return {**asdict(self), "total": self.total}

    @property
    def tuning(self) -> float:
        """Seconds of all fine-tunings."""
        full, pruned = self.finetuning
        return full.seconds + self.finetuned * pruned.seconds

    @property
    def total(self) -> float:
        """Seconds of all that is estimated."""
        before = sum(own.seconds for own in (self.pretraining, self.preparing) if own is not None)
        return before + self.search + (self.baseline or 0.0) + self.tuning

    @property
    def lines(self) -> list[str]:
        """All of it in words, the notes last."""
        images = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        rounds = math.ceil(self.trials / self.batch)
        together = f"{self.batch} at a time, {rounds} rounds" if rounds > 1 else "all at once"
        return [
            f"network: {self.model}, {self.macs:,} macs, {self.params:,} params; weights: {self.weights}",
            f"data: {self.data}; {images}; {'x'.join(map(str, self.shape))}",
            f"groups: {self.prunable} of {self.groups} prunable; {self.blocks} blocks could be dropped",
            *(f"  {count} fixed: {reason}" for reason, count in self.fixed.items()),
            f"space: {counted(int(self.structures))} structures; {self.free} of {self.dimensions} dimensions are free",
            *(f"budget: {bound.line}" for bound in self.budget),
            f"searcher: {_words(self.searcher)}; {self.trials:,} trials, {together}",
            f"evaluator: {_words(self.evaluator)}; {_estimated(self.evaluation)} per structure",
            *self._times(),
            f"disk: about {_size(self.disk)}, fine-tuned networks included",
            f"measured on {self.measured_on}; nothing was written",
            *(f"note: {note}" for note in self.notes),
        ]

    def _times(self) -> list[str]:
        """Returns the lines of estimated times."""
        several = f" with {self.workers} workers, {about(self.alone)} with one" if self.workers > 1 else ""
        full, pruned = self.finetuning
        lines = [f"search: about {about(self.search)}{several}"]
        if self.baseline is not None:
            lines.append(f"random baseline: about {about(self.baseline)}")
        if self.preparing is not None:
            lines.insert(0, f"preparing: about {_estimated(self.preparing)}")
        if self.pretraining is not None:
            lines.insert(0, f"base network: about {_estimated(self.pretraining)}")
        others = "the pruned one" if self.finetuned == 1 else f"each of {self.finetuned} pruned ones"
        lines.append(
            f"fine-tuning: about {about(self.tuning)}: full network {_estimated(full)}, {others} {_estimated(pruned)}"
        )
        return [*lines, f"in all: about {about(self.total)}"]


def rehearse(config: RunConfig, run_dir: str | Path, *, patience: float = PATIENCE) -> Rehearsal:
    """Returns what `run_config` would do, without training, searching or writing anything.

    It refuses what a search refuses, but for a missing checkpoint: that is noted, and random weights stand in, as
    costs and times do not depend on them.

    Args:
        config: the run.
        run_dir: its folder, which need not exist.
        patience: seconds that one timed part may take; larger is more exact.

    Raises:
        AbcSearchError: of the kind that fits.
    """
    folder = RunFolder(run_dir)
    task, parts = prepare(config, folder, weights=False)
    held = held_header(folder, config, config_identity(config, task.data)) if folder.path.exists() else None
    rounds = parts.searcher.needs_results and config.execution.schedule == "rounds" and not config.execution.window
    searcher = parts.searcher
    if config.searcher.name == "given" and config.prepare is not None:  # it is given its structures later
        searcher = make_searcher("random", task.space, task.constraint, seed=config.seed)
    candidate, batch = _first(searcher, config.n_trials if rounds else 1)
    unheard = f"{config.searcher.name} proposes all {batch} trials before it has a result to learn from"
    learns = not rounds or batch < config.n_trials
    batch = batch if rounds else config.n_trials
    workers, crowded = _workers(config)
    evaluation = evaluation_time(task, config, candidate, patience)
    pruned = task.source.network(candidate)
    tuning = [training_time(task, network, config.finetune, patience) for network in (task.base, pruned)]
    pretraining = None if config.pretrain is None else training_time(task, task.base, config.pretrain, patience)
    preparation = preparation_of(config)
    preparing = None if preparation is None else preparation_time(task, config, preparation, patience)
    notes = [
        *_weights_notes(config, folder),
        *crowded,
        *([] if learns else [unheard]),
        *(["the run folder holds this run, which would be continued; times are of a whole one"] if held else []),
        *([f"the timed evaluation failed: {evaluation.failure}"] if evaluation.failure else []),
    ]
    space, graph, others = task.space, task.graph, len(searched(config.baselines))
    return Rehearsal(
        model=_called(config.model.name, config.model.options),
        weights="trained first" if config.model.checkpoint is None else config.model.checkpoint,
        macs=full_macs(task),
        params=int(graph.costs.params([space.full])[0]),
        data=task.data.name,
        images={
            "train": len(task.data.train),
            "search-validation": len(task.data.validation),
            "test": len(task.data.test),
        },
        shape=tuple(task.data.train.shape),
        groups=len(graph.groups),
        prunable=len(graph.prunable),
        fixed=dict(Counter(group.fixed for group in graph.groups if group.fixed is not None)),
        blocks=len(graph.blocks),
        dimensions=len(space),
        free=sum(len(dimension.choices) > 1 for dimension in space.dimensions),
        structures=str(space.size),
        budget=_reach(task.constraint),
        searcher=config.searcher,
        trials=config.n_trials,
        batch=batch,
        evaluator=config.evaluator,
        workers=workers,
        evaluation=evaluation,
        search=evaluation.seconds * _turns(config.n_trials, batch, workers),
        alone=evaluation.seconds * config.n_trials,
        baseline=others * evaluation.seconds * math.ceil(config.n_trials / workers) if others else None,
        pretraining=pretraining,
        preparing=preparing,
        finetuning=(tuning[0], tuning[1]),
        finetuned=1 + len(config.baselines),
        disk=_disk(task, pruned, config),
        measured_on=_machine(config),
        notes=tuple(notes),
    )


def _first(searcher: Searcher, count: int) -> tuple[Candidate, int]:
    """Returns the first structure that a new searcher proposes, and how many with it, at most `count`.

    Raises:
        SearcherError: if it proposes none.
    """
    asked = searcher.ask(count)
    if not asked:
        msg = f"searcher {searcher.name!r} proposes nothing; is there anything to choose in the space?"
        raise SearcherError(msg)
    return asked[0], len(asked)


def _turns(trials: int, batch: int, workers: int) -> int:
    """Returns how many evaluations follow one another where every batch waits for the one before."""
    whole, rest = divmod(trials, batch)
    return whole * math.ceil(batch / workers) + math.ceil(rest / workers)


def _workers(config: RunConfig) -> tuple[int, list[str]]:
    """Returns how many evaluations really run at a time, and a note where those are fewer than asked for."""
    own, threads = config.execution, evaluation_threads(config.evaluator.options)
    wanted = max(1, min(own.workers, own.window or own.workers))
    here = own.ray_address is None and not own.gpus
    most = max(1, (os.cpu_count() or 1) // threads) if here else wanted
    if wanted <= most:
        return wanted, []
    return most, [f"{wanted} workers of {threads} thread(s) share {os.cpu_count()} CPUs and count as {most}"]


def _reach(constraint: Constraint) -> tuple[Reach, ...]:
    """Returns the bounds of a budget with what the space reaches."""
    space = constraint.space
    ends = [space.at([0] * len(space)), space.at(space.last_indices), space.full]
    found: list[Reach] = []
    for limit in constraint.limits:
        smallest, largest, full = limit.cost(ends).tolist()
        found.append(
            Reach(
                name=limit.name,
                low=limit.low,
                high=limit.high,
                smallest=smallest,
                largest=largest,
                full=full,
            )
        )
    return tuple(found)


def _weights_notes(config: RunConfig, folder: RunFolder) -> list[str]:
    """Returns what there is to say about weights that are not there yet."""
    checkpoint = config.model.checkpoint
    if folder.base.exists() or checkpoint is None or Path(checkpoint).exists():
        return []
    return [f"checkpoint {checkpoint} is missing: the search will refuse; random weights were timed here"]


def _disk(task: Task, pruned: nn.Module, config: RunConfig) -> int:
    """Returns the bytes of a run folder: the base network, the fine-tuned ones, and what is kept of every trial."""
    searches = 1 + len(searched(config.baselines))
    trials = searches * config.n_trials * (_JOURNAL + 6 * len(task.space))
    full = (2 + (config.prepare is not None)) * state_bytes(task.base)
    return full + (1 + len(config.baselines)) * state_bytes(pruned) + trials


def _machine(config: RunConfig) -> str:
    """Returns where things were timed, in words."""
    options = config.evaluator.options
    device = find_device(str(options.get("device", "auto")))
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, precision {options.get('precision', 'float32')}"
    threads = evaluation_threads(options)
    return f"a CPU ({platform.machine()}, {os.cpu_count()} cores), evaluations with {threads} thread(s)"


def _words(part: Part) -> str:
    """Returns a part in words: its name, and the options that were given."""
    return _called(part.name, part.options)


def _called(name: str, options: Any) -> str:  # noqa: ANN401 - a mapping of plain values
    """Returns a name with options in words."""
    given = ", ".join(f"{key} = {value!r}" for key, value in options.items())
    return f"{name} ({given})" if given else name


def _estimated(estimate: Estimate) -> str:
    """Returns a time in words, and whether it was extrapolated."""
    part = "" if estimate.share >= 1 else f" (timed: {100 * estimate.share:.2g} % of it)"
    return f"{about(estimate.seconds)}{part}"


def about(seconds: float) -> str:
    """Returns a time in words: the largest unit and the next one."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    _, unit, smaller, part, parts = next(entry for entry in _UNITS if seconds < entry[0])
    whole, rest = divmod(round(seconds / part), parts)
    return f"{whole} {unit} {rest} {smaller}" if rest else f"{whole} {unit}"


def _size(count: float) -> str:
    """Returns a number of bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
