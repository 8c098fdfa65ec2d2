"""The charts of the page, by plotly. They draw what `gathering` has found; nothing is computed here."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from abcsearch.formats import duration_text
from abcsearch.reporting.curves import SHOWN, thinned
from abcsearch.reporting.layer_charts import (
    map_chart,
    parallel_chart,
    sensitivity_chart,
    widths_chart,
)
from abcsearch.reporting.plotting import cost_buttons, figure_of
from abcsearch.reporting.timeline import outline
from abcsearch.reporting.words import (
    BLACK,
    BLUE,
    COSTS,
    GREY,
    VERMILLION,
    cost_text,
    lane_ticks,
    network_color,
    network_symbol,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.reporting.curves import Cloud, Curve, Mark
    from abcsearch.reporting.gathering import Gathered
    from abcsearch.reporting.timeline import Timeline


def page_charts(gathered: Gathered) -> dict[str, go.Figure]:
    """Returns the charts of a report by name; those that have nothing to show are left out."""
    layers = list(gathered.widths.layers) if gathered.widths else []
    made: dict[str, go.Figure | None] = {
        "fitness": fitness_chart(gathered.curves) if gathered.curves else None,
        "pareto": pareto_chart(gathered.clouds, gathered.marks, gathered.history.searcher)
        if gathered.clouds
        else None,
        "widths": widths_chart(gathered.widths) if gathered.widths else None,
        "map": map_chart(gathered.layer_map, gathered.widths)
        if gathered.layer_map and gathered.layer_map.layers
        else None,
        "sensitivity": sensitivity_chart(gathered.sensitivity)
        if gathered.sensitivity.effects
        else None,
        "parallel": parallel_chart(gathered.best, layers) if gathered.best else None,
        "timeline": timeline_chart(gathered.timeline) if gathered.timeline.bars else None,
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def fitness_chart(curves: Sequence[Curve]) -> go.Figure:
    """Returns fitness over trials, with the best so far of every search."""
    traces: list[Any] = []
    for curve in curves:
        color, name = network_color(curve.name), html.escape(curve.name)
        values = [value for value in curve.fitness if value is not None]
        rises = [i for i in range(1, len(curve.best)) if curve.best[i] != curve.best[i - 1]]
        places = thinned(len(curve.numbers), [*rises, *(i - 1 for i in rises)])
        numbers = [curve.numbers[i] for i in places]
        dots = go.Scatter(
            x=numbers,
            y=[curve.fitness[i] for i in places],
            mode="markers",
            name=f"{name}: trials",
            marker={"color": color, "size": 5, "opacity": 0.45},
            hovertemplate="trial %{x}<br>fitness %{y:.4f}<extra></extra>",
        )
        best = go.Scatter(
            x=numbers,
            y=[curve.best[i] for i in places],
            mode="lines",
            name=f"{name}: best so far",
            line={"color": color, "width": 2.5, "shape": "hv"},
            hovertemplate="up to trial %{x}<br>best %{y:.4f}<extra></extra>",
        )
        traces += [dots, best]
        failed = [n for n, value in zip(curve.numbers, curve.fitness, strict=True) if value is None]
        if failed:
            shown = [failed[i] for i in thinned(len(failed))]
            traces.append(
                go.Scatter(
                    x=shown,
                    y=[min(values, default=0.0)] * len(shown),
                    mode="markers",
                    name=f"{name}: failed ({len(failed)})",
                    marker={
                        "color": VERMILLION,
                        "size": 7,
                        "symbol": "x-thin",
                        "line": {"width": 1.5, "color": VERMILLION},
                    },
                    hovertemplate="trial %{x} failed<extra></extra>",
                )
            )
    return figure_of(traces, "trial", "fitness (higher is better)")


def pareto_chart(clouds: Sequence[Cloud], marks: Sequence[Mark], searcher: str) -> go.Figure:
    """Returns fitness against a cost, with buttons for the other costs."""
    traces, spans = list[Any](), list[range]()
    for cloud in clouds:
        traces_of = _cloud_traces(cloud, marks, searcher)
        spans.append(range(len(traces), len(traces) + len(traces_of)))
        traces += traces_of
    at_first = [trace.visible or True for trace in traces]
    for index, trace in enumerate(traces):
        trace.visible = at_first[index] if index in spans[0] else False
    figure = figure_of(traces, _axis_title(clouds[0]), "fitness (higher is better)", 480)
    figure.update_layout(shapes=_bounds(clouds[0]))
    choices = [
        (
            [seen if index in span else False for index, seen in enumerate(at_first)],
            {
                "xaxis.title.text": _axis_title(cloud),
                "shapes": _bounds(cloud),
                "xaxis.autorange": True,
            },
        )
        for cloud, span in zip(clouds, spans, strict=True)
    ]
    cost_buttons(figure, [cloud.cost for cloud in clouds], choices)
    return figure


def _axis_title(cloud: Cloud) -> str:
    """Returns the title of the axis of costs."""
    unit = {"latency_ms": ", ms", "peak_activation": ", bytes"}.get(cloud.cost, "")
    bounded = "; dotted: budget" if _bounds(cloud) else ""
    return f"{COSTS[cloud.cost]}{unit} (lower is better{bounded})"


def _bounds(cloud: Cloud) -> list[dict[str, Any]]:
    """Returns the lines of the budget; an open end has none."""
    ends = [end for end in cloud.bound or () if 0 < end < float("inf")]
    line = {"color": BLACK, "width": 1.2, "dash": "dot"}
    return [
        {"type": "line", "x0": end, "x1": end, "y0": 0, "y1": 1, "yref": "paper", "line": line}
        for end in ends
    ]


def _cloud_traces(cloud: Cloud, marks: Sequence[Mark], searcher: str) -> list[Any]:
    """Returns the trials, the front, and the named networks."""
    front = cloud.front_places
    shown = thinned(len(cloud.numbers), front)
    hover = "trial %{customdata[0]}<br>%{customdata[1]}<br>fitness %{y:.4f}<extra></extra>"

    def dots(places: Sequence[int], **style: Any) -> go.Scatter:  # noqa: ANN401 - plotly's own
        data = [[cloud.numbers[i], cost_text(cloud.cost, cloud.costs[i])] for i in places]
        x, y = [cloud.costs[i] for i in places], [cloud.fitness[i] for i in places]
        return go.Scatter(x=x, y=y, customdata=data, hovertemplate=hover, **style)

    name = html.escape(searcher)
    made = [
        dots(
            shown,
            mode="markers",
            name=f"trials of {name}",
            marker={"color": GREY, "size": 5, "opacity": 0.6},
        ),
        dots(
            front,
            mode="lines+markers",
            name="front",
            line={"color": BLUE, "width": 2, "shape": "hv"},
            marker={"size": 6},
        ),
    ]
    for mark in marks:
        if cloud.cost not in mark.costs:
            continue
        text = html.escape(mark.name) + (" (winner)" if mark.name == searcher else "")
        cost = mark.costs[cloud.cost]
        made.append(
            go.Scatter(
                x=[cost],
                y=[mark.fitness],
                mode="markers",
                name=text,
                visible="legendonly" if cloud.is_far(cost) else True,
                marker={
                    "symbol": network_symbol(mark.name, searcher)[0],
                    "size": 15 if mark.name == searcher else 12,
                    "color": network_color(mark.name, searcher),
                    "line": {"color": "white", "width": 1},
                },
                hovertemplate=f"{text}<br>{cost_text(cloud.cost, cost)}<br>fitness %{{y:.4f}}<extra></extra>",
            )
        )
    return made


def timeline_chart(timeline: Timeline) -> go.Figure:
    """Returns a bar per evaluation; gaps without any are cut out, with a dashed line where."""
    traces: list[Any] = []
    kinds = dict.fromkeys((bar.search, bar.state) for bar in timeline.bars)
    for search, state in sorted(kinds, key=lambda kind: kind[1] != "succeeded"):
        bars = [bar for bar in timeline.bars if (bar.search, bar.state) == (search, state)]
        bars = [bars[i] for i in thinned(len(bars))]
        color = network_color(search) if state == "succeeded" else VERMILLION
        traces.append(
            go.Bar(
                base=[bar.start for bar in bars],
                x=[bar.end - bar.start for bar in bars],
                y=[bar.lane + 1 for bar in bars],
                orientation="h",
                name=html.escape(f"{search}: {state}"),
                marker={
                    "color": color,
                    "line": {
                        "color": "white",
                        "width": [outline(bar, timeline.seconds) for bar in bars],
                    },
                },
                hovertext=[
                    f"{html.escape(search)}, trial {bar.trial}: {state}, {duration_text(bar.end - bar.start)}"
                    for bar in bars
                ],
                hoverinfo="text",
            )
        )
    traces += _timeline_marks(timeline)
    figure = figure_of(
        traces,
        "seconds in which evaluations ran",
        "side by side",
        max(220, min(700, 170 + 34 * timeline.lanes)),
    )
    figure.update_layout(barmode="overlay", bargap=0.15)
    figure.update_yaxes(
        tickmode="array",
        tickvals=lane_ticks(timeline.lanes),
        range=[timeline.lanes + 0.6, 0.4],
        showgrid=False,
    )
    for at, seconds in timeline.cuts:
        figure.add_vline(x=at, line={"color": BLACK, "width": 1.2, "dash": "dash"})
        figure.add_annotation(
            x=at,
            y=1,
            yref="paper",
            yanchor="bottom",
            text=duration_text(seconds),
            showarrow=False,
            font={"size": 11},
        )
    if timeline.cuts:
        figure.update_layout(legend={"y": 1.12})
    return figure


def _timeline_marks(timeline: Timeline) -> list[Any]:
    """Returns marks where evaluations failed, which can be too quick to be seen, and where workers were lost."""
    failed = [(bar.end, bar, "failed") for bar in timeline.bars if bar.state == "failed"]
    lost = [
        (bar.start, bar, f"{bar.lost} worker(s) lost before") for bar in timeline.bars if bar.lost
    ]
    failed = [failed[i] for i in thinned(len(failed))]
    return [
        go.Scatter(
            x=[x for x, _, _ in marks],
            y=[bar.lane + 1 for _, bar, _ in marks],
            mode="markers",
            name=name,
            marker={
                "symbol": symbol,
                "size": 9,
                "color": color,
                "line": {"color": "white", "width": 0.8},
            },
            hovertext=[
                f"{html.escape(bar.search)}, trial {bar.trial}: {what}" for _, bar, what in marks
            ],
            hoverinfo="text",
        )
        for marks, name, symbol, color in (
            (failed, "failed", "triangle-down", VERMILLION),
            (lost, "a worker was lost before", "x", BLACK),
        )
        if marks
    ]


def thinned_note(gathered: Gathered) -> str | None:
    """Returns that charts do not show every point, where that is so."""
    most = max((len(curve.numbers) for curve in gathered.curves), default=0)
    if most <= SHOWN:
        return None
    return (
        f"Of {most:,} trials about {SHOWN:,} are drawn, evenly spread, with all that count (fronts, new best ones); "
        f"report.json has all of them."
    )
