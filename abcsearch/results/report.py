"""The table of a run: full network, uniform width, best random structure, winner; and the winner's widths."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.bounds import amount, short_count
from abcsearch.errors import escaped, plural
from abcsearch.results.chained import known_chain
from abcsearch.results.finetuned_files import problems
from abcsearch.results.forward import BATCHES, measure_forward
from abcsearch.results.intervals import SHARES, Difference, difference, ends_of
from abcsearch.results.notes import notes_of
from abcsearch.results.prepared_facts import prepared_facts
from abcsearch.results.rows import Row
from abcsearch.runs.disk.known import mapped_so_far
from abcsearch.runs.disk.weights import state_bytes
from abcsearch.runs.recipes import asked, changed
from abcsearch.steps import doing
from abcsearch.training.objectives import find_objective, metric_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from abcsearch.results.links import Chain
    from abcsearch.results.open_run import FinishedRun
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.result import SearchResult

_POINTS = 10  # of the front that are shown, evenly spread
CHAIN = "The chain after the winner, link by link"
FRONT = "Front: trials that no other one beats in both"


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
        widths: (group, level, full width, kept width) along the network; of a block, 1 and whether it is kept;
            of a rank, the full one and that of the winner.
        criteria: the criterion that has chosen the channels, by group; {} where there was no choice.
        notes: how the numbers were measured, and where the run is.
        against: the cost of the front: what the searcher weighs fitness against, for most of them macs.
        front: trials that no other one beats in both cost and fitness, by ascending cost; ten of them at most.
        metric: what `before` and `after` of the rows are.
        recipe: that the winner was fine-tuned with, plain values; None if it was not.
        damaged: which files of fine-tuning are missing or damaged, and what to do.
        images: number of test images.
        differences: of the winner's metric after fine-tuning to that of every other network by the same recipe, where
            it is known what they are worth.
        prepared: what was prepared before the search: names and values, its structures among the trials last; () where
            nothing was.
        chain: what the transforms of the config have made of the winner; None without any.
        renormalises: groups over whose channels norms are computed, in the pruned network over those that are left.
    """

    title: str
    rows: tuple[Row, ...]
    widths: tuple[tuple[str, str, int, int], ...] = field(repr=False)
    notes: tuple[str, ...]
    against: str
    front: tuple[Point, ...]
    metric: str
    recipe: Mapping[str, Any] | None = field(default=None, repr=False)
    damaged: tuple[str, ...] = ()
    images: int = 0
    differences: tuple[Difference, ...] = ()
    prepared: tuple[tuple[str, str], ...] = ()
    criteria: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    renormalises: tuple[str, ...] = ()
    chain: Chain | None = None

    def chain_cells(self, *, short: bool = False) -> list[list[str]]:
        """Returns the chain after the winner as text, one list per row, the header first; [] without one."""
        return [] if self.chain is None else self.chain.cells(short=short)

    def prepared_cells(self) -> list[list[str]]:
        """Returns what was prepared as text, one list per row, the header first; [] where nothing was."""
        return [["prepared", ""], *map(list, self.prepared)] if self.prepared else []

    def cells(self, *, short: bool = False) -> list[list[str]]:
        """Returns the table as text, one list per row, the header first; costs also in per cent of the full network.

        Args:
            short: counts as 1.65 M instead of 1,648,256.
        """
        full = self.rows[0]
        times = [f"batch {time.batch}" for time in full.times if time.device == "CPU"]
        table = [["network", "MACs", "params", "size", *times, "fitness", "before", "after"]]
        for row in self.rows:
            macs, params = (
                short_count(count) if short else f"{count:,}" for count in (row.macs, row.params)
            )
            table.append(
                [
                    row.network,
                    f"{macs} ({100 * row.macs / full.macs:.3g} %)",
                    f"{params} ({100 * row.params / full.params:.3g} %)",
                    f"{row.size_mb:.3g} MB",
                    *(f"{time.median_ms:.3g} ms" for time in row.times if time.device == "CPU"),
                    "-" if row.fitness is None else f"{row.fitness:.4f}",
                    *(
                        "-" if v is None else metric_text(self.metric, v)
                        for v in (row.before, row.after)
                    ),
                ]
            )
        return table

    def front_cells(self) -> list[list[str]]:
        """Returns the front as text, one list per row, the header first."""
        rows = [
            [
                str(p.trial),
                f"{amount(self.against, p.cost)} ({100 * p.share:.3g} %)",
                f"{p.fitness:.4f}",
            ]
            for p in self.front
        ]
        return [["trial", self.against, "fitness"], *rows]

    def markdown(self, more: Mapping[str, Sequence[Sequence[str]]] | None = None) -> str:
        """Returns the report as Markdown, every character of which shows.

        Args:
            more: further tables by their headings, the first row of each its header.
        """
        widths = [
            ["layer", "level", "channels"],
            *([g, level, _change(level, c, k)] for g, level, c, k in self.widths),
        ]
        if self.criteria:
            widths = [[*row, self.criteria.get(row[0], "")] for row in widths]
            widths[0][-1] = "criterion"
        together = set(self.renormalises)
        widths = [
            [g, f"{level}, renormalises" if g in together else level, *rest]
            for g, level, *rest in widths
        ]
        warned = [f"Warning: {text}" for text in self.damaged]
        paragraphs = [
            f"# {self.title}",
            *warned,
            _markdown_table(self.cells()),
            *self.notes,
            f"## {FRONT}",
        ]
        paragraphs += [_markdown_table(self.front_cells()), "## Widths", _markdown_table(widths)]
        if self.chain is not None:
            paragraphs += [f"## {CHAIN}", _markdown_table(self.chain_cells()), *self.chain.lines()]
        if self.prepared:
            paragraphs += ["## Prepared before the search", _markdown_table(self.prepared_cells())]
        for heading, cells in (more or {}).items():
            paragraphs += [f"## {heading}", _markdown_table(cells)]
        return escaped("\n\n".join(paragraphs) + "\n")


