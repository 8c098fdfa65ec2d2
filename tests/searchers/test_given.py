"""The searcher of what one is given: its contract, and that it searches nothing."""

import functools
import itertools

import numpy as np
import pytest
from typer.testing import CliRunner

from abcsearch.budget import Budget
from abcsearch.cli import app
from abcsearch.errors import CandidateError
from abcsearch.searchers.registry import make_searcher, nothing_left
from abcsearch.testing import SearcherContract, ToyCosts, toy_space


@functools.cache
def structures(space, constraint, seed):
    """Enough structures inside the budget: repairs, which make contracts slow, have nothing to do."""
    draws = np.random.default_rng(seed)
    every = itertools.product(*(d.choices for d in space.dimensions)) if space.size < 1000 else ()
    drawn = itertools.islice(
        filter(constraint.allows, (space.sample(draws) for _ in range(4000))), 250
    )
    return [*drawn, *filter(constraint.allows, every)]


class TestContract(SearcherContract):
    """Given enough, or all of a small space, it does what searchers do."""

    rounds = 60
    trials = 60

    def make(self, space, constraint, seed):
        initial = structures(
            space,
            Budget(macs=1.0).bind(space, ToyCosts()) if constraint is None else constraint,
            seed,
        )
        return make_searcher("given", space, constraint, seed=seed, initial=initial)


def test_what_is_given_is_proposed_in_its_order_once_and_nothing_else():
    space = toy_space()
    constraint = Budget(macs=0.5).bind(space, ToyCosts())
    draws = np.random.default_rng(0)
    inside = [c for c in (space.sample(draws) for _ in range(200)) if constraint.allows(c)][:5]
    searcher = make_searcher(
        "given", space, constraint, initial=[inside[0], 0.9, *inside, inside[0]]
    )
    asked = [*searcher.ask(2), *searcher.ask(100)]
    assert [asked[0], *asked[2:]] == inside
    assert constraint.allows(asked[1])
    assert searcher.ask(1) == []


def test_given_nothing_it_proposes_nothing():
    assert make_searcher("given", toy_space()).ask(3) == []


def test_structures_of_other_spaces_are_refused():
    with pytest.raises(CandidateError, match=r"searcher.initial\[0\]"):
        make_searcher("given", toy_space(), initial=[(1, 2, 3)])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("given", "all structures that the searcher was given are evaluated: 3"),
        ("random", "all structures inside the budget are evaluated: 3"),
        ("Mine", "searcher 'Mine' proposes nothing more; structures evaluated: 3"),
    ],
)
def test_why_a_search_has_ended(name, words):
    assert nothing_left(name, 3) == words


def test_a_search_of_what_is_given_says_so(tiny_config, tmp_path):
    given = ["searcher=given", "searcher.initial=[0.3, 0.5]", "baselines=[]"]
    overrides = [word for own in given for word in ("--set", own)]
    done = CliRunner().invoke(
        app, ["search", str(tiny_config), "--run-dir", str(tmp_path / "run"), *overrides]
    )
    assert done.exit_code == 0, done.output
    words = "all structures that the searcher was given are evaluated: 2"
    assert words in done.output
    assert words in CliRunner().invoke(app, ["status", str(tmp_path / "run")]).output
    assert words in (tmp_path / "run" / "log.txt").read_text()
