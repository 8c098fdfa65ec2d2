"""DMCP: chains of widths and blocks, exact on tables whose optimum is known, and on a network that is listed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abcsearch.budget import Budget
from abcsearch.channels.gates import gated
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.skipping import skipping
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import PreparationError
from abcsearch.models.resnet import SmallResNet
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.dmcp import BAND, Chains
from abcsearch.preparation.likeliest import expected_structure, likeliest
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.structures import targets
from abcsearch.rng import torch_seeded
from abcsearch.runs.settings import SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import PreparationContract
from abcsearch.testing.toys import ToyCosts, toy_space

LEVELS = ("filter", "stage", "block")
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu"}
WIDTHS = tuple(range(4, 25, 4))  # six widths of each of two layers


class Product:
    """Costs of a layer between two widths."""

    def macs(self, rows):
        rows = np.asarray(rows, dtype=np.int64)
        return rows[:, 0] * rows[:, 1]


def two_layers():
    return SearchSpace(tuple(Dimension(name, "width", WIDTHS, WIDTHS[-1]) for name in "ab"))


def learned(gains, wanted):
    """Chains that have learned additive gains, (2, 5), at a cost."""
    chains = Chains(two_layers())
    optimizer = torch.optim.Adam(chains.parameters(), lr=0.1)
    for _ in range(600):
        reached = torch.stack(chains.reached())[:, 1:]
        widths = WIDTHS[0] + 4 * reached.sum(dim=1)
        beyond = ((widths.prod() / wanted).log().abs() - BAND).clamp_min(0)
        loss = 30 * beyond - (gains * reached).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return chains


@pytest.mark.parametrize("share", np.linspace(0.1, 0.9, 9).tolist())
def test_the_optimum_of_a_table_is_among_the_likeliest(share):
    gains = torch.tensor([[5.0, 3, 2, 0.4, 0.1], [4, 3.5, 3, 2.5, 0.2]])
    wanted = share * WIDTHS[-1] ** 2
    constraint = Budget(macs=share).bind(two_layers(), Product())

    def gain(structure):
        return sum(
            float(own[: WIDTHS.index(w)].sum()) for own, w in zip(gains, structure, strict=True)
        )

    inside = [each for each in itertools.product(WIDTHS, repeat=2) if each[0] * each[1] <= wanted]
    chosen = likeliest(
        learned(gains, wanted).probabilities(), constraint, 5, np.random.default_rng(0)
    )
    assert all(constraint.allows(structure) for structure, _ in chosen)
    assert max(gain(structure) for structure, _ in chosen) == pytest.approx(max(map(gain, inside)))


def random_chains(space, seed):
    chains = Chains(space)
    with torch.no_grad():
        chains.steps.copy_(
            torch.randn(len(chains.steps), generator=torch.Generator().manual_seed(seed)) * 3
        )
    return chains


@given(st.integers(0, 999))
def test_gates_are_the_probabilities_that_channels_are_kept(seed):
    """Their sum is the expected width; channels that are ranked first are the likeliest."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 7, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(7, 5, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(5, 2, 1),
    )
    graph = trace_channels(model, torch.zeros(1, 1, 2, 2), check=False)
    ranking = rank_channels(model, graph)
    for alpha in (1.0, 0.6):
        chains = random_chains(graph.space(alpha), seed)
        probabilities = chains.probabilities()
        assert not chains.gates(ranking).blocks
        for index, gates in enumerate(each.detach() for each in chains.gates(ranking).groups):
            dimension = chains.shapes[index]
            mean = float(np.dot(dimension.choices, probabilities[index]))
            assert float(gates.sum()) == pytest.approx(mean, rel=1e-5)
            assert set(np.flatnonzero(gates == 1)) >= set(
                ranking.kept(index, dimension.choices[0]).tolist()
            )
            for width, reached in zip(dimension.choices, chains.reached()[index], strict=True):
                kept = ranking.kept(index, width)
                assert (gates[torch.as_tensor(kept)] >= reached - 1e-6).all()


# Blocks.


