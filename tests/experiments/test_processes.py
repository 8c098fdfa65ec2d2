"""Work side by side: what fails is named, and nothing outlives the program."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import functools, signal, sys, time
from pathlib import Path
from experiments.processes import side_by_side


def work(folder, number):
    if number == 1:
        raise OSError("disk full")
    (folder / str(number)).touch()
    time.sleep(float(sys.argv[2]))
    return number


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    folder = Path(sys.argv[1])
    side_by_side({f"piece {n}": functools.partial(work, folder, n) for n in range(4)}, 2, print)
"""


@pytest.fixture
def begin(tmp_path):
    """Begins four pieces of work, each so many seconds long, in a process group of their own."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "pieces").mkdir()

    def begun(seconds):
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "pieces"), str(seconds)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return begun


def test_a_result_that_cannot_be_kept_ends_all(begin, tmp_path):
    script = tmp_path / "script.py"
    first_at_once = SCRIPT.replace("sleep(float", "sleep(number and float").replace(
        "number == 1", "False"
    )
    script.write_text(first_at_once.replace("2, print", "2, {}.__getitem__"))
    program = begin(1000)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 1
    assert said.splitlines()[0].endswith("done")
    assert "KeyError" in said.splitlines()[-1]
    assert len(list((tmp_path / "pieces").iterdir())) < 4


def test_what_fails_is_named_and_the_rest_is_done(begin):
    out, said = (program := begin(0)).communicate(timeout=60)
    assert program.returncode == 1
    assert sorted(out.split()) == ["0", "2", "3"]
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["1/4", "2/4", "3/4", "4/4"]
    assert sorted(line.partition(" ")[2] for line in lines[:4]) == [
        "piece 0: done",
        "piece 1: disk full",
        "piece 2: done",
        "piece 3: done",
    ]
    assert lines[4:] == [
        "what failed is named above; when that is mended, the same command goes on"
    ]


def test_what_all_would_fail_of_ends_the_program(begin, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("number == 1", "number < 2").replace("range(4)", "range(9)"))
    _, said = (program := begin(1000)).communicate(timeout=60)
    assert program.returncode == 1
    lines = said.splitlines()
    assert [line.endswith(": disk full") for line in lines] == [True, True, False]
    assert (
        lines[2]
        == "the other 7 would fail of this, too; when that is mended, the same command goes on"
    )
    assert len(list((tmp_path / "pieces").iterdir())) <= 2


def test_failures_without_words_are_told_apart(begin, tmp_path):
    script = tmp_path / "script.py"
    kinds = "raise (AssertionError, MemoryError)[number]"
    script.write_text(
        SCRIPT.replace("number == 1", "number < 2").replace('raise OSError("disk full")', kinds)
    )
    out, said = (program := begin(0)).communicate(timeout=60)
    assert program.returncode == 1
    assert sorted(out.split()) == ["2", "3"]
    assert "piece 0: AssertionError()" in said
    assert "piece 1: MemoryError()" in said


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_program(begin, tmp_path, by):
    program = begin(1000)
    while len(list((tmp_path / "pieces").iterdir())) < 2:
        assert program.poll() is None
        time.sleep(0.05)
    # From here on it says nothing of its own accord
    assert program.stderr.readline() == "1/4 piece 1: disk full\n"
    if by is signal.SIGINT:
        os.killpg(program.pid, by)  # as a terminal does
    else:
        program.kill()
    # The pipes are closed when the last process has ended
    _, said = program.communicate(timeout=60)
    assert program.returncode == (130 if by is signal.SIGINT else -signal.SIGKILL)
    if by is signal.SIGINT:
        assert said.splitlines() == ["stopped; the same command goes on"]
