"""A run whose searcher learns from what evaluations say of every layer, stopped and continued."""

import json

from abcsearch.config import read_config
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.lines import decode_line
from tests.conftest import TINY_CONFIG

CONFIG = (
    TINY_CONFIG.replace(
        '{name = "bee_colony", n_sources = 4}',
        '{name = "network_adjustment", batch = 2, moved = 2}',
    )
    .replace('name = "adaptive_bn",', 'name = "adaptive_bn", utilisation = 1, finalists = 1,')
    .replace('baselines = ["uniform", "random"]', "baselines = []")
    .replace("n_trials = 24", "n_trials = 6")
)


def trials(path):
    """What the journal says of each trial, but for times."""
    found = [
        decode_line(line)
        for line in (path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    ]
    found = [event for event in found if "evaluation" in event and "event" not in event]
    for event in found:
        event.pop("time", None)
        event["evaluation"].pop("seconds")
    return [json.dumps(event, sort_keys=True) for event in found]


def test_a_run_by_diagnostics_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    result = run_config(read_config(tmp_path / "config.toml"), tmp_path / "whole")
    run_config(read_config(tmp_path / "config.toml", ["n_trials=3"]), tmp_path / "stopped")
    run_config(read_config(tmp_path / "config.toml"), tmp_path / "stopped")
    whole = trials(tmp_path / "whole")
    assert sorted(set(trials(tmp_path / "stopped"))) == sorted(set(whole))
    names = {dimension.name for dimension in result.task.space.dimensions}
    asked = [trial for trial in result.trials if trial.evaluation.failure is None]
    assert len(asked) == 6
    for trial in asked:
        assert set(trial.evaluation.diagnostics) == names
        assert "top1" in trial.evaluation.metrics
        assert not set(trial.evaluation.metrics) & names
