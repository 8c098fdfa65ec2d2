"""How all charts of the page look: fonts, axes, names of layers."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from abcsearch.reporting.words import BLACK, cost_name, short_names, tick_step

if TYPE_CHECKING:
    from collections.abc import Sequence

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_AXIS = {
    "showline": True,
    "linecolor": "#888",
    "gridcolor": "#e6e6e6",
    "zeroline": False,
    "ticks": "outside",
}


def figure_of(traces: Sequence[Any], x: str, y: str, height: int = 420) -> go.Figure:
    """Returns a chart with two titled axes in the style of the page."""
    figure = go.Figure(data=list(traces))
    figure.update_layout(
        template="none",
        font={"family": FONT, "size": 13, "color": BLACK},
        height=height,
        margin={"l": 70, "r": 50, "t": 50, "b": 60},
        modebar={"orientation": "v"},  # beside the chart, not above it, where the legend is
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"font": {"family": FONT}, "align": "left"},
        xaxis={**_AXIS, "title": {"text": x}, "automargin": True},
        yaxis={**_AXIS, "title": {"text": y}, "automargin": True},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    return figure


def cost_buttons(
    figure: go.Figure, costs: Sequence[str], choices: Sequence[tuple[list[Any], dict[str, Any]]]
) -> None:
    """Adds a button per cost above a chart, unless there is only one.

    Args:
        figure: changed in place.
        costs: their names.
        choices: of each, which traces are visible and what changes in the layout.
    """
    if len(costs) < 2:
        return
    buttons = [
        {"label": cost_name(cost), "method": "update", "args": [{"visible": visible}, layout]}
        for cost, (visible, layout) in zip(costs, choices, strict=True)
    ]
    menu = {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1.1,
    }
    figure.update_layout(
        updatemenus=[{**menu, "yanchor": "bottom", "showactive": True}], margin={"t": 90}
    )


def layer_axis(figure: go.Figure, names: Sequence[str]) -> None:
    """Names the layers along the x axis of a chart; of very many, every second or third."""
    shown, step = short_names([html.escape(name) for name in names]), tick_step(len(names))
    places = list(range(0, len(names), step))
    size = 11 if len(names) <= 40 else 9
    figure.update_xaxes(
        tickmode="array",
        tickvals=places,
        ticktext=[shown[at] for at in places],
        tickangle=-90 if len(names) > 12 else -40,
        tickfont={"size": size},
        range=[-0.7, len(names) - 0.3],
        title={
            "text": "layers in network order"
            if step == 1
            else f"layers in network order; every {step}. is named"
        },
        showgrid=False,
    )
