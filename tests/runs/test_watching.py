"""TensorBoard: every point once, in order, whatever was killed when."""

import random
import sys
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.errors import ConfigError
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import encode_line
from abcsearch.runs.watching import TensorBoard, finish_times, tensorboard_watcher
from abcsearch.trial import Evaluation, Trial


def trial(number):
    draws = random.Random(number)
    costs = {"macs": 1000 + number, "params": 10 + number, "seconds": draws.random()}
    if draws.random() < 0.3:
        return Trial(number, (1,), Evaluation(None, failure="no", **costs))
    return Trial(
        number, (1,), Evaluation(draws.random(), {"top1": draws.random(), "loss": -1.0}, **costs)
    )


def points(path):
    """Tag -> points (step, value, time) in the order in which they were written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        found = {}
        for file in sorted(path.glob("events.out.tfevents.*")):
            for event in LegacyEventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    found.setdefault(value.tag, []).append(
                        (event.step, value.simple_value, event.wall_time)
                    )
    return found


def expected(trials):
    """Tag -> steps and values that these trials must have."""
    found, best, failures = {}, None, 0
    for one in trials:
        e = one.evaluation
        failures += e.failure is not None
        best = e.fitness if best is None else max(best, e.fitness or best)
        scalars = {"fitness": e.fitness, "best_fitness": best, "macs": e.macs, "params": e.params}
        scalars |= {"seconds": e.seconds, "failures": failures}
        scalars |= {f"metrics/{name}": value for name, value in e.metrics.items()}
        for tag, value in scalars.items():
            if value is not None:
                found.setdefault(tag, []).append((one.number + 1, pytest.approx(value, rel=1e-6)))
    return found


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(10)), st.integers(0, 10), st.integers(0, 10), st.booleans())
def test_every_point_is_there_once_after_any_kill(tmp_path_factory, order, before, killed, flushed):
    path = tmp_path_factory.mktemp("board")
    first = TensorBoard(path)
    first.begin([trial(n) for n in sorted(order[:before])], 10)
    for number in order[before:killed]:
        first.trial(trial(number), None)
    if flushed:
        first.end()
    else:  # what had reached the disk ends anywhere
        (file,) = path.glob("events.*")
        file.write_bytes(file.read_bytes()[: 50 * killed])
    seen = max(before, killed)
    second = TensorBoard(path)
    second.begin([trial(n) for n in sorted(order[:seen])], 10)
    for number in order[seen:]:
        second.trial(trial(number), None)
    found = {tag: [(step, value) for step, value, _ in rows] for tag, rows in points(path).items()}
    assert found == expected(map(trial, range(10)))  # before the end: all is flushed
    second.end()
    first.end()


def test_trials_that_finish_early_wait_so_that_no_step_goes_back(tmp_path):
    board = TensorBoard(tmp_path)
    board.begin([], 9)
    for number, steps in ((2, 0), (0, 1), (5, 1), (1, 3), (4, 3)):
        board.trial(trial(number), None)
        assert [step for step, _, _ in points(tmp_path).get("macs", [])] == list(
            range(1, steps + 1)
        )
    board.end()  # trial 3 does not come any more
    assert [step for step, _, _ in points(tmp_path)["macs"]] == [1, 2, 3, 5, 6]


def test_times_are_those_of_the_journal_and_then_those_of_the_clock(tmp_path):
    journal = tmp_path / "journal.jsonl"
    lines = [encode_line({**trial(n).to_plain(), "time": 1e9 + n}) for n in (1, 0)]
    journal.write_bytes(
        lines[0] + encode_line({"event": "session", "time": 5.0}) + lines[1] + b"torn"
    )
    assert finish_times(journal) == {0: 1e9, 1: 1e9 + 1}
    assert finish_times(tmp_path / "none") == finish_times(None) == {}
    board = TensorBoard(tmp_path / "board", journal)
    board.begin([trial(0), trial(1)], 3)
    before = time.time()
    board.trial(trial(2), None)
    board.end()
    stamps = [stamp for _, _, stamp in points(tmp_path / "board")["macs"]]
    assert stamps[:2] == [1e9, 1e9 + 1]
    assert before <= stamps[2] <= time.time()


def test_other_files_in_the_folder_stay_and_a_session_that_never_began_may_end(tmp_path):
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard" / "notes.txt").write_text("mine")
    board = tensorboard_watcher()(None, RunFolder(tmp_path / "run"))
    board.end()
    assert [path.name for path in (tmp_path / "run" / "tensorboard").iterdir()] == ["notes.txt"]
    board.begin([trial(0)], 1)
    board.end()
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'abcsearch\[watch\]'"):
        tensorboard_watcher()
