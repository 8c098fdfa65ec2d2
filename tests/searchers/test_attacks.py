"""Strange calls, options, fitness values, states and machines: a clear error, or no difference."""

import copy
import json
import logging
import os
import random
import re
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from abcsearch.budget import Budget
from abcsearch.errors import CandidateError, SearcherError
from abcsearch.searchers.registry import SEARCHERS, make_searcher
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing.toys import ToyCosts, through_json, toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SMALL = {
    "ddpg": {"hidden": 8, "warmup": 8, "replay": 20, "updates_per_episode": 2, "batch_size": 8},
    "network_adjustment": {"batch": 4},
}
# Which has to be given something
everyone = pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"given"}))


def make(name, space=None, seed=0, **options):
    space = space or toy_space(3, 4)
    return make_searcher(
        name,
        space,
        Budget(macs=0.5).bind(space, ToyCosts()),
        seed=seed,
        **SMALL.get(name, {}),
        **options,
    )


def play(searcher, rounds, fitness=toy_fitness, size=7):
    asked = []
    for _ in range(rounds):
        batch = searcher.ask(size)
        values = [fitness(searcher.space, candidate) for candidate in batch]
        evaluations = [Evaluation(fitness=v, failure="none" if v is None else None) for v in values]
        searcher.tell(
            [
                Trial(len(asked) + i, c, e)
                for i, (c, e) in enumerate(zip(batch, evaluations, strict=True))
            ]
        )
        asked += batch
    return asked


@pytest.mark.parametrize("n", [True, "3", 2.0, 2.5, None, float("nan"), [1], -1])
def test_ask_takes_whole_numbers(n):
    with pytest.raises(SearcherError, match="ask for at least one candidate"):
        make("random").ask(n)


@pytest.mark.parametrize("seed", [-1, 1.5, "3", None, True, float("nan")])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(SearcherError, match="a seed is a whole number, at least 0"):
        make("random", seed=seed)


def test_numpy_numbers_are_numbers():
    searcher = make("evolution", seed=np.int64(4), initial=[np.float32(0.5), np.int64(1)])
    assert json.dumps(searcher.state_dict()["seed"]) == "4"
    assert len(searcher.ask(np.int64(3))) == 3


@pytest.mark.parametrize("initial", [0.5, None, "0.5"])
def test_warm_starts_are_a_list(initial):
    with pytest.raises(SearcherError, match="initial is a list of structures and keep ratios"):
        make("evolution", initial=initial)


@pytest.mark.parametrize(
    "start",
    [
        0,
        1.5,
        -0.1,
        float("nan"),
        float("inf"),
        True,
        None,
        "0.5",
        "abcdef",
        (1,),
        (99,) * 6,
        (2.5,) * 6,
        {},
    ],
)
def test_wrong_warm_starts(start):
    with pytest.raises(CandidateError):
        make("evolution", initial=[start])


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        (
            [9, 14, 9],
            "searcher.initial = [9, 14, 9]: keep ratios are in (0, 1], and a structure is a list in the list: ",
        ),
        ([9, 14, 9], "searcher.initial = [[9, 14, 9]]"),
        (
            [0.5, 1.5],
            "searcher.initial[1] = 1.5: a warm start is a keep ratio in (0, 1] or a list of whole numbers",
        ),
        ([[2, 3]], "searcher.initial[0]: a candidate of this space has 6 values, found 2"),
        ([0.5, [99] * 6], "searcher.initial[1]: dimension 'w0' is 99; allowed are (2, 3, 4, 5)"),
    ],
)
def test_wrong_warm_starts_are_named(initial, words):
    with pytest.raises(CandidateError, match=re.escape(words)):
        make("evolution", initial=initial)


def test_a_budget_is_no_constraint():
    space = toy_space()
    with pytest.raises(SearcherError, match="bind the budget"):
        make_searcher("random", space, Budget(macs=0.5))


@pytest.mark.parametrize("name", [None, 5, ["random"], True])
def test_strange_names(name):
    with pytest.raises(SearcherError, match=r"is a subclass of Searcher with .*, or a function of"):
        make_searcher(name, toy_space())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random", {"fill": "8"}),
        ("random", {"fill": None}),
        ("optuna", {"fill": 1}),
        ("optuna", {"constraints": 0.5}),
        ("optuna", {"sampler": None}),
        ("optuna", {"sampler": ["tpe"]}),
        ("optuna", {"sampler_options": None}),
        ("optuna", {"sampler_options": [1]}),
        ("nsga2", {"genes_changed": float("inf")}),
        ("bee_colony", {"n_sources": float("inf")}),
    ],
)
def test_options_of_the_wrong_type(name, options):
    with pytest.raises(SearcherError, match=f"{next(iter(options))}|sampler of searcher"):
        make(name, **options)


