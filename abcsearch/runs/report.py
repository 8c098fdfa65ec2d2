"""The table of a run: full network, uniform width, best random structure, winner; and the winner's widths."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.bounds import amount
from abcsearch.channels.latency import measure_latency
from abcsearch.training.objectives import metric_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from abcsearch.runs.finished import FinishedRun
    from abcsearch.runs.run import SearchResult

_LATENCY_BATCH = 64
_POINTS = 10  # of the front that are shown, evenly spread
FRONT = "Front: trials that no other one beats in both"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of the report.

    Attributes:
        network: its name.
        macs: multiply-accumulates, batch 1.
        params: number of parameters.
        latency_ms: median forward time of the whole batch.
        fitness: on search-validation.
        before: the metric on the test split (of classifiers top1, in [0, 1]) before fine-tuning, or None without.
        after: the same after it.
    """

    network: str
    macs: int
    params: int
    latency_ms: float
    fitness: float | None
    before: float | None
    after: float | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial of the front.

    Attributes:
        trial: its number.
        cost: of its structure.
        share: the same as a share of the full network's.
        fitness: on search-validation.
    """

    trial: int
    cost: float
    share: float
    fitness: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run found.

    Attributes:
        title: what was searched.
        rows: the networks.
        widths: (group, level, full width, kept width) along the network; of a block, 1 and whether it is kept.
        notes: how the numbers were measured, and where the run is.
        against: the cost of the front: what the searcher weighs fitness against, for most of them macs.
        front: trials that no other one beats in both cost and fitness, by ascending cost; ten of them at most.
        metric: what `before` and `after` of the rows are.
    """

    title: str
    rows: tuple[Row, ...]
    widths: tuple[tuple[str, str, int, int], ...] = field(repr=False)
    notes: tuple[str, ...]
    against: str
    front: tuple[Point, ...]
    metric: str

    def cells(self, *, short: bool = False) -> list[list[str]]:
        """Returns the table as text, one list per row, the header first; costs also in per cent of the full network.

        Args:
            short: counts as 1.65 M instead of 1,648,256.
        """
        full = self.rows[0]
        table = [["network", "MACs", "params", "latency", "fitness", "before", "after"]]
        for row in self.rows:
            macs, params = (_short(count) if short else f"{count:,}" for count in (row.macs, row.params))
            table.append(
                [
                    row.network,
                    f"{macs} ({100 * row.macs / full.macs:.3g} %)",
                    f"{params} ({100 * row.params / full.params:.3g} %)",
                    f"{row.latency_ms:.2f} ms",
                    "-" if row.fitness is None else f"{row.fitness:.4f}",
                    *("-" if v is None else metric_text(self.metric, v) for v in (row.before, row.after)),
                ]
            )
        return table

    def front_cells(self) -> list[list[str]]:
        """Returns the front as text, one list per row, the header first."""
        rows = [
            [str(p.trial), f"{amount(self.against, p.cost)} ({100 * p.share:.3g} %)", f"{p.fitness:.4f}"]
            for p in self.front
        ]
        return [["trial", self.against, "fitness"], *rows]

    def markdown(self) -> str:
        """Returns the report as Markdown."""
        widths = [["layer", "level", "channels"], *([g, level, _change(level, c, k)] for g, level, c, k in self.widths)]
        parts = [f"# {self.title}", _markdown_table(self.cells()), *self.notes, f"## {FRONT}"]
        parts += [_markdown_table(self.front_cells()), "## Widths", _markdown_table(widths)]
        return "\n\n".join(parts) + "\n"


def _short(count: int) -> str:
    """Returns a count with three digits and its unit: 950, 175 k, 1.65 M, 4.09 G."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first row is the header."""
    head, *rows = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|" + " --- |" * len(cells[0]), *rows])


