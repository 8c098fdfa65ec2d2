"""The charts of the page that go along the layers of the network, by plotly."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from abcsearch.errors import plural
from abcsearch.reporting.gathering import block_height
from abcsearch.reporting.layer_map import ROWS
from abcsearch.reporting.plotting import figure_of, layer_axis
from abcsearch.reporting.words import (
    BLACK,
    BLUE,
    LEVELS,
    LOSSES,
    ORANGE,
    SKY,
    loss_text,
    lost_text,
    network_color,
    network_symbol,
    width_text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.reporting.curves import BestTrials, Layer
    from abcsearch.reporting.gathering import Widths
    from abcsearch.reporting.layer_map import LayerMap
    from abcsearch.reporting.sensitivity import Sensitivity


@dataclass(frozen=True)
class _Column:
    """A layer or a block of the chart of widths.

    Attributes:
        x: where it stands.
        index: among the layers of the widths.
        layer: what it is.
        full: height of the full network's bar: its channels; of a block, the same for all.
        kept: height of the winner's.
        text: shown where the mouse is, as HTML.
    """

    x: int
    index: int
    layer: Layer
    full: float
    kept: float
    text: str


def widths_chart(widths: Widths) -> go.Figure:
    """Returns the widths of the winner within those of the full network, and those of the baselines."""
    *others, winner = widths.kept
    columns = _columns(widths, winner)
    layers = [column for column in columns if column.layer.level != "block"]
    traces = [_full_bars(columns), *_winner_bars(columns)]
    traces += [
        _marks(widths, name, winner, layers, size=max(5, min(11, 400 // len(columns))))
        for name in others
    ]
    unit = "channels" if len(layers) == len(columns) else "channels (blocks: coloured if kept)"
    figure = figure_of(traces, "", unit, 520)
    figure.update_layout(barmode="overlay")
    layer_axis(figure, [column.layer.name for column in columns])
    return figure


def _columns(widths: Widths, winner: str) -> list[_Column]:
    """Returns the columns from left to right: layers first, then blocks."""
    numbered = sorted(enumerate(widths.layers), key=lambda entry: entry[1].level == "block")
    criteria = widths.criteria.get(winner, ())
    columns: list[_Column] = []
    for x, (index, layer) in enumerate(numbered):
        kept = widths.kept[winner][index]
        text = f"{layer.name}: {width_text(layer, kept)}"
        if index < len(criteria) and criteria[index]:
            text += f", by {criteria[index]}"
        tall = block_height(widths) if layer.level == "block" else 0
        heights = (tall, kept * tall) if tall else (layer.full, kept)
        columns.append(_Column(x, index, layer, *heights, html.escape(text)))
    return columns


def _full_bars(columns: Sequence[_Column]) -> go.Bar:
    """Returns the bars of the full network, behind the others."""
    return go.Bar(
        x=[column.x for column in columns],
        y=[column.full for column in columns],
        name="full",
        marker={"color": "#dcdfe3"},
        hoverinfo="skip",
        width=0.86,
    )


def _winner_bars(columns: Sequence[_Column]) -> list[go.Bar]:
    """Returns the bars of the winner, those of every level in its colour."""
    bars: list[go.Bar] = []
    for level in dict.fromkeys(column.layer.level for column in columns):
        same = [column for column in columns if column.layer.level == level]
        bar = go.Bar(
            x=[column.x for column in same],
            y=[column.kept for column in same],
            name=f"winner, {level} level" if level else "winner",
            marker={"color": LEVELS[level]},
            hovertext=[column.text for column in same],
            hoverinfo="text",
            width=0.86,
        )
        bars.append(bar)
    return bars


def _marks(
    widths: Widths, name: str, winner: str, layers: Sequence[_Column], *, size: int
) -> go.Scatter:
    """Returns a baseline's widths as marks over the bars of layers."""
    kept = [widths.kept[name][column.index] for column in layers]
    return go.Scatter(
        x=[column.x for column in layers],
        y=kept,
        mode="markers",
        name=name,
        marker={
            "symbol": network_symbol(name, winner)[0],
            "size": size,
            "color": network_color(name, winner),
            "line": {"color": "white", "width": 1},
        },
        hovertext=[f"{html.escape(name)}: {value}" for value in kept],
        hoverinfo="text",
    )


def sensitivity_chart(sensitivity: Sensitivity) -> go.Figure:
    """Returns the effect of every layer with its interval."""
    traces: list[Any] = []
    names = [effect.name for effect in sensitivity.effects]
    for level in dict.fromkeys(effect.level for effect in sensitivity.effects):
        columns = [
            column for column, effect in enumerate(sensitivity.effects) if effect.level == level
        ]
        effects = [sensitivity.effects[column] for column in columns]
        text = [
            f"{html.escape(e.name)}: {100 * e.effect:+.1f} % ({100 * e.low:+.1f} to {100 * e.high:+.1f} %)"
            for e in effects
        ]
        traces.append(
            go.Bar(
                x=columns,
                y=[100 * e.effect for e in effects],
                name=f"{level} level" if level else "layers",
                marker={"color": LEVELS[level]},
                hovertext=text,
                hoverinfo="text",
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (e.high - e.effect) for e in effects],
                    "arrayminus": [100 * (e.effect - e.low) for e in effects],
                    "color": BLACK,
                    "thickness": 1.2,
                    "width": 3,
                },
            )
        )
    figure = figure_of(
        traces, "", "trials overtaken by one standard deviation<br>more width, % of all", 480
    )
    figure.update_layout(bargap=0.25, showlegend=True)
    figure.update_yaxes(zeroline=True, zerolinecolor="#555", zerolinewidth=1)
    layer_axis(figure, names)
    return figure


