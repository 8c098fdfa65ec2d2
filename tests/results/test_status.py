"""How far a run is, seen from outside: the same as the whole journal says, however it was written."""

import json
import random
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from abcsearch.cli import app
from abcsearch.config import read_config
from abcsearch.errors import RunError
from abcsearch.reporting.history import read_history
from abcsearch.results.status import RunWatch
from abcsearch.results.tail import JournalTail, Pace
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import Journal, encode_line, read_journal
from abcsearch.runs.disk.lines import Chain
from abcsearch.runs.going_on import going_on
from abcsearch.runs.resuming import resume
from abcsearch.trial import Evaluation, Trial, best_trial


def trial(number, seed=0):
    draws = random.Random(f"{number} {seed}")
    found = (
        Evaluation(None, failure="no")
        if draws.random() < 0.3
        else Evaluation(draws.random(), seconds=2.0)
    )
    return Trial(number, (draws.randrange(9), 3), found)


def line(number, seed=0, finished=1e9):
    return encode_line({**trial(number, seed).to_plain(), "time": finished + number})


def numbers(tail):
    return tail.done, tail.failed, tail.seconds, tail.best


def expected(trials):
    failed = sum(t.evaluation.failure is not None for t in trials)
    return len(trials), failed, sum(t.evaluation.seconds for t in trials), best_trial(trials)


@given(st.permutations(range(12)), st.lists(st.integers(0, 4000), max_size=8), st.integers(1, 14))
def test_a_journal_that_grows_byte_by_byte_is_read_as_the_whole(
    tmp_path_factory, order, cuts, n_trials
):
    path = tmp_path_factory.mktemp("tail") / "journal.jsonl"
    lines = [line(number) for number in order]
    lines[3:3] = [
        encode_line({"event": "session", "time": 1e9}),
        encode_line({"event": "asked", "number": 3}),
    ]
    whole = b"".join(lines)
    tail = JournalTail(path, n_trials)
    tail.look()  # there is no journal yet
    for cut in [*sorted(cuts), len(whole)]:
        path.write_bytes(whole[:cut])
        tail.look()
        finished = [trial(n) for n in order if n < n_trials and line(n) in whole[:cut]]
        assert numbers(tail) == expected(finished)


@given(st.integers(1, 10), st.integers(0, 12), st.booleans())
def test_a_journal_that_was_cut_and_grew_again_is_read_anew(
    tmp_path_factory, kept, more, look_between
):
    path = tmp_path_factory.mktemp("tail") / "journal.jsonl"
    path.write_bytes(b"".join(line(n) for n in range(10)))
    tail = JournalTail(path, 100)
    tail.look()
    path.write_bytes(b"".join(line(n) for n in range(kept)))
    if look_between:
        tail.look()
    with path.open("ab") as file:
        file.writelines(line(n, seed=1) for n in range(kept, kept + more))
    tail.look()
    assert numbers(tail) == expected(
        [*map(trial, range(kept)), *(trial(n, seed=1) for n in range(kept, kept + more))]
    )


def test_a_look_decodes_only_what_was_appended(tmp_path, monkeypatch):
    path, decoded = tmp_path / "journal.jsonl", []
    original = Chain.text
    monkeypatch.setattr(
        Chain, "text", lambda self, text: decoded.append(text) or original(self, text)
    )
    tail = JournalTail(path, 1000)
    path.write_bytes(b"".join(map(line, range(500))))
    tail.look()
    assert len(decoded) == 500
    with path.open("ab") as file:
        file.write(line(500))
    tail.look()
    tail.look()
    assert decoded[500:] == [line(500)]


def test_damage_before_the_last_line_is_an_error_and_a_torn_last_line_is_not(tmp_path):
    path = tmp_path / "journal.jsonl"
    damaged = line(1).replace(b"number", b"nunber")
    path.write_bytes(line(0) + damaged)
    tail = JournalTail(path, 10)
    tail.look()
    assert tail.done == 1
    path.write_bytes(line(0) + damaged + line(2))
    with pytest.raises(RunError, match="line 2 of 3 is damaged"):
        tail.look()


