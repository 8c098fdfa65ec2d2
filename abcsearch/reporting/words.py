"""Names, numbers and colours as charts and pages show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.bounds import amount, short_count

if TYPE_CHECKING:
    from abcsearch.reporting.curves import Layer
    from abcsearch.results.forward import ForwardTime

# Okabe and Ito's colours, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#9AA0A6"
# From nothing lost to most, darker and darker
LOSSES = ("#FFFDF5", "#F6D28A", "#D55E00", "#5C1A00")
SERIES = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, "#8C6D00", "#5B5B5B")
LEVELS = {"filter": SKY, "stage": BLUE, "block": PURPLE, "rank": ORANGE, "": BLUE}
NETWORKS = {"full": BLACK, "uniform": GREEN, "random": ORANGE}
# Plotly, matplotlib
SYMBOLS = {"full": ("square", "s"), "uniform": ("diamond", "D"), "random": ("triangle-up", "^")}

COSTS = {
    "macs": "MACs",
    "params": "parameters",
    "latency_ms": "forward time (estimate from layers)",
    "flops": "FLOPs",
    "peak_activation": "peak activation memory",
}
_LONGEST = 26


def network_color(name: str, winner: str = "") -> str:
    """Returns the colour of a network; one without a colour is the winner, or a baseline of the user's own.

    Args:
        name: of the network.
        winner: the winner's, where others may be without a colour.
    """
    return NETWORKS.get(name, BLUE if winner in ("", name) else PURPLE)


def network_symbol(name: str, winner: str) -> tuple[str, str]:
    """Returns the symbol of a network for plotly and matplotlib: the winner is a star."""
    return SYMBOLS.get(name, ("star", "*") if name == winner else ("cross", "P"))


def short_name(name: str, longest: int = _LONGEST) -> str:
    """Returns a name that is not too long for an axis: its middle is left out."""
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[-(longest - 1 - head) :]}"


def short_names(names: list[str], longest: int = _LONGEST) -> list[str]:
    """Returns names for an axis, all different: numbered where they are not when shortened."""
    shown = [short_name(name, longest) for name in names]
    return [
        text if shown.count(text) == 1 else f"{text} ({index + 1})"
        for index, text in enumerate(shown)
    ]


def cost_name(cost: str) -> str:
    """Returns the name of a cost in words, without what is in brackets."""
    return COSTS[cost].split(" (")[0]


def cost_text(name: str, cost: float) -> str:
    """Returns a cost in words: 1.65 M, 12.3 KiB, 4.56 ms."""
    if name == "peak_activation":
        return f"{cost / 1024:,.3g} KiB"
    if name == "latency_ms":
        return amount(name, cost)
    return short_count(round(cost))


def ms_text(milliseconds: float) -> str:
    """Returns a duration in milliseconds with three digits, those before the point always: 0.620, 91.5, 145, 1,234."""
    return (
        f"{milliseconds:,.0f}"
        if milliseconds >= 999.5
        else f"{milliseconds:#.3g}".removesuffix(".")
    )


def change_text(before: float, after: float) -> str:
    """Returns a change in per cent of what was before: "-60.3 %", "+1.2 %", "0 %"."""
    if before == 0:
        return ""
    change = 100 * (after - before) / before
    # A minus sign
    return "0 %" if abs(change) < 0.05 else f"{change:+.1f} %".replace("-", "\u2212")


def time_change(before: ForwardTime, after: ForwardTime) -> str:
    """Returns the change of a forward time in per cent, or that there is none to be told from chance."""
    return (
        change_text(before.median_ms, after.median_ms) if after.apart(before) else "not told apart"
    )


def width_text(layer: Layer, kept: int) -> str:
    """Returns what became of a layer in words."""
    if layer.level == "block":
        return "kept" if kept else "dropped"
    if layer.level == "rank" and kept == layer.full:
        return "whole"
    return f"{layer.full} ⇒ {kept}"


def lost_text(layer: Layer, width: int, loss: float | None) -> str:
    """Returns what a layer loses at a width in words: "4: 0.0125", "dropped: failed"."""
    where = "dropped" if layer.level == "block" else str(width)
    return f"{where}: {'failed' if loss is None else loss_text(loss)}"


def loss_text(loss: float) -> str:
    """Returns a loss of fitness; below 0 where the narrower structure is the better one."""
    return f"{loss:.4f}".replace("-0.0000", "0.0000").replace("-", "\u2212")


def tick_step(count: int, most: int = 90) -> int:
    """Returns that every how-manieth of so many layers is named on an axis."""
    return -(-count // most)


def lane_ticks(count: int) -> list[int]:
    """Returns which lanes have a number on the axis."""
    step = max(1, -(-count // 16))
    return [1, *range(step, count + 1, step)] if step > 1 else list(range(1, count + 1))
