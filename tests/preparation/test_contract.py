"""Every preparation of ours keeps its word: the same contract for all."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from abcsearch.budget import Budget
from abcsearch.catalog import catalog
from abcsearch.errors import PreparationError
from abcsearch.models.resnet import SmallResNet
from abcsearch.preparation.base import PASSES, Trainer, run_preparation
from abcsearch.preparation.registry import PREPARATIONS, make_preparation
from abcsearch.preparation.structures import INSIDE
from abcsearch.runs.settings import SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.testing import PreparationContract
from tests.preparation.own import Twice

SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu"}
KINDS = [
    ("slimming", {"strength": 0.05}),
    ("slimming", {"strength": 0.05, "step": "subgradient", "start_gamma": 0.5}),
    ("slimmable", {}),
    ("slimmable", {"networks": 3, "widths": "uniform", "grow": 0.9, "distil": False}),
    ("group_lasso", {"strength": 0.05}),
    ("soft_pruning", {}),
    ("variational", {"prior": 0.05}),
    ("autopruner", {"gate_lr": 0.1}),
    ("taylor_iterative", {"batches": 2, "at_once": 1}),
    ("iterate", {"rounds": 2}),
    ("pruning_net", {}),
    ("pruning_net", {"form": "low_rank", "widths": "uniform"}),
    ("pruning_net", {"form": "published", "hidden": 8, "widths": "free"}),
    ("dmcp", {"networks": 3}),
    ("dmcp", {"split": 0.0, "structures": 2}),
    ("tas", {}),
    ("tas", {"samples": 3, "structures": 2, "weights": "trained"}),
    ("lfpc", {}),
    ("lfpc", {"criteria": ["l1", "taylor"], "ratio": 0.5}),
]


class TestBuiltIn(PreparationContract):
    @pytest.fixture(
        autouse=True,
        params=KINDS,
        ids=lambda kind: "-".join([kind[0], *map(str, kind[1].values())]),
    )
    def _kind(self, request):
        self.name, self.options = request.param

    def make(self):
        return make_preparation(self.name, recipe=SHORT, **self.options)


def test_none_is_left_out():
    assert {name for name, _ in KINDS} == set(PREPARATIONS)


class Counted(torch.nn.Sequential):
    """Notes whose turn it was: a pass of the network, of a slice of it, or of a teacher."""

    passes: ClassVar[list[int]] = []

    def forward(self, x):
        self.passes.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_a_step_takes_as_many_passes_as_are_said(name, options, monkeypatch):
    """Never more, and as many in at least one step: chains of dmcp learn from the middle of the training on."""
    contract, most = PreparationContract(), []
    task = Task.of(
        Counted(*contract.model()).eval(),
        contract.data(),
        SearchSettings(budget=Budget(macs=0.5), n_trials=1),
    )
    train = Trainer._train

    def counting(self, lesson, recipe, name, images):
        step = lesson.step

        def counted(*batch):
            Counted.passes.clear()
            loss = step(*batch)
            most.append(len(Counted.passes))
            return loss

        lesson.step = counted
        return train(self, lesson, recipe, name, images)

    monkeypatch.setattr(Trainer, "_train", counting)
    preparation = make_preparation(name, recipe=SHORT, **options)
    made = run_preparation(preparation, task, Trainer(task.data.train, 0))
    assert max(most) == preparation.passes == made.facts[PASSES]


@pytest.mark.parametrize("name", ["slimmable", "pruning_net", "slimming"])
def test_a_teacher_is_a_pass_more(name):
    """Where a recipe distils; those that take no teacher refuse it elsewhere."""
    taught = make_preparation(name, recipe={**SHORT, "distillation": 0.5})
    assert taught.passes == make_preparation(name, recipe=SHORT).passes + 1


def test_the_passes_of_all_are_listed_and_in_the_table_of_the_documentation(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "preparation.md").read_text()
    for entry in catalog("preparations"):
        passes = make_preparation(entry.name).passes
        assert re.search(rf"\b{passes} forward pass(es)? per step$", entry.description)
        assert re.search(rf"^\| `{entry.name}` \|.*\| {passes} \|$", page, re.MULTILINE)
    monkeypatch.setitem(PREPARATIONS, "mine", Twice)  # which says nothing
    (mine,) = catalog("preparations", "mine")
    assert "per step" not in mine.description


@pytest.mark.parametrize("name", sorted(PREPARATIONS))
def test_where_its_structure_is_outside_of_the_budget_it_says_so(name):
    """Whole blocks have to go, and most preparations keep all of them."""
    space = SpaceOptions(lowest=0.6, levels=("filter", "stage", "block"))
    model = SmallResNet(in_channels=1, classes=2, widths=(4, 6), depths=(2, 2))
    settings = SearchSettings(budget=Budget(macs=0.25), n_trials=1, space=space)
    task = Task.of(model.eval(), PreparationContract().data(), settings)
    preparation = make_preparation(name, recipe=SHORT)
    if name == "iterate":
        with pytest.raises(PreparationError, match="keeps all blocks"):
            preparation.check(task)
        return
    preparation.check(task)
    made = run_preparation(preparation, task, Trainer(task.data.train, 0))
    inside = any(map(task.constraint.allows, made.starts))
    assert made.facts.get(INSIDE, True) == inside
    assert inside == (name in {"dmcp", "tas"})
