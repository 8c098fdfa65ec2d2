"""What a searcher is told before it begins: trials of other runs, copied once, and the map of what it asks to know."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from abcsearch.budget import Budget, Constraint
from abcsearch.errors import RunError, plural
from abcsearch.runs.blame import named
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.known import KNOWN, STAGE, Known, read_known
from abcsearch.runs.header import identity, write_header
from abcsearch.runs.known_runs import found_known
from abcsearch.runs.loop import Loop
from abcsearch.runs.progress import Progress
from abcsearch.runs.settings import Part, RunConfig, SearchSettings
from abcsearch.searchers.registry import make_searcher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.roles import Roles
    from abcsearch.runs.task import Task
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate
    from abcsearch.trial import Evaluation, Trial


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What is known before a search begins.

    Attributes:
        trials: what the searcher is told, in this order: those of other runs, then the map.
        evaluations: what need not be evaluated again where the search proposes it.
    """

    trials: tuple[Trial, ...] = field(repr=False)
    evaluations: Mapping[Candidate, Evaluation] = field(repr=False)


def learned(
    folder: RunFolder, task: Task, settings: SearchSettings, roles: Roles, progress: Progress
) -> Knowledge:
    """Returns what is known before a search, after evaluating what the searcher asks for and nobody knows.

    Both are kept in the folder: a run that goes on has the same, whatever has become of other runs. One that was begun
    without a map (by an older version) goes on without.

    Args:
        folder: of the run, locked, with its run.json.
        task: what is pruned.
        settings: of the run.
        roles: who does the work; the searcher is new.
        progress: shown after every evaluation of the map.

    Raises:
        RunError: if a known run is of another kind, or what the folder holds is damaged.
        AbcSearchError: as the search itself, if evaluations of the map fail.
    """
    others = _kept_known(folder, task, settings)
    with named(roles.searcher):
        probes = probes_of(roles.searcher)
    if probes and not _begun_without(folder):
        write_header(folder, settings, {**identity(task), "map": mark(probes)})
        missing = [probe for probe in probes if probe not in others.structures]
        trials = _mapped(folder, task, settings, roles, missing, progress) if missing else []
    else:
        trials = []
    return _knowledge(others, trials)


def kept(folder: RunFolder, searcher: Searcher) -> Knowledge:
    """Returns what a folder holds of what its search was told, without evaluating anything.

    Raises:
        RunError: if something of it is damaged.
    """
    trials = read_journal(folder.map.journal).trials if probes_of(searcher) else {}
    return _knowledge(read_known(folder) or Known(), [trials[number] for number in sorted(trials)])


def probes_of(searcher: Searcher) -> tuple[Candidate, ...]:
    """Returns the structures whose fitness a searcher wants to know before it begins, each once, in its order.

    Raises:
        CandidateError: if one of them is not in the space.
    """
    space = searcher.space
    return tuple(dict.fromkeys(space.at(space.indices(probe)) for probe in searcher.probes()))


def mark(probes: tuple[Candidate, ...]) -> str:
    """Returns what tells the probes of one search from others."""
    return f"{len(probes)} {zlib.crc32(repr(probes).encode()):08x}"


def _knowledge(others: Known, trials: list[Trial]) -> Knowledge:
    """Returns what other runs and the map make known."""
    succeeded = [trial for trial in trials if trial.evaluation.failure is None]
    evaluated = {trial.candidate: trial.evaluation for trial in trials}
    return Knowledge(
        trials=(*others.trials, *succeeded), evaluations={**others.evaluations, **evaluated}
    )


def _begun_without(folder: RunFolder) -> bool:
    """Returns whether a run has trials that its searcher proposed without a map."""
    begun = folder.journal.exists() and folder.journal.stat().st_size > 0
    return begun and "map" not in folder.header()["identity"]


def _kept_known(folder: RunFolder, task: Task, settings: SearchSettings) -> Known:
    """Returns the trials of other runs that a run knows: those that its folder holds, or else copied into it now.

    Raises:
        RunError: if a known run is of another kind; if the copy is damaged, or missing although there are trials.
    """
    there = read_known(folder)
    if there is not None or not settings.known:
        return there or Known()
    if folder.journal.exists() and folder.journal.stat().st_size:
        msg = f"{folder.path / KNOWN} is missing: trials were proposed by what is in it; restore it from a copy, or "
        msg += "start a new run in another folder"
        raise RunError(msg)
    known = found_known(folder, task.space, settings, identity(task))
    folder.write_json(KNOWN, known.to_plain())
    for line in known.lines:
        folder.log(line)
    return known


def map_settings(settings: SearchSettings, probes: list[Candidate]) -> SearchSettings:
    """Returns the settings of the map of a run: its structures are given, and no budget keeps any out."""
    settings_ = replace(
        settings,
        searcher=Part(name="given", options={"initial": [list(probe) for probe in probes]}),
        n_trials=len(probes),
        budget=Budget(macs=1.0),
        known=(),
    )
    return replace(settings_, baselines=()) if isinstance(settings_, RunConfig) else settings_


def _mapped(
    folder: RunFolder,
    task: Task,
    settings: SearchSettings,
    roles: Roles,
    probes: list[Candidate],
    progress: Progress,
) -> list[Trial]:
    """Returns the trials of probes: those that the map's journal has, the others evaluated now."""
    folder.check()
    folder.map.path.mkdir(exist_ok=True)
    asked = map_settings(settings, probes)
    begun = folder.map.journal.exists()
    write_header(folder.map, asked, identity(task))
    if not begun:
        folder.log(
            f"{STAGE}: {plural(len(probes), 'structure')} to evaluate before the search begins"
        )
    return Loop(
        folder=folder.map,
        searcher=make_searcher(
            "given", task.space, Constraint(task.space), seed=settings.seed, initial=probes
        ),
        evaluator=roles.evaluator,
        costs=task.graph.costs,
        executor=roles.executor,
        n_trials=len(probes),
        seed=settings.seed,
        max_failures=settings.max_failures,
        execution=settings.execution,
        progress=progress,
        stage=STAGE,
        competing=False,
    ).run()
