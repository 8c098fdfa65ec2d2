"""The README's commands for a cluster, on several nodes of this machine, one of which is killed while they work."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from abcsearch.runs.disk.journal import read_journal
from tests.pages import CHAPTERS

ROOT = Path(__file__).parents[2]
SECTION = CHAPTERS["cluster"]
SMALLER = "--set n_trials=120 --set pretrain.epochs=1 --set 'baselines=[]'"

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        not Path("/proc/self/environ").exists(), reason="finds the nodes' processes in /proc"
    ),
]


def processes(home):
    """Process ids and command lines of all that was started with this home."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={home}\0".encode() in (path / "environ").read_bytes() + b"\0":
                found[int(path.name)] = (path / "cmdline").read_text()
        except OSError:
            continue
    return found


@pytest.fixture
def shell(tmp_path):
    """Runs commands with a home of their own, and leaves no process of theirs."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    name, _, value = re.search(r"`export (RAY_AUTH_MODE=\w+)`", SECTION)[1].partition("=")
    environment[name] = value

    def start(line):
        line = (
            line.replace("FIRST", "127.0.0.1")
            .replace("6379", str(port))
            .replace("runs/digits", f"{tmp_path}/run")
        )
        line = line.replace("--workers 16", f"--workers 3 {SMALLER}").split(" #")[0]
        return subprocess.Popen(shlex.split(line), cwd=ROOT, env=environment)

    yield start
    for pid in processes(tmp_path):
        os.kill(pid, signal.SIGKILL)


def outcome(folder):
    return {
        n: (t.candidate, t.fitness)
        for n, t in sorted(read_journal(folder / "journal.jsonl").trials.items())
    }


def test_the_commands_of_the_readme_survive_the_loss_of_a_node(shell, tmp_path):
    token = re.search(r"`(ray get-auth-token --generate)`", SECTION)[1]
    head, node, search = re.search(r"```\n(ray start --head.*?)```", SECTION, flags=re.DOTALL)[
        1
    ].splitlines()
    for line in (token, head, node):
        assert shell(line).wait(300) == 0
    raylets = {
        pid for pid, line in processes(tmp_path).items() if line.split("\0")[0].endswith("raylet")
    }
    assert len(raylets) == 2
    run = shell(search)
    journal = tmp_path / "run" / "journal.jsonl"
    while run.poll() is None and not (journal.exists() and journal.stat().st_size > 10_000):
        time.sleep(0.1)
    assert run.poll() is None
    os.kill(max(raylets), signal.SIGKILL)  # the head's was started first
    assert run.wait(600) == 0
    plain = search.replace("--ray-address auto", "").replace(
        "--workers 16", f"--workers 0 {SMALLER}"
    )
    assert shell(plain.replace("runs/digits", f"{tmp_path}/plain")).wait(600) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "plain")
    assert len(outcome(tmp_path / "run")) == 120
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "lost" in log
    (tmp_path / "log.txt").write_text(log)
