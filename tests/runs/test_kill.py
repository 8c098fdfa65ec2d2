"""A configured run is killed at random instants; nothing finished is lost and the answer stays the same."""

import dataclasses
import multiprocessing
import time

import numpy as np
import pytest

from abcsearch.config import read_config
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.resuming import resume

KILLS = 4


def _run(path, folder):
    run_config(read_config(path), folder)


def _trials(folder):
    trials = read_journal(folder / "journal.jsonl").trials
    return {
        n: dataclasses.replace(t, evaluation=dataclasses.replace(t.evaluation, seconds=0.0))
        for n, t in trials.items()
    }


def _left_behind(folder):
    """All that a finished run leaves, apart from times."""
    parts = [folder, folder / "baselines" / "random"]
    return [
        (
            _trials(part),
            run.read_json("searcher.json")["state"]["rng"],
            run.read_json("best.json")["number"],
        )
        for part in parts
        for run in [RunFolder(part)]
    ]


@pytest.fixture(scope="module")
def forks():
    """Processes that start with everything imported: a kill then hits the run, not the import of torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["abcsearch.config", "abcsearch.runs.config_run", "torch", "sklearn.datasets"]
    )
    return context


def test_killed_at_random_instants_it_is_as_uninterrupted(tiny_config, tmp_path, forks):
    # The server starts, and imports torch, with its first process
    first = forks.Process(target=int)
    first.start()
    first.join()
    start = time.monotonic()
    undisturbed = forks.Process(target=_run, args=(tiny_config, tmp_path / "whole"))
    undisturbed.start()
    undisturbed.join()
    duration = time.monotonic() - start
    expected = _left_behind(tmp_path / "whole")
    instants = np.random.default_rng()
    kills, runs = 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{runs}"
        runs += 1
        finished = False
        while not finished and kills < KILLS:
            victim = forks.Process(target=_run, args=(tiny_config, folder))
            start = time.monotonic()
            victim.start()
            victim.join(instants.uniform(0.05, 0.9) * duration)
            before = _trials(folder) if (folder / "journal.jsonl").exists() else {}
            victim.kill()
            victim.join()
            assert victim.exitcode in (0, -9)
            finished = victim.exitcode == 0  # it may end just before it is killed
            kills += not finished
            if finished:  # kill the next one earlier: the machine's speed varies
                duration = min(duration, time.monotonic() - start)
            if (folder / "journal.jsonl").exists():
                after = _trials(folder)
                assert before.items() <= after.items()
                assert after.items() <= expected[0][0].items()
        if (folder / "run.json").exists():
            resume(folder)
        else:
            _run(tiny_config, folder)
        assert _left_behind(folder) == expected
    assert runs >= 1


def test_journal_cut_anywhere_is_finished_as_uninterrupted(tiny_config, tmp_path):
    _run(tiny_config, tmp_path / "run")
    expected = _left_behind(tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    whole = journal.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(whole), 3):
        journal.write_bytes(whole[:cut])
        resume(tmp_path / "run")
        assert _left_behind(tmp_path / "run") == expected
