"""TAS and LFPC: draws by Gumbel's softmax, gates that are slices, toys whose answers are known."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abcsearch.budget import Budget
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.orders import Ranking
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.skipping import skipping
from abcsearch.channels.slicing import slice_model
from abcsearch.data.splits import Data
from abcsearch.errors import CandidateError, ConfigError, ModelError, PreparationError
from abcsearch.models.resnet import SmallResNet
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.gumbel import Logits, Relaxed
from abcsearch.preparation.lfpc import Choosing, kept_by_each
from abcsearch.preparation.likeliest import likeliest
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.tas import Sampling, Sizes, bounds_of
from abcsearch.rng import torch_seeded
from abcsearch.runs.settings import SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.space import Dimension, SearchSpace
from abcsearch.training.checkpoints import network_hash
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe

LEVELS = ("filter", "stage", "block")
WIDTHS = tuple(range(4, 25, 4))  # six widths of each of two layers
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu"}


class Product:
    """Costs of a layer between two widths."""

    def macs(self, rows):
        rows = np.asarray(rows, dtype=np.int64)
        return rows[:, 0] * rows[:, 1]


@pytest.fixture(scope="module")
def blocky():
    """A small residual network in double precision, two of whose blocks can be dropped, and its graph."""
    with torch_seeded(0, "blocky"):
        model = SmallResNet(in_channels=1, classes=3, widths=(5, 7), depths=(2, 2)).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model, trace_channels(model, torch.zeros(1, 1, 6, 6, dtype=torch.float64), check=False)


def images(seed, count=5):
    return torch.randn(
        count, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def some_images(count=40):
    labels = torch.arange(count) % 2
    data = Data.from_tensors(
        (torch.randn(count, 1, 6, 6), labels), (torch.randn(8, 1, 6, 6), torch.arange(8) % 2)
    )
    return data.train


def task_of(model, data, budget=None, **space):
    chosen = SearchSettings(
        budget=budget or Budget(macs=0.5), n_trials=1, space=SpaceOptions(**space)
    )
    return Task.of(model, data, chosen)


# Draws.


@given(st.integers(0, 99), st.floats(0.1, 5))
def test_drawn_weights_are_those_of_some_choices_and_add_up_to_one(seed, temperature):
    logits = Logits([2, 5, 3])
    with torch.no_grad():
        logits.values.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) * 3)
    draws = torch.Generator().manual_seed(seed)
    for samples in (2, 3, 9):
        weights = logits.mixed(temperature, samples, draws)
        assert torch.allclose(weights.sum(dim=1), torch.ones(3))
        assert (weights[~logits.exists] == 0).all()
        assert ((weights > 0).sum(dim=1) <= torch.tensor([2, 5, 3]).clamp_max(samples)).all()
    one = logits.hard(temperature, draws)
    assert one.detach().unique().tolist() == [0, 1]
    assert (one.sum(dim=1) == 1).all()


def test_what_is_drawn_first_is_as_likely_as_the_softmax_says():
    logits = Logits([3])
    with torch.no_grad():
        logits.values.copy_(torch.tensor([[0.0, 1.0, 2.0]]))
    draws = torch.Generator().manual_seed(0)
    counts = torch.stack([logits.hard(1.0, draws)[0].detach() for _ in range(3000)]).mean(dim=0)
    expected = torch.tensor(logits.probabilities()[0], dtype=torch.float32)
    assert torch.allclose(counts, expected, atol=4 * 0.5 / math.sqrt(3000))
    pairs = torch.stack([logits.mixed(1.0, 2, draws)[0].detach() > 0 for _ in range(500)])
    assert (pairs.sum(dim=1) == 2).all()  # never the same choice twice
    assert pairs.any(dim=0).all()


# Gates.


@settings(max_examples=25)
@given(st.integers(0, 999))
def test_a_draw_of_one_choice_is_the_slice(blocky, seed):
    """In evaluation mode, with widths and blocks of any structure, to rounding."""
    model, graph = blocky
    space = graph.space(1.0, levels=LEVELS)
    candidate = space.sample(np.random.default_rng(seed))
    ranking = rank_channels(model, graph, "random", seed=seed)
    sizes = Sizes(space)
    with torch.no_grad():  # so sure of one choice that noise does not matter
        rows = [index for index, d in enumerate(sizes.shapes) if len(d.choices) > 1]
        for row, index in enumerate(rows):
            sizes.values[row, sizes.shapes[index].choices.index(candidate[index])] = 1e4
    lesson = Sampling(model, graph, sizes, some_images(), ranking=ranking, bounds={})
    with torch.no_grad():
        gates = lesson.gates(torch.Generator().manual_seed(seed))
        with lesson._through(gates):
            soft = model(images(seed))
    sliced = slice_model(model, graph, candidate, ranking)(images(seed))
    assert torch.allclose(soft, sliced, atol=1e-10)
    assert gates.blocks
    assert not any(module._forward_hooks for module in model.modules())
    assert sizes.expected(graph, {"macs": 0})["macs"].item() == pytest.approx(
        graph.costs.macs([candidate])[0]
    )


def test_block_gates_mix_the_block_with_its_input(blocky):
    model, graph = blocky
    x = images(0)
    assert len(graph.blocks) == 3
    whole = model(x)
    with skipping(model, graph, [1.0, 1.0, 1.0]):
        assert torch.allclose(model(x), whole)
    gate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    with skipping(model, graph, [gate, 1.0, 1.0]):
        model(x).sum().backward()
    assert gate.grad.abs() > 1e-6
    with skipping(model, graph, []):
        assert torch.equal(model(x), whole)
    with (
        pytest.raises(CandidateError, match="one number per block, found 1 for 3 blocks"),
        skipping(model, graph, [1]),
    ):
        pass
    with pytest.raises(ZeroDivisionError), skipping(model, graph, [0, 0, 0]):
        raise ZeroDivisionError
    assert torch.equal(model(x), whole)


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([1.0, 0.6]))
def test_gates_are_the_weights_of_the_widths_that_keep_a_channel(blocky, seed, alpha):
    model, graph = blocky
    space = graph.space(alpha, levels=LEVELS)
    ranking, sizes = rank_channels(model, graph), Sizes(space)
    lesson = Sampling(model, graph, sizes, some_images(), ranking=ranking, bounds={})
    gates = lesson.gates(torch.Generator().manual_seed(seed))
    weights = sizes.whole(sizes.mixed(lesson.temperature, 2, torch.Generator().manual_seed(seed)))
    for index, (dimension, row) in enumerate(zip(sizes.shapes, weights, strict=True)):
        if dimension.kind == "block":
            assert torch.allclose(gates.blocks[index - len(gates.groups)], row[1])
            continue
        for channel in range(dimension.full):
            keeping = [
                row[k] for k, w in enumerate(dimension.choices) if channel in ranking.kept(index, w)
            ]
            assert torch.allclose(
                gates.groups[index][channel], sum(keeping, torch.zeros(())), atol=1e-6
            )


# TAS.


def learned(gains, share):
    """Logits that have learned additive gains, (2, 5), of two layers, at a cost."""
    space = SearchSpace(tuple(Dimension(name, "width", WIDTHS, WIDTHS[-1]) for name in "ab"))
    sizes, wanted = Sizes(space), share * WIDTHS[-1] ** 2
    optimizer = torch.optim.Adam(sizes.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(0)
    for step in range(300):
        weights = sizes.mixed(0.1 + 2.45 * (1 + math.cos(math.pi * step / 300)), 2, draws)
        reached = weights.flip(1).cumsum(1).flip(1)[:, 1:]
        widths = (sizes.logs().exp() * torch.tensor(WIDTHS)).sum(dim=1)
        cost = widths.prod() / wanted
        loss = (
            20 * (cost.log().clamp_min(0) + (0.95 / cost).log().clamp_min(0))
            - (gains * reached).sum()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return space, sizes


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_optimum_of_a_table_is_among_the_likeliest(share):
    gains = torch.tensor([[5.0, 3, 2, 0.4, 0.1], [4, 3.5, 3, 2.5, 0.2]])
    space, sizes = learned(gains, share)
    constraint = Budget(macs=share).bind(space, Product())

    def gain(structure):
        return sum(
            float(own[: WIDTHS.index(w)].sum()) for own, w in zip(gains, structure, strict=True)
        )

    inside = [each for each in itertools.product(WIDTHS, repeat=2) if constraint.allows(each)]
    chosen = likeliest(sizes.of_all(), constraint, 5, np.random.default_rng(0))
    assert max(gain(structure) for structure, _ in chosen) == pytest.approx(max(map(gain, inside)))


@pytest.mark.parametrize(
    "budget", [Budget(macs=0.5), Budget(params=0.3, macs=0.9), Budget(flops=(0.4, 0.6))]
)
def test_logits_begin_at_the_budget(tiny_data, budget):
    model = SmallResNet(in_channels=1, classes=2, widths=(6, 8), depths=(2, 2)).eval()
    task = task_of(model, tiny_data, budget, levels=LEVELS)
    sizes, bounds = Sizes(task.space), bounds_of(task.constraint, task.graph, 0.05)
    sizes.begin(task.graph, {name: high for name, (_, high) in bounds.items()})
    costs = sizes.expected(task.graph, bounds)
    assert max(
        float(costs[name].detach()) / high for name, (_, high) in bounds.items()
    ) == pytest.approx(1, abs=1e-4)
    assert all(low < high for low, high in bounds.values())


def test_tas_comes_near_the_budget_and_proposes_structures_inside(tiny_data):
    with torch_seeded(0, "init"):
        model = SmallResNet(in_channels=1, classes=2, widths=(6, 8), depths=(2, 2)).eval()
    task = task_of(model, tiny_data, alpha=1.0, levels=LEVELS)
    preparation = make_preparation("tas", recipe={**SHORT, "epochs": 12, "batch_size": 32})
    prepared = run_preparation(preparation, task, Trainer(tiny_data.train, 0))
    assert 1 <= len(set(prepared.starts)) == len(prepared.starts) <= 5
    assert all(task.constraint.allows(start) for start in prepared.starts)
    (share,) = prepared.facts["expected cost by the budget"].values()
    assert 0.8 < share < 1.2
    assert network_hash(prepared.source.model) == network_hash(task.base)
    trained = make_preparation("tas", weights="trained", recipe=SHORT)
    source = run_preparation(trained, task, Trainer(tiny_data.train, 0)).source
    assert network_hash(source.model) != network_hash(task.base)


# LFPC.


class Reading(nn.Module):
    """Eight channels, of which the first three are what the labels depend on; four are kept."""

    def __init__(self):
        super().__init__()
        self.make, self.read = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.make.weight.copy_(torch.eye(8)[:, :, None, None])
            self.read.weight.zero_()
            self.read.weight[1, :3] = 2.0

    def forward(self, x):
        return self.read(self.make(x)).mean(dim=(2, 3))


@pytest.mark.parametrize("start", [-1.0, 0.0, 1.0])
def test_the_criterion_that_is_right_is_chosen_from_any_start(start):
    """Toy: criterion 0 keeps what labels depend on, criterion 1 the rest."""
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 8, 2, 2, generator=draws)
    labels = (inputs[:, :3].sum(dim=1).mean(dim=(1, 2)) > 0).long()
    data = Data.from_tensors((inputs, labels), (inputs[:8], labels[:8]))
    model = Reading()
    graph = trace_channels(model, torch.zeros(1, 8, 2, 2), check=False)
    right = np.array([8.0, 7, 6, 5, 4, 3, 2, 1])
    ranking = Ranking(
        criterion="a", scores=(right,), others=(Ranking(criterion="b", scores=(-right,)),)
    )
    logits = Logits([2])
    with torch.no_grad():
        logits.values.copy_(torch.tensor([[-start, start]]))
    lesson = Choosing(
        model, graph, logits, data.train, masks=kept_by_each(ranking, (4,)), open_=[True]
    )
    train(lesson, data.train, Recipe(epochs=15, batch_size=16, lr=0.01, device="cpu"), seed=1)
    assert lesson.chosen() == [0]
    assert logits.probabilities()[0][0] > 0.9
    assert lesson.agreed == 0


def test_criteria_that_agree_are_said_and_leave_the_logits_alone(tiny_model, tiny_data):
    graph = trace_channels(tiny_model, tiny_data.example, check=False)
    ranking = rank_channels(tiny_model, graph)
    same = Ranking(
        criterion="a",
        scores=ranking.scores,
        others=(Ranking(criterion="b", scores=ranking.scores),),
    )
    narrow = tuple(group.channels // 2 for group in graph.prunable)
    logits = Logits([2] * len(narrow))
    masks = kept_by_each(same, narrow)
    lesson = Choosing(
        tiny_model, graph, logits, tiny_data.train, masks=masks, open_=[True] * len(narrow)
    )
    train(lesson, tiny_data.train, Recipe(epochs=1, batch_size=64, lr=0.01, device="cpu"), seed=1)
    assert lesson.agreed == len(narrow)
    assert np.allclose(logits.probabilities(), 0.5, atol=1e-5)


def test_lfpc_begins_a_search_over_criteria_and_settles_one_without(tiny_model, tiny_data):
    names = ("l1", "fpgm", "random")
    preparation = make_preparation("lfpc", criteria=list(names), recipe=SHORT)
    alone = run_preparation(
        preparation, task_of(tiny_model, tiny_data), Trainer(tiny_data.train, 0)
    )
    assert alone.source.ranking.criteria == ("lfpc",)
    task = Task.of(
        tiny_model, tiny_data, SearchSettings(budget=Budget(macs=0.5), n_trials=1, criterion=names)
    )
    both = run_preparation(
        make_preparation("lfpc", recipe=SHORT), task, Trainer(tiny_data.train, 0)
    )
    assert both.source.ranking.criteria == names
    (start,) = both.starts
    task.space.check(start)
    assert task.constraint.allows(start)
    counts = both.facts["of these by criterion"]
    assert sum(counts.values()) == both.facts["layers that choose"] > 0
    chosen = list(task.space.criteria(start).values())
    assert {name: chosen.count(name) for name in names[1:]} == {
        name: counts[name] for name in names[1:]
    }
    # Cut by what was chosen: the same channels as by one ranking alone of the same choices.
    assert alone.starts[0] == start[: len(alone.starts[0])]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tas", {"samples": 1}, "samples is at least|samples is from 2"),
        ("tas", {"coldest": 6.0}, "coldest"),
        ("tas", {"split": 1.0}, "split"),
        ("tas", {"logit_rl": 1}, "did you mean 'logit_lr'"),
        ("lfpc", {"criteria": ["l1"]}, "at least two, found 'l1' alone"),
        ("lfpc", {"criteria": "l1"}, "criteria is a list of names"),
        ("lfpc", {"criteria": ["l1", "fgpm"]}, "did you mean 'fpgm'"),
        ("lfpc", {"criteria": ["l1", "l1"]}, "is there 2 times"),
        ("lfpc", {"structure": [1.5]}, "list of whole numbers"),
        ("lfpc", {"structure": [1], "ratio": 0.5}, "leave one of them out"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ConfigError, match=said):
        make_preparation(name, **options)


def test_what_cannot_be_expressed_is_refused_before_training(tiny_model, tiny_data):
    with pytest.raises(
        PreparationError, match="tas needs a budget whose expectation it can follow"
    ):
        make_preparation("tas").check(task_of(tiny_model, tiny_data, Budget(peak_activation=0.9)))
    chosen = SearchSettings(budget=Budget(macs=0.5), n_trials=1, criterion=("l1", "l2"))
    with pytest.raises(PreparationError, match="criteria cannot be chosen from"):
        make_preparation("tas").check(Task.of(tiny_model, tiny_data, chosen))
    one = task_of(tiny_model, tiny_data, Budget(macs=1.0), alpha=0.5, step=0.5)
    assert not one.space.last_indices.any()
    with pytest.raises(PreparationError, match="every dimension of the space has one choice"):
        make_preparation("tas").check(one)
    whole = task_of(tiny_model, tiny_data, Budget(macs=1.0), alpha=1.0)
    with pytest.raises(PreparationError, match="keeps all channels of every layer"):
        make_preparation("lfpc", ratio=1.0).check(whole)
    with pytest.raises(PreparationError, match="lfpc: structure: a candidate of this space has"):
        make_preparation("lfpc", structure=[3]).check(whole)
    with pytest.raises(PreparationError, match="leaves none to learn the structure on"):
        run_preparation(
            make_preparation("tas", split=0.001, recipe=SHORT),
            task_of(tiny_model, tiny_data),
            Trainer(tiny_data.train, 0),
        )


def test_logits_that_are_not_finite_end_the_training_with_a_word(
    tiny_model, tiny_data, monkeypatch
):
    learn = Relaxed._learn

    def spoiled(lesson, *args):
        learn(lesson, *args)
        lesson.logits.values.grad.fill_(math.nan)

    monkeypatch.setattr(Relaxed, "_learn", spoiled)
    for name in ("tas", "lfpc"):
        with pytest.raises(
            ModelError, match=r"logits are not finite .*; lower lr, or .*logit_lr = 0\.1$"
        ):
            run_preparation(
                make_preparation(name, recipe=SHORT),
                task_of(tiny_model, tiny_data),
                Trainer(tiny_data.train, 0),
            )


def test_a_ratio_outside_of_the_budget_is_said(tiny_model, tiny_data):
    task = task_of(tiny_model, tiny_data, Budget(macs=0.2))
    made = run_preparation(
        make_preparation("lfpc", ratio=0.9, recipe=SHORT), task, Trainer(tiny_data.train, 0)
    )
    assert made.facts["its structure is inside the budget"] is False
    assert not task.constraint.allows(made.starts[0])


def test_norms_over_channels_are_of_those_that_are_drawn(tiny_data):
    """They are weighed with the gates, so what is learned is what the slice computes."""
    with torch_seeded(0, "norms"):
        first = [
            nn.Conv2d(1, 6, 3, padding=1),
            nn.GroupNorm(1, 6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1),
        ]
        model = nn.Sequential(
            *first,
            nn.GroupNorm(1, 8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        )
    task = task_of(model.eval(), tiny_data)
    assert task.graph.norms
    for name in ("tas", "lfpc"):
        preparation = make_preparation(name, recipe=SHORT)
        preparation.check(task)
        made = run_preparation(preparation, task, Trainer(tiny_data.train, 0))
        assert all(task.constraint.allows(start) for start in made.starts)
    structure = made.starts[0]
    masks = kept_by_each(made.source.ranking, structure)
    logits = Logits([1] * len(masks))
    lesson = Choosing(
        made.source.model,
        task.graph,
        logits,
        tiny_data.train,
        masks=masks,
        open_=[True] * len(masks),
    )
    x = tiny_data.validation.part(torch.arange(5)).loaded().images
    with torch.no_grad(), lesson._through(lesson.gates(torch.Generator())):
        gated = made.source.model(x)
    assert torch.allclose(gated, made.source.network(structure)(x), atol=1e-5)
