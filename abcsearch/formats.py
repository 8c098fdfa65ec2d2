"""How numbers and errors are written, wherever people read them."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Returns what an error says in its first line; of one that says nothing, its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def clock_text(seconds: float) -> str:
    """Returns a duration that ticks: 42 s, 3:07 or 1:02:03."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if whole < 60:
        return f"{whole} s"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration_text(seconds: float) -> str:
    """Returns a duration: 4.2 s, 3 min 7 s, 2 h 13 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for unit, word, smaller, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {word}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def size_text(count: float) -> str:
    """Returns a number of bytes: 12 bytes, 700 kB, 1.1 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
