"""The charts as PNG files, by matplotlib. They draw what `gathering` has found; nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from abcsearch.errors import plural
from abcsearch.formats import duration_text
from abcsearch.reporting.curves import thinned
from abcsearch.reporting.gathering import block_height
from abcsearch.reporting.layer_map import ROWS
from abcsearch.reporting.timeline import outline
from abcsearch.reporting.words import (
    BLACK,
    BLUE,
    COSTS,
    GREY,
    LEVELS,
    LOSSES,
    ORANGE,
    SKY,
    VERMILLION,
    lane_ticks,
    network_color,
    network_symbol,
    short_names,
    tick_step,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

    from abcsearch.reporting.curves import BestTrials, Cloud, Curve, Layer, Mark
    from abcsearch.reporting.gathering import Gathered, Widths
    from abcsearch.reporting.layer_map import LayerMap
    from abcsearch.reporting.sensitivity import Sensitivity
    from abcsearch.reporting.timeline import Timeline


def drawings(gathered: Gathered) -> Mapping[str, Callable[[], Figure]]:
    """Returns what draws each chart, by name; those that have nothing to show are left out."""
    made: dict[str, Callable[[], Figure]] = {}
    if gathered.curves:
        made["fitness"] = lambda: draw_fitness(gathered.curves)
    if gathered.clouds:
        made["pareto"] = lambda: draw_pareto(gathered.clouds, gathered.marks)
    if gathered.widths is not None:
        widths = gathered.widths
        made["widths"] = lambda: draw_widths(widths)
    if gathered.layer_map is not None and gathered.layer_map.layers:
        mapped = gathered.layer_map
        made["map"] = lambda: draw_map(mapped, gathered.widths)
    if gathered.sensitivity.effects:
        made["sensitivity"] = lambda: draw_sensitivity(gathered.sensitivity)
    if gathered.best is not None and gathered.widths is not None:
        best, layers = gathered.best, gathered.widths.layers
        made["parallel"] = lambda: draw_parallel(best, layers)
    if gathered.timeline.bars:
        made["timeline"] = lambda: draw_timeline(gathered.timeline)
    return made


def figure_of(title: str, width: float = 9.0, height: float = 4.6) -> tuple[Figure, Axes]:
    """Returns an empty figure with one pair of axes in the style of all."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left")
    styled(axes)
    return figure, axes


def styled(axes: Axes) -> None:
    """Gives axes the style of all."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def legend_below(figure: Figure) -> None:
    """Puts the legend below the axes, where it hides nothing."""
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)


def plain(text: str) -> str:
    """Returns a text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def draw_fitness(curves: Sequence[Curve]) -> Figure:
    """Draws fitness over trials, with the best so far of every search."""
    figure, axes = figure_of("Fitness over trials")
    for curve in curves:
        color, name = network_color(curve.name), plain(curve.name)
        rises = [i for i in range(1, len(curve.best)) if curve.best[i] != curve.best[i - 1]]
        places = thinned(len(curve.numbers), [*rises, *(i - 1 for i in rises)])
        numbers = [curve.numbers[i] for i in places]
        fitness = np.array([curve.fitness[i] for i in places], dtype=float)
        best = np.array([curve.best[i] for i in places], dtype=float)
        axes.plot(
            numbers, fitness, ".", color=color, alpha=0.4, markersize=5, label=f"{name}: trials"
        )
        axes.step(
            numbers, best, where="post", color=color, linewidth=2, label=f"{name}: best so far"
        )
        failed = [n for n, value in zip(curve.numbers, curve.fitness, strict=True) if value is None]
        if failed:
            low = min((value for value in curve.fitness if value is not None), default=0.0)
            axes.plot(
                failed,
                [low] * len(failed),
                "x",
                color=VERMILLION,
                markersize=5,
                label=f"{name}: failed",
            )
    axes.set_xlabel("trial")
    axes.set_ylabel("fitness (higher is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure)
    return figure


def draw_pareto(clouds: Sequence[Cloud], marks: Sequence[Mark]) -> Figure:
    """Draws fitness against every cost, side by side."""
    figure = Figure(figsize=(max(6.0, 5.4 * len(clouds)), 4.8), layout="constrained", dpi=130)
    many = figure.subplots(1, len(clouds), sharey=True, squeeze=False)[0]
    winner = marks[-1].name if marks else ""
    for axes, cloud in zip(many, clouds, strict=True):
        styled(axes)
        front = cloud.front_places
        places = thinned(len(cloud.numbers), front)
        costs, fitness = np.array(cloud.costs), np.array(cloud.fitness)
        axes.plot(costs[places], fitness[places], ".", color=GREY, alpha=0.6, label="trials")
        axes.step(costs[front], fitness[front], where="post", color=BLUE, marker=".", label="front")
        for end in cloud.bound or ():
            if 0 < end < np.inf:
                axes.axvline(end, color=BLACK, linestyle=":", linewidth=1.2, label="budget")
        for mark in marks:
            if cloud.cost in mark.costs and not cloud.is_far(mark.costs[cloud.cost]):
                sign, size = network_symbol(mark.name, winner)[1], 15 if mark.name == winner else 8
                color, name = network_color(mark.name, winner), plain(mark.name)
                style = {
                    "markersize": size,
                    "markeredgecolor": "white",
                    "color": color,
                    "linestyle": "",
                }
                axes.plot(
                    [mark.costs[cloud.cost]], [mark.fitness], marker=sign, label=name, **style
                )
        axes.set_xlabel(COSTS[cloud.cost])
        if cloud.cost != "latency_ms":
            axes.xaxis.set_major_formatter(EngFormatter())
    many[0].set_ylabel("fitness (higher is better)")
    many[0].set_title("Front of fitness and cost", fontsize=11, loc="left")
    # A network may be far outside of one panel
    every = (axes.get_legend_handles_labels() for axes in many)
    shown = {label: handle for entries in every for handle, label in zip(*entries, strict=True)}
    handles, labels = list(shown.values()), list(shown)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 7),
        fontsize=8,
        frameon=False,
    )
    return figure


