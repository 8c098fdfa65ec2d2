"""The charts of the page that go along the layers of the network, by plotly."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from abcsearch.errors import plural
from abcsearch.reporting.gathering import block_height
from abcsearch.reporting.plotting import figure_of, layer_axis
from abcsearch.reporting.words import BLACK, BLUE, LEVELS, ORANGE, SKY, network_color, network_symbol, width_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.reporting.curves import BestTrials, Layer
    from abcsearch.reporting.gathering import Widths
    from abcsearch.reporting.sensitivity import Sensitivity


def widths_chart(widths: Widths) -> go.Figure:
    """Returns the widths of the winner within those of the full network, and those of the baselines."""
    wide = [i for i, layer in enumerate(widths.layers) if layer.level != "block"]
    blocks = [i for i, layer in enumerate(widths.layers) if layer.level == "block"]
    order = [*wide, *blocks]
    names = [widths.layers[i].name for i in order]
    tall = block_height(widths)
    *others, winner = widths.kept
    x = list(range(len(order)))
    texts = [f"{layer.name}: {width_text(layer, widths.kept[winner][i])}" for i, layer in enumerate(widths.layers)]
    for i, label in enumerate(widths.criteria.get(winner, ())):
        texts[i] += f", by {label}" if label else ""
    hover = [html.escape(texts[i]) for i in order]
    traces: list[Any] = [
        go.Bar(
            x=x,
            y=[tall if widths.layers[i].level == "block" else widths.layers[i].full for i in order],
            name="full",
            marker={"color": "#dcdfe3"},
            hoverinfo="skip",
            width=0.86,
        )
    ]
    for level in dict.fromkeys(widths.layers[i].level for i in order):
        own = [place for place in x if widths.layers[order[place]].level == level]
        label = f"winner, {level} level" if level else "winner"
        traces.append(
            go.Bar(
                x=own,
                y=[widths.kept[winner][order[place]] * (tall if level == "block" else 1) for place in own],
                name=label,
                marker={"color": LEVELS[level]},
                hovertext=[hover[place] for place in own],
                hoverinfo="text",
                width=0.86,
            )
        )
    for name in others:
        color = network_color(name, winner)
        size = max(5, min(11, 400 // len(x)))
        line = {
            "symbol": network_symbol(name, winner)[0],
            "size": size,
            "color": color,
            "line": {"color": "white", "width": 1},
        }
        kept = [widths.kept[name][i] for i in wide]
        text = [f"{html.escape(name)}: {value}" for value in kept]
        places = list(range(len(wide)))
        trace = go.Scatter(x=places, y=kept, mode="markers", name=name, marker=line, hovertext=text, hoverinfo="text")
        traces.append(trace)
    figure = figure_of(traces, "", "channels (blocks: coloured if kept)" if blocks else "channels", 520)
    figure.update_layout(barmode="overlay")
    layer_axis(figure, names)
    return figure


def sensitivity_chart(found: Sensitivity) -> go.Figure:
    """Returns the effect of every layer with its interval."""
    traces: list[Any] = []
    names = [effect.name for effect in found.effects]
    for level in dict.fromkeys(effect.level for effect in found.effects):
        own = [place for place, effect in enumerate(found.effects) if effect.level == level]
        effects = [found.effects[place] for place in own]
        text = [
            f"{html.escape(e.name)}: {100 * e.effect:+.1f} % ({100 * e.low:+.1f} to {100 * e.high:+.1f} %)"
            for e in effects
        ]
        traces.append(
            go.Bar(
                x=own,
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
    figure = figure_of(traces, "", "trials overtaken by one standard deviation<br>more width, % of all", 480)
    figure.update_layout(bargap=0.25, showlegend=True)
    figure.update_yaxes(zeroline=True, zerolinecolor="#555", zerolinewidth=1)
    layer_axis(figure, names)
    return figure


def parallel_chart(found: BestTrials, layers: Sequence[Layer]) -> go.Figure:
    """Returns the best trials as lines over the layers, the better the darker; the winner and all trials' median."""
    x = list(range(len(layers)))
    traces = list[Any]()
    for place in range(len(found.numbers) - 1, 0, -1):  # the best ones on top
        trial = f"trial {found.numbers[place]}, fitness {found.fitness[place]:.4f}"
        line = go.Scatter(
            x=x,
            y=[100 * share for share in found.widths[place]],
            mode="lines",
            line={"color": SKY, "width": 1.2},
            opacity=0.75,
            name=f"the best {plural(len(found.numbers), 'trial')}",
            legendgroup="best",
            showlegend=place == 1,
            hovertemplate=f"{trial}<br>%{{y:.0f}} %<extra></extra>",
        )
        traces.append(line)
    median = [100 * share for share in found.median]
    winner = [100 * share for share in found.widths[0]]
    dashes = {"color": ORANGE, "width": 2, "dash": "dash"}
    hover = "%{y:.0f} %<extra></extra>"
    text = f"winner: trial {found.numbers[0]}"
    traces += [
        go.Scatter(
            x=x, y=median, mode="lines", line=dashes, name="median of all trials", hovertemplate=f"median {hover}"
        ),
        go.Scatter(
            x=x,
            y=winner,
            mode="lines+markers",
            line={"color": BLUE, "width": 3},
            name=text,
            hovertemplate=f"{text}, fitness {found.fitness[0]:.4f}<br>{hover}",
        ),
    ]
    figure = figure_of(traces, "", "kept, % of the full width", 480)
    figure.update_yaxes(range=[-3, 103])
    layer_axis(figure, [layer.name for layer in layers])
    figure.update_xaxes(showgrid=True)
    return figure
