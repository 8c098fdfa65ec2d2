"""What every executor keeps that evaluations may run on: `concurrent.futures.Executor`, and what a search counts on.

class TestMine(ExecutorContract):
    def make(self):
        return MyExecutor(workers=2)
"""

from __future__ import annotations

from concurrent.futures import wait
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from abcsearch.errors import ConfigError
from abcsearch.evaluation.base import evaluate
from abcsearch.testing.toys import toy_fitness, toy_space
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from abcsearch.space import Candidate


def scored(candidate: Candidate, seed: int) -> Evaluation:
    """An evaluator: depends on candidate and seed, and fails for every ninth seed."""
    if seed % 9 == 8:
        msg = "made to fail"
        raise ValueError(msg)
    return Evaluation(fitness=toy_fitness(toy_space(), candidate) + seed / 1e4, macs=sum(candidate))


def _mistaken(candidate: Candidate, seed: int) -> Evaluation:
    """An evaluator whose error is the user's mistake, and no result of a candidate."""
    msg = f"made to fail for {candidate} and {seed}"
    raise ConfigError(msg)


class ExecutorContract:
    """What every executor keeps; override `make`. Its tests share one executor per call of `make`."""

    def make(self) -> Executor:
        """Returns a new executor; it is closed by the test that has asked for it."""
        raise NotImplementedError

    def test_evaluations_are_those_of_this_process(self) -> None:
        """Whatever comes back first: the same fitness, costs and failures."""
        space, draws = toy_space(), np.random.default_rng(0)
        cases = [(space.sample(draws), seed) for seed in range(20)]
        here = [replace(evaluate(scored, *case), seconds=0.0) for case in cases]
        with self.make() as executor:
            futures = [executor.submit(evaluate, scored, *case) for case in cases]
            done, open_ = wait(futures, timeout=300)
            assert not open_
            assert len(done) == len(cases)
            assert [replace(future.result(), seconds=0.0) for future in futures] == here

    def test_what_is_raised_comes_back_with_its_type_and_words(self) -> None:
        """And the executor goes on."""
        candidate = toy_space().full
        with self.make() as executor:
            with pytest.raises(ConfigError, match=r"made to fail for .* and 3"):
                executor.submit(_mistaken, candidate, 3).result(timeout=300)
            assert executor.submit(scored, candidate, 0).result(timeout=300) == scored(candidate, 0)

    def test_after_its_end_it_takes_nothing(self) -> None:
        """A closed executor refuses, as those of the standard library do; one that needs no end may go on."""
        executor = self.make()
        executor.shutdown()
        try:
            again = executor.submit(scored, toy_space().full, 0)
        except RuntimeError:
            return
        assert again.result(timeout=300) == scored(toy_space().full, 0)
