"""Every registered searcher enters the contract by itself."""

import pytest

from abcsearch.errors import SearcherError
from abcsearch.searchers.registry import SEARCHERS, make_searcher
from abcsearch.testing import SearcherContract, toy_space

# So that it learns for most of a test, and soon.
SLOW = ("ddpg", "optuna")  # a round of theirs takes tens of times as long as one of the others
OPTIONS = {
    "ddpg": {"hidden": 32, "warmup": 24, "replay": 40, "updates_per_episode": 4},
    "network_adjustment": {"batch": 3},
}


# The defects of one break a test, another has to be given something: see test_bee_colony_official.py, test_given.py.
@pytest.mark.parametrize(
    "name", sorted(set(SEARCHERS) - {"bee_colony_official", "given"}), scope="class"
)
class TestContract(SearcherContract):
    @pytest.fixture(autouse=True)
    def _name(self, name):
        self.name = name
        self.rounds = 150 if name in SLOW else 500

    def make(self, space, constraint, seed):
        return make_searcher(self.name, space, constraint, seed=seed, **OPTIONS.get(self.name, {}))


def test_thousands_of_equal_warm_starts_are_one_proposal():
    space = toy_space()
    start = space.uniform(0.5)
    for name in SEARCHERS:
        asked = make_searcher(name, space, initial=[start] * 5000).ask(10)
        assert asked.count(start) == 1


def test_a_damaged_state_changes_nothing():
    space = toy_space()
    for name in SEARCHERS:
        searcher, same = make_searcher(name, space), make_searcher(name, space)
        for damage in ({"rng": {}}, {"queue": [1]}, {"own": None, "known": None}, {"told": [{}]}):
            with pytest.raises(SearcherError, match="damaged"):
                searcher.load_state_dict({**same.state_dict(), **damage})
        assert searcher.ask(10) == same.ask(10)
