"""Every registered searcher enters the contract by itself."""

import pytest

from abcsearch.searchers.registry import SEARCHERS, make_searcher
from abcsearch.testing import SearcherContract


@pytest.mark.parametrize("name", sorted(SEARCHERS), scope="class")
class TestContract(SearcherContract):
    @pytest.fixture(autouse=True)
    def _name(self, name):
        self.name = name

    def make(self, space, constraint, seed):
        return make_searcher(self.name, space, constraint, seed=seed)
