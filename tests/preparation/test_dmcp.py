"""DMCP: chains of widths, exact on tables whose optimum is known."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.budget import Budget
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import PreparationError
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.dmcp import BAND, Chains
from abcsearch.preparation.likeliest import expected_structure, likeliest
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.structures import targets
from abcsearch.runs.settings import SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing.toys import ToyCosts, toy_space

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
        for index, gates in enumerate(each.detach() for each in chains.gates(ranking)):
            dimension = chains.widths[index]
            mean = float(np.dot(dimension.choices, probabilities[index]))
            assert float(gates.sum()) == pytest.approx(mean, rel=1e-5)
            assert set(np.flatnonzero(gates == 1)) >= set(
                ranking.kept(index, dimension.choices[0]).tolist()
            )
            for width, reached in zip(dimension.choices, chains.reached()[index], strict=True):
                kept = ranking.kept(index, width)
                assert (gates[torch.as_tensor(kept)] >= reached - 1e-6).all()


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
