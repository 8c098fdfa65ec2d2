"""Widths of Principal Filter Analysis as a baseline, and as what a search begins with."""

import warnings

import numpy as np
import torch
from torch import nn

from abcsearch import Budget, Data, search
from abcsearch.baselines.registry import BASELINES
from abcsearch.channels.options import SpaceOptions
from abcsearch.config import read_config
from abcsearch.results.open_run import open_run
from abcsearch.rng import torch_seeded
from abcsearch.runs.config_run import run_config
from abcsearch.runs.settings import SearchSettings
from abcsearch.runs.task import Task


def copies():
    """A network of two layers of eight channels; those of the first are copies of two, with other strengths."""
    with torch_seeded(0, "copies"):
        first, second = nn.Conv2d(2, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        model = nn.Sequential(
            first,
            nn.ReLU(),
            second,
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        )
        images = torch.rand(64, 2, 4, 4)
    with torch.no_grad():
        first.weight.zero_()
        for channel in range(8):
            first.weight[channel, channel % 2] = 1.0
        second.weight.copy_(
            torch.randn(second.weight.shape, generator=torch.Generator().manual_seed(1)).abs()
        )
    labels = torch.arange(64) % 2
    return model.eval(), Data.from_tensors(
        (images[:48], labels[:48]), (images[48:], labels[48:]), validation=0.25
    )


def structure(budget, **space):
    model, data = copies()
    settings = SearchSettings(
        budget=Budget(macs=budget), n_trials=1, space=SpaceOptions(alpha=1.0, **space)
    )
    return BASELINES["pfa_widths"].structure(Task.of(model, data, settings))


def test_copies_go_before_anything_else_does():
    widths = np.array([structure(budget) for budget in (0.95, 0.7, 0.5, 0.2)])
    assert (widths[widths[:, 0] > 2, 1] == 8).all()
    assert (widths[:3, 0] > 2).all()
    assert widths[3, 1] < 8
    assert (np.diff(widths, axis=0) <= 0).all()
    assert structure(0.7) == structure(0.7)
    assert min(structure(0.95, lowest=0.5)) >= 4


def test_it_is_a_row_of_a_report_and_a_start_of_a_search(
    tiny_config, tiny_model, tiny_data, tmp_path
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_config(
            read_config(tiny_config, ['baselines=["pfa_widths"]', "n_trials=8"]), tmp_path / "run"
        )
        found = open_run(tmp_path / "run")
        given = {"name": "given", "initial": ["pfa_widths"]}
        alone = search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.5),
            n_trials=1,
            searcher=given,
            run_dir=tmp_path / "own",
        )
    (mine,) = [one for one in found.structures if one.name == "pfa_widths"]
    assert not found.result.task.constraint.violation([mine.candidate]).any()
    assert len(alone.trials) == 1
