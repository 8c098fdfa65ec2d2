"""The agent's bounds, what it is told, what it remembers, and that it learns."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from abcsearch.budget import Budget, Constraint
from abcsearch.errors import SearcherError
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.searchers.ddpg import DDPG, truncated_normal
from abcsearch.searchers.ddpg_agent import Agent
from abcsearch.searchers.ddpg_environment import Environment, Transitions
from abcsearch.searchers.ddpg_options import DDPGOptions
from abcsearch.searchers.registry import make_searcher
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import ToyCosts, toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SMALL = {"hidden": 16, "warmup": 16, "replay": 20, "updates_per_episode": 4}
BUDGETS = (
    {"macs": 0.5},
    {"macs": 0.2},
    {"macs": (0.45, 0.5)},
    {"params": (0.5, 0.6)},
    {"macs": 0.6, "params": 0.7},
    {"macs": (0.3, 0.6), "params": 0.8},
)


def small_space():
    widths = [
        Dimension(f"w{i}", "width", choices, 9)
        for i, choices in enumerate([(1, 3, 6, 8), (2, 4, 9), (5,)])
    ]
    return SearchSpace(
        (*widths, Dimension("w3", "width", (1, 2, 4, 7)), Dimension("b", "block", (0, 1)))
    )


def bound(budget, space=None):
    space = space or small_space()
    return space, Budget(**budget).bind(space, ToyCosts())


def tell(searcher, asked, fitness, start=0):
    """Tells trials of the given fitness; None is a failure."""
    told = [
        Evaluation(fitness=None, failure="made to fail")
        if value is None
        else Evaluation(fitness=value)
        for value in fitness
    ]
    searcher.tell(
        [Trial(start + i, c, e) for i, (c, e) in enumerate(zip(asked, told, strict=True))]
    )


def play(searcher, n):
    """Returns the fitness of n trials of the toy problem, and their candidates."""
    fitness, candidates = [], []
    while len(candidates) < n:
        asked = searcher.ask(8)
        tell(searcher, asked, [toy_fitness(searcher.space, c) for c in asked], len(candidates))
        fitness += [toy_fitness(searcher.space, c) for c in asked]
        candidates += asked
    return np.array(fitness), candidates


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_bounds_are_those_of_all_completions(budget):
    """A choice is allowed if the smallest completion keeps the upper bounds, and the largest reaches the lower."""
    space, constraint = bound(budget)
    environment = Environment(constraint, 0.8)
    every = np.array(list(itertools.product(*(d.choices for d in space.dimensions))))
    targets = [(m.cost, 0.8 * m.high) for m in constraint.limits if not m.low]
    for i, dimension in enumerate(space.dimensions):
        for prefix in np.unique(every[:, :i], axis=0):
            ends = []
            for position, value in enumerate(dimension.choices):
                rows = every[(every[:, : i + 1] == [*prefix, value]).all(axis=1)]
                fits = all((m.cost(rows) <= m.high).any() for m in constraint.limits)
                enough = all((m.cost(rows) >= m.low).any() for m in constraint.limits)
                spent = any((cost(rows) >= target).any() for cost, target in targets) or not targets
                if fits:
                    ends.append((position, enough and spent))
            highest = max((p for p, _ in ends), default=0)
            lowest = min((p for p, good in ends if good), default=highest)
            row = np.array([[*prefix, *space.full[i:]]])
            assert environment.bounds(row, i) == (lowest, highest)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("warmup", [0, 10**6])
def test_episodes_end_inside_the_budget_and_spend_it(budget, warmup):
    space, constraint = bound(budget, toy_space())
    for options, fill in (({"fill": 0.8}, 0.8), ({}, 0.95)):
        searcher = DDPG(space, constraint, options=DDPGOptions(hidden=16, warmup=warmup, **options))
        rows = searcher._roll_out(300)
        for limit in constraint.limits:
            assert (limit.cost(rows) <= limit.high).all()
        if len(constraint.limits) == 1:
            limit = constraint.limits[0]
            assert (limit.cost(rows) >= (limit.low or fill * limit.high)).all()
        if options:  # fewer structures spend nearly all
            assert len(np.unique(rows, axis=0)) > (100 if warmup else 20)


def test_without_fill_small_structures_are_allowed():
    space, constraint = bound({"macs": 0.5})
    low, high = Environment(constraint, 0.0).bounds(np.array([space.full]), 0)
    assert (low, high) == (0, 3)


def test_random_actions_are_uniform_where_nothing_binds():
    searcher = DDPG(small_space(), options=DDPGOptions(hidden=4, warmup=10**6))
    rows = searcher._roll_out(4000)
    for column, dimension in zip(rows.T, searcher.space.dimensions, strict=True):
        _, counts = np.unique(column, return_counts=True)
        assert np.allclose(counts / 4000, 1 / len(dimension.choices), atol=0.03)


def test_actions_are_rounded_to_the_nearest_choice():
    environment = Environment(Constraint(small_space()), 0.8)
    # Of 9 channels, (1, 3, 6, 8) can be kept.
    actions = np.array([0.0, 2 / 9 - 0.01, 2 / 9 + 0.01, 4.4 / 9, 4.6 / 9, 0.99, 1.0])
    assert environment.positions(actions, 0).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert environment.positions(np.array([0.0, 0.49, 0.5, 1.0]), 4).tolist() == [0, 0, 1, 1]


def test_states_by_hand():
    """Three widths of 4, 4 and 2; costs are ab + bc + a + b + c: 34 for the full network."""
    descriptors = ((1, 4, 8, 8, 1, 3, 100), (4, 4, 8, 8, 2, 3, 300), (4, 2, 4, 4, 1, 1, 200))
    dims = tuple(
        Dimension(f"w{i}", "width", tuple(range(1, n + 1))) for i, n in enumerate((4, 4, 2))
    )
    space = SearchSpace(dims, descriptors)
    environment = Environment(Budget(macs=0.5).bind(space, ToyCosts()), 0.8)
    rows = np.array([[2, 3, 1]])
    (states,), (actions,) = environment.episodes(rows)
    assert states.dtype == actions.dtype == np.float32
    assert environment.n_features == 12
    # index, kind, in, out, height, width, stride, kernel, macs
    assert states[0, :9].tolist() == [0, 0, 0, 1, 1, 1, 0, 1, 0]
    assert states[1, :9].tolist() == [0.5, 0, 1, 1, 1, 1, 1, 1, 1]
    assert states[2, :9].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0.5]
    # removed, still to decide, previous action
    assert np.allclose(states[0, 9:], [0, (34 - 5) / 34, 1])
    assert np.allclose(states[1, 9:], [10 / 34, (24 - 7) / 34, 0.5])  # (2, 4, 2): 24; (2, 1, 1): 7
    # (2, 3, 2): 19; (2, 3, 1): 15
    assert np.allclose(states[2, 9:], [(34 - 19) / 34, (19 - 15) / 34, 0.75])
    assert np.allclose(actions[:, 0], [0.5, 0.75, 0.5])
    # At most 17 macs: with 2 in front, the second may be 2 (2, 2, 1: 11) or 3 (15); 1 misses 80 % of it (10).
    assert np.allclose(actions[1, 1:], [0.5, 0.75])


def test_states_without_descriptors_or_costs():
    space = toy_space()
    environment = Environment(Constraint(space), 0.8)
    (states,), (actions,) = environment.episodes(np.array([space.full]))
    assert environment.n_features == 7
    assert ((states >= 0) & (states <= 1)).all()
    assert np.allclose(
        states[0, 4:],
        [1 - sum(d.choices[-1] for d in space.dimensions) / sum(space.full), 0.57, 1],
        atol=0.2,
    )
    assert (actions[:, 1] <= actions[:, 2]).all()


def test_what_is_learnt_is_what_was_evaluated():
    """Also a warm start, which no episode led to; every transition of it."""
    space, constraint = bound({"macs": 0.5}, toy_space())
    searcher = DDPG(space, constraint, initial=[space.uniform(0.3)], options=DDPGOptions(**SMALL))
    asked = searcher.ask(8)
    assert asked[0] == constraint.repair(space.uniform(0.3), searcher.rng)
    tell(searcher, asked, np.linspace(0, 1, 8).tolist())
    expected = np.array(asked) / np.array(space.full)
    assert np.allclose(searcher._actions[..., 0], expected)
    assert np.allclose(searcher._rewards, np.linspace(0, 1, 8))
    assert searcher._states.shape == (8, len(space), 7)


def test_the_oldest_episodes_are_forgotten_first():
    searcher = make_searcher("ddpg", toy_space(), **SMALL)
    _, candidates = play(searcher, 48)
    expected = np.array(candidates[-20:]) / np.array(searcher.space.full)
    assert np.allclose(searcher._actions[..., 0], expected)
    assert len(searcher._rewards) == len(searcher._states) == 20


def test_rewards_by_hand():
    space, constraint = bound({"macs": 0.5}, toy_space())
    candidate = constraint.repair(space.uniform(0.5), np.random.default_rng(0))
    macs, params = (int(cost([candidate])[0]) for cost in (ToyCosts().macs, ToyCosts().params))
    trial = Trial(0, candidate, Evaluation(fitness=0.75))
    expected = {
        "accuracy": 0.75,
        "flops": -0.25 * math.log(2 * macs),
        "params": -0.25 * math.log(params),
    }
    for reward, value in expected.items():
        searcher = make_searcher("ddpg", space, constraint, reward=reward, hidden=4)
        assert searcher._reward(trial) == pytest.approx(value)


def test_costs_as_reward_need_costs_but_no_budget():
    space = toy_space()
    with pytest.raises(
        SearcherError, match=r'reward "flops" needs costs.*Constraint\(space, costs=graph.costs\)'
    ):
        make_searcher("ddpg", space, reward="flops")
    played = [
        play(make_searcher("ddpg", space, constraint, reward="flops", **SMALL), 40)[1]
        for constraint in (
            Constraint(space, costs=ToyCosts()),
            Budget(macs=1.0).bind(space, ToyCosts()),
        )
    ]
    assert played[0] == played[1]


def test_failures_get_the_lowest_reward_and_teach_nothing_before_a_success():
    searcher = make_searcher("ddpg", toy_space(), **SMALL)
    tell(searcher, searcher.ask(8), [None] * 8)
    assert len(searcher._rewards) == 0
    tell(searcher, searcher.ask(8), [0.5, None, 0.25, *[0.5] * 5])
    assert searcher._rewards[:3].tolist() == [0.5, 0.25, 0.25]
    tell(searcher, searcher.ask(8), [None, *[0.5] * 7])
    assert searcher._rewards[8] == 0.25


def test_the_baseline_is_the_moving_average_of_rewards():
    searcher = make_searcher(
        "ddpg", toy_space(), episodes_per_batch=3, baseline_decay=0.9, hidden=4
    )
    tell(searcher, searcher.ask(3), [0.5, 0.6, 0.1])
    assert searcher._baseline == pytest.approx(0.9 * (0.9 * 0.5 + 0.1 * 0.6) + 0.1 * 0.1)


def test_noise_begins_after_the_warmup_and_decays(monkeypatch):
    seen = []

    def noted(mean, sigma, rng):
        seen.append(sigma)
        return truncated_normal(mean, sigma, rng)

    monkeypatch.setattr("abcsearch.searchers.ddpg.truncated_normal", noted)
    searcher = make_searcher("ddpg", toy_space(), **{**SMALL, "warmup": 4})
    for _ in range(3):
        searcher._roll_out(8)
        searcher._episodes += 8
    first, second, third = seen[0], seen[len(searcher.space)], seen[2 * len(searcher.space)]
    assert np.allclose(first[4:], 0.5 * 0.95 ** np.arange(4))
    assert np.allclose(second, 0.5 * 0.95 ** np.arange(4, 12))
    assert np.allclose(third, 0.5 * 0.95 ** np.arange(12, 20))


def test_noise_is_a_truncated_normal():
    rng = np.random.default_rng(0)
    drawn = truncated_normal(np.full(20000, 0.2), np.full(20000, 0.5), rng)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    # The mean of a normal distribution that is cut at 0 and 1.
    assert drawn.mean() == pytest.approx(0.414, abs=0.01)
    assert truncated_normal(np.array([0.3]), np.array([0.0]), rng).tolist() == [0.3]


def test_nothing_is_learnt_during_the_warmup():
    searcher = make_searcher("ddpg", toy_space(), **SMALL)
    before = searcher.state_dict()["own"]["agent"]
    for _ in range(2):
        asked = searcher.ask(8)
        tell(searcher, asked, [0.5] * 8)
        after = searcher.state_dict()["own"]["agent"]
        assert (before["actor"]["weights"] == after["actor"]["weights"]).all()
    tell(searcher, searcher.ask(8), np.linspace(0, 1, 8).tolist())
    after = searcher.state_dict()["own"]["agent"]
    assert after["actor"]["steps"] == after["critic"]["steps"] == 8 * 4
    for network in ("actor", "critic"):
        for key in ("weights", "target", "mean", "square"):
            assert (before[network][key] != after[network][key]).any()


def transitions(rng, n, batch=32, n_features=3):
    """Returns transitions that end an episode; the best action is the first feature, at most 0.6."""
    states = rng.random((n, batch, n_features))
    actions = rng.random((n, batch, 1)) * 0.6
    zeros = np.zeros_like(actions)
    return Transitions(
        states=states,
        actions=actions,
        low=zeros,
        high=zeros + 0.6,
        rewards=-((actions - states[..., :1]) ** 2),
        discounts=zeros,
        next_states=states,
        next_low=zeros,
        next_high=zeros + 1,
    )


def test_one_step_is_that_of_torch():
    """Critic and actor against autograd and torch's Adam."""
    options = DDPGOptions(hidden=8, actor_lr=1e-2, critic_lr=1e-2)
    agent, batch = Agent(3, options, 0), transitions(np.random.default_rng(0), 1)
    reference = [w.detach().clone().requires_grad_() for w in agent.critic.weights]
    adam = torch.optim.Adam(reference, 1e-2)
    x = torch.from_numpy(np.concatenate([batch.states, batch.actions], axis=-1)[0]).float()
    for _ in range(3):
        hidden = torch.relu(x @ reference[0].T + reference[1])
        values = torch.relu(hidden @ reference[2].T + reference[3]) @ reference[4].T + reference[5]
        adam.zero_grad()
        ((values - torch.from_numpy(batch.rewards[0]).float()) ** 2).mean().backward()
        adam.step()
        agent.learn(batch)
    for own, expected in zip(agent.critic.weights, reference, strict=True):
        assert torch.allclose(own, expected, atol=1e-5)


