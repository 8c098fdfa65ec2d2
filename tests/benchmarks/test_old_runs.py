"""The benchmark of long runs: what it writes is a run that can be looked at and goes on."""

import pytest

from abcsearch.results.status import RunWatch
from abcsearch.runs.resuming import resume
from experiments.benchmarks import old_runs


@pytest.mark.parametrize("old", [False, True])
def test_what_it_writes_is_a_run(tmp_path, monkeypatch, old):
    old_runs.make(tmp_path / "run", 300, 12, old=old)
    found = RunWatch(tmp_path / "run").look()
    assert (found.searches[0].done, found.searches[0].total, found.finished) == (300, 300, True)
    note = tmp_path / "note.json"
    monkeypatch.setenv(old_runs._NOTE, str(note))
    assert len(resume(tmp_path / "run", n_trials=301).trials) == 301
    assert note.exists()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "cannot be used" not in log
