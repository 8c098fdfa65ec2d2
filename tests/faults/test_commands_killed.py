"""Commands with workers are killed at any time: a moment later there is no process of theirs, and no folder of Ray."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from abcsearch.execution.ray_sessions import begin_session
from tests.conftest import TINY_CONFIG
from tests.problems import PROC, alive, descendants, until, written

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        not (PROC / "self" / "fd").exists(), reason="finds processes in /proc (Linux)"
    ),
]

SOON = 30.0  # seconds; left alone, Ray's agents live on for a minute
N = 150
CONFIG = TINY_CONFIG.replace("n_trials = 24", f"n_trials = {N}").replace(
    'baselines = ["uniform", "random"]', ""
)


def command(*arguments):
    line = [sys.executable, "-m", "abcsearch", *map(str, arguments)]
    return subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )


def ray_folders():
    """Returns the folders of Ray that runs have on this machine."""
    session = begin_session()  # clears up what older runs have left
    home = session.path.parent
    session.close()
    return {path for path in home.iterdir() if path.is_dir()}


def gone_soon(driver, before):
    """Kills a driver; what it has started ends, its folder as well."""
    family = descendants(driver.pid)
    assert any("raylet" in line for line in family.values())
    driver.kill()
    driver.wait()
    until(lambda: not any(map(alive, family)), f"the end of {family}", SOON)
    assert ray_folders() <= before


@pytest.fixture
def search(tmp_path):
    """Starts a search with two workers, and leaves nothing of it."""
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    drivers = []

    def start():
        drivers.append(command("search", config, "--run-dir", tmp_path / "run", "--workers", 2))
        return drivers[-1]

    yield start
    for driver in drivers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)


@pytest.mark.parametrize("trials", [None, 1, 60, N - 2])
def test_of_a_killed_search_nothing_is_left(search, tmp_path, trials):
    before, driver = ray_folders(), search()
    if trials is None:  # while Ray starts
        until(lambda: any("raylet" in line for line in descendants(driver.pid).values()), "Ray")
        time.sleep(1)
    else:
        until(
            lambda: (
                (tmp_path / "run" / "journal.jsonl").exists()
                and len(written(tmp_path / "run")) >= trials
            ),
            "it",
        )
    gone_soon(driver, before)


def test_of_a_killed_fine_tuning_nothing_is_left(tmp_path):
    pytest.importorskip("ray.train", reason="needs the extra train", exc_type=ImportError)
    config, run = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(CONFIG)
    assert command("search", config, "--run-dir", run, "--set", "n_trials=4").wait(120) == 0
    before = ray_folders()
    driver = command("finetune", run, "--workers", 2, "--set", "epochs=5000")
    until(
        lambda: list((run / "finetuned").glob("*.checkpoint")) or driver.poll() is not None,
        "an epoch",
    )
    assert driver.poll() is None
    gone_soon(driver, before)


def test_a_cluster_of_the_users_is_left_alone(search, tmp_path):
    """Another search, with a Ray of its own, stays as well."""
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import ray, sys; ray.init(address='local', num_cpus=1); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(
            lambda: any("IDLE" in line for line in descendants(other.pid).values()),
            "the user's Ray",
        )
        theirs = descendants(other.pid)
        before, driver = ray_folders(), search()
        until(
            lambda: (
                (tmp_path / "run" / "journal.jsonl").exists()
                and len(written(tmp_path / "run")) >= 1
            ),
            "trials",
        )
        gone_soon(driver, before)
        core = [
            pid
            for pid, line in theirs.items()
            if any(w in line for w in ("raylet", "gcs_server", "Agent"))
        ]
        assert len(core) >= 3
        assert all(map(alive, core))
    finally:
        family = descendants(other.pid)
        other.communicate()
        until(lambda: not any(map(alive, family)), "its end")