def _markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first row is the header."""
    head, *rows = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|" + " --- |" * len(cells[0]), *rows])


def make_report(run: FinishedRun, out: Path | None = None) -> Report:
    """Measures and collects the report of a run, finished or not.

    Args:
        run: the run.
        out: where the page is written, if not in its folder: what is to be repeated is repeated there.

    Warns:
        UserWarning: of files of fine-tuning that are damaged or missing; the report says so, too.
    """
    task, config = run.result.task, run.config
    doing("evaluating what is compared, and measuring forward time in turns")
    threads = int(config.evaluator.options.get("threads", 1))
    tuned = {structure.name: run.tuned(structure) for structure in run.structures}
    damaged = tuple(
        line for name, tuning in tuned.items() for line in problems(run.folder, name, tuning)
    )
    for line in damaged:
        warnings.warn(line, UserWarning, stacklevel=2)
    scores = {name: tuning.scores for name, tuning in tuned.items()}
    networks = [
        run.network(structure, tuned=scores[structure.name] is not None)
        for structure in run.structures
    ]
    times = measure_forward(networks, task.data.example, threads=threads)
    candidates = [structure.candidate for structure in run.structures]
    recipe = (scores[run.winner.name] or {}).get("recipe")
    otherwise = {name: _otherwise(score, recipe) for name, score in scores.items()}
    costs = {
        name: getattr(task.graph.costs, name)(candidates).tolist()
        for name in ("macs", "flops", "params")
    }
    rows = tuple(
        Row(
            network=structure.name,
            **{name: counts[index] for name, counts in costs.items()},
            size_mb=state_bytes(networks[index]) / 1e6,
            latency_ms=next(time.median_ms for time in times[index] if time.batch == max(BATCHES)),
            times=times[index],
            fitness=run.fitness(structure),
            before=_test(run, scores[structure.name], "before"),
            after=None
            if otherwise[structure.name]
            else _test(run, scores[structure.name], "after"),
            tests=tested_metrics(run, scores[structure.name]),
            otherwise=otherwise[structure.name],
            intervals=test_intervals(run, scores[structure.name]),
            own=_own(scores[structure.name]),
        )
        for index, structure in enumerate(run.structures)
    )
    levels = [group.kind for group in task.graph.prunable] + ["block"] * len(task.graph.blocks)
    levels += ["rank"] * len(task.graph.ranks)
    settled = task.graph.settled(run.winner.candidate)
    dimensions = zip(task.space.dimensions, levels, settled, strict=False)
    widths = tuple((d.name, level, d.full, value) for d, level, value in dimensions)
    against = str(config.searcher.options.get("against", "macs"))
    return Report(
        title=_title(run),
        rows=rows,
        widths=widths,
        notes=notes_of(run, rows, recipe, out),
        against=against,
        front=_front(run.result, against),
        metric=run.metric,
        recipe=recipe,
        damaged=damaged,
        images=len(task.data.test),
        differences=_differences(run, rows, scores),
        prepared=tuple(prepared_facts(run, scores)),
        criteria=task.space.criteria(run.winner.candidate),
        chain=known_chain(run),
        renormalises=tuple(group.name for group in task.graph.prunable if group.renormalises),
    )


def _differences(
    run: FinishedRun, rows: Sequence[Row], scores: Mapping[str, dict[str, Any] | None]
) -> tuple[Difference, ...]:
    """Returns how the winner's accuracy after fine-tuning differs from the others', with what that is worth."""
    if rows[-1].after is None:
        return ()
    known = [
        (row.network, row.after, scores[row.network] or {})
        for row in rows
        if row.after is not None and (run.metric not in SHARES or 0 <= row.after <= 1)
    ]
    images = len(run.result.task.data.test)
    each = (difference(run.metric, known[-1], other, images) for other in known[:-1])
    return tuple(one for one in each if one is not None)


def write_report(
    report: Report,
    folder: RunFolder,
    more: Mapping[str, Any] | None = None,
    name: str = "report",
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Path:
    """Writes report.md and report.json into a folder; returns the path of report.md.

    Args:
        report: what is written.
        folder: that of the run, or another one.
        more: further entries of report.json: plain JSON values.
        name: other than report.
        tables: further tables of report.md by their headings.
    """
    text = report.markdown(tables)
    folder.write(f"{name}.md", lambda path: path.write_text(text, encoding="utf-8"))
    chain = None if report.chain is None else report.chain.to_plain()
    folder.write_json(
        f"{name}.json", {**asdict(replace(report, chain=None)), "chain": chain, **(more or {})}
    )
    return folder.path / f"{name}.md"


def _front(result: SearchResult, against: str) -> tuple[Point, ...]:
    """Returns at most ten trials of the front of fitness against a cost, both ends among them."""
    front = result.pareto(against)
    shown = np.linspace(0, len(front) - 1, min(len(front), _POINTS)).round().astype(int)
    full = float(getattr(result.task.constraint.costs, against)([result.task.space.full])[0])
    costs = [result.number(front[index], against) for index in shown]
    return tuple(
        Point(trial=front[index].number, cost=cost, share=cost / full, fitness=front[index].fitness)
        for index, cost in zip(shown, costs, strict=True)
    )


def _change(level: str, full: int, kept: int) -> str:
    """Returns what became of a width or a block, in words."""
    if level == "rank":
        return "whole" if kept == full else f"rank {kept} of {full}"
    return f"{full} => {kept}" if level != "block" else ("kept" if kept else "dropped")


def _test(run: FinishedRun, score: dict[str, Any] | None, when: str) -> float | None:
    """Returns the metric on the test split before or after fine-tuning, or None if there was none."""
    return None if score is None else float(score[when][run.metric])


def tested_metrics(run: FinishedRun, score: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Returns the metrics of the objective on the test split before and after fine-tuning; not the losses."""
    if score is None:
        return {}
    names = [
        name
        for name in find_objective(run.result.task.data.objective).names
        if not name.endswith("loss")
    ]
    both = {when: score[when] for when in ("before", "after")}
    # Top5 is always 1
    few = run.result.task.data.objective == "classification" and run.result.task.data.classes <= 5
    known = [
        name
        for name in names
        if all(name in scores for scores in both.values()) and not (few and name == "top5")
    ]
    return {name: {when: float(scores[name]) for when, scores in both.items()} for name in known}


