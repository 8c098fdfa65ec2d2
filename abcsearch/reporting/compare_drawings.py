"""The charts of several runs as PNG files, by matplotlib."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from matplotlib.ticker import EngFormatter

from abcsearch.reporting.drawings import along_layers, figure_of, legend_below, plain
from abcsearch.reporting.words import COSTS, SERIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure

    from abcsearch.reporting.comparison import Comparison


def compare_drawings(comparison: Comparison) -> Mapping[str, Callable[[], Figure]]:
    """Returns what draws each chart, by name."""
    made: dict[str, Callable[[], Figure]] = {"fitness": partial(draw_fitness, comparison)}
    if any(run.clouds for run in comparison.runs):
        made["pareto"] = partial(draw_fronts, comparison)
    layers = {run.widths.layers if run.widths else None for run in comparison.runs}
    if len(layers) == 1 and None not in layers:
        made["widths"] = partial(draw_widths, comparison)
    return made


def draw_fitness(comparison: Comparison) -> Figure:
    """Draws the best fitness over trials by group."""
    figure, axes = figure_of("Best fitness over trials")
    for index, group in enumerate(comparison.groups):
        color = SERIES[index % len(SERIES)]
        axes.step(
            group.numbers,
            group.mean,
            where="post",
            color=color,
            linewidth=2,
            label=plain(group.name),
        )
        if len(group.runs) > 1:
            axes.fill_between(
                group.numbers,
                group.low,
                group.high,
                step="post",
                color=color,
                alpha=0.2,
                linewidth=0,
            )
    axes.set_xlabel("trials")
    axes.set_ylabel("best fitness so far (higher is better)")
    legend_below(figure)
    return figure


def draw_fronts(comparison: Comparison) -> Figure:
    """Draws the front of each run against the cost that the first one weighs fitness with."""
    figure, axes = figure_of("Fronts of fitness and cost")
    cost = next(run.clouds[0].cost for run in comparison.runs if run.clouds)
    for index, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
        cloud = next((cloud for cloud in run.clouds if cloud.cost == cost), None)
        if cloud is None:
            continue
        front = cloud.front_places
        x, y = [cloud.costs[i] for i in front], [cloud.fitness[i] for i in front]
        axes.step(
            x, y, where="post", marker=".", color=SERIES[index % len(SERIES)], label=plain(label)
        )
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel("fitness (higher is better)")
    if cost != "latency_ms":
        axes.xaxis.set_major_formatter(EngFormatter())
    legend_below(figure)
    return figure


def draw_widths(comparison: Comparison) -> Figure:
    """Draws what the winners keep of every layer."""
    layers = next(run.widths.layers for run in comparison.runs if run.widths is not None)
    figure, axes = along_layers("Widths of the winners", [layer.name for layer in layers])
    for index, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
        kept = [*run.widths.kept.values()][-1] if run.widths else ()
        shares = [100 * value / layer.full for value, layer in zip(kept, layers, strict=True)]
        axes.plot(
            shares,
            "o-",
            color=SERIES[index % len(SERIES)],
            linewidth=1.4,
            markersize=4,
            label=plain(label),
        )
    axes.set_ylabel("kept, % of the full width")
    axes.set_ylim(-3, 103)
    legend_below(figure)
    return figure