def along_layers(title: str, names: Sequence[str], height: float = 5.0) -> tuple[Figure, Axes]:
    """Returns a figure whose x axis names the layers."""
    figure, axes = figure_of(title, max(7.0, min(16.0, 3 + 0.2 * len(names))), height)
    shown, step = short_names(list(names)), tick_step(len(names))
    places = list(range(0, len(names), step))
    labels = [plain(shown[at]) for at in places]
    axes.set_xticks(places, labels, rotation=90, fontsize=8 if len(names) <= 40 else 6.5)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.grid(visible=False, axis="x")
    return figure, axes


def draw_widths(widths: Widths) -> Figure:
    """Draws the widths of the winner within those of the full network, and those of the baselines."""
    order = sorted(range(len(widths.layers)), key=lambda i: widths.layers[i].level == "block")
    wide = [i for i in order if widths.layers[i].level != "block"]
    *others, winner = widths.kept
    figure, axes = along_layers(
        "Widths along the network: full and kept", [widths.layers[i].name for i in order]
    )
    tall = block_height(widths)
    full = [tall if widths.layers[i].level == "block" else widths.layers[i].full for i in order]
    axes.bar(range(len(order)), full, color="#dcdfe3", width=0.86, label="full")
    for level in dict.fromkeys(widths.layers[i].level for i in order):
        columns = [column for column, i in enumerate(order) if widths.layers[i].level == level]
        label = f"winner, {level} level" if level else "winner"
        kept = [
            widths.kept[winner][order[column]] * (tall if level == "block" else 1)
            for column in columns
        ]
        axes.bar(columns, kept, color=LEVELS[level], width=0.86, label=label)
    for name in others:
        kept = [widths.kept[name][i] for i in wide]
        style = {
            "color": network_color(name, winner),
            "markersize": max(3.5, min(8.0, 240 / len(order))),
            "linestyle": "",
        }
        axes.plot(
            range(len(wide)),
            kept,
            marker=network_symbol(name, winner)[1],
            markeredgecolor="white",
            label=name,
            **style,
        )
    axes.set_ylabel("channels (blocks: coloured if kept)" if len(wide) < len(order) else "channels")
    legend_below(figure)
    return figure


def draw_map(mapped: LayerMap, widths: Widths | None) -> Figure:
    """Draws what each layer alone loses, layers by width, with what was tried and what the winner keeps."""
    names = [probed.layer.name for probed in mapped.layers]
    figure, axes = along_layers("Map: what fitness each layer alone loses", names)
    losses = np.array([[np.nan if v is None else v for v in row] for row in mapped.grid], float)
    edges = np.arange(len(names) + 1) - 0.5, np.linspace(0, 100, ROWS + 1)
    colors = LinearSegmentedColormap.from_list("losses", LOSSES)
    # One layer that breaks does not hide the others
    norm = PowerNorm(0.5, vmin=0, vmax=mapped.worst or 1.0)
    mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(losses), cmap=colors, norm=norm)
    figure.colorbar(mesh, ax=axes, label="fitness lost", pad=0.01, aspect=30)
    size = max(3.0, min(6.0, 180 / len(names)))
    for label, sign, failed in (("tried", "o", False), ("failed", "X", True)):
        points = [
            (x, 100 * width / probed.layer.full)
            for x, probed in enumerate(mapped.layers)
            for width, loss in zip(probed.widths, probed.losses, strict=True)
            if (loss is None) == failed
        ]
        _spots(axes, points, label, (sign, size + 2 * failed, BLACK))
    if widths is not None:
        kept = zip(widths.layers, list(widths.kept.values())[-1], strict=True)
        points = [(x, 100 * width / layer.full) for x, (layer, width) in enumerate(kept)]
        _spots(axes, points, "winner", ("*", size + 5, BLUE))
    axes.set_facecolor("#dcdfe3")
    axes.grid(visible=False)
    axes.set_ylim(-4, 104)
    axes.set_ylabel("kept, % of the full width")
    legend_below(figure)
    return figure


