"""The page and the pictures of several runs side by side."""

from __future__ import annotations

import html
from functools import partial
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from abcsearch.reporting.arm_tables import (
    COLUMNS,
    arm_cells,
    contrast_cells,
    over_runs,
    run_by_run,
    verdicts,
)
from abcsearch.reporting.compare_drawings import compare_drawings
from abcsearch.reporting.page import Page, Section, check_page, paragraph, table
from abcsearch.reporting.plotting import cost_buttons, figure_of, layer_axis
from abcsearch.reporting.tables import ends_text
from abcsearch.reporting.words import COSTS, SERIES, cost_text, ms_text, short_name, short_names
from abcsearch.results.intervals import SHARES, difference_text, method_of
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.training.objectives import metric_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from abcsearch.reporting.comparison import Comparison, Winner

_RUN, _SEARCHER = 16, 14  # characters of names on a terminal


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Writes the page, and beside it, by the same name, a folder of PNG files and a JSON file; returns the page's path.

    Args:
        comparison: what is shown.
        out: the page, e.g. compare.html.

    Raises:
        ConfigError: if that cannot be the page, see `check_page`.
    """
    check_page(out, "compare.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(out.parent)
    for name, draw in compare_drawings(comparison).items():
        folder.write(f"{out.stem}/{name}.png", partial(_save, draw), lasting=False)
    folder.write_json(f"{out.stem}.json", comparison.plain())
    text = compare_page(comparison).html()
    folder.write(out.name, lambda path: path.write_text(text, encoding="utf-8"))
    return out


def _save(draw: Any, path: Path) -> None:  # noqa: ANN401 - a function that returns a figure
    """Draws a picture to a file."""
    draw().savefig(path, format="png")


def compare_page(comparison: Comparison) -> Page:
    """Returns the page of several runs."""
    charts = {"fitness": fitness_chart(comparison)}
    sections = [
        Section(
            title="Winners",
            lead=_table_lead(comparison),
            body=table(winner_cells(comparison.winners), range(2, 30), "dense")
            + "".join(paragraph(line, "note") for line in worth(comparison)),
        ),
        *_arm_sections(comparison),
        Section(
            title="Best fitness over trials",
            lead="The best fitness after so many trials. Runs with the same settings but the seed are one line: their "
            "mean, with a band from the lowest to the highest.",
            chart="fitness",
        ),
    ]
    costs = common_costs(comparison)
    if costs:
        charts["pareto"] = front_chart(comparison, costs)
        lead = "Of each run the trials that no other one of it beats in both fitness and cost."
        hint = "The buttons choose the cost." if len(costs) > 1 else ""
        sections.append(Section(title="Fronts", lead=lead, hint=hint, chart="pareto"))
    if same_layers(comparison):
        charts["widths"] = widths_chart(comparison)
        lead = "What each winner keeps of each layer, in per cent of the full width (blocks: 100 kept, 0 dropped)."
        body = table(width_cells(comparison), range(1, 30), "dense")
        sections.append(
            Section(title="Widths of the winners", lead=lead, chart="widths", body=body)
        )
    else:
        sections.append(
            Section(title="Widths of the winners", body=paragraph("Not shown: the layers differ."))
        )
    return Page(
        title=f"{len(comparison.runs)} runs compared",
        subtitle=", ".join(comparison.labels),
        warnings=comparison.warnings,
        sections=sections,
        charts=charts,
    )


def _arm_sections(comparison: Comparison) -> Iterator[Section]:
    """Yields what winners are compared with in their own runs; nothing where no baseline has been fine-tuned."""
    means = [(name, contrast_cells(rows)) for name, rows in over_runs(comparison)]
    if means:
        lead = "Means over runs with the same settings but the seed; after and before fine-tuning, on test."
        yield Section(
            title="Winners and baselines over runs",
            lead=f"{lead} {COLUMNS}.",
            body=_arm_tables(means)
            + "".join(paragraph(line, "note") for line in verdicts(comparison)),
        )
    each = [(name, arm_cells(arms)) for name, arms in run_by_run(comparison)]
    if each:
        hows = dict.fromkeys(method_of(arm.metric) for arm in comparison.arms)
        lead = f"Intervals are of the test images ({'; '.join(hows)})."
        yield Section(
            title="Winners and baselines run by run",
            lead=lead if means else f"{lead} {COLUMNS}.",
            body=_arm_tables(each, first=2),
        )


def _arm_tables(tables: Sequence[tuple[str, list[list[str]]]], first: int = 1) -> str:
    """Returns tables with their names; their numbers begin with the column `first`."""
    return "".join(paragraph(name) + table(cells, range(first, 8)) for name, cells in tables)


def _table_lead(comparison: Comparison) -> str:
    """Returns what the table of winners says, and how it was measured."""
    if not any(winner.times for winner in comparison.winners):
        return "The best structure of each run."
    first = next(winner.times for winner in comparison.winners if winner.times)
    where = " and ".join(time.where for time in first)
    brackets = ""
    metrics = dict.fromkeys(name for winner in comparison.winners for name in winner.intervals)
    if metrics:
        hows = dict.fromkeys(method_of(metric) for metric in metrics)
        brackets = f" In brackets after metrics: 95 % intervals ({'; '.join(hows)})."
    return (
        f"The best structure of each run; costs also in per cent of the full network. Forward time: median for a whole "
        f"batch ({where}), all winners in turns.{brackets}"
    )


def winner_cells(winners: Sequence[Winner]) -> list[list[str]]:
    """Returns the table of winners as text; the header first."""
    times = next((winner.times for winner in winners if winner.times), ())
    metrics = list(dict.fromkeys(name for winner in winners for name in winner.tests))
    head = ["run", "searcher", "seed", "trials (failed)", "fitness", "MACs", "params"]
    head += [f"ms, {time.where}" for time in times]
    head += [f"{metric} before ⇒ after" for metric in metrics]
    rows: list[list[str]] = []
    for winner in winners:
        row = [
            winner.run,
            winner.searcher,
            str(winner.seed),
            f"{winner.trials:,} ({winner.failed:,})",
        ]
        row.append("-" if winner.fitness is None else f"{winner.fitness:.4f}")
        row += [
            _cost("macs", winner.macs, winner.macs_share),
            _cost("params", winner.params, winner.params_share),
        ]
        row += [ms_text(time.median_ms) for time in winner.times] or ["-"] * len(times)
        row += [
            _both(metric, winner.tests[metric]) + _bracket(metric, winner)
            if metric in winner.tests
            else "-"
            for metric in metrics
        ]
        rows.append(row)
    return [head, *rows]


def _bracket(metric: str, winner: Winner) -> str:
    """Returns the interval of a metric after fine-tuning, in brackets; "" where it is not known."""
    ends = winner.intervals.get(metric)
    return "" if ends is None else f" ({ends_text(metric, ends)})"


def worth(comparison: Comparison) -> list[str]:
    """Returns what the differences of winners after fine-tuning are worth, in sentences; [] where nothing is known."""
    if not comparison.differences:
        return []
    first = comparison.differences[0].first
    metric = next(winner.metric for winner in comparison.winners if winner.run == first) or ""
    told: list[str] = []
    for apart, words in ((True, "is better than"), (False, "cannot be told apart from")):
        names = [
            f"{one.second} ({difference_text(metric, one)})"
            for one in comparison.differences
            if one.told_apart == apart
        ]
        told += [f"{first} {words} {', '.join(names)}"] if names else []
    how = "by 95 % intervals"
    how += " of the same images" if all(one.paired for one in comparison.differences) else ""
    how += "" if metric in SHARES else f" ({method_of(metric)})"
    return [f"By test {metric} after fine-tuning, {'; '.join(told)}: {how}."]


def short_cells(winners: Sequence[Winner]) -> list[list[str]]:
    """Returns the table of winners for a terminal, the header first: two runs fit in 120 columns.

    Long names are shortened; of the metrics on the test split there is the first one only.
    """
    times = next((winner.times for winner in winners if winner.times), ())
    metric = next((winner.metric for winner in winners if winner.metric in winner.tests), None)
    head = ["run", "searcher", "seed", "trials", "fitness", "MACs", "params"]
    head += [f"ms, {'' if time.device == 'CPU' else 'GPU '}b{time.batch}" for time in times]
    head += [] if metric is None else [f"{metric}, tuned"]
    rows: list[list[str]] = []
    for name, winner in zip(
        short_names([winner.run for winner in winners], _RUN), winners, strict=True
    ):
        row = [name, short_name(winner.searcher, _SEARCHER), str(winner.seed), str(winner.trials)]
        row[-1] += f" ({winner.failed} failed)" if winner.failed else ""
        row.append("-" if winner.fitness is None else f"{winner.fitness:.4f}")
        row += [
            _brief("macs", winner.macs, winner.macs_share),
            _brief("params", winner.params, winner.params_share),
        ]
        row += [ms_text(time.median_ms) for time in winner.times] or ["-"] * len(times)
        if metric is not None:
            row.append(
                _tight(_both(metric, winner.tests[metric])) if metric in winner.tests else "-"
            )
        rows.append(row)
    return [head, *rows]


def _tight(change: str) -> str:
    """Returns a metric before and after in few characters: 80.00⇒85.00%."""
    return change.replace(" %", "%").replace("% ⇒ ", "⇒").replace(" ", "")


def _brief(name: str, cost: int | None, share: float | None) -> str:
    """Returns a cost and its share in few characters: 658 k, 40%."""
    if cost is None:
        return "-"
    return cost_text(name, cost) + ("" if share is None else f", {100 * share:.3g}%")


def _both(metric: str, values: Mapping[str, float]) -> str:
    """Returns a metric before and after fine-tuning in words."""
    return " ⇒ ".join(metric_text(metric, values[when]) for when in ("before", "after"))


def _cost(name: str, cost: int | None, share: float | None) -> str:
    """Returns a cost and its share in words."""
    if cost is None:
        return "-"
    return cost_text(name, cost) + ("" if share is None else f" ({100 * share:.1f} %)")


def common_costs(comparison: Comparison) -> list[str]:
    """Returns the costs that are known of all runs that have a success."""
    known = [[cloud.cost for cloud in run.clouds] for run in comparison.runs if run.clouds]
    return [cost for cost in (known[0] if known else []) if all(cost in costs for costs in known)]


def same_layers(comparison: Comparison) -> bool:
    """Returns whether the winners of all runs have the same layers."""
    layers = {run.widths.layers if run.widths else None for run in comparison.runs}
    return len(layers) == 1 and None not in layers


def width_cells(comparison: Comparison) -> list[list[str]]:
    """Returns the widths of the winners as text; the header first."""
    widths = [run.widths for run in comparison.runs if run.widths is not None]
    kept = [[*shown.kept.values()][-1] for shown in widths]
    rows: list[list[str]] = []
    for index, layer in enumerate(widths[0].layers):
        values = [
            str(channels[index]) if layer.level != "block" else ("dropped", "kept")[channels[index]]
            for channels in kept
        ]
        for column, shown in enumerate(widths):
            label = [*shown.criteria.values()][-1][index] if shown.criteria else ""
            values[column] += f", {label}" if label else ""
        rows.append([layer.name, "" if layer.level == "block" else str(layer.full), *values])
    return [["layer", "full", *comparison.labels], *rows]


def _color(index: int) -> str:
    """Returns the colour of a run or a group."""
    return SERIES[index % len(SERIES)]


def _rgb(color: str) -> str:
    """Returns the parts of a colour such as #0072B2 as numbers."""
    return ", ".join(str(int(color[start : start + 2], 16)) for start in (1, 3, 5))


