"""Several runs side by side: what they found, and whether they can be compared at all."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.errors import RunError, plural
from abcsearch.example import sizes_of
from abcsearch.records import names
from abcsearch.reporting.arms import WINNER, arms_of, contrasts_of, missing, shown, unsound
from abcsearch.reporting.gathering import gather
from abcsearch.results.finetuned_files import problems
from abcsearch.results.forward import measure_forward
from abcsearch.results.intervals import difference
from abcsearch.results.report import test_intervals, tested_metrics
from abcsearch.runs.config_run import LoadedOnce
from abcsearch.runs.recipes import asked, changed, finetune_command
from abcsearch.runs.settings import RunConfig, deciding
from abcsearch.runs.settings_diff import complete, unlike

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from abcsearch.data.split import Images
    from abcsearch.reporting.arms import Arm, Contrast
    from abcsearch.reporting.gathering import Gathered
    from abcsearch.results.finetuned_files import Tuned
    from abcsearch.results.forward import ForwardTime
    from abcsearch.results.intervals import Difference

    Scores = dict[str, Any] | None

_SAME = names(RunConfig, compared=True)  # or fitness is another


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs with the same settings but the seed.

    Attributes:
        name: of the searcher, and of the runs where that is not enough.
        runs: their labels.
        numbers: how many trials, from 1.
        mean: mean over the runs of the best fitness after so many trials.
        low: the lowest of them.
        high: the highest of them.
    """

    name: str
    runs: tuple[str, ...]
    numbers: tuple[int, ...] = field(repr=False)
    mean: tuple[float, ...] = field(repr=False)
    low: tuple[float, ...] = field(repr=False)
    high: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best of one run.

    Attributes:
        run: its label.
        searcher: the name of its searcher.
        seed: its seed.
        trials: how many finished.
        failed: how many of them failed.
        trial: number of the best one, or None.
        fitness: of the best one.
        macs: of it.
        params: of it.
        macs_share: against the full network; None where that is not known.
        params_share: likewise.
        times: forward times of the network, measured in turns with the others; empty without it.
        tests: metrics on the test split by name, each before and after fine-tuning; empty without.
        intervals: 95 % intervals of these after fine-tuning, as far as they are known.
        recipe: that it was fine-tuned with, plain values; None without.
        metric: of `tests`, what comes first in tables; None without the network.
    """

    run: str
    searcher: str
    seed: int
    trials: int
    failed: int
    trial: int | None
    fitness: float | None
    macs: int | None
    params: int | None
    macs_share: float | None
    params_share: float | None
    times: tuple[ForwardTime, ...]
    tests: Mapping[str, Mapping[str, float]]
    recipe: Mapping[str, Any] | None = None
    metric: str | None = None
    intervals: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, "tuple[float, float]"]
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        labels: of the runs.
        runs: what was gathered of each.
        groups: runs with the same settings but the seed.
        winners: the best of each run.
        warnings: why the runs cannot be compared, or only in part.
        differences: of the first metric after fine-tuning between the best winner and every other one that was
            fine-tuned by the same recipe, as far as it is known what they are worth.
        arms: the fine-tuned networks of each run, its winner first, where it or another one of its group has a
            baseline among them.
        contrasts: the same over the runs of a group.
    """

    labels: tuple[str, ...]
    runs: tuple[Gathered, ...] = field(repr=False)
    groups: tuple[Group, ...]
    winners: tuple[Winner, ...]
    warnings: tuple[str, ...]
    differences: tuple[Difference, ...] = ()
    arms: tuple[Arm, ...] = ()
    contrasts: tuple[Contrast, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Returns the numbers of all charts and tables as plain values."""
        runs = {label: run.charts() for label, run in zip(self.labels, self.runs, strict=True)}
        tables = {"groups": self.groups, "winners": self.winners, "differences": self.differences}
        tables["arms"] = self.arms
        return {name: [asdict(one) for one in many] for name, many in tables.items()} | {
            "contrasts": [one.plain() for one in self.contrasts],
            "warnings": list(self.warnings),
            "runs": runs,
        }


def compare_runs(run_dirs: Sequence[str | Path], *, trust: bool = False) -> Comparison:
    """Returns several runs side by side.

    Args:
        run_dirs: their folders, two or more.
        trust: as of `gather`.

    Raises:
        RunError: if there are fewer, or a folder holds no run.
    """
    if len(run_dirs) < 2:
        msg = f"compare takes two run folders or more, found {len(run_dirs)}; of one run, see: abcsearch report"
        raise RunError(msg)
    load = LoadedOnce()
    runs = tuple(gather(path, load=load, measure=False, trust=trust) for path in run_dirs)
    names = [Path(path).resolve().name for path in run_dirs]
    labels = tuple(
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, run_dirs, strict=True)
    )
    if len(set(labels)) < len(labels):
        msg = f"a run folder is there twice: {', '.join(labels)}; name each once"
        raise RunError(msg)
    tunings = [_tunings(run) for run in runs]
    scores = [
        None if run.run is None else tuned[run.run.winner.name].scores
        for run, tuned in zip(runs, tunings, strict=True)
    ]
    winners = _winners(labels, runs, scores)
    groups = _groups(labels, runs)
    every = (
        () if run.run is None else arms_of(label, run.run, tuned)
        for label, run, tuned in zip(labels, runs, tunings, strict=True)
    )
    arms = shown([group.runs for group in groups], tuple(itertools.chain.from_iterable(every)))
    several = (contrasts_of(group.name, group.runs, arms) for group in groups)
    return Comparison(
        labels=labels,
        runs=runs,
        groups=groups,
        winners=winners,
        warnings=(
            *_warnings(labels, runs),
            *_damages(runs, tunings),
            *_recipe_warnings(winners, runs),
            *_arm_warnings(labels, runs, tunings, groups, arms),
        ),
        differences=_differences(winners, runs, scores),
        arms=arms,
        contrasts=tuple(itertools.chain.from_iterable(several)),
    )


def _tunings(run: Gathered) -> dict[str, Tuned]:
    """Returns what there is of the fine-tuning of a run's structures, by name; nothing without its network."""
    if run.run is None:
        return {}
    return {structure.name: run.run.tuned(structure) for structure in run.run.structures}


def _differences(
    winners: Sequence[Winner], runs: Sequence[Gathered], scores: Sequence[Scores]
) -> tuple[Difference, ...]:
    """Returns how the best winner differs from the others by the first metric, after the same fine-tuning."""
    known = [
        (winner, run.run, tuned)
        for winner, run, tuned in zip(winners, runs, scores, strict=True)
        if run.run is not None and tuned is not None and winner.metric in winner.tests
    ]
    if not known:
        return ()
    best, opened, left = max(known, key=lambda one: one[0].tests[one[0].metric or ""]["after"])
    metric, test = best.metric or "", opened.result.task.data.test
    value = best.tests[metric]["after"]
    differences: list[Difference] = []
    for winner, other, tuned in known:
        alike = winner.metric == metric and not changed(asked(tuned), asked(left))
        if winner is best or not alike or not _same_images(test, other.result.task.data.test):
            continue
        theirs = (winner.run, winner.tests[metric]["after"], tuned)
        one = difference(metric, (best.run, value, left), theirs, len(test))
        differences += [] if one is None else [one]
    return tuple(differences)


def _same_images(first: Images, second: Images) -> bool:
    """Returns whether two splits hold the same images, as far as their labels say."""
    return first is second or (
        len(first) == len(second)
        and first.labels.shape == second.labels.shape
        and bool((first.labels == second.labels).all())
    )


def _groups(labels: Sequence[str], runs: Sequence[Gathered]) -> tuple[Group, ...]:
    """Returns the runs by settings."""
    members: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        settings = deciding(_complete(run))
        members.setdefault(json.dumps({**settings, "seed": 0}, sort_keys=True), []).append(index)
    searchers = [runs[places[0]].history.searcher for places in members.values()]
    groups: list[Group] = []
    for places in members.values():
        together = tuple(labels[index] for index in places)
        searcher = runs[places[0]].history.searcher
        several = f" ({len(together)} runs)" if len(together) > 1 else ""
        same = f": {', '.join(together)}" if searchers.count(searcher) > 1 else several
        groups.append(_group(f"{searcher}{same}", together, [runs[index] for index in places]))
    return tuple(groups)


def _group(name: str, labels: tuple[str, ...], runs: Sequence[Gathered]) -> Group:
    """Returns the mean of the best so far, over as many trials as all of these runs have."""
    curves = [list(run.curves[0].best) if run.curves else [] for run in runs]
    length = min(map(len, curves))
    best = np.array([curve[:length] for curve in curves], dtype=float).reshape(len(runs), length)
    known = np.flatnonzero(~np.isnan(best).any(axis=0))
    best = best[:, known]
    return Group(
        name=name,
        runs=labels,
        numbers=tuple((known + 1).tolist()),
        mean=tuple(best.mean(axis=0).tolist()),
        low=tuple(best.min(axis=0).tolist()),
        high=tuple(best.max(axis=0).tolist()),
    )


def _winners(
    labels: Sequence[str], runs: Sequence[Gathered], scores: Sequence[Scores]
) -> tuple[Winner, ...]:
    """Returns the best of each run; networks of one input shape are measured in turns.

    Args:
        labels: of the runs.
        runs: what was gathered of each.
        scores: of the winner of each, see `FinishedRun.scores`; None also without its network.
    """
    times = _times(runs, scores)
    winners: list[Winner] = []
    for index, (label, run, tested) in enumerate(zip(labels, runs, scores, strict=True)):
        search, best = run.history.own, run.history.own.best
        shares = dict.fromkeys(("macs", "params"))
        if run.run is not None and best is not None:
            costs, full = run.run.result.task.graph.costs, run.run.result.task.space.full
            pairs = {name: getattr(costs, name)([best.candidate, full]).tolist() for name in shares}
            shares = {name: kept / before for name, (kept, before) in pairs.items()}
        winners.append(
            Winner(
                run=label,
                searcher=search.name,
                seed=int(run.history.settings["seed"]),
                trials=len(search.trials),
                failed=len(search.trials) - len(search.succeeded),
                trial=None if best is None else best.number,
                fitness=None if best is None else best.fitness,
                macs=None if best is None else best.evaluation.macs,
                params=None if best is None else best.evaluation.params,
                macs_share=shares["macs"],
                params_share=shares["params"],
                times=times.get(index, ()),
                tests={} if run.run is None else tested_metrics(run.run, tested),
                recipe=None if tested is None else tested["recipe"],
                metric=None if run.run is None else run.run.metric,
                intervals={} if run.run is None else test_intervals(run.run, tested),
            )
        )
    return tuple(winners)


def _times(
    runs: Sequence[Gathered], scores: Sequence[Scores]
) -> dict[int, tuple[ForwardTime, ...]]:
    """Returns the forward times of the winners, by place, of those that take the same images as the first one."""
    opened = {index: run.run for index, run in enumerate(runs) if run.run is not None}
    if not opened:
        return {}
    example = next(iter(opened.values())).result.task.data.example
    alike = {
        index: run
        for index, run in opened.items()
        if sizes_of(run.result.task.data.example) == sizes_of(example)
    }
    networks = [
        run.network(run.winner, tuned=scores[index] is not None) for index, run in alike.items()
    ]
    threads = max(int(run.config.evaluator.options.get("threads", 1)) for run in alike.values())
    return dict(zip(alike, measure_forward(networks, example, threads=threads), strict=True))


def _warnings(labels: Sequence[str], runs: Sequence[Gathered]) -> Iterator[str]:
    """Yields why the runs cannot be compared, or only in part."""
    first = runs[0].history
    for label, run in zip(labels[1:], runs[1:], strict=True):
        other = run.history
        differing = unlike(_complete(runs[0]), _complete(run), _SAME)
        if differing:
            yield (
                f"{labels[0]} and {label} differ in more than the searcher, so that their fitness or costs cannot be "
                f"compared directly: {'; '.join(differing)}"
            )
        same_seed = first.settings["seed"] == other.settings["seed"]
        hashes = [
            key
            for key in ("model", "data")
            if first.header["identity"].get(key) != other.header["identity"].get(key)
        ]
        if hashes and same_seed and not differing:
            yield f"{labels[0]} and {label} have another {' and another '.join(hashes)}, by their hashes"
    for label, run in zip(labels, runs, strict=True):
        if not run.history.over:
            yield f"the search of {label} is not finished: {plural(len(run.history.own.trials), 'trial')} so far"
        if run.missing is not None:
            yield f"of {label} only the run folder is at hand, not the network: {run.missing}"
    if len({run.history.settings["seed"] for run in runs}) > 1:
        yield "seeds differ: where a run trains its own network and splits its own data, these differ as well"


def _damages(runs: Sequence[Gathered], tunings: Sequence[Mapping[str, Tuned]]) -> Iterator[str]:
    """Yields which files of what was fine-tuned are missing or damaged."""
    for run, tuned in zip(runs, tunings, strict=True):
        if run.run is not None:
            for name, one in tuned.items():
                yield from problems(run.run.folder, name, one)
            yield from unsound(run.run, tuned).values()


def _arm_warnings(
    labels: Sequence[str],
    runs: Sequence[Gathered],
    tunings: Sequence[Mapping[str, Tuned]],
    groups: Sequence[Group],
    arms: Sequence[Arm],
) -> Iterator[str]:
    """Yields what the means over runs are without, and which networks the winners are not compared with."""
    members = {label: group.runs for group in groups for label in group.runs}
    seeds: dict[tuple[tuple[str, ...], int], str] = {}
    for label, run, tuned in zip(labels, runs, tunings, strict=True):
        theirs = [arm for arm in arms if arm.run == label]
        seed = (members[label], int(run.history.settings["seed"]))
        if theirs and seeds.setdefault(seed, label) != label:
            yield f"{seeds[seed]} and {label} have the same settings and seed: over runs, intervals are too narrow"
        if run.run is None:
            continue
        told = {name for name, one in tuned.items() if one.wrong} | {*unsound(run.run, tuned)}
        told |= {WINNER} if run.run.winner.name in told else set()
        names = [name for name in missing(members[label], label, arms) if name not in told]
        if names:
            again = finetune_command(run.history.path, None, None)
            yield (
                f"{label} has no fine-tuned {', '.join(names)}, whose means over runs are those of the others; with these "
                f"among its baselines, run: {again}"
            )
        for arm in (arm for arm in theirs if arm.otherwise):
            yield (
                f"{arm.network} of {label} was fine-tuned by another recipe than its winner ({'; '.join(arm.otherwise)}), "
                f"so that the two are not compared"
            )


def _complete(run: Gathered) -> dict[str, Any]:
    """Returns the settings of a run with what they leave out."""
    return complete(run.history.settings, None if run.run is None else run.run.metric)


def _recipe_warnings(winners: Sequence[Winner], runs: Sequence[Gathered]) -> Iterator[str]:
    """Yields which winners were fine-tuned with another recipe than the first one that was, and how to change that."""
    first: Winner | None = None
    for winner, run in zip(winners, runs, strict=True):
        if winner.recipe is None or run.run is None:
            continue
        first = first or winner
        odd = changed(winner.recipe, first.recipe or {})
        if odd:
            again = finetune_command(
                run.history.path, first.recipe, asdict(run.run.config.finetune)
            )
            yield (
                f"the winners of {first.run} and {winner.run} were fine-tuned by different recipes, so that their test "
                f"metrics after it cannot be compared: {winner.run} has {'; '.join(odd)}. Make them equal with: {again}"
            )