def map_chart(mapped: LayerMap, widths: Widths | None) -> go.Figure:
    """Returns what each layer alone loses, layers by width; what was tried is marked, and what the winner keeps."""
    names = [probed.layer.name for probed in mapped.layers]
    size = max(4, min(8, 300 // max(len(names), 1)))
    traces: list[Any] = [_losses(mapped)]
    for label, symbol, failed in (("tried", "circle", False), ("failed", "x", True)):
        shown = [
            (x, 100 * width / probed.layer.full, lost_text(probed.layer, width, loss))
            for x, probed in enumerate(mapped.layers)
            for width, loss in zip(probed.widths, probed.losses, strict=True)
            if (loss is None) == failed
        ]
        if shown:
            text = [f"{html.escape(names[x])}, {html.escape(lost)}" for x, _, lost in shown]
            points = [(x, y) for x, y, _ in shown]
            traces.append(_spots(points, label, symbol, size + 2 * failed, BLACK, text))
    if widths is not None:
        winner = list(widths.kept)[-1]
        kept = list(zip(widths.layers, widths.kept[winner], strict=True))
        text = [f"{html.escape(layer.name)}: {width_text(layer, width)}" for layer, width in kept]
        points = [(x, 100 * width / layer.full) for x, (layer, width) in enumerate(kept)]
        traces.append(_spots(points, "winner", "star", size + 4, BLUE, text))
    figure = figure_of(traces, "", "kept, % of the full width", 560)
    figure.update_layout(plot_bgcolor="#dcdfe3", margin={"t": 120})
    figure.update_yaxes(range=[-4, 104], showgrid=False)
    layer_axis(figure, names)
    return figure


def _losses(mapped: LayerMap) -> go.Heatmap:
    """Returns the losses as colours, on a scale of square roots: one layer that breaks does not hide the others."""
    top = mapped.worst or 1.0
    marks = [0.0, top / 16, top / 4, 9 * top / 16, top]
    rows = [
        [None if loss is None else math.sqrt(loss / top) for loss in row] for row in mapped.grid
    ]
    return go.Heatmap(
        x=list(range(len(mapped.layers))),
        y=[100 * (row + 0.5) / ROWS for row in range(ROWS)],
        z=rows,
        zmin=0,
        zmax=1,
        colorscale=[[i / (len(LOSSES) - 1), color] for i, color in enumerate(LOSSES)],
        colorbar={
            "orientation": "h",
            "title": {"text": "fitness lost", "side": "top"},
            "x": 0,
            "xanchor": "left",
            "y": 1.1,
            "yanchor": "bottom",
            "tickvals": [math.sqrt(mark / top) for mark in marks],
            "ticktext": [loss_text(mark) for mark in marks],
            "thickness": 12,
            "len": 0.9,
            "tickfont": {"size": 11},
        },
        hoverinfo="skip",
    )


def _spots(
    points: Sequence[tuple[float, float]],
    name: str,
    symbol: str,
    size: int,
    color: str,
    text: Sequence[str],
) -> go.Scatter:
    """Returns marks at points, (x, y) each, with what is shown where the mouse is."""
    line = {"color": "white", "width": 1}
    return go.Scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        mode="markers",
        name=name,
        marker={"symbol": symbol, "size": size, "color": color, "line": line},
        hovertext=list(text),
        hoverinfo="text",
    )


def parallel_chart(best: BestTrials, layers: Sequence[Layer]) -> go.Figure:
    """Returns the best trials as lines over the layers, the better the darker; the winner and all trials' median."""
    x = list(range(len(layers)))
    traces = list[Any]()
    for rank in range(len(best.numbers) - 1, 0, -1):  # the best ones on top
        trial = f"trial {best.numbers[rank]}, fitness {best.fitness[rank]:.4f}"
        line = go.Scatter(
            x=x,
            y=[100 * share for share in best.widths[rank]],
            mode="lines",
            line={"color": SKY, "width": 1.2},
            opacity=0.75,
            name=f"the best {plural(len(best.numbers), 'trial')}",
            legendgroup="best",
            showlegend=rank == 1,
            hovertemplate=f"{trial}<br>%{{y:.0f}} %<extra></extra>",
        )
        traces.append(line)
    median = [100 * share for share in best.median]
    winner = [100 * share for share in best.widths[0]]
    dashes = {"color": ORANGE, "width": 2, "dash": "dash"}
    hover = "%{y:.0f} %<extra></extra>"
    text = f"winner: trial {best.numbers[0]}"
    traces += [
        go.Scatter(
            x=x,
            y=median,
            mode="lines",
            line=dashes,
            name="median of all trials",
            hovertemplate=f"median {hover}",
        ),
        go.Scatter(
            x=x,
            y=winner,
            mode="lines+markers",
            line={"color": BLUE, "width": 3},
            name=text,
            hovertemplate=f"{text}, fitness {best.fitness[0]:.4f}<br>{hover}",
        ),
    ]
    figure = figure_of(traces, "", "kept, % of the full width", 480)
    figure.update_yaxes(range=[-3, 103])
    layer_axis(figure, [layer.name for layer in layers])
    figure.update_xaxes(showgrid=True)
    return figure
