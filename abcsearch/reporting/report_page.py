"""The report of one run: the page, the pictures, and its files in the run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abcsearch.errors import RunError, plural, quoted
from abcsearch.formats import duration_text
from abcsearch.reporting.charts import page_charts, thinned_note
from abcsearch.reporting.drawings import drawings
from abcsearch.reporting.headline import doubts, headline
from abcsearch.reporting.page import (
    Page,
    Section,
    check_page,
    code,
    link,
    network_table,
    paragraph,
    table,
)
from abcsearch.reporting.repeating import again_text, command_line, config_toml, facts, load_text
from abcsearch.reporting.tables import map_cells, network_lines, width_cells
from abcsearch.reporting.words import change_text, time_change
from abcsearch.results.intervals import method_of
from abcsearch.results.report import CHAIN, write_report
from abcsearch.runs.disk.decision import scored
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.header import reached_by
from abcsearch.training.objectives import metric_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure

    from abcsearch.reporting.gathering import Gathered
    from abcsearch.reporting.history import History
    from abcsearch.results.report import Report

PAGE = "report.html"
MAP = "Map: what each layer alone loses"


def check_place(run_dir: Path, out: Path | None) -> None:
    """Finds out before anything is measured whether a report can be written.

    Args:
        run_dir: the run folder.
        out: the page, where it is not to be in there.

    Raises:
        ConfigError: if that cannot be the page, see `check_page`.
        RunError: if it is to be in a run folder that cannot be written to.
    """
    if out is not None:
        check_page(out, PAGE)
    elif run_dir.is_dir() and not os.access(run_dir, os.W_OK):
        msg = f"{run_dir} cannot be written to; write the report elsewhere: {_with_out(run_dir)}"
        raise RunError(msg)


def _with_out(run_dir: Path) -> str:
    """Returns the command that writes the report of a run into the working folder."""
    return f"abcsearch report {quoted(run_dir)} --out {quoted(PAGE)}"


def write_page(gathered: Gathered, out: Path | None = None) -> Path:
    """Writes report.html, report/*.png, report.json and (of networks) report.md; returns the page's path.

    Args:
        gathered: what is shown.
        out: the page; pictures and numbers are written beside it, by the same name. By default in the run folder.

    Raises:
        RunError: if the run folder, or a file of an older report in it, cannot be written to.
        ConfigError: if `out` cannot be the page.
    """
    check_place(gathered.history.path, out)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        return _written(gathered, out)
    try:
        return _written(gathered, gathered.history.path / PAGE)
    except PermissionError as error:
        again = _with_out(gathered.history.path)
        msg = f"{error.filename} cannot be written: {error.strerror}; write the report elsewhere: {again}"
        raise RunError(msg) from error


def _written(gathered: Gathered, page: Path) -> Path:
    """Writes the page, and what is beside it."""
    folder, name = RunFolder(page.parent), page.stem
    for picture, draw in drawings(gathered).items():
        folder.write(
            f"{name}/{picture}.png",
            lambda path, draw=draw: draw().savefig(path, format="png"),
            lasting=False,
        )
    if gathered.report is not None:
        mapped = gathered.layer_map
        tables = {MAP: map_cells(mapped, gathered.widths)} if mapped and mapped.layers else {}
        write_report(gathered.report, folder, {"charts": gathered.charts()}, name, tables)
    else:
        folder.write_json(
            f"{name}.json", {"title": title_of(gathered), "charts": gathered.charts()}
        )
    text = report_page(gathered).html()
    folder.write(page.name, lambda path: path.write_text(text, encoding="utf-8"))
    return page


def _save(draw: Callable[[], Figure], path: Path) -> None:
    """Draws a picture to a file."""
    draw().savefig(path, format="png")


def report_page(gathered: Gathered) -> Page:
    """Returns the page of a run."""
    sections = [
        _networks(gathered),
        _fitness(gathered),
        _front(gathered),
        _widths(gathered),
        _prepared(gathered),
        _chain(gathered),
        _map(gathered),
        _sensitivity(gathered),
        _parallel(gathered),
        _timeline(gathered),
        _load(gathered),
        _repeat(gathered),
    ]
    return Page(
        title=title_of(gathered),
        headline="" if gathered.report is None else headline(gathered.report),
        subtitle=f"{state_of(gathered)} Run folder: {gathered.history.path}",
        tiles=_tiles(gathered),
        warnings=_warnings(gathered),
        sections=[section for section in sections if section is not None],
        charts=page_charts(gathered),
    )


def title_of(gathered: Gathered) -> str:
    """Returns what was searched, in one line."""
    if gathered.report is not None:
        return gathered.report.title
    settings = gathered.history.settings
    bounds = ", ".join(
        f"{name} {bound}" for name, bound in settings.get("budget", {}).items() if bound is not None
    )
    return f"{gathered.history.searcher}: {plural(settings['n_trials'], 'trial')}, budget {bounds or 'none'}"


def state_of(gathered: Gathered) -> str:
    """Returns how far the search is, in a sentence."""
    search, wanted = gathered.history.own, gathered.history.settings["n_trials"]
    failed = len(search.trials) - len(search.succeeded)
    counts = f"{plural(len(search.trials), 'trial')}"
    if not gathered.history.over:
        counts = f"{len(search.trials):,} of {plural(wanted, 'trial')} so far"
    mapped = gathered.history.map
    if mapped is not None:
        counts = f"{plural(len(mapped.trials), 'evaluation')} of the map, {counts}"
    return f"{counts}, {failed:,} failed, started {gathered.history.environment.get('started', 'at an unknown time')}."


def _warnings(gathered: Gathered) -> list[str]:
    """Returns what the reader must know first."""
    warnings: list[str] = []
    if not gathered.history.over:
        again = f"abcsearch resume {quoted(gathered.history.path)}"
        warnings.append(
            f"The search is not finished: this is how far it is. Continue it with: {again}"
        )
    if gathered.missing is not None:
        warnings.append(
            f"Shown is what the run folder itself holds, without the table of networks: {gathered.missing}"
        )
    warnings += gathered.report.damaged if gathered.report is not None else ()
    warnings += doubts(gathered.report) if gathered.report is not None else ()
    warnings += gathered.history.known
    notes = (gathered.history.note, thinned_note(gathered))
    return [*warnings, *(note for note in notes if note)]


def _tiles(gathered: Gathered) -> list[tuple[str, str]]:
    """Returns the numbers at the top of the page."""
    best = gathered.history.own.best
    tiles = [] if best is None else [(f"{best.fitness:.4f}", f"best fitness, trial {best.number}")]
    if gathered.report is None:
        return tiles
    full, winner, metric = gathered.report.rows[0], gathered.report.rows[-1], gathered.report.metric
    tiles += [
        (change_text(full.macs, winner.macs), "MACs"),
        (change_text(full.params, winner.params), "parameters"),
    ]
    tiles += [
        (
            time_change(before, after),
            f"forward time, {before.where}{'' if after.apart(before) else ': see the note'}",
        )
        for before, after in zip(full.times, winner.times, strict=True)
    ]
    if winner.after is not None:
        beside = "" if full.after is None else f"; full {metric_text(metric, full.after)}"
        tiles.insert(0, (metric_text(metric, winner.after), f"test {metric}, fine-tuned{beside}"))
    return tiles


def _networks(gathered: Gathered) -> Section | None:
    """Returns the table of networks."""
    if gathered.report is None:
        return None
    names = [row.network for row in gathered.report.rows]
    lead = (
        f"{names[-1]} is the winner of the search, full the network as it was. Small numbers compare with full. MACs "
        "are multiply-accumulates, the work of one image; fewer are not always less time: forward time is measured "
        "here, of whole batches. Fitness is what the search maximises: how good a network is on search-validation, "
        "images held out of training, before any fine-tuning."
    )
    # The winner first: on a telephone it is seen without scrolling
    first = [len(names) - 1, *range(len(names) - 1)]
    body = network_table(names, network_lines(gathered.report), first)
    return Section(
        title="Networks",
        lead=lead + _brackets(gathered.report),
        body=body + paragraph(gathered.report.notes[0], "note"),
    )


def _brackets(report: Report) -> str:
    """Returns how the intervals of the table are made."""
    metrics = dict.fromkeys(name for row in report.rows for name in row.intervals)
    hows = dict.fromkeys(method_of(metric) for metric in metrics)
    return f" In brackets after fine-tuning: 95 % intervals ({'; '.join(hows)})." if hows else ""


def _fitness(gathered: Gathered) -> Section:
    """Returns fitness over trials."""
    if not gathered.curves:
        return Section(title="Fitness over trials", lead="No trial has finished yet.")
    lead = "A point is a trial, a line the best so far. Fitness is measured on search-validation, before fine-tuning."
    search = gathered.history.own
    return Section(
        title="Fitness over trials",
        lead=f"{lead} {scored(search.trials, search.decision)}",
        chart="fitness",
    )


def _front(gathered: Gathered) -> Section | None:
    """Returns the front."""
    if not gathered.clouds:
        return None
    lead = (
        "Each point is a trial. The front are the trials of the search that no other one beats in both fitness and "
        "cost."
    )
    hint = "Names in the legend switch networks on and off; one that costs far more than the trials is off at first."
    chosen = " The buttons choose the cost." if len(gathered.clouds) > 1 else ""
    return Section(title="Front: fitness and cost", lead=lead, hint=hint + chosen, chart="pareto")


def _widths(gathered: Gathered) -> Section | None:
    """Returns the widths, as a chart and as a table."""
    if gathered.widths is None:
        return None
    unknown = (
        ""
        if gathered.run is not None
        else " Without the network, full is the largest width that a trial had."
    )
    lead = (
        "Layer by layer, how many channels (the filters of a convolution) stay, before ⇒ after. Grey is the full "
        "network, coloured what the winner keeps of it. Level filter: channels inside a block; stage: those that all "
        f"blocks of a stage pass on, which go together; block: whole blocks.{unknown}"
    )
    cells = width_cells(gathered.widths)
    body = table(cells, range(2, len(cells[0])))
    return Section(title="Widths along the network", lead=lead, chart="widths", body=body)


def _prepared(gathered: Gathered) -> Section | None:
    """Returns what was prepared before the search."""
    cells = [] if gathered.report is None else gathered.report.prepared_cells()
    if not cells:
        return None
    lead = "What was trained before the search, from which all candidates come; full is the network as it was before."
    return Section(title="Prepared before the search", lead=lead, body=table(cells, ()))


def _chain(gathered: Gathered) -> Section | None:
    """Returns what transforms have made of the winner."""
    chain = None if gathered.report is None else gathered.report.chain
    if chain is None:
        return None
    lead = (
        "What was done to the fine-tuned winner, start, in this order. Bit operations are MACs times the bits of both "
        "numbers that are multiplied; MACs are computed in full, whether weights are 0 or not."
    )
    cells = chain.cells()
    notes = "".join(paragraph(line, "note") for line in chain.lines())
    return Section(title=CHAIN, lead=lead, body=table(cells, range(1, len(cells[0]))) + notes)


def _map(gathered: Gathered) -> Section | None:
    """Returns what each layer alone loses, as a chart and as a table; None of a run without a map."""
    mapped = gathered.layer_map
    if mapped is None:
        return None
    if mapped.reason is not None:
        return Section(title=MAP, lead=f"Not shown: {mapped.reason}.")
    largest = (
        f"has a fitness of {mapped.largest:.4f}"
        if mapped.known
        else f"has no fitness; instead of it the best of the others, {mapped.largest:.4f}, is what losses are counted from"
    )
    lead = (
        "What was evaluated before the search: the largest structure of the space, and that with one layer alone "
        f"narrower. The largest {largest}. The darker, the more of it is lost; dots are widths that were tried, a star "
        "what the winner keeps; colours between dots are interpolated, grey is outside of them. It "
        "says nothing of several layers narrowed together."
    )
    if gathered.history.map is None:
        lead += " All of it was known from other runs, as of several budgets from the first, and not evaluated again."
    if mapped.failed:
        lead += f" Of its evaluations {mapped.failed} failed, which counts as the greatest loss."
    cells = map_cells(mapped, gathered.widths)
    note = "Width and fitness lost there, from the narrowest on. Below 0: the narrower structure was the better one."
    body = table(cells, range(2, len(cells[0]))) + paragraph(note, "note")
    return Section(title=MAP, lead=lead, chart="map", body=body)


def _sensitivity(gathered: Gathered) -> Section:
    """Returns which layers matter."""
    sensitivity, title = gathered.sensitivity, "Sensitivity: which layers matter"
    if sensitivity.reason is not None:
        return Section(title=title, lead=f"Not shown: {sensitivity.reason}.")
    explained = sensitivity.explained or 0.0
    worth = (
        f"The model predicts {100 * explained:.0f} % of the variance of ranks of trials that it has not seen."
        if explained > 0
        else "The model does not predict trials that it has not seen: take nothing from this chart."
    )
    constant = f" Never varied: {', '.join(sensitivity.constant)}." if sensitivity.constant else ""
    lead = (
        "How much better a trial ranks where a layer is wider by one standard deviation of the widths that were tried, "
        "all others being equal; layers with low bars can be cut without much harm. Lines are intervals: those across "
        "zero say nothing for certain."
    )
    how = paragraph(f"{sensitivity.method} {worth}{constant}", "note")
    return Section(title=title, lead=lead, chart="sensitivity", body=how)


def _parallel(gathered: Gathered) -> Section | None:
    """Returns the best trials."""
    if gathered.best is None:
        return None
    count = len(gathered.best.numbers)
    lead = (
        f"What the best {plural(count, 'trial')} ({100 * gathered.best.share:.3g} % of those that succeeded; 5 %, but 10 "
        f"at least and 100 at most) keep of each layer. Where their lines run together, and away from the median of "
        f"all trials, the layer mattered."
    )
    return Section(title="The best trials, layer by layer", lead=lead, chart="parallel")


def _timeline(gathered: Gathered) -> Section:
    """Returns when evaluations ran, and the failures."""
    timeline = gathered.timeline
    side = (
        f"; at most {timeline.lanes} side by side"
        if timeline.lanes > 1
        else ", one after the other"
    )
    lead = (
        f"{duration_text(timeline.busy)} of evaluations in {duration_text(timeline.seconds)}{side}. A row is not a "
        f"worker, which the journal does not name, but what ran at the same time. Time without any evaluation for more "
        f"than 30 seconds (a run that was stopped) is cut out."
    )
    if timeline.untimed:
        lead += f" Of {plural(timeline.untimed, 'trial')} the journal has no time."
    body = "<h3>Failures</h3>" + paragraph("No trial failed.")
    if timeline.failures:
        prefix = f"{gathered.history.searcher} "
        rows = [
            [f.reason, str(len(f.trials)), _listed(f.trials, prefix)] for f in timeline.failures
        ]
        body = "<h3>Failures</h3>" + table(
            [["reason (of the first)", "trials", "which"], *rows], [1]
        )
    lost = sum(sum(search.lost.values()) for search in gathered.history.evaluated)
    if lost:
        body += paragraph(
            f"Workers were lost {lost} time(s) during an evaluation, which was then run again."
        )
    return Section(
        title="Timeline and failures",
        lead=lead if timeline.bars else "",
        chart="timeline",
        body=body,
    )


def _listed(trials: tuple[str, ...], prefix: str, most: int = 12) -> str:
    """Returns the first of many trials in words, without the name of the run's own search."""
    more = f" and {len(trials) - most} more" if len(trials) > most else ""
    return ", ".join(trial.removeprefix(prefix) for trial in trials[:most]) + more


def _load(gathered: Gathered) -> Section:
    """Returns how to load the network."""
    body = code(
        load_text(
            gathered.history,
            configured="model" in gathered.history.settings,
            tuned=bool(_recipe(gathered)),
        )
    )
    card = Path("export", "README.md")
    if (gathered.history.path / card).is_file():
        body += link(card.as_posix(), "The model card: what it expects, and what it is worth")
    return Section(title="How to load the network", body=body)


def _recipe(gathered: Gathered) -> Mapping[str, Any] | None:
    """Returns what the winner was fine-tuned with, as far as that is known."""
    return None if gathered.report is None else gathered.report.recipe


def _elsewhere(history: History) -> str:
    """Returns that a folder is not the user's, and what its settings would do as a config of theirs."""
    reached = ", ".join(dict.fromkeys(reached_by(history.settings)))
    return (
        "This folder comes from elsewhere (or from before folders were signed), so that the command which started it "
        "is not shown. Run its settings as a config of your own only if you trust whoever wrote them: they would have "
        f"{reached or 'nothing imported or read but what abcsearch brings along'}."
    )


def _repeat(gathered: Gathered) -> Section:
    """Returns how to run it again."""
    history = gathered.history
    command = command_line(history)
    body = code(command) if command else ""
    if "model" in history.settings:
        lead = "Settings, seed and versions decide the trials. "
        lead += (
            "The command that started it, and all its settings:" if command else "All its settings:"
        )
        body += code(again_text(history, _recipe(gathered))) + code(
            config_toml(history.settings), "settings"
        )
    else:
        lead = "It was started from Python, with objects of your own; its settings were:"
        body += code(config_toml(history.settings), "settings")
    if not history.vouched:
        lead = f"{_elsewhere(history)} {lead}"
    body += table([["made with", ""], *([name, value] for name, value in facts(history))])
    return Section(title="How to repeat it", lead=lead, body=body)
