"""Preparations that make channels vanish: exact on problems with known answers, and refused where they cannot work."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.budget import Budget
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.models.resnet import SmallResNet
from abcsearch.preparation.autopruner import Deciding
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.group_lasso import SparseChannels
from abcsearch.preparation.makers import Makers
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.soft_pruning import Silencing
from abcsearch.preparation.structures import threshold_cut
from abcsearch.preparation.taylor_iterative import Bounds, Dwindling
from abcsearch.preparation.variational import NoisyScales
from abcsearch.rng import torch_seeded
from abcsearch.runs.settings import SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.testing import LessonContract
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.preparation.test_slimming import INPUTS, LIVE, Scaled
from tests.training.toys import network

STILL = {"nesterov": False, "weight_decay": 0, "device": "cpu"}


def orthogonal(count, columns, seed=0):
    """Rows of inputs that are orthogonal, of mean 0 and mean square 1, (count, columns)."""
    rows = torch.cat(
        [
            torch.ones(count, 1),
            torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)),
        ],
        1,
    )
    return (torch.linalg.qr(rows.double())[0][:, 1:] * count**0.5).float()


# -- group lasso


def channels_of_vectors():
    """Four channels, each a vector of six weights that one output shows: least squares in these vectors."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(4))
    model[2].weight.requires_grad = False
    return model


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_group_lasso_is_the_block_soft_threshold(momentum):
    """Of mean_c ||w_c - a_c||^2 + strength * usual * sum_c ||w_c||: vectors get shorter, or 0 as a whole."""
    inputs, strength = orthogonal(32, 6), 0.4
    wanted = torch.tensor(
        [[3.0, 0, 4, 0, 0, 0], [0.2, 0.1, 0, 0, 0, 0.1], [0, 0, 0, 0, 0, -2.0], [0.0] * 6]
    )
    split = Split(inputs.reshape(32, 1, 1, 6), inputs @ wanted.T)
    model = channels_of_vectors()
    graph = trace_channels(model, torch.zeros(1, 1, 1, 6))
    usual = model[1].weight.detach().norm(dim=1).mean().item()
    lesson = SparseChannels(model, graph, strength=strength, objective="regression")
    lr = 0.05 if momentum else 0.4
    train(lesson, split, Recipe(epochs=200, batch_size=32, lr=lr, momentum=momentum, **STILL))
    norms = wanted.norm(dim=1, keepdim=True)
    shorter = 4 / 2 * strength * usual
    expected = wanted * (1 - shorter / norms.clamp_min(1e-9)).clamp_min(0)
    found = model[1].weight.detach()
    assert torch.equal(found[[1, 3]], torch.zeros(2, 6))
    assert found[[0, 2]].numpy() == pytest.approx(expected[[0, 2]].numpy(), abs=5e-3)
    assert lesson.scores()[0] == pytest.approx(found.norm(dim=1).numpy() / usual)


def test_what_makes_a_channel_is_over_all_coupled_layers(tiny_model):
    """Scaling by gates of 0 and 1 is slicing, in every coupled layer; norms are those of the numbers that went."""
    graph = trace_channels(tiny_model, torch.zeros(1, 1, 6, 6))
    makers, before = (
        Makers(graph, tiny_model),
        sum(p.square().sum() for p in tiny_model.parameters()).item(),
    )
    kept = [(torch.arange(group.channels) % 2).float() for group in graph.prunable]
    gone = [
        norms.square()[own == 0].sum().item()
        for norms, own in zip(makers.norms(), kept, strict=True)
    ]
    makers.scale(kept)
    after = sum(p.square().sum() for p in tiny_model.parameters()).item()
    assert before - after == pytest.approx(sum(gone), rel=1e-5)
    assert all(
        bool((norms[own == 0] == 0).all()) for norms, own in zip(makers.norms(), kept, strict=True)
    )


def test_blocks_become_0_as_a_whole_and_leave_the_structure(tiny_data):
    """Where the space has them; the network without it computes the same."""
    with torch_seeded(0, "init"):
        model = SmallResNet(in_channels=1, classes=2, widths=(6, 8), depths=(2, 2)).eval()
    space = SpaceOptions(levels=("filter", "stage", "block"), alpha=1.0)
    task = Task.of(
        model, tiny_data, SearchSettings(budget=Budget(macs=0.9), n_trials=1, space=space)
    )
    name, column = task.graph.blocks[0].name, len(task.graph.prunable)
    lesson = SparseChannels(
        model, task.graph, [block.name for block in task.graph.blocks], strength=0.02
    )
    with torch.no_grad():
        for parameter in model.get_submodule(name).parameters():
            parameter.mul_(1e-4)
    train(lesson, tiny_data.train, Recipe(epochs=1, batch_size=45, lr=0.01, device="cpu"))
    assert lesson.empty() == [name]
    cut = threshold_cut(lesson.scores(), task.constraint, lesson.empty())
    assert cut.structure[column] == 0
    assert all(cut.structure[column + 1 :])
    dropped = (*task.space.full[:column], 0, *task.space.full[column + 1 :])
    images = tiny_data.validation.images
    with torch.no_grad():
        small = slice_model(model.eval(), task.graph, dropped, task.rank(model))
        assert torch.allclose(small(images), model(images), atol=1e-6)


