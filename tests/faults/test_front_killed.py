"""Several budgets, killed at random instants, within the map, between budgets, while fine-tuning: all go on."""

import json
import multiprocessing
import time

import numpy as np
import pytest

from abcsearch.config import read_run
from abcsearch.results.front_finishing import finetune_front, open_front
from abcsearch.runs.config_run import run_front_config
from abcsearch.runs.disk.known import read_known
from abcsearch.runs.front_folder import FrontFolder
from abcsearch.runs.resuming import resume
from tests.conftest import TINY_CONFIG
from tests.problems import outcome, written

pytestmark = pytest.mark.faults
KILLS = 8


def whole(config, folder):
    if (folder / "front.json").exists():
        resume(folder)
    else:
        run_front_config(read_run(config), folder)
    runs = open_front(folder)
    finetune_front(runs, runs[0].config.finetune)


def left_behind(folder):
    """All that a finished front leaves, apart from times."""
    found = []
    for run in FrontFolder.of(folder).runs:
        tuned = [
            json.loads(path.read_text()) for path in sorted((run.path / "finetuned").glob("*.json"))
        ]
        known = read_known(run)
        mapped = written(run.map.path) if run.map.journal.exists() else None
        scores = [(one["weights"], one["after"]) for one in tuned]
        found.append((written(run.path), mapped, known and outcome(known.trials), scores))
    return found


def test_killed_at_random_instants_it_is_as_uninterrupted(tmp_path):
    config = tmp_path / "front.toml"
    text = TINY_CONFIG.replace("budget = {macs = 0.5}", "budgets = [{macs = 0.7}, {macs = 0.4}]")
    text = text.replace("n_trials = 24", "n_trials = 10").replace(
        '"uniform", "random"', '"uniform"'
    )
    searcher = 'searcher = {name = "bee_colony", n_sources = 4}'
    assert searcher in text
    config.write_text(text.replace(searcher, 'searcher = "tests.knowing:Mapped"'))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["abcsearch.config", "abcsearch.runs.resuming", "torch", "sklearn.datasets"]
    )
    first = context.Process(target=whole, args=(config, tmp_path / "warm"))
    first.start()
    first.join()
    start = time.monotonic()
    undisturbed = context.Process(target=whole, args=(config, tmp_path / "whole"))
    undisturbed.start()
    undisturbed.join()
    duration = time.monotonic() - start
    expected = left_behind(tmp_path / "whole")
    instants, kills = np.random.default_rng(), 0
    while kills < KILLS:
        folder, finished = tmp_path / f"killed-{kills}", False
        while not finished and kills < KILLS:
            victim = context.Process(target=whole, args=(config, folder))
            victim.start()
            victim.join(instants.uniform(0.05, 0.6) * duration)
            victim.kill()
            victim.join()
            finished = victim.exitcode == 0
            kills += not finished
        last = context.Process(target=whole, args=(config, folder))
        last.start()
        last.join()
        assert last.exitcode == 0
        assert left_behind(folder) == expected
