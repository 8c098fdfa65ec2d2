"""The table of a front: the full network and, for every budget, the winner and uniform widths."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.bounds import short_count
from abcsearch.errors import RunError, escaped, plural, quoted
from abcsearch.results.forward import BATCHES, ForwardTime, measure_forward
from abcsearch.results.front_answer import LOSS, Standing, answer, interval
from abcsearch.results.front_pairs import Pair, pairs_of, pairs_text
from abcsearch.results.intervals import SHARES, Difference, difference, difference_text, ends_of
from abcsearch.results.open_run import open_so_far
from abcsearch.runs.config_run import LoadedOnce
from abcsearch.runs.disk.known import mapped_so_far
from abcsearch.runs.front_folder import FRONT
from abcsearch.runs.front_settings import Front
from abcsearch.runs.recipes import asked, changed
from abcsearch.training.objectives import metric_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.results.open_run import FinishedRun, Structure
    from abcsearch.runs.config_run import LoadData
    from abcsearch.runs.front_folder import FrontFolder

FULL, UNIFORM, WINNER, PEER = "full", "uniform", "winner", "peer"


@dataclass(frozen=True, kw_only=True)
class FrontRow:
    """One network of a front.

    Attributes:
        budget: name of the budget, or of the peer; "" of the full network.
        kind: "full", "winner", "uniform" or "peer": a network of others, of which little is known.
        macs: multiply-accumulates, batch 1.
        params: number of parameters; 0 if it is not known.
        times: forward times by device and batch, all networks in turns; () of a peer.
        fitness: on search-validation, before fine-tuning; None if its evaluation failed.
        before: the metric on the test split before fine-tuning; None where it has not been fine-tuned.
        after: the same after it.
        interval: 95 % of that; None where it is not known.
        change: of it against the full network after fine-tuning; None likewise.
    """

    budget: str
    kind: str
    macs: int
    params: int
    times: tuple[ForwardTime, ...]
    fitness: float | None
    before: float | None
    after: float | None
    interval: tuple[float, float] | None = None
    change: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class FrontReport:
    """What a front has found.

    Attributes:
        title: what was searched.
        rows: the full network, then those of every budget, the largest first.
        names: of the budgets that have a winner, in the order in which they were searched.
        notes: how the numbers were measured, the answer first.
        metric: what `before` and `after` of the rows are.
        tuned: whether all rows but the uniform ones have been fine-tuned.
        images: of the test split, and of search-validation.
        missing: names of budgets that have no winner yet.
        pairs: every winner against each larger one, by what charts show.
    """

    title: str
    rows: tuple[FrontRow, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]
    metric: str
    tuned: bool
    images: tuple[int, int] = (0, 0)
    missing: tuple[str, ...] = field(default=())
    pairs: tuple[Pair, ...] = field(default=())

    def accuracy(self, row: FrontRow) -> float | None:
        """Returns what charts show of a network: the metric after fine-tuning, or fitness where that is not known."""
        return row.after if self.tuned else row.fitness

    @property
    def axis(self) -> str:
        """What that is, in words."""
        return (
            f"test {self.metric}, fine-tuned"
            if self.tuned
            else "fitness on search-validation, before fine-tuning"
        )

    @property
    def is_share(self) -> bool:
        """Whether the test metric is a share of images, so that its chance can be said."""
        return self.metric in SHARES

    def spread(self, row: FrontRow) -> tuple[float, float] | None:
        """Returns how far a 95 % interval of a network's test metric reaches down and up; None where that is not known."""
        if not self.tuned or row.after is None or row.interval is None:
            return None
        low, high = row.interval
        return row.after - low, high - row.after

    def cells(self, *, short: bool = False) -> list[list[str]]:
        """Returns the table as text, one list per row, the header first."""
        full = self.rows[0]
        times = [f"batch {time.batch}" for time in full.times if time.device == "CPU"]
        table = [
            [
                "budget",
                "network",
                "MACs",
                "params",
                *times,
                "fitness",
                "before",
                "after",
                "against full",
            ]
        ]
        for row in self.rows:
            macs, params = (
                short_count(count) if short else f"{count:,}" for count in (row.macs, row.params)
            )
            table.append(
                [
                    row.budget,
                    row.kind,
                    f"{macs} ({100 * row.macs / full.macs:.3g} %)",
                    params if row.params else "-",
                    *(
                        [f"{time.median_ms:.3g} ms" for time in row.times if time.device == "CPU"]
                        or ["-"] * len(times)
                    ),
                    "-" if row.fitness is None else f"{row.fitness:.4f}",
                    *(
                        "-" if v is None else metric_text(self.metric, v)
                        for v in (row.before, row.after)
                    ),
                    self._against(row),
                ]
            )
        return table

    def _against(self, row: FrontRow) -> str:
        """Returns what a network loses against the full one, by what charts show."""
        full, accuracy = self.accuracy(self.rows[0]), self.accuracy(row)
        if full is None or accuracy is None or row.kind == FULL:
            return "-"
        if self.tuned and row.change is not None and row.change.paired:
            noise = "" if row.change.told_apart else ": within noise"
            return f"{difference_text(self.metric, row.change)}{noise}"
        # Of how many images that is, nobody says
        if not (self.tuned and self.is_share) or row.kind == PEER:
            return f"{accuracy - full:+.4f}"
        return (
            f"{100 * (accuracy - full):+.2f} ± {100 * interval(full, accuracy, self.images[0]):.2f}"
        )

    def markdown(self) -> str:
        """Returns the report as Markdown, every character of which shows."""
        head, *rows = ["| " + " | ".join(row) + " |" for row in self.cells()]
        table = "\n".join([head, "|" + " --- |" * len(self.cells()[0]), *rows])
        return escaped("\n\n".join([f"# {self.title}", table, *self.notes]) + "\n")

    def to_plain(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return asdict(self)


def make_front_report(
    there: FrontFolder, *, load: LoadData | None = None, trust: bool = False, loss: float = LOSS
) -> FrontReport:
    """Measures and collects the report of a front, finished or not.

    Args:
        there: its folder.
        load: returns the data of a config.
        trust: as of `open_run`.
        loss: points of accuracy that may be lost, for the answer.

    Raises:
        RunError: if no budget has a trial yet.
    """
    load = load or LoadedOnce()
    begun = [run for run in there.begun if run.journal.exists() and run.journal.stat().st_size]
    if not begun:
        path = there.folder.path
        msg = f"no trial in {path} has finished yet; go on with: abcsearch resume {quoted(path)}"
        raise RunError(msg)
    runs = [open_so_far(run.path, load=load, trust=trust) for run in begun]
    chosen = _structures(runs)
    networks = [
        run.network(structure, tuned=run.tuned(structure).scores is not None)
        for run, structure, _ in chosen
    ]
    example, threads = (
        runs[0].result.task.data.example,
        int(runs[0].config.evaluator.options.get("threads", 1)),
    )
    times = measure_forward(networks, example, threads=threads)
    full = runs[0].tuned(chosen[0][1]).scores
    rows = [_row(*one, each, full) for one, each in zip(chosen, times, strict=True)]
    rows = [
        rows[0],
        *sorted(
            rows[1:], key=lambda row: (-_size(rows, row.budget), row.budget, row.kind != WINNER)
        ),
    ]
    data, metric = runs[0].result.task.data, runs[0].metric
    tuned = all(row.after is not None for row in rows if row.kind != UNIFORM)
    report = FrontReport(
        title=_title(there, runs),
        rows=(*rows, *_peers(there, rows[0].macs)),
        names=tuple(run.folder.path.name for run in runs),
        notes=(),
        metric=metric,
        tuned=tuned,
        images=(len(data.test), len(data.validation)),
        missing=tuple(
            name for name in there.names if name not in [run.folder.path.name for run in runs]
        ),
        pairs=pairs_of(runs, tuned=tuned),
    )
    return _noted(report, there, runs, loss)


def _structures(runs: Sequence[FinishedRun]) -> list[tuple[FinishedRun, Structure, str]]:
    """Returns the networks that are compared, each with its run and its kind: the full one once, and first."""
    structures = [(runs[0], runs[0].structures[0], FULL)]
    for run in runs:
        structures.append((run, run.winner, WINNER))
        structures += [
            (run, structure, UNIFORM) for structure in run.structures if structure.name == UNIFORM
        ]
    return structures


def _row(
    run: FinishedRun,
    structure: Structure,
    kind: str,
    times: tuple[ForwardTime, ...],
    full: dict[str, Any] | None,
) -> FrontRow:
    """Returns the row of a network; `full`: scores of the full one's fine-tuning."""
    costs, scores = run.result.task.graph.costs, run.tuned(structure).scores
    before, after = (
        None if scores is None else float(scores[when][run.metric]) for when in ("before", "after")
    )
    images = len(run.result.task.data.test)
    ends = ends_of(run.metric, after, images, (scores or {}).get("resampled"))
    return FrontRow(
        budget="" if kind == FULL else run.folder.path.name,
        kind=kind,
        macs=int(costs.macs([structure.candidate])[0]),
        params=int(costs.params([structure.candidate])[0]),
        times=times,
        fitness=run.fitness(structure),
        before=before,
        after=after,
        interval=ends,
        change=None if kind == FULL else _change(run, scores, full),
    )


def _change(
    run: FinishedRun, scores: dict[str, Any] | None, full: dict[str, Any] | None
) -> Difference | None:
    """Returns how a network's test metric differs from the full one's, of fine-tunings by one recipe."""
    if scores is None or full is None or changed(asked(scores), asked(full)):
        return None
    this, other = scores["after"][run.metric], full["after"][run.metric]
    shares = run.metric not in SHARES or (0 <= this <= 1 and 0 <= other <= 1)
    images = len(run.result.task.data.test)
    named = ("this", this, scores), ("full", other, full)
    return difference(run.metric, *named, images) if shares else None


def _peers(there: FrontFolder, full: int) -> list[FrontRow]:
    """Returns the rows of networks of others; `full`: multiply-accumulates of the full network."""
    peers = Front.from_plain(there.record, there.folder.path / FRONT).peers
    return [
        FrontRow(
            budget=peer.name,
            kind=PEER,
            macs=peer.count(full),
            params=0,
            times=(),
            fitness=None,
            before=None,
            after=peer.accuracy,
        )
        for peer in peers
    ]


def _size(rows: Sequence[FrontRow], budget: str) -> int:
    """Returns the MACs of the winner of a budget."""
    return next(row.macs for row in rows if row.budget == budget and row.kind == WINNER)


def _title(there: FrontFolder, runs: Sequence[FinishedRun]) -> str:
    """Returns what was searched, in one line."""
    config = runs[0].config
    mapped = mapped_so_far(runs[0].folder)
    counts = f"{plural(mapped, 'evaluation')} of the map, " if mapped else ""
    counts += f"{plural(config.n_trials, 'trial')} each"
    budgets = plural(len(there.names), "budget")
    return f"{config.model.name} on {config.data.name}: {config.searcher.name}, {budgets}, {counts}"


def _noted(
    report: FrontReport, there: FrontFolder, runs: Sequence[FinishedRun], loss: float
) -> FrontReport:
    """Returns a report with its notes."""
    notes = [_answer(report, loss), pairs_text(report.pairs)]
    decisions = [(run.folder.path.name, run.result.decision) for run in runs]
    notes += [f"{name}: {decision.words}." for name, decision in decisions if decision is not None]
    trials = [run.result.trials for run in runs]
    evaluated = sum(trial.evaluation.seconds > 0 for searched in trials for trial in searched)
    mapped = sum(mapped_so_far(run.folder) for run in runs)
    counts = f"{plural(evaluated, 'trial')}, and {mapped} of the map"
    notes.append(f"{plural(mapped + evaluated, 'evaluation')} in all: {counts}.")
    first = report.rows[0].times[0]
    notes.append(
        f"Forward time: median of {first.passes} passes or more at batch {' and '.join(map(str, BATCHES))}, "
        f"{first.threads} thread(s), all networks in turns."
    )
    if report.missing:
        again = f"abcsearch resume {quoted(there.folder.path)}"
        notes.append(f"Not begun yet: {', '.join(report.missing)}; go on with: {again}")
    elif not report.tuned:
        notes.append(
            f"Not all winners are fine-tuned: abcsearch finetune {quoted(there.folder.path)}"
        )
    return FrontReport(**{**vars(report), "notes": tuple(note for note in notes if note)})


def _answer(report: FrontReport, loss: float) -> str:
    """Returns how small a network can be at a loss of accuracy; "" where the metric is no share of images."""
    full = report.accuracy(report.rows[0])
    shown = [(row, report.accuracy(row)) for row in report.rows if row.kind == WINNER]
    if (
        not report.is_share
        or full is None
        or any(value is None or not 0 <= value <= 1 for _, value in shown)
    ):
        return ""
    if not (report.tuned or 0 <= full <= 1):
        return ""
    winners = [
        Standing(name=row.budget, macs=row.macs, accuracy=value or 0.0) for row, value in shown
    ]
    images = report.images[0 if report.tuned else 1]
    split = (
        "test, after fine-tuning"
        if report.tuned
        else "search-validation, before fine-tuning: fitness"
    )
    text = answer(full, winners, loss=loss, images=images, split=split)
    return text[:1].upper() + text[1:] + "."
