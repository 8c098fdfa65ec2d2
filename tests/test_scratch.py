"""Temporary files and folders: those of dead processes go, those of living ones stay."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch import scratch
from abcsearch.files import replace_file
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.scratch import owner, sibling_of, sweep, sweep_all

MADE = """
import sys, tempfile
from pathlib import Path
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.scratch import owner, sibling_of
folder = Path(sys.argv[1])
sibling_of(folder / "best.json").write_text("half")
made = tempfile.mkdtemp(prefix=f".export-{owner()}-", dir=folder)
Path(made, "model.onnx").write_text("half")
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process, which has something half-written in a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", MADE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_what_is_half_written_goes_when_its_process_has_been_killed(tmp_path, other):
    kept = [
        tmp_path / name
        for name in (".export-mine", ".best.json.tmp", "best.json", ".git", f"x-{owner()}.tmp")
    ]
    for path in kept:
        path.touch()
    own = [
        sibling_of(tmp_path / "best.json"),
        Path(tempfile.mkdtemp(prefix=f".export-{owner()}-", dir=tmp_path)),
    ]
    own[0].touch()
    before = sorted(tmp_path.iterdir())
    assert len(before) == len(kept) + len(own) + 2
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    other.kill()
    until_over(other)  # it is not waited for: it still has its number
    sweep(tmp_path, "last.json")
    assert sorted(tmp_path.iterdir()) == before
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, *own])


def until_over(process):
    """Waits for the end of a process and leaves it to be asked for."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_the_next_writer_of_a_file_removes_its_siblings_alone(tmp_path, other):
    other.kill()
    until_over(other)
    replace_file(tmp_path / "best.json", lambda path: path.write_text("whole"))
    assert [re.sub("-.*", "", path.name) for path in sorted(tmp_path.iterdir())] == [
        ".export",
        "best.json",
    ]


def test_folders_below_are_swept_and_links_are_not_followed(tmp_path):
    deep, outside = tmp_path / "run" / "export" / "full", tmp_path / "outside"
    name = owner().rpartition("-")[0]
    for folder in (deep, outside):
        folder.mkdir(parents=True)
        (folder / f".x.{name}-1.tmp").touch()  # this process's number, but it began at another time
    (tmp_path / "run" / "link").symlink_to(outside)
    sweep_all(tmp_path / "run")
    assert not list(deep.iterdir())
    assert list(outside.iterdir())
    sweep_all(tmp_path / "nowhere")


def test_whoever_writes_to_a_run_folder_removes_what_killed_ones_have_left(tmp_path, other):
    other.kill()
    until_over(other)
    names = [path.name for path in tmp_path.iterdir()]
    run = tmp_path / "run"
    places = [
        run,
        run / "finetuned",
        run / "finetuned" / "recipe-1",
        run / "export" / "full",
        run / "baselines" / "random",
    ]
    for place in places:
        place.mkdir(parents=True)
        for name in names:
            (place / name).touch()
    with RunFolder(run).locked():
        assert not [path for path in run.rglob(".*") if path.name in names]


def test_of_another_machine_only_what_is_a_day_old_goes(tmp_path, monkeypatch):
    path = sibling_of(tmp_path / "best.json")
    path.touch()
    monkeypatch.setattr(scratch, "_machine", lambda: "00000000")
    sweep(tmp_path)
    assert path.exists()
    day = time.time() - 25 * 3600
    os.utime(path, (day, day))
    sweep(tmp_path)
    assert not path.exists()


@given(
    st.text(
        st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]),
        min_size=1,
        max_size=30,
    )
)
def test_a_sibling_of_any_name_is_told(name):
    told = (
        scratch._OWNED.match(sibling_of(Path("folder") / name).name)
        if name not in (".", "..")
        else None
    )
    assert told is None or (told[1], "-".join(told.groups()[1:])) == (name, owner())
    assert told is not None or name in (".", "..") or "\n" in name
