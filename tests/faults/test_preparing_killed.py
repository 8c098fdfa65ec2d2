"""A run is killed while it prepares, at any instant: no bit is another one."""

import pytest

from abcsearch.config import read_config
from abcsearch.runs.configured import run_config
from tests.conftest import TINY_CONFIG
from tests.problems import written
from tests.training.test_checkpoints import killed

pytestmark = pytest.mark.faults

CONFIG = TINY_CONFIG.replace("n_trials = 24", "n_trials = 2").replace('baselines = ["uniform", "random"]', "")
CONFIG += 'prepare = {name = "slimming", strength = 0.05, recipe = {epochs = 60, batch_size = 64, lr = 0.05}}\n'


def _drive(path, config):
    run_config(read_config(config), path)


def test_a_run_that_is_killed_while_it_prepares_is_the_same_run(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    _drive(tmp_path / "whole", tmp_path / "config.toml")
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        path = killed(tmp_path / str(number), _drive, tmp_path / "config.toml")
        _drive(path, tmp_path / "config.toml")
        for name in ("base.safetensors", "prepared.json", "prepared.safetensors"):
            assert (path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert written(path) == written(tmp_path / "whole")
        assert not list(path.glob("*.checkpoint"))
