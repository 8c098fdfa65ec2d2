"""Runs of before norms over channels could be renormalised keep their space, however they are continued."""

import pytest
import torch
from torch import nn

from abcsearch import Budget, Data, SpaceOptions, resume, search
from abcsearch.errors import RunError
from abcsearch.runs.settings import SearchSettings, from_plain, to_plain
from abcsearch.runs.settings_diff import complete
from tests.records import rewrite

pytestmark = pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")


@pytest.fixture(scope="module")
def task():
    """A network with a norm over channels, and data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(1, 6, 3),
            nn.GroupNorm(1, 6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        ]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        x, y = torch.randn(90, 1, 6, 6), torch.arange(90) % 3
    return model, Data.from_tensors((x[:60], y[:60]), (x[60:], y[60:]), validation=0.3)


def run(task, folder, n_trials, **space):
    options = {"evaluator": {"name": "adaptive_bn", "batch_size": 16, "calibration_images": 32}}
    options |= {"space": SpaceOptions(**space)} if space else {}
    model, data = task
    return search(
        model,
        data,
        budget=Budget(macs=0.8),
        n_trials=n_trials,
        searcher="random",
        run_dir=folder,
        seed=1,
        **options,
    )


def forget(record):
    """Makes settings those of a version without the option."""
    del record["settings"]["space"]["renormalise"]


def test_a_space_says_whether_norms_are_renormalised(task, tmp_path):
    result = run(task, tmp_path / "new", 2)
    assert [d.name for d in result.task.space.dimensions] == ["0", "3"]
    fixed = run(task, tmp_path / "fixed", 2, renormalise=False)
    assert [d.name for d in fixed.task.space.dimensions] == ["3"]
    with pytest.raises(RunError, match=r"space.renormalise"):
        run(task, tmp_path / "fixed", 3)


def test_an_older_run_goes_on_as_it_was(task, tmp_path):
    before = run(task, tmp_path / "old", 2, renormalise=False)
    rewrite(tmp_path / "old/run.json", forget)
    model, data = task
    again = run(task, tmp_path / "old", 4)
    assert again.trials[:2] == before.trials
    assert len(again.trials) == 4
    longer = resume(tmp_path / "old", model=model, data=data, n_trials=5)
    assert longer.trials[:4] == again.trials
    assert [d.name for d in longer.task.space.dimensions] == ["3"]


def test_settings_that_do_not_say_are_those_of_before():
    plain = to_plain(SearchSettings(budget=Budget(macs=0.5), n_trials=1))
    assert plain["space"].pop("renormalise") is True
    assert from_plain(SearchSettings, plain).space.renormalise is False
    assert complete(plain)["space"]["renormalise"] is False
