"""The contract of evaluators, kept by ours; and that it tells those that break it."""

from functools import cache

import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.data.splits import Data
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded
from abcsearch.testing import EvaluatorContract
from abcsearch.trial import Evaluation

CASES = {
    "adaptive_bn": {"calibration_images": 64, "batch_size": 32, "utilisation": 1},
    "short_training": {
        "steps": 2,
        "batch_size": 32,
        "shift": 1,
        "flip": True,
        "fresh_weights": True,
        "dropout": 0.2,
        "utilisation": 1,
    },
    "cascade": {
        "adaptive_bn": {"batch_size": 32},
        "short_training": {"steps": 1, "batch_size": 32},
    },
}


@cache
def made():
    """A small network with its groups, and images for it."""
    with torch_seeded(0, "init"):
        model = SmallResNet(in_channels=1, classes=2, widths=(4, 6), depths=(1, 1)).eval()
        images = torch.randn(160, 1, 6, 6)
    labels = torch.arange(160) % 2
    graph = trace_channels(model, images[:1])
    data = Data.from_tensors(
        (images[:120], labels[:120]), (images[120:], labels[120:]), validation=0.25
    )
    return Sliced(model, graph, rank_channels(model, graph)), data


class Made(EvaluatorContract):
    """The contract for an evaluator that `make` returns, on the small network."""

    def space(self):
        return made()[0].graph.space()

    def modules(self, evaluator):
        del evaluator
        return made()[0].modules


@pytest.mark.parametrize("name", CASES, scope="class")
class TestOurs(Made):
    @pytest.fixture(autouse=True)
    def _name(self, name):
        self.name = name

    def make(self):
        return make_evaluator(self.name, *made(), **CASES[self.name])


def leaky(candidate, seed):
    del candidate, seed
    return Evaluation(fitness=float(torch.rand(())))


def changing(candidate, seed):
    made()[0].model.train()
    return Evaluation(fitness=float(sum(candidate) + seed))


def infinite(candidate, seed):
    del candidate, seed
    return Evaluation(fitness=1.0, metrics={"loss": float("nan")})


class Counting:
    """Depends on how often it has been called."""

    def __init__(self):
        self.calls = nn.Parameter(torch.zeros(()), requires_grad=False)

    def __call__(self, candidate, seed):
        self.calls += 1
        return Evaluation(fitness=float(self.calls))


BROKEN = {
    "test_nothing_is_left_of_an_evaluation": (lambda: leaky, lambda: changing),
    "test_candidate_and_seed_decide": (lambda: leaky, Counting),
    "test_an_evaluation_has_a_fitness_or_says_why_not": (lambda: infinite,),
    "test_a_copy_in_another_process_finds_the_same": (Counting,),
    "test_threads_do_not_disturb_each_other": (Counting,),
}


@pytest.mark.parametrize(
    ("test", "make"), [(test, make) for test, makes in BROKEN.items() for make in makes]
)
def test_the_contract_tells_those_that_break_it(test, make):
    contract = Made()
    contract.make = make
    with pytest.raises(AssertionError):
        getattr(contract, test)()
    made()[0].model.eval()
