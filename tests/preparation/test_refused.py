"""What preparations refuse, before anything is trained, and what is said then; and that the others work there."""

import pytest
import torch
from torch import nn

from abcsearch.budget import Budget
from abcsearch.errors import ConfigError, PreparationError
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.registry import make_preparation
from abcsearch.runs.settings import SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.testing import PreparationContract as Contract
from tests.preparation.test_contract import SHORT


def without_norms(data):
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)]
    return Task.of(
        nn.Sequential(*layers), data, SearchSettings(budget=Budget(macs=0.5), n_trials=1)
    )


@pytest.mark.parametrize("name", ["slimming", "variational"])
def test_without_batch_norms_the_way_out_is_named(tiny_data, name):
    with pytest.raises(
        PreparationError,
        match=f"{name} .* take group_lasso, soft_pruning, autopruner or taylor_iter",
    ):
        make_preparation(name).check(without_norms(tiny_data))


@pytest.mark.parametrize(
    "name",
    ["group_lasso", "soft_pruning", "autopruner", "taylor_iterative", "slimmable", "pruning_net"],
)
def test_without_batch_norms_the_others_work(tiny_data, name):
    task, recipe = (
        without_norms(tiny_data),
        {"epochs": 1, "batch_size": 45, "lr": 0.05, "device": "cpu"},
    )
    preparation = make_preparation(name, recipe=recipe)
    preparation.check(task)
    made = run_preparation(preparation, task, Trainer(tiny_data.train, 0))
    assert task.constraint.allows(made.starts[0])


def with_norms_over_channels(data, **space):
    layers = [
        nn.Conv2d(1, 6, 3),
        nn.GroupNorm(1, 6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 2)).eval()
    settings = SearchSettings(budget=Budget(macs=0.5), n_trials=1, space=SpaceOptions(**space))
    return Task.of(model, data, settings)


@pytest.mark.parametrize("name", ["soft_pruning", "autopruner", "taylor_iterative"])
def test_what_silences_channels_refuses_norms_over_them(tiny_data, name):
    """A silenced channel counts in such a norm, one that is cut out does not."""
    with pytest.raises(
        PreparationError, match=f"{name} silences channels, .* over channels, of 0: set renormalise"
    ):
        make_preparation(name).check(with_norms_over_channels(tiny_data))


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
@pytest.mark.parametrize("name", ["soft_pruning", "autopruner", "taylor_iterative"])
def test_where_these_norms_fix_their_channels_it_works(tiny_data, name):
    task = with_norms_over_channels(tiny_data, renormalise=False)
    preparation = make_preparation(
        name, recipe={"epochs": 1, "batch_size": 45, "lr": 0.05, "device": "cpu"}
    )
    preparation.check(task)
    assert task.constraint.allows(
        run_preparation(preparation, task, Trainer(tiny_data.train, 0)).starts[0]
    )


@pytest.mark.parametrize("name", ["slimmable", "dmcp", "pruning_net", "group_lasso"])
def test_others_work_with_norms_over_channels(tiny_data, name):
    task = with_norms_over_channels(tiny_data)
    preparation = make_preparation(
        name, recipe={"epochs": 2, "batch_size": 45, "lr": 0.05, "device": "cpu"}
    )
    preparation.check(task)
    assert task.constraint.allows(
        run_preparation(preparation, task, Trainer(tiny_data.train, 0)).starts[0]
    )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("slimmable", {"networks": 1}, r"slimmable: networks.* 2"),
        ("slimmable", {"widths": "fre"}, "did you mean 'free'"),
        ("slimmable", {"full_share": 1.0}, "full_share.*below 1"),
        ("slimmable", {"grow": 1.5}, "grow"),
        ("group_lasso", {"strength": 0}, "group_lasso: strength.*above 0"),
        ("group_lasso", {"recipe": {"ema": 0.9}}, "averages channels that are 0"),
        ("soft_pruning", {"criterion": "taylor"}, "criterion"),
        ("soft_pruning", {"structure": "best"}, "structure is a list of whole numbers"),
        ("soft_pruning", {"structure": [0.5, 1]}, "structure is a list of whole numbers"),
        ("variational", {"prior": float("nan")}, "prior"),
        ("autopruner", {"sharpest": 1.0}, "sharpest.*above 1"),
        ("taylor_iterative", {"batches": 0}, "batches.*at least 1"),
        ("taylor_iterative", {"memory": 1.0}, "memory.*below 1"),
        ("taylor_iterative", {"recipe": {"epochs": 0}}, "epochs.*at least 1"),
    ],
)
def test_wrong_options_are_named(name, options, words):
    with pytest.raises(ConfigError, match=words):
        make_preparation(name, **options)


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        ([1], "a candidate of this space has 2 values"),
        ([3, 99], "dimension"),
        ([4, 7], "outside of the budget"),
    ],
)
def test_structures_to_train_towards_are_of_the_space_and_the_budget(structure, words):
    task = Contract().task()
    with pytest.raises(PreparationError, match=f"soft_pruning: structure.*{words}"):
        make_preparation("soft_pruning", structure=structure).check(task)


def test_a_searched_structure_is_trained_towards():
    task = Contract().task()
    made = run_preparation(
        make_preparation("soft_pruning", structure=[5, 2], recipe=SHORT),
        task,
        Trainer(task.data.train, 0),
    )
    assert made.starts == [(5, 2)]
    images = task.data.validation.images
    with torch.no_grad():
        assert torch.allclose(
            made.source.model(images), made.source.network((5, 2))(images), atol=1e-5
        )


def test_budgets_that_gates_cannot_follow_are_refused(tiny_data, tiny_model):
    budget = Budget(peak_activation=0.9)
    task = Task.of(tiny_model, tiny_data, SearchSettings(budget=budget, n_trials=1))
    with pytest.raises(
        PreparationError,
        match="autopruner needs a budget whose expectation it can follow: macs, flops",
    ):
        make_preparation("autopruner").check(task)


@pytest.mark.parametrize(
    "name", ["group_lasso", "soft_pruning", "variational", "autopruner", "taylor_iterative"]
)
def test_criteria_cannot_be_chosen_from(tiny_data, tiny_model, name):
    settings = SearchSettings(budget=Budget(macs=0.5), n_trials=1, criterion=("l1", "l2"))
    with pytest.raises(PreparationError, match=f"{name} ranks channels by .* set one name"):
        make_preparation(name).check(Task.of(tiny_model, tiny_data, settings))