def make_report(run: FinishedRun) -> Report:
    """Measures and collects the report of a finished run."""
    task, config = run.result.task, run.config
    threads = int(config.evaluator.options.get("threads", 1))
    scores = {structure.name: run.scores(structure) for structure in run.structures}
    networks = [run.network(structure, tuned=scores[structure.name] is not None) for structure in run.structures]
    batch = task.data.example.expand(_LATENCY_BATCH, -1, -1, -1).clone()
    times = measure_latency(networks, batch, threads=threads)
    candidates = [structure.candidate for structure in run.structures]
    rows = tuple(
        Row(
            network=structure.name,
            macs=int(macs),
            params=int(params),
            latency_ms=latency,
            fitness=run.fitness(structure),
            before=_test(run, scores[structure.name], "before"),
            after=_test(run, scores[structure.name], "after"),
        )
        for structure, macs, params, latency in zip(
            run.structures, task.graph.costs.macs(candidates), task.graph.costs.params(candidates), times, strict=True
        )
    )
    levels = [group.kind for group in task.graph.prunable] + ["block"] * len(task.graph.blocks)
    dimensions = zip(task.space.dimensions, levels, run.winner.candidate, strict=False)
    widths = tuple((d.name, level, d.full, value) for d, level, value in dimensions)
    tuned = next((score for score in scores.values() if score is not None), None)
    against = str(config.searcher.options.get("against", "macs"))
    return Report(
        title=_title(run),
        rows=rows,
        widths=widths,
        notes=_notes(run, threads, tuned),
        against=against,
        front=_front(run.result, against),
        metric=run.metric,
    )


def write_report(report: Report, run: FinishedRun) -> Path:
    """Writes report.md and report.json into the run folder; returns the path of report.md."""
    run.folder.write("report.md", lambda path: path.write_text(report.markdown(), encoding="utf-8"))
    run.folder.write_json("report.json", asdict(report))
    return run.folder.path / "report.md"


def _front(result: SearchResult, against: str) -> tuple[Point, ...]:
    """Returns at most ten trials of the front of fitness against a cost, both ends among them."""
    front = result.pareto(against)
    shown = np.linspace(0, len(front) - 1, min(len(front), _POINTS)).round().astype(int)
    full = float(getattr(result.task.constraint.costs, against)([result.task.space.full])[0])
    costs = [result.number(front[place], against) for place in shown]
    return tuple(
        Point(trial=front[place].number, cost=cost, share=cost / full, fitness=front[place].fitness)
        for place, cost in zip(shown, costs, strict=True)
    )


def _change(level: str, full: int, kept: int) -> str:
    """Returns what became of a width or a block, in words."""
    return f"{full} => {kept}" if level != "block" else ("kept" if kept else "dropped")


def _test(run: FinishedRun, score: dict[str, Any] | None, when: str) -> float | None:
    """Returns the metric on the test split before or after fine-tuning, or None if there was none."""
    return None if score is None else float(score[when][run.metric])


def _title(run: FinishedRun) -> str:
    """Returns what was searched, in one line."""
    config = run.config
    bounds = ", ".join(f"{name} {bound}" for name, bound in config.budget.bounds.items())
    return (
        f"{config.model.name} on {config.data.name}: {config.searcher.name}, {config.n_trials} trials, budget {bounds}"
    )


def _notes(run: FinishedRun, threads: int, tuned: dict[str, Any] | None) -> tuple[str, ...]:
    """Returns how the numbers were measured."""
    recipe = (
        f"{tuned['recipe']['epochs']} epochs with one recipe for all"
        if tuned
        else f"not yet (abcsearch finetune {run.folder.path})"
    )
    header, config = run.folder.header(), run.config
    versions = ", ".join(f"{name} {version}" for name, version in header["environment"]["versions"].items())
    failed = sum(trial.evaluation.failure is not None for trial in run.result.trials)
    data = run.result.task.data
    return (
        f"Fitness: {config.evaluator.name} ({config.evaluator.options.get('metric') or run.metric}) "
        f"on {len(data.validation)} search-validation images. "
        f"Before and after fine-tuning: {run.metric} on {len(data.test)} test images. "
        f"Fine-tuned: {recipe}. "
        f"Latency: median forward time of a batch of {_LATENCY_BATCH}, {threads} thread(s).",
        f"{len(run.result.trials)} trials, {failed} failed, seed {config.seed}; {versions}; "
        f"{header['environment']['platform']}.",
    )