def test_intervals(
    run: FinishedRun, score: dict[str, Any] | None
) -> dict[str, tuple[float, float]]:
    """Returns the 95 % intervals of what `tested_metrics` has after fine-tuning, as far as they are known."""
    if score is None:
        return {}
    images, resampled = len(run.result.task.data.test), score.get("resampled")
    each = {
        name: ends_of(name, values["after"], images, resampled)
        for name, values in tested_metrics(run, score).items()
    }
    return {name: ends for name, ends in each.items() if ends is not None}


def _title(run: FinishedRun) -> str:
    """Returns what was searched, in one line."""
    config = run.config
    bounds = ", ".join(f"{name} {bound}" for name, bound in config.budget.bounds.items())
    trials = plural(config.n_trials, "trial")
    if mapped := mapped_so_far(run.folder):
        trials = f"{plural(mapped, 'evaluation')} of the map, {trials}"
    return f"{config.model.name} on {config.data.name}: {config.searcher.name}, {trials}, budget {bounds}"


def _otherwise(score: dict[str, Any] | None, recipe: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Returns in what the recipe of a structure differs from the winner's; nothing where one has none."""
    return () if score is None or recipe is None else changed(asked(score), recipe)


def _own(score: dict[str, Any] | None) -> tuple[str, ...]:
    """Returns in what a baseline's own recipe differs from what was asked for; nothing where it has none."""
    return () if score is None else changed(score["recipe"], asked(score))