class TestSparseChannels(LessonContract):
    def make(self, **options):
        model = network(seed=0)
        return SparseChannels(
            model, trace_channels(model, torch.zeros(1, 1, 8, 8)), **{"strength": 0.1, **options}
        )

    def others(self):
        return [self.make(strength=0.2), self.make(blocks=["bn"])]


# -- soft pruning


@pytest.mark.parametrize("criterion", ["reader_l2", "l2"])
def test_silenced_channels_contribute_nothing_after_every_epoch(tiny_model, tiny_data, criterion):
    """As many as the structure lacks, and the network is its slice, bit for bit in what it says."""
    graph = trace_channels(tiny_model, tiny_data.example)
    widths = [max(1, group.channels // 2) for group in graph.prunable]
    seen = []

    class Watched(Silencing):
        def after_epoch(self, epoch):
            super().after_epoch(epoch)
            model = copy.deepcopy(self.model).eval()
            small = slice_model(model, graph, widths, self.ranking)
            images = tiny_data.validation.images
            with torch.no_grad():
                assert torch.allclose(small(images), model(images), atol=1e-5)
            seen.append([int((gates == 0).sum()) for gates in self.gates()])

    lesson = Watched(tiny_model, graph, widths, criterion=criterion)
    train(lesson, tiny_data.train, Recipe(epochs=3, batch_size=45, lr=0.1, device="cpu"))
    assert (
        seen
        == [[group.channels - width for group, width in zip(graph.prunable, widths, strict=True)]]
        * 3
    )
    assert len(lesson.changes) == 2


def test_silenced_channels_come_back():
    """Soft, not hard: the first channel is the worst, and the only one that the labels need."""
    inputs = orthogonal(64, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4))
        model[2].weight.copy_(torch.tensor([[0.1, 5.0, 5.1, 5.2]]))
    model[1].weight.requires_grad = False
    graph = trace_channels(model, torch.zeros(1, 1, 1, 4))
    lesson = Silencing(model, graph, [2], criterion="reader_l2", objective="regression")
    split, silent = Split(inputs.reshape(64, 1, 1, 4), 3 * inputs[:, :1]), []
    recipe = Recipe(epochs=40, batch_size=64, lr=0.1, momentum=0, warmup_epochs=0, **STILL)
    train(lesson, split, recipe, on_epoch=lambda *_: silent.append(bool(lesson.gates()[0][0] == 0)))
    assert silent[:3] == [True] * 3
    assert not silent[-1]
    assert sum(lesson.changes) > 0


class TestSilencing(LessonContract):
    def make(self, **options):
        model = network(seed=0)
        graph = trace_channels(model, torch.zeros(1, 1, 8, 8))
        widths = [group.channels - 2 for group in graph.prunable]
        return Silencing(model, graph, **{"widths": widths, **options})

    def others(self):
        return [
            self.make(criterion="l1"),
            self.make(widths=[width - 1 for width in self.make()._widths]),
        ]


# -- variational


def test_the_posterior_is_the_known_one():
    """Of least squares in orthogonal inputs: mean a / (1 + d / 2), variance c / (2 + d), whatever the noise does."""
    rows = orthogonal(64, INPUTS)
    target = sum(slope * rows[:, index] for index, slope in LIVE.items())
    split = Split(rows.reshape(64, 1, 1, INPUTS), target[:, None])
    model, prior, strength = Scaled(), 0.5, 6.4
    lesson = NoisyScales(
        model,
        {"norm.weight": torch.ones(INPUTS, dtype=torch.bool)},
        prior=prior,
        strength=strength,
        objective="regression",
    )
    model.norm.bias.requires_grad = False  # shifts are trained: here they have nothing to do
    train(lesson, split, Recipe(epochs=600, batch_size=64, lr=0.05, momentum=0.9, **STILL))
    c = strength / 64
    d = c / prior**2
    slopes = np.array([LIVE.get(index, 0.0) for index in range(INPUTS)])
    mean, spread = (
        lesson.factors.mean.detach().numpy(),
        lesson.factors.log_spread.detach().exp().numpy(),
    )
    assert mean == pytest.approx(slopes / (1 + d / 2), abs=0.06)
    assert spread == pytest.approx(np.full(INPUTS, (c / (2 + d)) ** 0.5), rel=0.1)
    lesson.fold()
    assert model.norm.weight.detach().numpy() == pytest.approx(mean)


def test_the_divergence_is_that_of_two_normal_distributions():
    own = NoisyScales(
        Scaled(), {"norm.weight": torch.ones(INPUTS, dtype=torch.bool)}, prior=0.3
    ).factors
    with torch.no_grad():
        own.mean.copy_(torch.linspace(-1, 1, INPUTS))
        own.log_spread.copy_(torch.linspace(-2, 0, INPUTS))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(own.mean, own.log_spread.exp()), normal(0.0, 0.3)
    ).sum()
    assert own.divergence(0.3).item() == pytest.approx(expected.item(), rel=1e-5)


