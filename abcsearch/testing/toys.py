"""A small space with costs and a fitness, and what every contract test of searchers needs."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from abcsearch.budget import Budget, Constraint
from abcsearch.errors import AbcSearchError, SearcherError
from abcsearch.space import Dimension, SearchSpace
from abcsearch.trial import Evaluation, Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate


@dataclass(frozen=True)
class ToyCosts:
    """Costs of a chain of layers: each pair of neighbours costs the product of their widths; blocks cost nothing."""

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the sum of products of neighbouring values plus the sum of all values, (n,) int64."""
        rows = np.asarray(candidates, dtype=np.int64)
        return (rows[:, :-1] * rows[:, 1:]).sum(axis=1) + rows.sum(axis=1)

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns twice the macs."""
        return 2 * self.macs(candidates)

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the sum of all values, (n,) int64."""
        return np.asarray(candidates, dtype=np.int64).sum(axis=1)


def toy_space(n_dims: int = 6, n_choices: int = 9) -> SearchSpace:
    """Returns a space of `n_dims` widths (one with a single choice) and two block switches."""
    widths = [
        Dimension(f"w{i}", "width", tuple(range(2 + i, 2 + i + n_choices)), n_choices + 4 + i)
        for i in range(n_dims)
    ]
    fixed = Dimension("fixed", "width", (5,))
    blocks = [Dimension(f"b{i}", "block", (0, 1)) for i in range(2)]
    return SearchSpace((*widths, fixed, *blocks))


def toy_fitness(space: SearchSpace, candidate: Candidate) -> float:
    """Returns a fitness in [0, 1] that grows and saturates with every width; layers differ in weight."""
    point = space.encode(candidate)
    weights = 1.0 + np.arange(len(space)) % 3
    return float((weights * np.sqrt(point)).sum() / weights.sum())


class SearcherPlay:
    """How a contract makes a searcher, and plays with it."""

    def make(self, space: SearchSpace, constraint: Constraint | None, seed: int) -> Searcher:
        """Returns a new searcher."""
        raise NotImplementedError

    def problem(self) -> tuple[SearchSpace, Constraint]:
        """Returns a mixed space and a budget of half the macs."""
        space = toy_space()
        return space, Budget(macs=0.5).bind(space, ToyCosts())

    def evaluated(self, space: SearchSpace, candidate: Candidate, number: int) -> Trial:
        """Returns the trial of a candidate; every seventh fails."""
        if number % 7 == 6:
            return Trial(number, candidate, Evaluation(fitness=None, failure="made to fail"))
        return Trial(number, candidate, Evaluation(fitness=toy_fitness(space, candidate)))

    def play(
        self, searcher: Searcher, n: int, sizes: Sequence[int] = (7,), start: int = 0
    ) -> list[Trial]:
        """Asks in portions of the given sizes and tells each at once, until `n` trials or nothing new."""
        trials: list[Trial] = []
        for size in itertools.cycle(sizes):
            asked = searcher.ask(min(size, n - len(trials)))
            number = start + len(trials)
            batch = [self.evaluated(searcher.space, c, number + i) for i, c in enumerate(asked)]
            searcher.tell(batch)
            trials += batch
            if not batch or len(trials) >= n:
                return trials
        return trials


def through_json(state: Any) -> Any:  # noqa: ANN401 - plain JSON values and arrays
    """Returns a state as it comes back from a file; raises TypeError for anything but JSON values and arrays."""
    if isinstance(state, dict):
        assert all(isinstance(key, str) for key in state)
        return {key: through_json(value) for key, value in state.items()}
    if isinstance(state, list):
        return [through_json(value) for value in state]
    return state.copy() if isinstance(state, np.ndarray) else json.loads(json.dumps(state))


def listed(state: Any) -> Any:  # noqa: ANN401 - plain JSON values and arrays
    """Returns a state with its arrays as lists."""
    if isinstance(state, dict):
        return {key: listed(value) for key, value in cast("dict[str, Any]", state).items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def refused(call: Any, words: str, kind: type[AbcSearchError] = SearcherError) -> None:  # noqa: ANN401 - a function
    """Asserts that a call without arguments raises an error of a kind with these words in its message."""
    try:
        call()
    except kind as error:
        assert words in str(error), str(error)  # noqa: PT017 - no pytest here: strangers may use another runner
    else:
        msg = f"expected a {kind.__name__} with {words!r}"
        raise AssertionError(msg)
