"""A cluster of three Ray nodes on this machine, of which one is lost, or the head."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

from abcsearch.runs.disk.folder import RunFolder
from tests.evaluators import Troubled
from tests.problems import (
    assert_same_as,
    descendants,
    finished,
    loop,
    started,
    undisturbed,
    until_trials,
    written,
)

pytestmark = pytest.mark.faults

N = 40


class Nodes:
    """Three nodes, and what a process needs to reach them."""

    def __init__(self, folder):
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )
        while ":" not in (line := self._process.stdout.readline()):
            assert line, "the cluster did not start"
        self.address = line.strip()

    def lose(self, what):
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        while "done" not in (line := self._process.stdout.readline()):
            assert line

    def stop(self):
        family = descendants(self._process.pid)
        self._process.communicate()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cluster():
    folder = tempfile.mkdtemp(prefix="abc")  # a short name: it holds sockets
    nodes = Nodes(folder)
    yield nodes
    nodes.stop()
    shutil.rmtree(folder, ignore_errors=True)


def driven(path, cluster, seconds=0.3):
    """Returns a driver on the cluster, on which evaluations take their time."""
    path.mkdir()
    (path / "attempts").mkdir()
    return started(
        path,
        n_trials=N,
        evaluator=Troubled(path / "attempts", seconds=seconds),
        window=6,
        workers=3,
        address=cluster.address,
        environment=cluster.environment,
    )


def test_a_lost_node_changes_nothing(tmp_path, cluster):
    expected = undisturbed(tmp_path, n_trials=N, window=6)
    driver = driven(tmp_path / "run", cluster)
    until_trials(tmp_path / "run", 8, driver)
    cluster.lose("node")
    finished(driver)
    assert_same_as(tmp_path / "run", expected)
    assert "worker lost: its machine was lost" in (tmp_path / "run" / "log.txt").read_text()
    # No fault of the candidates
    assert b'"lost"' not in (tmp_path / "run" / "journal.jsonl").read_bytes()


def test_a_lost_head_ends_the_run_with_a_clear_message_and_it_can_be_continued(tmp_path, cluster):
    expected = undisturbed(tmp_path, n_trials=N, window=6)
    driver = driven(tmp_path / "run", cluster, seconds=3.0)
    until_trials(tmp_path / "run", 4, driver)
    before = written(tmp_path / "run")
    cluster.lose("head")
    finished(driver, status=2)
    assert (
        "does not answer any more; finished trials are kept"
        in (tmp_path / "run" / "log.txt").read_text()
    )
    assert before.items() <= written(tmp_path / "run").items()
    loop(tmp_path / "run", n_trials=N, window=6).run()
    assert_same_as(tmp_path / "run", expected)


def test_a_lost_head_machine_ends_the_run_as_well(tmp_path, cluster):
    driver = driven(tmp_path / "run", cluster, seconds=3.0)
    until_trials(tmp_path / "run", 4, driver)
    cluster.lose("machine")
    finished(driver, status=2)
    assert RunFolder(tmp_path / "run").read_json("searcher.json")["told"] >= 4