@pytest.mark.parametrize(
    "options", [{"actor_lr": float("inf")}, {"critic_lr": 2.0}, {"hidden": 10**9}]
)
def test_agents_that_no_memory_holds_or_no_number(options):
    with pytest.raises(SearcherError, match=f"ddpg: {next(iter(options))} is from"):
        make_searcher("ddpg", toy_space(), **options)


HUGE = [
    (name, f.name)
    for name, entry in SEARCHERS.items()
    for f in fields(entry.options)
    if f.type == "int"
]


@pytest.mark.parametrize(("name", "option"), HUGE)
def test_huge_options_are_refused_or_do_no_harm(name, option):
    """What a batch is made of has a limit; all else may be as large as one likes."""
    try:
        searcher = make_searcher(name, toy_space(3, 4), **{**SMALL.get(name, {}), option: 10**20})
    except SearcherError as error:
        assert re.search(rf"{option} is from \d to \d+, found 1{'0' * 20}$", str(error))  # noqa: PT017
        return
    assert option not in ("batch", "first", "population", "n_sources", "episodes_per_batch")
    assert len(play(searcher, 4, size=12)) > 12


@pytest.mark.parametrize("told", [None, 3, "trials", [(1, 2)], [None]])
def test_tell_takes_trials(told):
    searcher = make("evolution")
    searcher.ask(3)
    with pytest.raises(SearcherError, match="tell takes a list of trials"):
        searcher.tell(told)


def test_trials_from_a_generator_are_all_taken():
    one, other = (make("evolution", population=6, mutations=3, crossovers=3) for _ in range(2))
    trials = [
        Trial(i, c, Evaluation(fitness=toy_fitness(one.space, c))) for i, c in enumerate(one.ask(6))
    ]
    other.ask(6)
    one.tell(trial for trial in trials)
    other.tell(trials)
    assert one.ask(6) == other.ask(6) != []


draws = np.random.default_rng(0)
FITNESS = {
    "equal": lambda *_: 0.5,
    "failed": lambda *_: None,
    "rarely": lambda *_: 1.0 if draws.random() < 0.05 else None,
    "huge": lambda s, c: 1e300 * (toy_fitness(s, c) - 0.5),
    "both ends": lambda *_: float(draws.choice([1.7e308, -1.7e308, 0.0])),
    "tiny": lambda *_: 5e-324 * int(draws.integers(5)),
    "negative": lambda s, c: -toy_fitness(s, c),
    "whole": lambda s, c: int(10 * toy_fitness(s, c)),
    "numpy": lambda s, c: np.float32(toy_fitness(s, c)),
    "close": lambda s, c: 1e6 + 1e-9 * toy_fitness(s, c),
}


@pytest.mark.parametrize("kind", FITNESS)
@everyone
def test_any_finite_fitness_is_taken(name, kind):
    searcher = make(name, toy_space(4, 5))
    assert len(play(searcher, 4, FITNESS[kind], size=12)) > 12
    through_json(searcher.state_dict())


def test_fitness_is_scaled_without_a_trace():
    """The surface sees the same for a fitness of any power of two."""
    asked = [
        play(make("response_surface"), 6, lambda s, c, k=k: toy_fitness(s, c) * 2.0**k)
        for k in (0, 1000, -1000)
    ]
    assert asked[0] == asked[1] == asked[2]


ODD_SPACES = {
    "one dimension": [("a", "width", range(1, 9))],
    "one choice": [("a", "width", [3]), ("b", "width", [5])],
    "two structures": [("a", "width", [3, 4])],
    "blocks": [(f"b{i}", "block", [0, 1]) for i in range(4)],
    "always dropped": [("b", "block", [0]), ("a", "width", [1, 2])],
    "below full": [("a", "width", [1, 2, 3], 10), ("b", "width", [4, 7], 9)],
    "uneven": [("a", "width", [1, 2, 10**6]), ("b", "width", [4, 4096])],
    "huge": [("a", "width", [2**40, 2**60]), ("b", "width", [1, 2**58, 2**59])],
}


