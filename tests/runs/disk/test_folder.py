"""The run folder: atomic files, arrays bit for bit, one writer."""

import json
import os
import platform
import stat
import subprocess
import sys

import numpy as np
import pytest
from filelock import FileLock, SoftFileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from abcsearch.errors import RunError
from abcsearch.runs.disk import folder as folder_module
from abcsearch.runs.disk.environment import environment
from abcsearch.runs.disk.folder import FORMAT, RunFolder

arrays = npst.arrays(
    st.one_of(
        npst.integer_dtypes(endianness="?"),
        npst.floating_dtypes(endianness="?"),
        npst.boolean_dtypes(),
    ),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


@settings(max_examples=80, deadline=None)
@given(array=arrays, flip=st.booleans())
def test_arrays_come_back_bit_for_bit(tmp_path_factory, array, flip):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    array = array.T[::-1] if flip and array.ndim else array
    folder.write_json(
        "state.json", {"deep": [{"array": array}], "plain": [1, 0.1, None, "x", True]}
    )
    found = folder.read_json("state.json")
    copy = found["deep"][0]["array"]
    assert (copy.dtype, copy.shape, copy.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert found["plain"] == [1, 0.1, None, "x", True]
    copy[...] = 0  # it can be written to


@given(value=st.floats(allow_nan=False))
@settings(max_examples=40, deadline=None)
def test_floats_and_numpy_numbers_come_back_exactly(tmp_path_factory, value):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    values = [value, np.float64(value), np.float32(0.1), np.int64(2**62), np.bool_(True)]
    folder.write_json("x.json", {"values": values})
    assert folder.read_json("x.json") == {
        "values": [value, value, float(np.float32(0.1)), 2**62, True]
    }


@pytest.mark.parametrize("value", [{1, 2}, np.array([{}, None]), object()])
def test_what_is_not_plain_is_refused_and_the_old_file_stays(tmp_path, value):
    folder = RunFolder(tmp_path)
    folder.write_json("x.json", {"old": 1})
    with pytest.raises(TypeError, match="not a plain JSON value"):
        folder.write_json("x.json", {"value": value})
    assert folder.read_json("x.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]  # noqa: PTH208 - names


def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write("deep/x.txt", lambda path: path.write_text("old"))

    def fails(path):
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        folder.write("deep/x.txt", fails)
    assert (tmp_path / "deep" / "x.txt").read_text() == "old"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.txt"]


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders cannot be opened here")
def test_a_file_is_on_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", 1)
    synced = []

    def seen(descriptor):
        there = os.fstat(descriptor)
        new = (tmp_path / "run.json").stat().st_ino != old
        synced.append(("folder" if stat.S_ISDIR(there.st_mode) else there.st_size, new))

    old = (tmp_path / "run.json").stat().st_ino
    monkeypatch.setattr(os, "fsync", seen)
    folder.write_json("run.json", [2, 3])
    assert synced == [((tmp_path / "run.json").stat().st_size, False), ("folder", True)]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("x.json", {"old": 1})
    seen = []

    def writer(path):
        path.write_text('"ne')
        seen.append(folder.read_json("x.json"))
        path.write_text('"new"')

    folder.write("x.json", writer)
    assert (seen, folder.read_json("x.json")) == ([{"old": 1}], "new")


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 1',
        "",
        "\xff\xfe",
        '{"__array__": "<f8"}',
        '{"__array__": "<f8", "shape": [2], "data": "AAAA"}',
        '{"__array__": "no", "shape": [], "data": ""}',
        '{"__array__": 5, "shape": 5, "data": 5}',
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"x\.json is damaged: .*; restore"):
        RunFolder(tmp_path).read_json("x.json")


def test_the_header_of_a_run_is_checked(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(
        RunError, match="run does not exist; start a run with: abcsearch search CONFIG"
    ):
        folder.header()
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"is not a run folder \(it has no run.json\)"):
        folder.header()
    for damaged in ({}, [], 5, {"format": "1", "settings": {}}, {"format": 1}):
        folder.write_json("run.json", damaged)
        with pytest.raises(RunError, match=r"run\.json is damaged"):
            folder.header()
    folder.write_json("run.json", {"format": FORMAT + 1, "settings": {}})
    with pytest.raises(
        RunError,
        match=f"has format {FORMAT + 1}, this version reads up to {FORMAT}; update abcsearch",
    ):
        folder.header()
    sound = {"format": FORMAT, "settings": {"seed": 3}, "identity": {}, "environment": {}}
    folder.write_json("run.json", sound)
    assert folder.header() == sound
    folder.write_json("run.json", {**sound, "identity": []})
    with pytest.raises(RunError, match=r"run\.json is damaged: identity missing or wrong"):
        folder.header()


@pytest.mark.parametrize(
    ("state", "finished"),
    [
        (None, False),
        ({"told": 4, "exhausted": False}, False),
        ({"told": 5, "exhausted": False}, True),
        ({"told": 2, "exhausted": True}, True),
    ],
)
def test_a_search_is_finished_when_all_are_told_or_none_is_left(tmp_path, state, finished):
    folder = RunFolder(tmp_path)
    if state is not None:
        folder.write_json("searcher.json", state)
    assert folder.finished(5) is False  # there is no journal
    folder.journal.write_bytes(b"12345")
    assert folder.finished(5) is finished
    if finished:  # the journal has been cut since
        folder.write_json("searcher.json", {**state, "journal": [6, 0]})
        assert folder.finished(5) is folder.exhausted() is False
        (tmp_path / "searcher.json").write_bytes(b"\xff{")
        assert folder.finished(5) is folder.exhausted() is False


HOLDER = """
import errno, fcntl, sys, warnings
if "without" in sys.argv:
    warnings.simplefilter("ignore")
    def flock(*_):
        raise OSError(errno.ENOSYS, "this file system has no locks")
    fcntl.flock = flock
from abcsearch.runs.disk.folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_and_the_lock_of_a_killed_one_is_free(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    assert folder.in_use() is False
    assert not folder.path.exists()  # to ask leaves no trace
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        assert folder.in_use() is True
        words = rf"run is in use by process {holder.pid} on .* since .*; .*abcsearch status"
        with pytest.raises(RunError, match=words), folder.locked():
            pytest.fail("two writers")
        holder.kill()
    assert folder.in_use() is False
    with folder.locked():
        assert folder.in_use() is True
        (folder.path / "x").write_text("mine")
    assert folder.in_use() is False


def test_a_full_disk_is_named_and_the_file_is_as_before(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("best.json", {"old": 1})

    def full(path):
        path.write_text("half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/best.json'"):
        folder.write("best.json", full)
    assert folder.read_json("best.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]


def test_a_file_system_without_locks_is_served_as_far_as_it_allows(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), "without"]
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == "locked\n"
        refused = subprocess.run(command, check=False, capture_output=True, text=True, input="")
        assert f"is in use by process {holder.pid} on" in refused.stderr
        assert "locked" not in refused.stdout
        holder.kill()
    taken = subprocess.run(command, check=False, capture_output=True, text=True, input="")
    assert taken.stdout == "locked\n", taken.stderr


def test_who_only_asks_does_not_get_in_the_way_of_a_writer(tmp_path, monkeypatch):
    """Whoever asks holds the lock for an instant; a writer that comes then waits that long."""
    instant = FileLock(tmp_path / ".lock")
    instant.acquire()

    class Refused(FileLock):
        """Has who asks end once the writer has been refused."""

        def _acquire(self):
            super()._acquire()
            instant.release()

    monkeypatch.setattr("abcsearch.runs.disk.folder.FileLock", Refused)
    with RunFolder(tmp_path).locked():
        assert not instant.is_locked


def test_the_lock_is_free_after_an_error(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.locked():
        raise ZeroDivisionError
    assert folder.in_use() is False


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "run", "cannot be made"),
    ):
        with pytest.raises(RunError, match=words), RunFolder(path).locked():
            pytest.fail("not a folder")
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(RunError, match="cannot be locked"), RunFolder(tmp_path / "run").locked():
        pytest.fail("not a file")


def test_the_log_keeps_every_line(tmp_path):
    folder = RunFolder(tmp_path)
    for line in ("first", "zweite Zeile: ä"):
        folder.log(line)
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "zweite Zeile: ä"]


def test_the_environment_says_versions_machine_and_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    outside = environment()
    assert (outside["git"], outside["git_changed"]) == (None, False)
    assert outside["python"] == platform.python_version()
    assert outside["versions"]["numpy"] == np.__version__
    assert json.loads(json.dumps(outside)) == outside
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    without = environment()
    assert (without["git"], without["git_changed"]) == (None, False)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    clean = environment()
    assert len(clean["git"]) == 40
    assert clean["git_changed"] is False
    (tmp_path / "new").write_text("")
    assert environment()["git_changed"] is True


def test_a_lock_of_another_machine_says_what_frees_it(tmp_path, monkeypatch):
    """On a file system without locks, a file stands for one; whether its process lives, only its machine knows."""
    monkeypatch.setattr(folder_module, "FileLock", SoftFileLock)
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        pass
    with SoftFileLock(folder.path / ".lock"):
        folder.write_json(".owner", {"pid": 7, "host": "node-7", "since": "2026-11-01 10:00:00"})
        with pytest.raises(
            RunError, match=r"process 7 on node-7 since .*if that machine is gone for good, delete"
        ):
            folder.locked().__enter__()
        folder.write_json(
            ".owner", {"pid": 7, "host": platform.node(), "since": "2026-11-01 10:00:00"}
        )
        with pytest.raises(RunError, match="in use by process 7") as caught:
            folder.locked().__enter__()
        assert "delete" not in str(caught.value)
        assert folder.in_use()
        (folder.path / ".lock").unlink()
        with folder.locked():
            pass
