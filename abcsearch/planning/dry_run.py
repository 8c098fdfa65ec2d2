"""A search before it is run: what would be searched, what can be reached, and how long it would take."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from abcsearch.baselines.checks import checked_recipe
from abcsearch.baselines.registry import BASELINES, searched
from abcsearch.errors import RunError, SearcherError, plural
from abcsearch.planning.dry_run_words import Reach, Rehearsal, called, for_budgets
from abcsearch.runs.base import load_base
from abcsearch.runs.config_run import config_identity, prepare
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.known import read_known
from abcsearch.runs.disk.weights import state_bytes
from abcsearch.runs.front import check_front
from abcsearch.runs.front_folder import run_folder
from abcsearch.runs.header import as_begun, held_header
from abcsearch.runs.knowledge import probes_of
from abcsearch.runs.known_runs import found_known
from abcsearch.runs.latency import timed_words
from abcsearch.runs.preparing import preparation_of
from abcsearch.runs.setup_check import asked_of, look_at
from abcsearch.runs.shared import Shared
from abcsearch.runs.timing import (
    PATIENCE,
    evaluation_time,
    full_macs,
    preparation_time,
    training_time,
)
from abcsearch.runs.workers import evaluation_threads
from abcsearch.searchers.registry import make_searcher
from abcsearch.steps import doing
from abcsearch.training.computing import find_device

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.budget import Constraint
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.runs.disk.setup import SetUp
    from abcsearch.runs.front_settings import Front
    from abcsearch.runs.settings import RunConfig, SpaceOptions
    from abcsearch.runs.task import Task
    from abcsearch.runs.timing import Estimate
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate

_JOURNAL = 600  # bytes per trial, more than most take


def rehearse(
    config: RunConfig, run_dir: str | Path, *, patience: float = PATIENCE, chosen: bool = True
) -> Rehearsal:
    """Returns what `run_config` would do, without training, searching or writing anything.

    It refuses what a search refuses, but for a missing checkpoint: that is noted, and random weights stand in, as
    costs and times do not depend on them.

    Args:
        config: the run.
        run_dir: its folder, which need not exist.
        patience: seconds that one timed part may take; larger is more exact.
        chosen: whether the user has named the folder; if not, one that holds something else is noted.

    Raises:
        AbcSearchError: of the kind that fits.
    """
    folder = RunFolder(run_dir)
    try:
        return _rehearsed(config, folder, patience)
    except RunError as error:
        if chosen or not folder.path.exists():
            raise
        note = f"a search would need another folder, --run-dir: {error}"
    rehearsal = _rehearsed(config, RunFolder(folder.path / "new"), patience)
    return replace(rehearsal, notes=(*rehearsal.notes, note))


def rehearse_front(
    front: Front[RunConfig], run_dir: str | Path, *, patience: float = PATIENCE, chosen: bool = True
) -> Rehearsal:
    """Returns what `run_front_config` would do, likewise: times are those of the first budget, for all of them.

    Raises:
        AbcSearchError: of the kind that fits; BudgetError names the budget.
    """
    folder, config = RunFolder(run_dir), front.run(0)
    if chosen and folder.path.exists():
        check_front(folder, front)
    shared = Shared(front, folder)
    # Refuses what cannot be
    prepare(config, run_folder(folder, front.names[0]), weights=False, shared=shared)
    one = rehearse(
        config, run_folder(folder, front.names[0]).path, patience=patience, chosen=chosen
    )
    return for_budgets(one, front.names)


def _rehearsed(config: RunConfig, folder: RunFolder, patience: float) -> Rehearsal:
    """Returns what `run_config` would do in a folder."""
    config = as_begun(config, folder)
    task, roles = prepare(config, folder, weights=False)
    held = _held_notes(config, folder, task)
    batch, candidate, unheard = _first_batch(config, task, roles.searcher)
    mapped = _mapped(config, folder, task, roles.searcher)
    workers, crowded = _workers(config)
    times = _timed(config, task, candidate, patience)
    evaluation, preparation = times.evaluation, preparation_of(config)
    needs = None if preparation is None else preparation.needs(task)
    notes = [
        *_weights_notes(config, folder),
        *crowded,
        *unheard,
        *held,
        *([f"the timed evaluation failed: {evaluation.failure}"] if evaluation.failure else []),
    ]
    doing("looking at the full network on search-validation")
    space, graph, others = task.space, task.graph, len(searched(config.baselines))
    turns = math.ceil(config.n_trials / workers)
    return Rehearsal(
        model=called(config.model.name, config.model.options),
        weights="trained first" if config.model.checkpoint is None else config.model.checkpoint,
        macs=full_macs(task),
        params=int(graph.costs.params([space.full])[0]),
        data=task.data.name,
        images={
            "train": len(task.data.train),
            "search-validation": len(task.data.validation),
            "test": len(task.data.test),
        },
        shape=task.data.train.shape,
        setup=_looked(config, task, folder),
        groups=len(graph.groups),
        prunable=len(graph.prunable),
        fixed=dict(Counter(group.fixed for group in graph.groups if group.fixed is not None)),
        blocks=len(graph.blocks),
        dimensions=len(space),
        free=sum(len(dimension.choices) > 1 for dimension in space.dimensions),
        structures=str(space.size),
        kept=_kept(config.space),
        ranks=_of_ranks(graph),
        budget=_reach(task.constraint),
        prepare=config.prepare,
        needs="" if needs is None else needs.line,
        baselines=config.baselines,
        searcher=config.searcher,
        mapped=mapped,
        mapping=evaluation.seconds * math.ceil(mapped / workers),
        trials=config.n_trials,
        batch=batch,
        evaluator=config.evaluator,
        workers=workers,
        evaluation=evaluation,
        search=evaluation.seconds * _turns(config.n_trials, batch, workers),
        alone=evaluation.seconds * config.n_trials,
        baseline=others * evaluation.seconds * turns if others else None,
        pretraining=times.pretraining,
        preparing=times.preparing,
        finetuning=times.finetuning,
        finetuned=1 + len(config.baselines),
        longer=times.finetuning[1].seconds * _more_epochs(task, config, candidate),
        disk=_disk(task, times.pruned, config, mapped) + (0 if needs is None else needs.disk),
        measured_on=_machine(config),
        notes=tuple(notes),
        timed=timed_words(task.constraint.costs),
    )


def _first_batch(
    config: RunConfig, task: Task, searcher: Searcher
) -> tuple[int, Candidate, list[str]]:
    """Returns how many structures are evaluated before the searcher learns of one, the first of them, and a note.

    The note is there where it never learns of one in time.
    """
    execution = config.execution
    rounds = searcher.needs_results and execution.schedule == "rounds" and not execution.window
    # It is given its structures later
    if config.searcher.name == "given" and config.prepare is not None:
        searcher = make_searcher("random", task.space, task.constraint, seed=config.seed)
    doing("timing an evaluation")
    candidate, batch = _first(searcher, config.n_trials if rounds else 1)
    if not rounds:
        return config.n_trials, candidate, []
    note = f"{config.searcher.name} proposes all {plural(batch, 'trial')} before it has a result to learn from"
    return batch, candidate, [note] if batch >= config.n_trials else []


@dataclass(frozen=True, kw_only=True)
class _Times:
    """How long what a run does takes.

    Attributes:
        evaluation: one of them.
        pruned: the network that was evaluated.
        finetuning: of the full network, and of that one.
        pretraining: None without.
        preparing: likewise.
    """

    evaluation: Estimate
    pruned: nn.Module
    finetuning: tuple[Estimate, Estimate]
    pretraining: Estimate | None
    preparing: Estimate | None


def _timed(config: RunConfig, task: Task, candidate: Candidate, patience: float) -> _Times:
    """Measures how long what a run does takes.

    Args:
        config: the run.
        task: of it, with a network that need not be trained.
        candidate: the structure that is evaluated and fine-tuned.
        patience: seconds that one timed part may take.
    """
    evaluation = evaluation_time(task, config, candidate, patience)
    pruned = task.source.network(candidate)
    doing("timing fine-tuning")
    of_full = training_time(task, task.base, config.finetune, patience)
    of_pruned = training_time(task, pruned, config.finetune, patience)
    doing("timing trainings before the search")
    pretraining = preparing = None
    if config.pretrain is not None:
        pretraining = training_time(task, task.base, config.pretrain, patience)
    preparation = preparation_of(config)
    if preparation is not None:
        preparing = preparation_time(task, config, preparation, patience)
    return _Times(
        evaluation=evaluation,
        pruned=pruned,
        finetuning=(of_full, of_pruned),
        pretraining=pretraining,
        preparing=preparing,
    )


def _held_notes(config: RunConfig, folder: RunFolder, task: Task) -> list[str]:
    """Returns a note if the folder holds this run; raises RunError if it holds another one."""
    if folder.path.exists() and held_header(folder, config, config_identity(config, task.data)):
        return ["the run folder holds this run, which would be continued; times are of a whole one"]
    return []


def _kept(options: SpaceOptions) -> str:
    """Returns what layers may keep, in words that are the settings."""
    lowest = options.step if options.lowest is None else options.lowest
    whole = "" if options.alpha == 1 else ", so no layer keeps all its channels (alpha = 1)"
    widths = f"layers keep {lowest:g} to alpha = {options.alpha:g} of their channels by step = {options.step:g}{whole}"
    fast = ", hardware = true: only widths that are fast" if options.hardware else ""
    return f"{widths}; levels = {list(options.levels)}, divisor = {options.divisor}{fast}"


def _of_ranks(graph: ChannelGraph) -> tuple[str, ...]:
    """Returns lines on layers that may be products of two smaller ones, and why others stay whole; () without ranks."""
    if not graph.ranks:
        return ()
    reasons = Counter(graph.unranked.values())
    return (
        f"{plural(len(graph.ranks), 'layer')} may be products of two smaller ones, at ranks that save MACs",
        *(f"{count} stay whole: {reason}" for reason, count in reasons.items()),
    )


def _mapped(config: RunConfig, folder: RunFolder, task: Task, searcher: Searcher) -> int:
    """Returns how many structures would be evaluated before the search begins."""
    probes = probes_of(searcher)
    known = read_known(folder)
    if known is None and probes:
        known = found_known(folder, task.space, config, config_identity(config, task.data))
    return len(probes) if known is None else len(set(probes) - known.structures)


def _looked(config: RunConfig, task: Task, folder: RunFolder) -> SetUp:
    """Returns how the full network does on the data, as far as its weights are there."""
    checkpoint = config.model.checkpoint
    there = folder.base.exists() or (checkpoint is not None and Path(checkpoint).exists())
    if folder.base.exists():
        load_base(task.base, folder.base)
    return look_at(task.base, task.data, full_macs(task), replace(asked_of(config), trained=there))


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


def _more_epochs(task: Task, config: RunConfig, candidate: Candidate) -> float:
    """Returns how many fine-tunings more recipes of baselines' own are than the run's, by their epochs."""
    usual, more = config.finetune, 0.0
    for name in config.baselines:
        baseline = BASELINES.find(name)
        if baseline.recipe:
            structure = baseline.structure(task) if baseline.structure else candidate
            more += (
                checked_recipe(name, baseline.recipe, usual, task, structure).epochs / usual.epochs
                - 1
            )
    return more


def _turns(trials: int, batch: int, workers: int) -> int:
    """Returns how many evaluations follow one another where every batch waits for the one before."""
    whole, rest = divmod(trials, batch)
    return whole * math.ceil(batch / workers) + math.ceil(rest / workers)


def _workers(config: RunConfig) -> tuple[int, list[str]]:
    """Returns how many evaluations really run at a time, and a note where those are fewer than asked for."""
    execution, threads = config.execution, evaluation_threads(config.evaluator.options)
    wanted = max(1, min(execution.workers, execution.window or execution.workers))
    here = execution.ray_address is None and not execution.gpus
    most = max(1, (os.cpu_count() or 1) // threads) if here else wanted
    if wanted <= most:
        return wanted, []
    return most, [
        f"{wanted} workers of {threads} thread(s) share {os.cpu_count()} CPUs and count as {most}"
    ]


def _reach(constraint: Constraint) -> tuple[Reach, ...]:
    """Returns the bounds of a budget with what the space reaches."""
    space = constraint.space
    ends = [space.at([0] * len(space)), space.at(space.last_indices), space.full]
    reaches: list[Reach] = []
    for limit in constraint.limits:
        smallest, largest, full = limit.cost(ends).tolist()
        reaches.append(
            Reach(
                name=limit.name,
                low=limit.low,
                high=limit.high,
                smallest=smallest,
                largest=largest,
                full=full,
            )
        )
    return tuple(reaches)


def _weights_notes(config: RunConfig, folder: RunFolder) -> list[str]:
    """Returns what there is to say about weights that are not there yet."""
    checkpoint = config.model.checkpoint
    if folder.base.exists() or checkpoint is None or Path(checkpoint).exists():
        return []
    return [
        f"checkpoint {checkpoint} is missing: the search will refuse; random weights were timed here"
    ]


def _disk(task: Task, pruned: nn.Module, config: RunConfig, mapped: int) -> int:
    """Returns the bytes of a run folder: the base network, the fine-tuned ones, and what is kept of every trial."""
    searches = 1 + len(searched(config.baselines))
    trials = (searches * config.n_trials + mapped) * (_JOURNAL + 6 * len(task.space))
    full = (2 + (config.prepare is not None)) * state_bytes(task.base)
    return full + (1 + len(config.baselines)) * state_bytes(pruned) + trials


def _machine(config: RunConfig) -> str:
    """Returns where things were timed, in words."""
    options = config.evaluator.options
    device = find_device(str(options.get("device", "auto")))
    if device.type == "cuda":
        return (
            f"{torch.cuda.get_device_name(device)}, precision {options.get('precision', 'float32')}"
        )
    threads = evaluation_threads(options)
    return f"a CPU ({platform.machine()}, {plural(os.cpu_count() or 1, 'core')}), evaluations with {threads} thread(s)"