@pytest.mark.parametrize("kind", ODD_SPACES)
@everyone
def test_odd_spaces_are_exhausted(name, kind):
    space = SearchSpace(
        tuple(Dimension(n, k, tuple(c), *full) for n, k, c, *full in ODD_SPACES[kind])
    )
    searcher = make_searcher(name, space, **SMALL.get(name, {}))
    asked = play(searcher, 2 * space.size, lambda s, c: float(s.encode(c).sum()), size=10**6)
    assert len(asked) == len(set(asked)) == space.size
    assert searcher.ask(3) == []


def damaged(state):
    """States with every array and value below the top damaged in some way, one at a time."""
    found = []

    def visit(path, part):
        if isinstance(part, dict):
            for key, value in part.items():
                visit([*path, key], value)
            return
        changes = [None, "x", -1, [], {}]
        if isinstance(part, np.ndarray):
            changes += [
                part.tolist(),
                part[:-1],
                part[None],
                part.astype(np.float32),
                np.ones_like(part),
            ]
        for change in changes:
            if _through(change) != _through(part):
                damage = copy.deepcopy(state)
                place = damage
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = change
                found.append(damage)

    visit(
        [],
        {key: value for key, value in state.items() if key not in ("searcher", "space", "options")},
    )
    return found


def _through(part):
    return (
        (str(part.dtype), part.shape, part.tolist()) if isinstance(part, np.ndarray) else repr(part)
    )


@everyone
def test_every_damage_is_found_and_changes_nothing(name):
    searcher = make(name)
    play(searcher, 4)
    searcher.ask(3)
    other = make(name, seed=1)
    play(other, 2)
    before = other.state_dict()["checksum"]
    for state in damaged(searcher.state_dict())[::6]:
        with pytest.raises(SearcherError, match="damaged, or of another version"):
            other.load_state_dict(state)
    assert other.state_dict()["checksum"] == before
    for nothing in (None, [], 3, "state"):
        with pytest.raises(SearcherError, match="a state is what state_dict returns"):
            other.load_state_dict(nothing)


@everyone
def test_saved_and_loaded_at_every_step_until_nothing_is_left(name):
    space = SearchSpace(tuple(Dimension(f"w{i}", "width", (1, 2, 3), 4) for i in range(2)))
    searcher, straight = make(name, space), make(name, space)
    count = 0
    while batch := straight.ask(1):
        state = through_json(searcher.state_dict())
        searcher = make(name, space, seed=count)
        play(searcher, 1)  # in the middle of something else
        searcher.load_state_dict(state)
        assert searcher.ask(1) == batch
        trial = Trial(count, batch[0], Evaluation(fitness=toy_fitness(space, batch[0])))
        searcher.tell([trial])
        straight.tell([trial])
        count += 1
    assert searcher.ask(1) == []


@everyone
def test_a_searcher_goes_back_to_a_state_of_its_own(name):
    searcher = make(name)
    play(searcher, 3)
    state = through_json(searcher.state_dict())
    asked = play(searcher, 2)
    searcher.load_state_dict(state)
    assert play(searcher, 2) == asked


SCRIPT = """
import sys, warnings
from test_attacks import SEARCHERS, make, play, toy_space
print({name: play(make(name, toy_space(8, 9)), 5) for name in SEARCHERS})
"""


def test_processes_agree_whatever_their_hashes_and_threads():
    found = []
    for n in ("1", "2"):
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        env = {**os.environ, "PYTHONHASHSEED": n, "OMP_NUM_THREADS": n, "PYTHONPATH": paths}
        command = [sys.executable, "-c", SCRIPT]
        found.append(
            subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
        )
    assert found[0] == found[1] != ""


@everyone
def test_what_belongs_to_the_whole_process_is_left_alone(name):
    def everything():
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            list(warnings.filters),
            np.geterr(),
            logging.getLogger().level,
            list(logging.getLogger().handlers),
        )

    before = everything()
    play(make(name), 5)
    assert everything() == before


@pytest.mark.parametrize("name", ["random", "bee_colony"])
def test_a_handful_in_a_large_space_is_found(name):
    """All 13 structures inside, of 16 million."""

    class Widths:
        def macs(self, candidates):
            return np.asarray(candidates, dtype=np.int64).sum(axis=1)

    space = SearchSpace(tuple(Dimension(f"d{i}", "width", tuple(range(1, 5))) for i in range(12)))
    constraint = Budget(macs=(12, 13)).bind(space, Widths())
    searcher = make_searcher(name, space, constraint, **SMALL.get(name, {}))
    assert len(play(searcher, 40, lambda s, c: float(c[0]), size=10)) == 13
