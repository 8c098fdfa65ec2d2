"""The folders of Ray: one per driver, cleared up after a killed one, and never one in use."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from abcsearch.execution.ray_sessions import begin_session
from abcsearch.execution.ray_watchdog import processes_of
from tests.problems import PROC, alive, until

pytestmark = pytest.mark.skipif(
    not (PROC / "self" / "fd").exists(), reason="finds processes in /proc (Linux)"
)

# A driver, and a process as Ray's: it prints into a file of the folder, and is in nobody's family.
DRIVER = """
import subprocess, sys, time
from abcsearch.execution.ray_sessions import begin_session

session = begin_session()
with open(session.path / "agent.out", "w") as out, open(session.path / "driver.log", "w") as log:
    agent = subprocess.Popen(["sleep", "600"], stdout=out, start_new_session=True)
    child = subprocess.Popen(["sleep", "600"], stdout=log, start_new_session=True)
print(session.path, session.watchdog.pid, agent.pid, child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path_factory, monkeypatch):
    """Returns a temporary folder of a short name, as sockets need it."""
    path = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("RAY_TMPDIR", str(path))
    monkeypatch.setattr("abcsearch.execution.ray_sessions._LONGEST", 1000)
    return path


@contextlib.contextmanager
def driver():
    """Yields a driver, its folder, and the ids of its watchdog, its Ray's process and its own child."""
    code = "import abcsearch.execution.ray_sessions as own; own._LONGEST = 1000\n" + DRIVER
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        folder, *pids = process.stdout.readline().split()
        try:
            yield process, Path(folder), *map(int, pids)
        finally:
            for pid in (process.pid, *map(int, pids)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_killed_driver_leaves_no_process_of_ray_and_no_folder(temporary):
    with driver() as (process, folder, watchdog, agent, child):
        assert folder.is_relative_to(temporary)
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        assert processes_of(folder) == {agent}
        process.kill()
        process.wait()
        until(
            lambda: not alive(agent) and not folder.exists() and not alive(watchdog), "the watchdog"
        )
        assert alive(child)  # what a script has started is its own


def test_what_is_left_is_cleared_up_by_the_next_one_and_what_is_in_use_stays(temporary):
    with driver() as (running, used, *_, agent, _), driver() as (killed, left, watchdog, other, _):
        for pid in (watchdog, killed.pid):
            os.kill(pid, signal.SIGKILL)
        killed.wait()
        assert left.exists()
        assert alive(other)
        session = begin_session()
        assert not left.exists()
        until(lambda: not alive(other), "what the killed driver left")
        assert used.exists()
        assert alive(agent)
        assert running.poll() is None
        assert processes_of(session.path) == set()
        session.close()
        assert not session.path.exists()
        assert not alive(session.watchdog.pid)


def test_a_folder_of_logs_may_be_kept_until_the_next_one(temporary):
    first = begin_session()
    first.close(keep=True)
    assert first.path.exists()
    begin_session().close()
    assert not first.path.exists()


def test_no_folder_of_somebody_else_and_none_of_too_long_a_name_is_taken(temporary, monkeypatch):
    home = temporary / f"abcsearch-ray-{os.getuid()}"
    home.symlink_to(temporary)
    session = begin_session()
    assert not session.path.is_relative_to(temporary)
    session.close()
    monkeypatch.setattr("abcsearch.execution.ray_sessions._LONGEST", 50)
    assert begin_session() is None


def test_the_watchdog_goes_with_its_driver_only(temporary):
    session = begin_session()
    time.sleep(1.2)  # two looks
    assert session.watchdog.poll() is None
    session.close()
