"""Other runs of the same network, data, space, criterion and evaluator: what of them a run may know."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import CandidateError, RunError
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.known import Known, Source, read_known
from abcsearch.runs.disk.lines import run_id
from abcsearch.runs.disk.shapes import shown_header
from abcsearch.runs.front_folder import is_front, runs_of
from abcsearch.runs.settings import Part, SearchSettings, to_plain
from abcsearch.runs.settings_diff import complete, unlike

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.trial import Trial

_SAME = ("criterion", "evaluator", "space")  # settings that make two runs of one kind
_WORDS = {
    "model": "the network (its trained weights)",
    "data": "the data (other images, or another split)",
    "prepared": "the prepared weights",
}


def found_known(
    folder: RunFolder, space: SearchSpace, settings: SearchSettings, same: Mapping[str, Any]
) -> Known:
    """Returns what the other runs that settings name make known: trials of searches, baselines and maps.

    Also what they knew themselves. Of a structure that several have, the first counts. What a run of the same front has
    found with other prepared weights, which may follow from the budget, is left out.

    Args:
        folder: of the run that is to know it; relative names are seen from there.
        space: its structures.
        settings: of the run.
        same: what its network and data are recognised by, as far as that is known yet.

    Raises:
        RunError: if one of them is no run, damaged, of another kind (with the differences), or has no trial yet.
    """
    sources: list[Source] = []
    seen: set[Candidate] = set()
    for name in settings.known:
        for run, shown in _runs(folder, name):
            if _prepared_for_another(folder, run, same):
                continue
            source = _source(run, shown, space, settings, same)
            fresh = tuple(trial for trial in source.trials if trial.candidate not in seen)
            seen.update(trial.candidate for trial in fresh)
            sources.append(replace(source, trials=fresh))
    return Known(sources=tuple(sources))


def _runs(folder: RunFolder, name: str) -> Iterator[tuple[RunFolder, str]]:
    """Yields the run folders that a name stands for, each with what messages call it."""
    path = Path(os.path.normpath(folder.path / name))  # as messages show it
    for run in runs_of(path):
        if run.path.resolve() == folder.path.resolve():
            msg = f"known names the run itself, {path}: leave it out, a run knows its own trials"
            raise RunError(msg)
        yield run, name if run.path == path else f"{name}/{run.path.relative_to(path)}"


def _prepared_for_another(folder: RunFolder, run: RunFolder, same: Mapping[str, Any]) -> bool:
    """Returns whether a run of another budget of the same front has prepared other weights."""
    budgets = folder.path.resolve().parent
    if "model" not in same or run.path.resolve().parent != budgets or not is_front(budgets.parent):
        return False
    there = shown_header(run)["identity"].get("prepared")
    return _weights(there) != _weights(same.get("prepared"))


def _source(
    run: RunFolder, name: str, space: SearchSpace, settings: SearchSettings, same: Mapping[str, Any]
) -> Source:
    """Returns what is known of one run."""
    header = shown_header(run)
    others = list(_differences(header, settings, same))
    if others:
        msg = (
            f"known run {run.path} is of another kind: {'; '.join(others)} (here and there). What runs of the same "
            f"network, data, space, criterion and evaluator found can be known: leave this one out of known"
        )
        raise RunError(msg)
    seed = int(header["settings"]["seed"])
    alike = seed == settings.seed
    failed, foreign = 0, 0
    taken: dict[Candidate, Trial] = {}
    for trial in _all_trials(run, seed, alike=alike):
        if trial.evaluation.failure is not None:
            failed += 1
        elif not _fits(space, trial):
            foreign += 1
        else:
            taken.setdefault(trial.candidate, trial)
    if not taken:
        msg = f"known run {run.path} has no trial that fits yet ({failed} failed, {foreign} of another space); "
        msg += "leave it out of known, or run it first"
        raise RunError(msg)
    return Source(
        run=name,
        id=run_id(run.path),
        seed=seed,
        trials=tuple(taken.values()),
        failed=failed,
        foreign=foreign,
        same=alike,
    )


def _fits(space: SearchSpace, trial: Trial) -> bool:
    """Returns whether the structure of a trial is one of a space."""
    try:
        space.check(trial.candidate)
    except CandidateError:
        return False
    return True


def _all_trials(run: RunFolder, seed: int, *, alike: bool) -> Iterator[Trial]:
    """Yields all trials of a run: its map's, its own, its baselines', and those that it knew.

    Args:
        run: its folder.
        seed: of the run.
        alike: whether only what was found with that seed is wanted, of what it knew.
    """
    baselines = sorted(path.parent for path in run.path.glob("baselines/*/journal.jsonl"))
    for path in (run.map.path, run.path, *baselines):
        trials = read_journal(path / "journal.jsonl").trials
        yield from (trials[number] for number in sorted(trials))
    for source in (read_known(run) or Known()).sources:
        if not alike or source.seed == seed:
            yield from source.trials


def _differences(
    header: Mapping[str, Any], settings: SearchSettings, same: Mapping[str, Any]
) -> Iterator[str]:
    """Yields in what a run is of another kind than one with these settings: here and there."""
    there = header["identity"]
    for key, words in _WORDS.items():
        here, other = _weights(same.get(key)), _weights(there.get(key))
        known = "model" in same if key == "prepared" else key in same and key in there
        if known and here != other:
            yield f"{words} is {here or 'none'} and {other or 'none'}"
    ours, theirs = _comparable(to_plain(settings)), _comparable(header["settings"])
    names = [plain["evaluator"]["name"] for plain in (ours, theirs)]
    if names[0] != names[1]:  # whose options are others, too
        yield f"evaluator is {names[0]} and {names[1]}"
    yield from unlike(ours, theirs, _SAME if names[0] == names[1] else ("criterion", "space"))


def _weights(hashed: str | None) -> str | None:
    """Returns of a hash what stands for weights: what was prepared has structures behind that."""
    return None if hashed is None else hashed.split(" ", maxsplit=1)[0]


def _comparable(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns plain settings with all defaults, and without devices, on which candidates may be evaluated anywhere."""
    settings = complete(plain)
    evaluator, space = settings["evaluator"], dict(settings["space"])
    del space["bake"]  # which makes other weights and another space of a network, or nothing
    return {
        **settings,
        "space": space,
        "evaluator": asdict(Part(name=evaluator["name"], options=evaluator["options"]).on(None)),
    }
