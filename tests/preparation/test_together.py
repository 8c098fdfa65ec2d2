"""Preparations by several processes: what one process prepares, to rounding; killed, the same bits."""

import pytest
import torch
from torch import nn

from abcsearch.errors import ConfigError, RunError
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.registry import PREPARATIONS, make_preparation
from abcsearch.rng import torch_seeded
from abcsearch.runs.preparing import crew_of
from abcsearch.runs.settings import SearchSettings
from abcsearch.testing import PreparationContract
from tests.together import Forks

SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu"}
# Whose results without batch norms are one process's, and with what; all but a few are for `-m faults`.
OPTIONS = {
    "dmcp": {"networks": 3},
    "taylor_iterative": {"batches": 2, "at_once": 1},
    "pruning_net": {"form": "low_rank"},
    "slimmable": {"networks": 3},
    "group_lasso": {"strength": 0.05},
    "soft_pruning": {},
    "autopruner": {"gate_lr": 0.1},
    "iterate": {"rounds": 2},
    "tas": {},
    "lfpc": {"criteria": ["l1", "taylor"], "ratio": 0.5},
}
NORMED = {"slimming": {"strength": 0.05}, "variational": {"prior": 0.05}}


def rarely(names, often=()):
    """Returns cases, of which all but a few are too slow for every day."""
    marks = {name: () if name in often else pytest.mark.faults for name in names}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


class Setting(PreparationContract):
    """The contract's data and network, or one without batch norms."""

    __test__ = False

    def __init__(self, *, norms=True):
        self.norms = norms

    def model(self):
        if self.norms:
            return super().model()
        with torch_seeded(0, "plain"):
            first = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)]
            return nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)).eval()


def prepared(setting, name, options, path=None, workers=None, epochs=2):
    """Returns the tensors that are prepared, and structures."""
    task, recipe = setting.task(), {**SHORT, "epochs": epochs}
    trainer = Trainer(
        task.data.train,
        0,
        checkpoint=lambda training, _: None if path is None else path / f"{training}.checkpoint",
        workers=workers,
    )
    made = run_preparation(make_preparation(name, recipe=recipe, **options), task, trainer)
    tensors = {
        f"{part}.{key}": tensor
        for part, module in made.source.modules.items()
        for key, tensor in module.state_dict().items()
    }
    return tensors, list(made.starts)


def test_none_is_left_out():
    assert set(OPTIONS) | set(NORMED) == set(PREPARATIONS)


@pytest.mark.parametrize("name", rarely(OPTIONS, often=("dmcp", "taylor_iterative")))
def test_two_prepare_what_one_does(name):
    setting = Setting(norms=False)
    alone, starts = prepared(setting, name, OPTIONS[name])
    together, others = prepared(setting, name, OPTIONS[name], workers=Forks(2))
    assert starts == others
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", rarely({**OPTIONS, **NORMED}))
def test_killed_on_the_way_two_prepare_the_same_bits(name, tmp_path):
    """With batch norms, of which each process sees its own images; in another folder, then in the same one again."""
    setting, options = Setting(), {**OPTIONS, **NORMED}[name]
    (tmp_path / "whole").mkdir()
    whole = prepared(setting, name, options, tmp_path / "whole", Forks(2), epochs=3)
    with pytest.raises(RunError, match="a worker is gone"):
        prepared(setting, name, options, tmp_path, Forks(2, lives=2), epochs=3)
    again = prepared(setting, name, options, tmp_path, Forks(2), epochs=3)
    assert whole[1] == again[1]
    assert whole[0].keys() == again[0].keys()
    assert all(torch.equal(tensor, again[0][key]) for key, tensor in whole[0].items())


def test_shares_that_are_not_equal_are_refused_at_once():
    with pytest.raises(
        ConfigError, match="slimming: workers share a batch equally: batch_size 16 is no multiple"
    ):
        make_preparation("slimming", workers=3, recipe=SHORT)
    with pytest.raises(ConfigError, match="workers is from 1 to 1024, found 0"):
        make_preparation("slimming", workers=0)


def test_a_run_has_as_many_workers_as_its_preparation_says():
    pytest.importorskip("ray.train", exc_type=ImportError)
    from abcsearch import Budget

    settings = SearchSettings(budget=Budget(macs=0.5), n_trials=1)
    assert crew_of(make_preparation("slimming"), settings) is None
    assert crew_of(make_preparation("slimming", workers=2), settings).workers == 2
