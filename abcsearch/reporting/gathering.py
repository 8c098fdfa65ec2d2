"""Everything that a report shows, gathered from a run folder once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.errors import AbcSearchError, RunError, quoted
from abcsearch.reporting.curves import (
    BestTrials,
    Cloud,
    Curve,
    Layer,
    Mark,
    best_trials,
    cost_cloud,
    fitness_curve,
)
from abcsearch.reporting.history import History, read_history
from abcsearch.reporting.layer_map import LayerMap, layer_map
from abcsearch.reporting.sensitivity import Sensitivity, layer_sensitivity
from abcsearch.reporting.timeline import Timeline, run_timeline
from abcsearch.results.open_run import open_so_far
from abcsearch.results.report import Report, make_report
from abcsearch.runs.config_run import load_run_data

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from abcsearch.results.open_run import FinishedRun
    from abcsearch.runs.config_run import LoadData
    from abcsearch.trial import Trial

_COSTS = ("macs", "params", "latency_ms", "flops", "peak_activation")


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What structures keep of every layer.

    Attributes:
        layers: in network order.
        kept: by the name of the structure: a value per layer. The winner is the last one.
        criteria: likewise the criterion that has chosen the channels, "" of a block; empty where there was no choice.
    """

    layers: tuple[Layer, ...]
    kept: dict[str, tuple[int, ...]]
    criteria: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def block_height(widths: Widths) -> float:
    """Returns how tall a block is drawn among widths: half as tall as the widest layer."""
    return max((layer.full for layer in widths.layers if layer.level != "block"), default=2) / 2


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a report shows.

    Attributes:
        history: what the files of the run say.
        run: the run with its network and data, or None where these are not at hand.
        report: the table of networks, or None without them.
        missing: why there are no networks, or None.
        curves: fitness over trials, of every search.
        clouds: fitness against one cost each, of the run's own search.
        marks: networks that are named there.
        widths: what the structures keep; None without a success.
        best: the best trials; None without a success.
        sensitivity: which layers matter.
        timeline: when evaluations ran.
        layer_map: what each layer alone loses, by the map; None of a run without one.
    """

    history: History
    run: FinishedRun | None
    report: Report | None
    missing: str | None
    curves: tuple[Curve, ...]
    clouds: tuple[Cloud, ...]
    marks: tuple[Mark, ...]
    widths: Widths | None
    best: BestTrials | None
    sensitivity: Sensitivity
    timeline: Timeline
    layer_map: LayerMap | None = None

    def charts(self) -> dict[str, Any]:
        """Returns the numbers of all charts as plain values, for report.json."""
        return {
            "fitness": [asdict(curve) for curve in self.curves],
            "pareto": {
                "clouds": [asdict(c) for c in self.clouds],
                "marks": [asdict(mark) for mark in self.marks],
            },
            "widths": None if self.widths is None else asdict(self.widths),
            "sensitivity": {**asdict(self.sensitivity), "method": self.sensitivity.method},
            "parallel": None if self.best is None else asdict(self.best),
            "timeline": asdict(self.timeline),
            "map": None if self.layer_map is None else asdict(self.layer_map),
        }


def gather(
    run_dir: str | Path,
    *,
    load: LoadData = load_run_data,
    measure: bool = True,
    trust: bool = False,
    out: Path | None = None,
) -> Gathered:
    """Reads a run, finished or not, and measures its networks where they are at hand.

    Args:
        run_dir: the folder.
        load: returns the data of its config.
        measure: whether the networks are measured and evaluated for the table.
        trust: takes a folder from elsewhere at its word (see `open_run`); without, it is shown from its files alone.
        out: where the page is written, if not in the folder.

    Raises:
        RunError: if the folder holds no run, a damaged one, or one without a finished trial.
    """
    history = read_history(run_dir)
    if not history.own.trials:
        msg = (
            f"no trial in {run_dir} has finished yet: {history.path / 'journal.jsonl'} holds none; "
        )
        msg += f"see: abcsearch status {quoted(run_dir)}, or continue it with: abcsearch resume {quoted(run_dir)}"
        raise RunError(msg)
    run, missing = _opened(run_dir, load, trust=trust)
    report = make_report(run, out) if run is not None and measure else None
    trials = history.own.succeeded
    layers = _layers(history, run)
    widths = _widths(history, run, layers)
    return Gathered(
        history=history,
        run=run,
        report=report,
        missing=missing,
        curves=tuple(fitness_curve(search) for search in history.searches if search.trials),
        clouds=_clouds(
            trials, run, str(history.settings["searcher"].get("options", {}).get("against", "macs"))
        ),
        marks=_marks(history, run, report),
        widths=widths,
        best=best_trials(trials, layers) if trials else None,
        sensitivity=layer_sensitivity(trials, layers),
        timeline=run_timeline(history.evaluated),
        layer_map=_layer_map(history, run, layers),
    )


def _layer_map(
    history: History, run: FinishedRun | None, layers: tuple[Layer, ...]
) -> LayerMap | None:
    """Returns what each layer alone loses; None of a run without a map."""
    if history.damaged_map:
        return LayerMap(reason=history.damaged_map)
    if history.map is None and not history.told:
        return None
    if history.map is not None and not history.map.trials:
        return LayerMap(reason=f"{history.path / 'map' / 'journal.jsonl'} holds no evaluation")
    largest = None
    if run is not None:
        space = run.result.task.space
        largest = space.at(space.largest_indices)
    mapped = () if history.map is None else history.map.trials
    return layer_map((*history.told, *mapped), layers, largest)


def _opened(
    run_dir: str | Path, load: LoadData, *, trust: bool
) -> tuple[FinishedRun | None, str | None]:
    """Returns the run with its network and data, or why they are not at hand: then the files alone must do."""
    try:
        return open_so_far(run_dir, load=load, trust=trust), None
    except (AbcSearchError, ImportError, OSError) as error:
        return None, str(error)


def _layers(history: History, run: FinishedRun | None) -> tuple[Layer, ...]:
    """Returns the widths and blocks; without the network, as far as the trials show them."""
    if run is not None:
        graph = run.result.task.graph
        kinds = {group.name: group.kind for group in graph.prunable} | {
            block.name: "block" for block in graph.blocks
        }
        kinds |= {layer.name: "rank" for layer in graph.ranks}
        widths = run.result.task.space.widths(run.result.task.space.full)
        return tuple(
            Layer(name=name, level=kinds[name], full=full) for name, (_, full) in widths.items()
        )
    seen = np.array([trial.candidate for trial in history.own.trials], dtype=int).reshape(
        -1, history.n_dims
    )
    known = len(history.names) == history.n_dims or (
        history.criteria and 0 < len(history.names) < history.n_dims
    )
    names = history.names if known else [f"layer {i + 1}" for i in range(history.n_dims)]
    most = seen[:, : len(names)].max(axis=0, initial=1)
    return tuple(
        Layer(name=name, level="", full=int(full)) for name, full in zip(names, most, strict=True)
    )


def _widths(history: History, run: FinishedRun | None, layers: tuple[Layer, ...]) -> Widths | None:
    """Returns what full, uniform, random and winner keep; without the network, what the winner does."""
    best = history.own.best
    if best is None:
        return None
    if run is None:
        kept, numbers = best.candidate[: len(layers)], best.candidate[len(layers) :]
        called = dict(enumerate(history.criteria))
        labels = tuple(called.get(number, "") for number in numbers)
        chosen = labels + ("",) * (len(layers) - len(labels))  # blocks come last, and have none
        criteria = {history.searcher: chosen[: len(layers)]} if labels else {}
        return Widths(layers=layers, kept={history.searcher: kept}, criteria=criteria)
    shown = {s.name: s.candidate for s in run.structures if s.name != "full"}
    settled = run.result.task.graph.settled
    kept = {name: settled(candidate)[: len(layers)] for name, candidate in shown.items()}
    every = {name: run.result.task.space.criteria(candidate) for name, candidate in shown.items()}
    criteria = {
        name: tuple(chosen.get(layer.name, "") for layer in layers)
        for name, chosen in every.items()
        if chosen
    }
    return Widths(layers=layers, kept=kept, criteria=criteria)


def _clouds(trials: Sequence[Trial], run: FinishedRun | None, against: str) -> tuple[Cloud, ...]:
    """Returns fitness against every cost that is known, first against the one that the searcher weighs it with."""
    if not trials:
        return ()
    clouds: dict[str, Sequence[float]] = {}
    bounds: dict[str, tuple[float, float]] = {}
    if run is None:
        for name in ("macs", "params"):
            values = [float(getattr(trial.evaluation, name)) for trial in trials]
            clouds |= {name: values} if any(values) else {}
    else:
        constraint = run.result.task.constraint
        bounds = {limit.name: (limit.low, limit.high) for limit in constraint.limits}
        wanted = {"macs", "params", "latency_ms", against, *bounds}
        candidates = [trial.candidate for trial in trials]
        for name in _COSTS:
            if name in wanted and hasattr(constraint.costs, name):
                clouds[name] = getattr(constraint.costs, name)(candidates).tolist()
    order = sorted(clouds, key=lambda name: (name != against, _COSTS.index(name)))
    return tuple(cost_cloud(name, trials, clouds[name], bounds.get(name)) for name in order)


def _marks(history: History, run: FinishedRun | None, report: Report | None) -> tuple[Mark, ...]:
    """Returns the networks that are named among the trials."""
    if run is None or report is None:
        best = history.own.best
        if best is None:
            return ()
        journaled = {"macs": float(best.evaluation.macs), "params": float(best.evaluation.params)}
        return (Mark(name=history.searcher, fitness=best.fitness, costs=journaled),)
    costs = run.result.task.constraint.costs
    return tuple(
        Mark(
            name=structure.name,
            fitness=row.fitness,
            costs={
                name: float(getattr(costs, name)([structure.candidate])[0])
                for name in _COSTS
                if hasattr(costs, name)
            },
        )
        for structure, row in zip(run.structures, report.rows, strict=True)
        if row.fitness is not None
    )
