from __future__ import annotations

import pytest

from abcsearch.formats import clock_text, duration_text, first_line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (187, "3:07"), (3723, "1:02:03")],
)
def test_clocks(seconds, text):
    assert clock_text(seconds) == text


def test_durations():
    assert [duration_text(s) for s in (4.2, 187, 7980, 100_000)] == [
        "4.2 s",
        "3 min 7 s",
        "2 h 13 min",
        "1 d 3 h",
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\n"), "one"),
        (ValueError(), "ValueError"),
    ],
)
def test_first_lines_say_something(error, line):
    assert first_line(error) == line