def test_the_agent_finds_the_best_action_of_every_state_within_bounds():
    agent, rng = (
        Agent(3, DDPGOptions(hidden=32, actor_lr=1e-3, critic_lr=1e-2), 0),
        np.random.default_rng(0),
    )
    agent.learn(transitions(rng, 1500))
    states = rng.random((200, 3)).astype(np.float32)
    error = np.abs(np.minimum(agent.act(states), 0.6) - np.minimum(states[:, 0], 0.6))
    assert error.mean() < 0.05


def test_moments_never_become_denormal():
    agent = Agent(3, DDPGOptions(hidden=8), 0)
    agent.critic.arrays["mean"][:3] = torch.tensor([1e-40, -1e-40, 1e-3])
    agent.critic.tidy()
    assert agent.critic.arrays["mean"][:3].tolist() == pytest.approx([0, 0, 1e-3])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_it_learns(seed):
    """The toy landscape at half the MACs: late episodes are clearly better than random ones within the same bounds."""
    space, constraint = bound({"macs": 0.5}, toy_space())
    searcher = make_searcher(
        "ddpg", space, constraint, seed=seed, hidden=64, warmup=64, updates_per_episode=9
    )
    fitness, _ = play(searcher, 320)
    assert fitness[-64:].mean() > fitness[:64].mean() + 0.5 * fitness[:64].std()