def _spots(
    axes: Axes, points: Sequence[tuple[float, float]], label: str, look: tuple[str, float, str]
) -> None:
    """Draws marks at points, (x, y) each, as (sign, size, colour)."""
    sign, size, color = look
    if points:
        axes.plot(
            *zip(*points, strict=True),
            sign,
            color=color,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.7,
            label=label,
        )


def draw_sensitivity(sensitivity: Sensitivity) -> Figure:
    """Draws the effect of every layer with its interval."""
    figure, axes = along_layers(
        "Sensitivity: what one standard deviation more width does",
        [e.name for e in sensitivity.effects],
    )
    for level in dict.fromkeys(effect.level for effect in sensitivity.effects):
        columns = [
            column for column, effect in enumerate(sensitivity.effects) if effect.level == level
        ]
        effects = [sensitivity.effects[column] for column in columns]
        ends = np.array([[e.effect - e.low for e in effects], [e.high - e.effect for e in effects]])
        label = f"{level} level" if level else "layers"
        bars = axes.bar(
            columns, [100 * e.effect for e in effects], color=LEVELS[level], width=0.7, label=label
        )
        axes.errorbar(
            [bar.get_x() + bar.get_width() / 2 for bar in bars],
            [100 * e.effect for e in effects],
            yerr=100 * np.maximum(ends, 0),
            fmt="none",
            ecolor=BLACK,
            elinewidth=1,
            capsize=2,
        )
    axes.axhline(0, color="#555", linewidth=1)
    axes.set_ylabel("trials overtaken, % of all")
    legend_below(figure)
    return figure


def draw_parallel(best: BestTrials, layers: Sequence[Layer]) -> Figure:
    """Draws the best trials as lines over the layers, with the winner and all trials' median."""
    figure, axes = along_layers(
        f"The best {plural(len(best.numbers), 'trial')}, layer by layer",
        [layer.name for layer in layers],
    )
    for rank in range(len(best.numbers) - 1, 0, -1):
        label = "best trials" if rank == 1 else None
        axes.plot(
            [100 * share for share in best.widths[rank]],
            color=SKY,
            linewidth=1,
            alpha=0.75,
            label=label,
        )
    axes.plot(
        [100 * share for share in best.median],
        "--",
        color=ORANGE,
        linewidth=1.8,
        label="median of all trials",
    )
    winner = [100 * share for share in best.widths[0]]
    axes.plot(
        winner,
        "o-",
        color=BLUE,
        linewidth=2.4,
        markersize=4,
        label=f"winner: trial {best.numbers[0]}",
    )
    axes.set_ylabel("kept, % of the full width")
    axes.set_ylim(-3, 103)
    axes.grid(visible=True, axis="x")
    legend_below(figure)
    return figure


def draw_timeline(timeline: Timeline) -> Figure:
    """Draws a bar per evaluation; gaps without any are cut out, with a dashed line where."""
    figure, axes = figure_of(
        "Evaluations over time", 11.0, max(2.4, min(7.0, 1.8 + 0.3 * timeline.lanes))
    )
    kinds = dict.fromkeys((bar.search, bar.state) for bar in timeline.bars)
    for search, state in sorted(kinds, key=lambda kind: kind[1] != "succeeded"):
        bars = [bar for bar in timeline.bars if (bar.search, bar.state) == (search, state)]
        bars = [bars[i] for i in thinned(len(bars))]
        axes.barh(
            [bar.lane + 1 for bar in bars],
            [bar.end - bar.start for bar in bars],
            left=[bar.start for bar in bars],
            color=network_color(search) if state == "succeeded" else VERMILLION,
            edgecolor="white",
            linewidth=[outline(bar, timeline.seconds) for bar in bars],
            label=plain(f"{search}: {state}"),
        )
    failed = [(bar.end, bar.lane + 1) for bar in timeline.bars if bar.state == "failed"]
    lost = [(bar.start, bar.lane + 1) for bar in timeline.bars if bar.lost]
    marks = ((failed, "v", VERMILLION, "failed"), (lost, "X", BLACK, "a worker was lost before"))
    for places, sign, color, label in marks:
        if places:
            axes.plot(
                *zip(*places, strict=True), sign, color=color, markeredgecolor="white", label=label
            )
    for at, seconds in timeline.cuts:
        axes.axvline(at, color=BLACK, linestyle="--", linewidth=1)
        axes.text(at, 0.35, duration_text(seconds), fontsize=7, ha="center", va="bottom")
    axes.set_ylim(timeline.lanes + 0.6, 0.4)
    axes.set_yticks(lane_ticks(timeline.lanes))
    axes.set_xlabel("seconds in which evaluations ran")
    axes.set_ylabel("side by side")
    axes.grid(visible=False, axis="y")
    legend_below(figure)
    return figure