def residual(widths=(2, 3), depths=(2, 2)):
    """A network of random weights and statistics, in double precision, three of whose four blocks can be dropped."""
    with torch_seeded(0, "blocks"):
        model = SmallResNet(in_channels=1, classes=2, widths=widths, depths=depths).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def listed():
    """A residual network, its graph, and a space of few enough structures to add up the costs of all."""
    model = residual()
    graph = trace_channels(model, torch.zeros(1, 1, 6, 6, dtype=torch.float64), check=False)
    space = graph.space(1.0, levels=LEVELS)
    assert [d.kind for d in space.dimensions].count("block") == 3
    assert space.size == 2**3 * 3**3 * 2**3
    return model, graph, space


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_expected_costs_are_those_of_all_structures(listed, seed):
    """The sum of cost times probability over every structure of the space, blocks kept and dropped."""
    _, graph, space = listed
    chains = random_chains(space, seed)
    probabilities = chains.probabilities()
    every = np.array(list(itertools.product(*(range(len(p)) for p in probabilities))))
    shares = np.prod([p[column] for p, column in zip(probabilities, every.T, strict=True)], axis=0)
    for name in ("macs", "flops", "params"):
        expected = float(shares @ getattr(graph.costs, name)(space.values(every)))
        (actual,) = chains.shares(graph, {name: 1.0}).values()
        assert float(actual.detach()) == pytest.approx(expected, rel=1e-5)
    drawn = chains.gates(rank_channels(listed[0], graph))
    for gate, probability in zip(drawn.blocks, probabilities[len(drawn.groups) :], strict=True):
        assert float(gate.detach()) == pytest.approx(probability[1], abs=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_gates_of_chains_that_are_certain_are_the_slice(listed, seed):
    model, graph, space = listed
    candidate = space.sample(np.random.default_rng(seed))
    ranking = rank_channels(model, graph, "random", seed=seed)
    chains = Chains(space).double()
    taken = [
        torch.arange(1, len(d.choices)) <= d.choices.index(value)
        for d, value in zip(space.dimensions, candidate, strict=True)
    ]
    images = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        chains.steps.copy_(torch.where(torch.cat(taken), 1e4, -1e4))
        gates = chains.gates(ranking)
        with gated(model, graph, gates.groups), skipping(model, graph, gates.blocks):
            soft = model(images)
    assert torch.allclose(soft, slice_model(model, graph, candidate, ranking)(images), atol=1e-10)


def blocks_of(task, structure):
    """Which blocks a structure keeps, by name."""
    pairs = zip(task.space.dimensions, structure, strict=True)
    return {d.name: value for d, value in pairs if d.kind == "block"}


@pytest.mark.parametrize(("seed", "share"), [(0, 0.6), (1, 0.5)])
def test_the_optimum_over_widths_and_blocks_is_among_the_likeliest(listed, seed, share):
    """Gains of steps are additive, costs those of the network; in both cases the optimum drops one block."""
    _, graph, space = listed
    constraint = Budget(macs=share).bind(space, graph.costs)
    chains, wanted = Chains(space), {"macs": constraint.limits[0].high}
    gains = np.random.default_rng(seed).uniform(0.1, 5, len(chains.steps))
    optimizer = torch.optim.Adam(chains.parameters(), lr=0.15)
    chains.begin(graph, wanted)
    for _ in range(150):
        reached = torch.cat([each[1:] for each in chains.reached()])
        beyond = (chains.shares(graph, wanted)["macs"].log().abs() - BAND).clamp_min(0)
        loss = 30 * beyond - (torch.from_numpy(gains) * reached).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def gain(structure):
        steps = zip(space.dimensions, structure, strict=True)
        taken = [np.array(d.choices[1:]) <= value for d, value in steps]
        return float(gains @ np.concatenate(taken))

    every = itertools.product(*(d.choices for d in space.dimensions))
    best = max((each for each in every if constraint.allows(each)), key=gain)
    assert sum(best[-3:]) == 2
    chosen = likeliest(chains.probabilities(), constraint, 5, np.random.default_rng(0))
    assert best in [structure for structure, _ in chosen]


def test_blocks_are_proposed_to_go_unless_they_stay(tiny_data):
    space = SpaceOptions(alpha=1.0, levels=LEVELS)
    chosen = SearchSettings(budget=Budget(macs=0.4), n_trials=1, space=space)
    task = Task.of(residual((4, 6)).float(), tiny_data, chosen)
    last = [index for index, d in enumerate(task.space.dimensions) if d.kind == "block"]
    for blocks in (True, False):
        dmcp = make_preparation("dmcp", blocks=blocks, structures=20, networks=2, recipe=SHORT)
        starts = run_preparation(dmcp, task, Trainer(tiny_data.train, 0)).starts
        assert all(task.constraint.allows(start) for start in starts)
        assert any(start[index] == 0 for start in starts for index in last) is blocks


class TestWithBlocks(PreparationContract):
    """The contract of all preparations, with blocks in the space."""

    def make(self):
        return make_preparation("dmcp", networks=3, recipe=SHORT)

    def model(self):
        return residual((4, 6), (2, 1)).float()

    def task(self):
        space = SpaceOptions(levels=LEVELS)
        chosen = SearchSettings(budget=Budget(macs=0.5), n_trials=1, seed=self.seed, space=space)
        return Task.of(self.model(), self.data(), chosen)


# What is proposed.


@given(st.integers(0, 999), st.sampled_from([0.3, 0.5, 0.8]))
def test_likeliest_of_a_listed_space_are_the_likeliest(seed, share):
    space = SearchSpace(tuple(Dimension(f"w{i}", "width", (2, 4, 6, 8), 8) for i in range(4)))
    constraint = Budget(macs=share).bind(space, ToyCosts())
    probabilities = random_chains(space, seed).probabilities()
    chosen = likeliest(probabilities, constraint, 7, np.random.default_rng(0))
    every = [each for each in itertools.product((2, 4, 6, 8), repeat=4) if constraint.allows(each)]
    limit = constraint.limits[0]
    spent = [each for each in every if limit.cost(np.array([each]))[0] >= 0.8 * limit.high]

    def score(structure):
        pairs = zip(probabilities, space.indices(structure), strict=True)
        return sum(np.log(max(p[i], 1e-30)) for p, i in pairs)

    best = sorted(map(score, spent), reverse=True)[: len(chosen)]
    assert [value for _, value in chosen[: len(best)]] == pytest.approx(best)
    assert len({structure for structure, _ in chosen}) == len(chosen)


def test_a_large_space_is_climbed(monkeypatch):
    """What is not listed is found nearly as well, by draws that are repaired: also where chains are certain."""
    space = toy_space(4, 5)
    constraint = Budget(macs=0.5).bind(space, ToyCosts())
    for seed in range(4):
        probabilities = random_chains(space, seed).probabilities()
        listed = likeliest(probabilities, constraint, 3, np.random.default_rng(0))
        with monkeypatch.context() as patch:
            patch.setattr("abcsearch.preparation.likeliest._LISTED", 0)
            climbed = likeliest(probabilities, constraint, 3, np.random.default_rng(0))
        assert climbed[0][1] == pytest.approx(listed[0][1])
        # Of the full network, which is outside
        certain = [np.eye(len(p))[-1] for p in probabilities]
        with monkeypatch.context() as patch:
            patch.setattr("abcsearch.preparation.likeliest._LISTED", 0)
            assert all(
                constraint.allows(each)
                for each, _ in likeliest(certain, constraint, 3, np.random.default_rng(0))
            )


@given(st.integers(0, 999), st.sampled_from([0.3, 0.5, 0.8]))
def test_the_expected_structure_is_in_proportion_and_inside(seed, share):
    space = toy_space(4, 30)
    constraint = Budget(macs=share).bind(space, ToyCosts())
    probabilities = random_chains(space, seed).probabilities()
    structure = expected_structure(probabilities, constraint)
    assert constraint.allows(structure)
    pairs = [
        (width / float(np.dot(d.choices, p)), d.choices.index(width), len(d.choices))
        for width, d, p in zip(structure, space.dimensions, probabilities, strict=True)
        if d.kind == "width" and len(d.choices) > 1
    ]
    free = [ratio for ratio, index, count in pairs if 0 < index < count - 1]
    assert not free or max(free) <= 1.35 * min(free)


def test_chains_begin_at_the_budget(tiny_model, tiny_data):
    for budget in (Budget(macs=0.5), Budget(params=0.3, macs=0.9), Budget(macs=(0.4, 0.6))):
        settings = SearchSettings(budget=budget, n_trials=1, space=SpaceOptions(alpha=1.0))
        task = Task.of(tiny_model, tiny_data, settings)
        costs, chains = targets("dmcp", task.constraint), Chains(task.space)
        chains.begin(task.graph, costs)
        assert max(
            map(float, (share.detach() for share in chains.shares(task.graph, costs).values()))
        ) == pytest.approx(1, abs=1e-4)


def test_chains_come_near_the_budget_and_propose_structures_inside(tiny_model, tiny_data):
    settings = SearchSettings(budget=Budget(macs=0.5), n_trials=1, space=SpaceOptions(alpha=1.0))
    task = Task.of(tiny_model, tiny_data, settings)
    recipe = {"epochs": 12, "batch_size": 32, "lr": 0.05, "device": "cpu"}
    prepared = run_preparation(
        make_preparation("dmcp", recipe=recipe), task, Trainer(tiny_data.train, 0)
    )
    assert 1 <= len(set(prepared.starts)) == len(prepared.starts) <= 5
    assert all(task.constraint.allows(start) for start in prepared.starts)
    (share,) = prepared.facts["expected cost by the budget"].values()
    assert 0.8 < share < 1.25
    assert prepared.facts["log probabilities of its structures"] == sorted(
        prepared.facts["log probabilities of its structures"], reverse=True
    )


def test_budgets_without_an_expectation_are_refused(tiny_model, tiny_data):
    settings = SearchSettings(budget=Budget(peak_activation=0.9), n_trials=1)
    with pytest.raises(
        PreparationError, match="dmcp needs a budget whose expectation it can follow"
    ):
        make_preparation("dmcp").check(Task.of(tiny_model, tiny_data, settings))
