"""Evaluations that hang or kill their worker, a disk that is full, Ctrl-C once and twice."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from abcsearch.runs.disk.folder import RunFolder
from tests.evaluators import Troubled
from tests.problems import (
    PATIENCE,
    assert_same_as,
    descendants,
    drive,
    finished,
    forks,
    loop,
    outcome,
    started,
    undisturbed,
    until,
    until_gone,
    written,
)

pytestmark = pytest.mark.faults

N = 24


def troubled(path, **options):
    (path / "attempts").mkdir(parents=True)
    return Troubled(path / "attempts", **options)


def test_hanging_and_killing_once_changes_nothing_and_twice_is_a_failed_trial(tmp_path):
    expected = undisturbed(tmp_path, n_trials=N, searcher="random", window=4)
    run = tmp_path / "run"
    evaluator = troubled(run, kills={2: 1, 7: 2}, hangs={4: 1, 11: 2})
    options = {"n_trials": N, "searcher": "random", "window": 4, "evaluator": evaluator}
    finished(started(run, workers=2, timeout=2.0, **options))
    found = written(run)
    assert {number: evaluator.attempts(number) for number in (2, 3, 4, 7, 11)} == {
        2: 2,
        3: 1,
        4: 2,
        7: 2,
        11: 2,
    }
    died = "its worker process died (killed, out of memory, or a crash in native code)"
    assert found[7].evaluation.failure == f"lost its worker 2 times: {died}"
    assert found[11].evaluation.failure == "lost its worker 2 times: no result within 2 s"
    assert {number: trial for number, trial in found.items() if number not in (7, 11)} == {
        number: trial for number, trial in expected.items() if number not in (7, 11)
    }


def limited(path, size, **options):
    """Drives with a limit on the size of files, as a disk that is nearly full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    drive(path, **options)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"schedule": "asynchronous"}])
@pytest.mark.parametrize("size", [1_000, 2_500, 4_000])
def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, options, size):
    expected = undisturbed(tmp_path, n_trials=N, **options)
    run = tmp_path / "run"
    run.mkdir()
    process = forks().Process(target=limited, args=(run, size), kwargs={"n_trials": N, **options})
    process.start()
    finished(process, status=2)
    kept = written(run)
    assert kept.items() <= expected.items()
    assert len(kept) < N
    assert not list(run.glob(".*.tmp"))
    loop(run, n_trials=N, **options).run()
    assert_same_as(run, expected)


CONFIG = """
n_trials = {n_trials}
baselines = ["uniform", "random"]
model = {{name = "small_resnet", widths = [4, 6], depths = [1, 1]}}
data = {{name = "digits"}}
pretrain = {{epochs = 1, batch_size = 256}}
budget = {{macs = 0.5}}
searcher = {{name = "bee_colony", n_sources = 4}}
evaluator = {{name = "adaptive_bn", calibration_images = 64, batch_size = 64}}
finetune = {{epochs = 1, batch_size = 256, lr = 0.02}}
"""


def command(*arguments):
    """Starts the command line as a terminal does, in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "abcsearch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("twice", [False, True])
def test_control_c_ends_a_run_with_workers_at_once_and_leaves_no_process(tmp_path, twice):
    n_trials = 300
    config, run = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(CONFIG.format(n_trials=n_trials))
    driver = command("search", config, "--run-dir", run, "--workers", 2)
    journal = run / "journal.jsonl"
    until(
        lambda: driver.poll() is not None or (journal.exists() and len(written(run)) >= 5),
        "five trials",
    )
    family = descendants(driver.pid)
    assert any("raylet" in line for line in family.values())
    # Ctrl-C reaches all processes of the group, those of Ray as well
    os.killpg(driver.pid, signal.SIGINT)
    if twice:
        time.sleep(0.1)
        os.killpg(driver.pid, signal.SIGINT)
    text, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130, text
    assert "Traceback" not in text
    until_gone(family)
    kept = written(run)
    assert 5 <= len(kept) < n_trials
    if twice:
        return
    assert f"continue with: abcsearch resume {run}" in text
    assert RunFolder(run).read_json("searcher.json")["told"] >= 1
    for arguments in (
        ["resume", run, "--workers", 0, "--n-trials", 60],
        ["search", config, "--run-dir", tmp_path / "whole", "--set", "n_trials=60"],
    ):
        other = command(*arguments)
        text, _ = other.communicate(timeout=2 * PATIENCE)
        assert other.returncode == 0, text
    first = {number: trial for number, trial in outcome(written(run)).items() if number < 60}
    assert first == written(tmp_path / "whole")
    assert (
        RunFolder(run / "baselines" / "random").read_json("best.json")["number"]
        == (RunFolder(tmp_path / "whole" / "baselines" / "random").read_json("best.json")["number"])
    )