class TestNoisyScales(LessonContract):
    def make(self, **options):
        return NoisyScales(network(seed=0), {"bn.weight": torch.arange(6) > 1}, **options)

    def others(self):
        return [self.make(prior=0.2), self.make(strength=2.0)]


# -- gates


def three_of_eight():
    """Eight inputs, each a channel of its own behind a layer that stays; labels depend on three of them."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 8, generator=draws)
    labels = (rows[:, [1, 4, 6]] > 0).long() @ torch.tensor([4, 2, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad(), torch_seeded(0, "toy"):
        model[1].weight.copy_(torch.eye(8))
        model[1].bias.zero_()
        nn.init.normal_(model[2].weight, std=0.1)
    for parameter in model[1].parameters():
        parameter.requires_grad = False
    images = rows.reshape(512, 1, 1, 8)
    data = Data.from_tensors(
        (images[:384], labels[:384]), (images[384:], labels[384:]), validation=0.2
    )
    space = SpaceOptions(alpha=1.0, step=0.125)
    return Task.of(
        model.eval(), data, SearchSettings(budget=Budget(macs=3 / 8), n_trials=1, space=space)
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("autopruner", {}), ("taylor_iterative", {"batches": 10, "at_once": 1})],
)
def test_gates_find_the_channels_that_labels_depend_on(name, options):
    task = three_of_eight()
    recipe = {"epochs": 40, "batch_size": 64, "lr": 0.05, "device": "cpu"}
    made = run_preparation(
        make_preparation(name, recipe=recipe, **options), task, Trainer(task.data.train, 0)
    )
    assert made.starts == [(3,)]
    assert made.source.ranking.kept(0, 3).tolist() == [1, 4, 6]
    assert made.facts["its structure is inside the budget"]
    full, small = made.source.model, made.source.network((3,))
    images = task.data.validation.images
    with torch.no_grad():
        assert torch.allclose(full(images), small(images), atol=1e-5)
    if name == "autopruner":
        assert made.facts["of these with a gate of 0"] == 5
        assert made.facts["of these more than 0.05 from 0 and 1 when they were decided"] == 0


def test_the_expected_cost_ends_at_the_budget():
    task = three_of_eight()
    recipe = {"epochs": 40, "batch_size": 64, "lr": 0.05, "device": "cpu"}
    made = run_preparation(
        make_preparation("autopruner", recipe=recipe), task, Trainer(task.data.train, 0)
    )
    assert made.facts["expected cost by the budget"]["macs"] == pytest.approx(1, abs=0.02)


def test_dwindling_keeps_what_went_and_stops_at_the_budget():
    """One at a time, never again read, momentum or not; none goes once the budget is met."""
    task = three_of_eight()
    network_of = copy.deepcopy(task.base)
    lesson = Dwindling(
        network_of, task.graph, Bounds(task.space, task.constraint), batches=2, at_once=2
    )
    history = []

    class Watched(type(lesson)):
        def after_step(self, progress):
            super().after_step(progress)
            history.append(self.gates()[0].tolist())

    lesson.__class__ = Watched
    train(lesson, task.data.train, Recipe(epochs=10, batch_size=64, lr=0.05, device="cpu"))
    steps = np.array(history)
    assert (np.diff(steps, axis=0) <= 0).all()
    assert steps.sum(axis=1).tolist()[:7] == [8, 6, 6, 4, 4, 3, 3]
    assert (steps[6:] == steps[6]).all()
    assert lesson.met
    assert lesson.silenced == 5


def half(scores):
    return [max(1, len(own) // 2) for own in scores]


class TestDeciding(LessonContract):
    def make(self, **options):
        model = network(seed=0)
        graph = trace_channels(model, torch.zeros(1, 1, 8, 8))
        macs = float(graph.costs.macs([[group.channels for group in graph.prunable]])[0])
        has, common = (
            [True] * len(graph.prunable),
            {"costs": {"macs": macs / 2}, "widths": half, **options},
        )
        return Deciding(model, graph, has, **common)

    def others(self):
        return [
            self.make(weight=1.0),
            self.make(sharpest=5.0),
            self.make(decide=0.9),
            self.make(gate_lr=0.1),
            self.make(costs={"params": 9.0}),
        ]


class TestDwindling(LessonContract):
    def make(self, **options):
        model = network(seed=0)
        graph = trace_channels(model, torch.zeros(1, 1, 8, 8))
        space = graph.space()
        constraint = Budget(macs=0.3).bind(space, graph.costs)
        return Dwindling(
            model, graph, Bounds(space, constraint), **{"batches": 2, "at_once": 1, **options}
        )

    def others(self):
        return [self.make(batches=3), self.make(at_once=2), self.make(memory=0.5)]
