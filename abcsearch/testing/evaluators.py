"""What every evaluator keeps: fitness depends on candidate and seed alone, and nothing is left of an evaluation.

class TestMine(EvaluatorContract):
    def make(self):
        return MyEvaluator(source, data)

    def space(self):
        return source.graph.space()
"""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.evaluation.base import evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from abcsearch.evaluation.base import Evaluator
    from abcsearch.space import Candidate, SearchSpace
    from abcsearch.trial import Evaluation


class EvaluatorContract:
    """What every evaluator keeps; override `make` and `space`, and `modules` where yours was lent networks."""

    def make(self) -> Evaluator:
        """Returns a new evaluator; the same at every call."""
        raise NotImplementedError

    def space(self) -> SearchSpace:
        """Returns the structures that it evaluates."""
        raise NotImplementedError

    def modules(self, evaluator: Evaluator) -> Mapping[str, nn.Module]:
        """Returns the networks that an evaluator must leave as they are; by default those of its source."""
        source = getattr(evaluator, "source", None)
        return {} if source is None else source.modules

    def candidates(self) -> list[Candidate]:
        """Returns the largest, the smallest and a random structure."""
        space = self.space()
        smallest = tuple(dimension.choices[0] for dimension in space.dimensions)
        return [space.at(space.last_indices), smallest, space.sample(np.random.default_rng(0))]

    def test_an_evaluation_has_a_fitness_or_says_why_not(self) -> None:
        """Metrics and fitness are finite numbers, costs whole ones."""
        evaluator = self.make()
        for candidate in self.candidates():
            evaluation = evaluate(evaluator, candidate, 0)
            assert (evaluation.fitness is None) == (evaluation.failure is not None)
            if evaluation.fitness is not None:
                assert np.isfinite([evaluation.fitness, *evaluation.metrics.values()]).all()

    def test_candidate_and_seed_decide(self) -> None:
        """The same again, in another order, in another copy, and beside others."""
        evaluator, cases = (
            self.make(),
            [(candidate, seed) for candidate in self.candidates() for seed in (0, 3)],
        )
        first = [_timeless(evaluator, *case) for case in cases]
        assert [_timeless(evaluator, *case) for case in reversed(cases)] == first[::-1]
        assert [_timeless(self.make(), *case) for case in cases[:2]] == first[:2]

    def test_a_copy_in_another_process_finds_the_same(self) -> None:
        """Evaluators are pickled to workers."""
        evaluator, candidate = self.make(), self.candidates()[-1]
        here = _timeless(evaluator, candidate, 1)
        again = pickle.loads(pickle.dumps(evaluator))
        assert _timeless(again, candidate, 1) == here

    def test_nothing_is_left_of_an_evaluation(self) -> None:
        """Networks, their modes and hooks, and all global random states are as they were."""
        evaluator = self.make()
        modules = self.modules(evaluator)
        before, states = (
            {name: _traits(module) for name, module in modules.items()},
            _random_states(),
        )
        for candidate in self.candidates():
            evaluate(evaluator, candidate, 0)
        assert _random_states() == states, (
            "a global generator has been moved on: draw from the evaluation's seed"
        )
        for name, module in modules.items():
            assert _traits(module) == before[name], (
                f"module {name!r} has been changed: work on a copy"
            )

    def test_threads_do_not_disturb_each_other(self) -> None:
        """Two evaluations at a time find what each finds alone."""
        evaluator, candidates = self.make(), self.candidates()
        alone = [_timeless(evaluator, candidate, 2) for candidate in candidates]
        with ThreadPoolExecutor(2) as pool:
            together = list(
                pool.map(lambda candidate: _timeless(evaluator, candidate, 2), candidates)
            )
        assert together == alone


def _timeless(evaluator: Evaluator, candidate: Candidate, seed: int) -> Evaluation:
    """Returns an evaluation without the seconds that it took."""
    return replace(evaluate(evaluator, candidate, seed), seconds=0.0)


def _random_states() -> tuple[object, ...]:
    """Returns the states of the global generators of Python, numpy and torch, to be compared."""
    of_numpy = repr(np.random.get_state(legacy=False))  # noqa: NPY002 - somebody may have used it
    return random.getstate(), of_numpy, torch.random.get_rng_state().numpy().tobytes()


def _traits(module: nn.Module) -> list[object]:
    """Returns tensors, modes and hooks of a network, to be compared."""
    tensors = [
        (name, tensor.detach().cpu().numpy().tobytes())
        for name, tensor in module.state_dict().items()
    ]
    modes = [
        (name, layer.training, len(layer._forward_hooks), len(layer._forward_pre_hooks))
        for name, layer in module.named_modules()
    ]
    return [tensors, modes, [parameter.requires_grad for parameter in module.parameters()]]
