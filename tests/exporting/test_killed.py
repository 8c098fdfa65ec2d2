"""An export that is killed leaves the older one and, once there is the next one, nothing of its own."""

import os
import signal
from pathlib import Path

import pytest

from abcsearch.errors import ExportError
from abcsearch.exporting import export, files, load
from tests.exporting.test_files import example, small
from tests.problems import forks

NAMES = {
    "safetensors": ["model.safetensors", "plan.json"],
    "onnx": ["model.onnx"],
    "pt2": ["model.pt2"],
}


def _killed(folder, kind, count):
    """Dies just before a file is put in its place, the count-th."""
    replace, calls = Path.replace, []

    def killing(self, target):
        calls.append(target)
        if len(calls) > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = killing
    files.export(small(), folder, example_input=example(), format=kind)


@pytest.mark.parametrize(
    ("kind", "count"), [("safetensors", 0), ("safetensors", 1), ("onnx", 0), ("pt2", 0)]
)
def test_the_next_export_removes_what_a_killed_one_has_left(tmp_path, kind, count):
    folder = tmp_path / "export"
    export(small(), folder, example_input=example(), format=kind)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    victim = forks().Process(target=_killed, args=(folder, kind, count))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    left = [path for path in folder.iterdir() if path.name.startswith(".")]
    assert [path.name.split("-")[0] for path in left] == [".export"]
    if not count:
        assert {name: (folder / name).read_bytes() for name in before} == before
        load(folder if kind == "safetensors" else folder / NAMES[kind][0])
    made = export(small(), folder, example_input=example(), format=kind)
    assert sorted(path.name for path in folder.iterdir()) == NAMES[kind]
    load(made)


def test_what_a_living_export_writes_stays(tmp_path, monkeypatch):
    """Two at a time, into one folder."""
    write, seen = files._write_file, []

    def meanwhile(model, path, *arguments):
        if not seen:
            seen.append(path.parent)
            made = export(small(), tmp_path, example_input=example(), format="pt2")
            assert made.path.exists()
            assert path.parent.exists()
        return write(model, path, *arguments)

    monkeypatch.setattr(files, "_write_file", meanwhile)
    export(small(), tmp_path, example_input=example(), format="pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def failing(*_):
        raise ExportError("it computes something else")

    monkeypatch.setattr(files, "_write_file", failing)
    with pytest.raises(ExportError, match="something else"):
        export(small(), tmp_path / "new" / "x.pt2", example_input=example())
    assert not list(tmp_path.iterdir())