def fitness_chart(comparison: Comparison) -> go.Figure:
    """Returns the best fitness over trials by group."""
    traces: list[Any] = []
    for index, group in enumerate(comparison.groups):
        color, name = _color(index), html.escape(group.name)
        if len(group.runs) > 1:
            edge = {
                "x": group.numbers,
                "mode": "lines",
                "line": {"width": 0, "shape": "hv"},
                "hoverinfo": "skip",
            }
            traces.append(go.Scatter(y=group.low, showlegend=False, **edge))
            fill = {"fill": "tonexty", "fillcolor": f"rgba({_rgb(color)}, 0.2)"}
            traces.append(go.Scatter(y=group.high, name=f"{name}: range", **edge, **fill))
        hover = f"{name}<br>after %{{x}} trials<br>best %{{y:.4f}}<extra></extra>"
        line = {"color": color, "width": 2.5, "shape": "hv"}
        traces.append(
            go.Scatter(
                x=group.numbers,
                y=group.mean,
                mode="lines",
                line=line,
                name=name,
                hovertemplate=hover,
            )
        )
    return figure_of(traces, "trials", "best fitness so far (higher is better)", 460)


def front_chart(comparison: Comparison, costs: Sequence[str]) -> go.Figure:
    """Returns the fronts of all runs, with buttons for the costs."""
    traces: list[Any] = []
    hover = "%{customdata[0]}<br>%{customdata[1]}<br>fitness %{y:.4f}<extra></extra>"
    for cost in costs:
        for index, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
            cloud = next((cloud for cloud in run.clouds if cloud.cost == cost), None)
            if cloud is None:
                continue
            front = cloud.front_places
            name = html.escape(label)
            trace = go.Scatter(
                x=[cloud.costs[i] for i in front],
                y=[cloud.fitness[i] for i in front],
                customdata=[[cloud.numbers[i], cost_text(cost, cloud.costs[i])] for i in front],
                mode="lines+markers",
                line={"color": _color(index), "width": 2, "shape": "hv"},
                name=name,
                meta=cost,
                visible=cost == costs[0],
                hovertemplate=f"{name}, trial {hover}",
            )
            traces.append(trace)
    figure = figure_of(traces, COSTS[costs[0]], "fitness (higher is better)", 480)
    choices = [
        ([trace.meta == cost for trace in traces], {"xaxis.title.text": COSTS[cost]})
        for cost in costs
    ]
    cost_buttons(figure, costs, choices)
    return figure


def widths_chart(comparison: Comparison) -> go.Figure:
    """Returns what the winners keep of every layer."""
    traces: list[Any] = []
    layers = next(run.widths.layers for run in comparison.runs if run.widths is not None)
    for index, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
        kept = [*run.widths.kept.values()][-1] if run.widths else ()
        text = [
            f"{html.escape(label)}: {value} of {layer.full}"
            for value, layer in zip(kept, layers, strict=True)
        ]
        trace = go.Scatter(
            x=list(range(len(layers))),
            y=[100 * value / layer.full for value, layer in zip(kept, layers, strict=True)],
            mode="lines+markers",
            line={"color": _color(index), "width": 1.5},
            name=html.escape(label),
            hovertext=text,
            hoverinfo="text",
        )
        traces.append(trace)
    figure = figure_of(traces, "", "kept, % of the full width", 480)
    figure.update_yaxes(range=[-3, 103])
    layer_axis(figure, [layer.name for layer in layers])
    return figure
