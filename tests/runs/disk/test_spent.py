"""What a preparation has cost is the sum over all that worked on it, whatever happened between."""

import contextlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.runs.disk import spent
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.spent import metered, read_spent

# Of each process: seconds and CPU seconds of its epochs, and of what came after the last one; and how it ended.
PROCESSES = st.lists(
    st.tuples(st.lists(st.integers(1, 50), max_size=4), st.integers(0, 9), st.booleans()),
    min_size=1,
    max_size=4,
)


class Clock:
    """Both clocks; that of the processor begins anew with every process."""

    def __init__(self):
        self.now, self.cpu = 0.0, 0.0

    def work(self, seconds):
        self.now += seconds
        self.cpu += 2 * seconds

    def pause(self):
        self.now, self.cpu = self.now + 1000.0, 0.0


@pytest.fixture
def clock(monkeypatch):
    return patched(monkeypatch)


def patched(monkeypatch):
    clock = Clock()
    told = SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: clock.cpu)
    monkeypatch.setattr(spent, "time", told)
    return clock


def folder_in(path, of="a"):
    folder = RunFolder(path)
    folder.write_json("prepared.json", {"of": of})
    return folder


def work(folder, clock, epochs, rest, *, killed, of="a", alone=True):
    """One process: stopped by an exception, or killed, so that nothing is written at its end."""
    meter = metered(folder, of, alone=alone, passes=4)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.suppress(KeyboardInterrupt),
        meter as one,
    ):
        for seconds in epochs:
            clock.work(seconds)
            one.note()
        clock.work(rest)
        if killed:
            patch.setattr(RunFolder, "write_json", lambda *_, **__: None)
        raise KeyboardInterrupt


@given(processes=PROCESSES, last=st.integers(0, 9))
def test_all_that_worked_on_it_counts_and_no_pause(tmp_path_factory, processes, last):
    """Of a process that is killed, what came after its last epoch is lost, which is then trained again."""
    folder = folder_in(tmp_path_factory.mktemp("spent"))
    with pytest.MonkeyPatch.context() as patch:
        clock, expected, seen = patched(patch), 0, 0
        for epochs, rest, killed in processes:
            work(folder, clock, epochs, rest, killed=killed)
            expected += sum(epochs) + (0 if killed else rest)
            seen += not killed or bool(epochs)
            clock.pause()
        with metered(folder, "a", alone=True, passes=4):
            clock.work(last)
        total = read_spent(folder)
    assert total.seconds == expected + last
    assert total.cpu_seconds == 2 * (expected + last)
    assert (total.processes, total.passes, total.done) == (seen + 1, 4, True)


@pytest.mark.parametrize(("of", "done"), [("b", False), ("a", True)])
def test_another_preparation_and_one_made_again_begin_anew(tmp_path, clock, of, done):
    folder = folder_in(tmp_path)
    if done:
        with metered(folder, of, alone=True, passes=4):
            clock.work(5)
    else:
        work(folder, clock, [5], 5, killed=False, of=of)
        assert read_spent(folder) is None
    with metered(folder, "a", alone=True, passes=4):
        clock.work(1)
    assert read_spent(folder).seconds == 1


def test_of_several_processes_at_once_the_clock_is_all(tmp_path, clock):
    folder = folder_in(tmp_path)
    work(folder, clock, [5], 5, killed=False, alone=False)
    total = read_spent(folder)
    assert (total.seconds, total.cpu_seconds) == (10, None)
    assert total.line == "10 s; 4 forward passes per step"