def test_a_trial_that_is_there_twice_is_an_error_as_for_those_who_continue(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(line(0) + line(1) + line(0))
    with pytest.raises(RunError, match="trial 0 is there twice"):
        JournalTail(path, 100).look()


@given(st.integers(2, 200), st.floats(0.1, 50), st.integers(1, 500))
def test_time_left_of_a_steady_search(done, interval, remaining):
    pace = Pace()
    for i in range(done):
        pace.add(1e9 + i * interval, interval)
    now = 1e9 + (done - 1) * interval
    assert pace.left(remaining, now=now) == pytest.approx(remaining * interval, rel=1e-3)
    assert pace.left(remaining, now=now + interval / 2) == pytest.approx(
        (remaining - 0.5) * interval, rel=1e-3
    )
    assert pace.left(remaining, now=now + 1e6) == 0


def test_a_stop_of_the_run_is_no_part_of_its_pace():
    pace = Pace()
    for start in (0, 90_000, 50_000):  # stopped for a day; then the clock was set back
        for i in range(10):
            pace.add(1e9 + start + 4 * i, 3.0)
        assert pace.interval() == pytest.approx(4)


def test_pace_is_that_of_the_last_minutes():
    pace = Pace()
    stamps = [1.0 * i for i in range(500)] + [499 + 10.0 * i for i in range(1, 200)]
    for stamp in stamps:
        pace.add(stamp, 1.0)
    assert pace.interval() == pytest.approx(10)


def test_first_trials_of_many_workers_look_no_faster_than_they_were():
    pace = Pace()
    assert pace.left(10, workers=8) is None
    pace.add(1e9, 600)
    assert pace.interval() is None
    assert pace.interval(workers=8) == 75
    for i in range(1, 8):
        pace.add(1e9 + i, 600)
    assert pace.left(80, workers=8, now=1e9 + 7) == 6000


def progress(stage="bee_colony", **other):
    return {
        "stage": stage,
        "done": 1,
        "total": 5,
        "failed": 0,
        "best": None,
        "busy": 3,
        "workers": 4,
        **other,
    }


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    settings = {
        "searcher": {"name": "bee_colony"},
        "n_trials": 5,
        "seed": 7,
        "baselines": ["uniform", "random"],
    }
    environment = {"started": "2026-01-01 10:00:00"}
    header = {"format": 1, "settings": settings, "identity": {}, "environment": environment}
    with folder.locked():
        folder.write_json("run.json", header)
    return folder


def finish(folder, numbers):
    folder.path.mkdir(parents=True, exist_ok=True)
    with Journal(folder.journal) as journal:
        for number in numbers:
            journal.append(trial(number))
    folder.write_json("searcher.json", {"told": max(numbers) + 1, "exhausted": False, "state": {}})


def test_a_run_is_finished_when_its_baseline_is_and_nobody_writes(run):
    watched = RunWatch(run.path)
    seen = []
    baseline = RunFolder(run.path / "baselines" / "random")

    def look():
        found = watched.look()
        seen.append((found.finished, found.running, [search.done for search in found.searches]))
        return found

    look()
    with run.locked():
        finish(run, range(3))
        first, second = look().searches
        assert first.left is not None
        assert second.left is None
        finish(run, range(3, 5))
        look()
        finish(baseline, range(5))
        look()
    last = look()
    assert seen == [
        (False, False, [0, 0]),
        (False, True, [3, 0]),
        (False, True, [5, 0]),
        (False, True, [5, 5]),
        (True, False, [5, 5]),
    ]
    trials = read_journal(run.journal).trials
    assert last.searches[0].best == best_trial(list(trials.values()))
    assert watched.title == f"{run.path}: bee_colony, seed 7, started 2026-01-01 10:00:00"
    run.write_json(
        "run.json", {**run.header(), "settings": {**run.header()["settings"], "n_trials": 3}}
    )
    assert [search.done for search in watched.look().searches] == [3, 3]


def test_workers_are_those_of_a_run_that_runs(run):
    watched = RunWatch(run.path)
    finish(run, [0])
    run.write_json("progress.json", progress(time=time.time()))
    assert watched.look().pulse is None
    with run.locked():
        found = watched.look().pulse
        assert (found.stage, found.busy, found.workers) == ("bee_colony", 3, 4)
        baseline = RunFolder(run.path / "baselines" / "random")
        baseline.path.mkdir(parents=True)
        baseline.write_json(
            "progress.json", progress(stage="random baseline", time=time.time() + 1)
        )
        assert watched.look().pulse.stage == "random baseline"
        for text in ('{"stage": ', "[]", "{}", json.dumps({"stage": "x"})):
            for folder in (run, baseline):
                (folder.path / "progress.json").write_text(text)
            assert watched.look().pulse is None


def test_looking_writes_nothing(run):
    finish(run, range(2))
    run.log("a line")

    def contents():
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in run.path.rglob("*")
            if path.is_file()
        }

    lock = run.path / ".lock"
    before = contents()
    watched = RunWatch(run.path)
    for _ in range(3):
        watched.look()
    after = contents()
    assert {path: state for path, state in after.items() if path != lock} == {
        path: state for path, state in before.items() if path != lock
    }


