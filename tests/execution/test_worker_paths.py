"""Workers import what the process imports that sends them work: the working folder comes where it has it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.execution import worker_paths
from abcsearch.execution.worker_paths import own_paths, take_paths

ROOT = Path(__file__).parents[2]
SHADOWED = ("torch", "numpy", "ray", "optuna", "filelock", "pyarrow", "scipy")
SCRIPT = """
import json, multiprocessing, os, sys
sys.path = [path for path in sys.path if path not in ("", os.getcwd())] + [os.getcwd()]  # as the command line does


def main():
    import mine
    import mine_too
    from abcsearch.execution.ray_executor import RayExecutor
    from abcsearch.execution.ray_training import RayTraining
    from pathlib import Path

    there = {}
    executor = RayExecutor(1)
    there["ray"] = executor.submit(mine.look).result(120)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there["spawned"] = pool.apply(mine.look)
    try:
        RayTraining(workers=1).run(mine_too.write, Path.cwd(), gpu=False)
        there["training"] = json.loads(Path("look.json").read_text())
    except Exception as error:
        there["training"] = repr(error)
    executor.shutdown()
    print(json.dumps(there))


if __name__ == "__main__":
    main()
"""
MINE = """
def look():
    import importlib, sys
    return {name: getattr(importlib.import_module(name), "SHADOW", False) for name in NAMES}
"""
MINE_TOO = """
import json, mine
def write(rank, size):
    with open("look.json", "w") as file:
        json.dump(mine.look(), file)
"""


@pytest.mark.faults  # a minute of starting processes
def test_no_file_of_the_working_folder_comes_before_an_installed_package(tmp_path):
    pytest.importorskip("ray.train", reason="needs the extra train", exc_type=ImportError)
    work, scripts = tmp_path / "work", tmp_path / "scripts"
    work.mkdir()
    scripts.mkdir()
    for name in SHADOWED:
        (work / f"{name}.py").write_text("SHADOW = True\n")
    (work / "mine.py").write_text(f"NAMES = {SHADOWED}\n{MINE}")
    (work / "mine_too.py").write_text(MINE_TOO)
    (scripts / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, scripts / "script.py"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    looks = json.loads(done.stdout.splitlines()[-1])
    assert looks == dict.fromkeys(("ray", "spawned", "training"), dict.fromkeys(SHADOWED, False))


names = st.lists(st.sampled_from([f"/p{number}" for number in range(8)]), unique=True)


@given(theirs=names, ours=names, standard=st.booleans())
def test_the_order_is_that_of_the_other_process_or_of_the_own_installation(theirs, ours, standard):
    """Nothing is lost, and nothing is there twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_paths, "first_paths", list)
        patch.setattr(sys, "path", [*ours, worker_paths._STANDARD])
        theirs = [*theirs, worker_paths._STANDARD] if standard else theirs
        take_paths(theirs)
        leading = theirs if standard else [*ours, worker_paths._STANDARD]
        assert sys.path[: len(leading)] == leading
        assert sorted(sys.path) == sorted({*theirs, *ours, worker_paths._STANDARD})


def test_the_working_folder_is_named_in_full(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/nowhere/at/all", "__editable__.finder"])
    assert own_paths() == [str(tmp_path), "/nowhere/at/all", "__editable__.finder"]
