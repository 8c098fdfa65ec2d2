"""Bounds on costs: what the user may write, as checked and absolute numbers, and costs in words."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from abcsearch.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Mapping

Bound = float | int | tuple[float | int, float | int]
COSTS = ("macs", "params", "flops", "peak_activation", "latency_ms")  # all that can be bounded
_UNITS = {"peak_activation": " bytes", "latency_ms": " ms"}


def plain_bound(bound: Any) -> Any:  # noqa: ANN401 - whatever it was called with
    """Returns a bound without lists (TOML and JSON know no tuples) and numpy's numbers; all else as it is."""
    value = cast("Any", bound).tolist() if isinstance(bound, np.generic | np.ndarray) else bound
    return (
        tuple(map(plain_bound, cast("list[Any]", value)))
        if isinstance(value, list | tuple)
        else value
    )


def meant(end: Any) -> str:  # noqa: ANN401 - whatever somebody has written
    """Returns how a bound that looks like per cent is written, for the end of a message; "" where it does not."""
    text = str(end).strip()
    number = text.removesuffix("%")
    try:
        value = 0.0 if isinstance(end, bool) else float(number)
    except ValueError:
        return ""
    if 0 < value <= 100 and (number != text or value > 1):
        return f"; {value:g} % of the full network is {value / 100:g}"
    return (
        f"; it is a number, without quotation marks: {value:g}"
        if isinstance(end, str) and value > 0
        else ""
    )


def check_bound(name: str, bound: Bound) -> None:
    """Raises BudgetError unless the bound is positive, a float at most 1, and a band ascending."""
    ends = bound if isinstance(bound, tuple) else (bound,)
    if len(ends) not in (1, 2):
        msg = f"budget {name} = {bound}: a band has two ends (low, high)"
        raise BudgetError(msg)
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, float | int) or not end > 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = (
                f"budget {name} = {bound}: a bound is a positive number, found {end!r}{meant(end)}"
            )
            raise BudgetError(msg)
        if isinstance(end, float) and end > 1 and name != "latency_ms":
            msg = f"budget {name} = {bound}: a float is a fraction in (0, 1]; write an int for an absolute number"
            msg += meant(end)
            raise BudgetError(msg)
    if len(ends) == 2 and _is_share(ends[0]) == _is_share(ends[1]) and ends[0] > ends[1]:
        msg = f"budget {name} = {bound}: the lower end of a band comes first"
        raise BudgetError(msg)


def absolute(name: str, bound: Bound, full: float) -> tuple[float, float]:
    """Returns (low, high) in absolute numbers; fractions of `full` are rounded into the band where costs are counts.

    The simplest fraction near a float is the number that was meant: 0.29 of 100 is 29, not 28.
    """
    low, high = bound if isinstance(bound, tuple) else (0, bound)
    if name == "latency_ms":
        return low * (full if _is_share(low) else 1), high * (full if _is_share(high) else 1)
    low, high = (
        Fraction(end).limit_denominator(10**6) * int(full) if _is_share(end) else end
        for end in (low, high)
    )
    return math.ceil(low), math.floor(high)


def bounds_text(bounds: Mapping[str, Bound], *, file: bool = False) -> str:
    """Returns bounds by name in words: "macs 0.7, params 0.3 to 0.6"; of a file's name: "macs-0.7-params-0.3-0.6"."""
    between, space, comma = ("-", "-", "-") if file else (" to ", " ", ", ")
    ends = {name: bound if isinstance(bound, tuple) else (bound,) for name, bound in bounds.items()}
    return comma.join(f"{name}{space}{between.join(map(str, end))}" for name, end in ends.items())


def amount(name: str, *costs: float) -> str:
    """Returns costs in words: "1,234", "1,234 to 5,678 bytes", "0.123 ms"."""
    words = (f"{cost:.3g}" if name == "latency_ms" else f"{round(cost):,}" for cost in costs)
    return " to ".join(words) + _UNITS.get(name, "")


def how_to_get(name: str) -> str:
    """Returns what to do where costs lack one by name."""
    if name != "latency_ms":
        return f"give them a method {name}: (n, n_dims) candidates to (n,) numbers"
    return (
        "forward time has to be measured: a run does where [budget] bounds latency_ms (1.0, the full network's time, "
        "will do); in Python the costs are abcsearch.channels.latency.LatencyModel.measure(model, graph, example_input)"
    )


def _is_share(end: float) -> bool:
    """Returns whether an end of a bound is a fraction of the full network."""
    return isinstance(end, float) and end <= 1


def short_count(count: int) -> str:
    """Returns a count with three digits and its unit: 950, 175 k, 1.65 M, 4.09 G."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)