def test_last_lines_of_a_long_log(run):
    for i in range(300):
        run.log(f"line {i} " + "ä" * 50)
    log = RunWatch(run.path).look().log
    assert [text.split()[3] for text in log] == ["295", "296", "297", "298", "299"]


def test_a_large_state_of_a_searcher_is_read_once(run, monkeypatch):
    finish(run, range(2))
    watched = RunWatch(run.path)
    reads = []
    original = RunFolder._ended
    monkeypatch.setattr(RunFolder, "_ended", lambda self: reads.append(self.path) or original(self))
    watched.look()
    first = len(reads)
    watched.look()
    assert len(reads) == first > 0
    finish(run, range(2, 5))
    watched.look()
    assert len(reads) > first


@pytest.mark.parametrize("large", [0, 10, 300_000])
@pytest.mark.parametrize("order", ["now", "before", "old"])
def test_of_a_large_state_the_first_entries_are_enough(run, monkeypatch, large, order):
    head = {"journal": [0, 0], "n_trials": 5, "told": 3, "asked": 5, "replayed": 0}
    open_ = {"open": [[4, [1, 2, 3]]] * large}
    state = {
        "now": {**head, "exhausted": True, **open_, "state": {"told": 99}},
        "before": {**head, **open_, "exhausted": True, "state": {"told": 99}},
        "old": {"told": 3, "exhausted": True, "state": {"told": 99}},
    }[order]
    run.write_json("searcher.json", state)
    run.journal.touch()
    assert (run.finished(3), run.finished(4), run.exhausted()) == (True, True, True)
    run.write_json("searcher.json", {**state, "exhausted": False})
    assert (run.finished(3), run.finished(4), run.exhausted()) == (True, False, False)


def test_looking_at_a_run_does_not_load_torch(run):
    finish(run, range(2))
    code = (
        "import sys, abcsearch.cli, abcsearch.results.status; "
        f"abcsearch.results.status.RunWatch({str(run.path)!r}).look(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        RunWatch(tmp_path).look()


@pytest.mark.parametrize(("finalists", "done"), [(0, 3), (5, 4)])
def test_a_run_whose_last_line_is_damaged_is_not_finished(tiny_config, tmp_path, finalists, done):
    """Its trial is not there, be it the winner, or who has won; who goes on with the run has that found again."""
    path = tmp_path / "run"
    changes = ["n_trials=4", "baselines=[]", f"evaluator.finalists={finalists}"]
    before = run_config(read_config(tiny_config, changes), path).trials
    assert RunWatch(path).look().finished
    assert read_history(path).over
    journal = path / "journal.jsonl"
    content = bytearray(journal.read_bytes())
    content[-20] ^= 1
    journal.write_bytes(content)
    looked = RunWatch(path).look()
    assert (looked.finished, looked.searches[0].done) == (False, done)
    assert not read_history(path).over
    assert resume(path).trials[:3] == before[:3]
    assert RunWatch(path).look().finished


@pytest.mark.parametrize(("last", "gave_up"), [(2, False), (3, True)])
def test_a_search_that_failures_have_stopped_is_to_be_tried_again(tmp_path, last, gave_up):
    folder = RunFolder(tmp_path / "run")
    settings = {"n_trials": 9, "searcher": {"name": "random"}, "seed": 0, "max_failures": 2}
    environment = {"started": "2026-01-01 10:00:00"}
    folder.path.mkdir()
    folder.write_json(
        "run.json", {"format": 2, "settings": settings, "identity": {}, "environment": environment}
    )
    with Journal(folder.journal) as journal:
        journal.append(Trial(0, (1,), Evaluation(None, failure="no")))
        journal.append(Trial(1, (2,), Evaluation(0.5)))
        for number in range(2, 2 + last):
            journal.append(Trial(number, (3 + number,), Evaluation(None, failure="no")))
    found = RunWatch(folder.path).look()
    assert (found.gave_up, found.searches[0].failing) == (gave_up, last)
    said = CliRunner().invoke(app, ["status", str(folder.path)]).output.splitlines()[-1]
    again = {"retry_failed": True} if gave_up else {}
    assert said.endswith(going_on(folder, **again))
    with folder.locked():
        assert not RunWatch(folder.path).look().gave_up
