"""A run is killed while it prepares, at any instant: no bit is another one."""

import pytest

from abcsearch.config import read_config
from abcsearch.preparation.registry import PREPARATIONS
from abcsearch.runs.config_run import run_config
from tests.conftest import TINY_CONFIG
from tests.problems import written
from tests.training.test_checkpoints import killed

pytestmark = pytest.mark.faults

CONFIG = TINY_CONFIG.replace("n_trials = 24", "n_trials = 2").replace(
    'baselines = ["uniform", "random"]', ""
)
RECIPE = "recipe = {epochs = 60, batch_size = 64, lr = 0.05}"
# Of each how it is prepared, and how often it is killed; slimmable takes several passes per step. dmcp has blocks.
KINDS = {
    "slimming": (f'{{name = "slimming", strength = 0.05, {RECIPE}}}', 3),
    "slimmable": (
        '{name = "slimmable", grow = 0.5, recipe = {epochs = 12, batch_size = 64, lr = 0.05}}',
        1,
    ),
    "group_lasso": (f'{{name = "group_lasso", strength = 0.01, {RECIPE}}}', 1),
    "soft_pruning": (f'{{name = "soft_pruning", {RECIPE}}}', 1),
    "variational": (f'{{name = "variational", {RECIPE}}}', 1),
    "autopruner": (f'{{name = "autopruner", {RECIPE}}}', 1),
    "dmcp": (
        '{name = "dmcp", networks = 3, recipe = {epochs = 12, batch_size = 64, lr = 0.05}}\n'
        'space = {levels = ["filter", "stage", "block"]}',
        1,
    ),
    "tas": ('{name = "tas", recipe = {epochs = 30, batch_size = 64, lr = 0.05}}', 1),
    "lfpc": ('{name = "lfpc", recipe = {epochs = 30, batch_size = 64, lr = 0.05}}', 1),
    "pruning_net": (f'{{name = "pruning_net", hidden = 4, {RECIPE}}}', 2),
    "taylor_iterative": (f'{{name = "taylor_iterative", batches = 10, at_once = 2, {RECIPE}}}', 1),
    "iterate": (
        f'{{name = "iterate", searcher = "random", trials = 5, {RECIPE.replace("60", "20")}}}',
        2,
    ),
}


def _drive(path, config):
    run_config(read_config(config), path)


def test_none_is_left_out():
    assert set(KINDS) == set(PREPARATIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_while_it_prepares_is_the_same_run(tmp_path, kind):
    prepare, times = KINDS[kind]
    (tmp_path / "config.toml").write_text(f"{CONFIG}prepare = {prepare}\n")
    _drive(tmp_path / "whole", tmp_path / "config.toml")
    for number in range(times):
        (tmp_path / str(number)).mkdir()
        path = killed(tmp_path / str(number), _drive, tmp_path / "config.toml")
        _drive(path, tmp_path / "config.toml")
        for name in ("base.safetensors", "prepared.json", "prepared.safetensors"):
            assert (path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert written(path) == written(tmp_path / "whole")
        assert not list(path.glob("*.checkpoint"))