def test_callers_settings_of_torch_do_not_matter_and_stay():
    def proposals():
        searcher = make_searcher("ddpg", toy_space(), **SMALL)
        return play(searcher, 40)[1]

    expected, threads = proposals(), torch.get_num_threads()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            assert proposals() == expected
        assert torch.get_num_threads() == 2
        assert (torch.get_rng_state() == before).all()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)


def test_state_is_a_few_megabytes_and_comes_back_from_a_file(tmp_path):
    space = toy_space()
    searcher = make_searcher("ddpg", space, warmup=8)
    play(searcher, 120)
    folder = RunFolder(tmp_path)
    folder.write_json("searcher.json", {"state": searcher.state_dict()})
    assert (tmp_path / "searcher.json").stat().st_size < 5e6
    other = make_searcher("ddpg", space, warmup=8, seed=3)
    other.load_state_dict(folder.read_json("searcher.json")["state"])
    assert play(other, 16)[1] == play(searcher, 16)[1]


@pytest.mark.parametrize(
    "damage", [{"agent": {}}, {"states": np.zeros(5)}, {"baseline": "a"}, {"episodes": None}]
)
def test_a_damaged_state_changes_nothing(damage):
    searcher, same = (make_searcher("ddpg", toy_space(), **SMALL) for _ in range(2))
    play(searcher, 32)
    play(same, 32)
    state = same.state_dict()
    with pytest.raises(SearcherError, match="damaged"):
        searcher.load_state_dict({**state, "own": {**state["own"], **damage}})
    weights = state["own"]["agent"]["actor"]
    agent = {**state["own"]["agent"], "actor": {**weights, "mean": weights["mean"][1:]}}
    with pytest.raises(SearcherError, match="the state is damaged"):
        searcher.load_state_dict({**state, "own": {**state["own"], "agent": agent}})
    assert play(searcher, 16)[1] == play(same, 16)[1]


def test_one_structure_is_a_space_too():
    space = SearchSpace((Dimension("w", "width", (4,)), Dimension("b", "block", (0,))))
    searcher = make_searcher("ddpg", space, **SMALL)
    assert searcher.ask(5) == [(4, 0)]
    tell(searcher, [(4, 0)], [0.5])
    assert searcher.ask(5) == []


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("sigma", 1.5, "sigma is from 0 to 1, found 1.5"),
        ("replay", 0, "replay is from 1 to 1000000, found 0"),
        ("tau", -0.1, "tau is from 0 to 1"),
        ("episodes_per_batch", 0, "episodes_per_batch is from 1 to 1000"),
        ("fill", True, "fill is a number, found True"),
        ("reward", "flop", "ddpg: unknown reward 'flop'; did you mean 'flops'"),
    ],
)
def test_options_out_of_range(option, value, words):
    with pytest.raises(SearcherError, match=words):
        DDPGOptions(**{option: value})


def test_options_are_read_without_torch():
    code = (
        "import sys; from abcsearch.searchers.registry import SEARCHERS; SEARCHERS['ddpg'].options(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
