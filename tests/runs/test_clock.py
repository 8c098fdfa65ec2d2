"""A clock that is set back or forward while a search runs decides nothing, and who looks at it sees no nonsense."""

import itertools
import time

import pytest

from abcsearch.results.status import RunWatch
from abcsearch.runs.disk.folder import RunFolder
from tests.problems import assert_same_as, loop, undisturbed

YEARS = 10 * 365.25 * 86400


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"schedule": "asynchronous"}])
def test_the_same_trials_and_no_nonsense(tmp_path, monkeypatch, options):
    expected = undisturbed(tmp_path, **options)
    folder, clock, seen = RunFolder(tmp_path / "run"), time.time, []
    jumps = itertools.cycle([0.0, YEARS, -YEARS, 3600.0])
    settings = {"searcher": {"name": "bee_colony"}, "n_trials": 40, "seed": 0}
    folder.path.mkdir()
    folder.write_json(
        "run.json",
        {
            "format": 2,
            "settings": settings,
            "identity": {},
            "environment": {"started": "2026-01-01 10:00:00"},
        },
    )
    run = loop(folder.path, **options)

    def jumping(*_):
        jump = next(jumps)
        monkeypatch.setattr(time, "time", lambda: clock() + jump)
        monkeypatch.setattr("abcsearch.runs.pace.time", lambda: clock() + jump)
        seen.append(RunWatch(folder.path).look().searches[0])

    run.progress = jumping
    with folder.locked():
        run.run()
    assert_same_as(folder.path, expected)
    assert [search.done for search in seen] == list(range(1, 41))
    for search in seen:
        assert search.interval is None or 0 <= search.interval < 60
        assert search.left is None or 0 <= search.left < 60 * 40
