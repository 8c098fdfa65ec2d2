"""Sources: where candidates' networks come from, and what a source of one's own must keep."""

import copy
import pickle

import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.channels.source import Sliced, Source, check_source
from abcsearch.errors import ModelError
from abcsearch.rng import torch_seeded


@pytest.fixture
def source(tiny_model):
    graph = trace_channels(tiny_model, torch.zeros(1, 1, 6, 6))
    return Sliced(tiny_model, graph, rank_channels(tiny_model, graph))


class Fresh(Sliced):
    """The structure of a candidate with weights that are drawn anew."""

    def network(self, candidate, seed=0):
        network = super().network(candidate)
        with torch_seeded(seed, "fresh"):
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                    module.reset_parameters()
        return network


def same(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_sliced_is_slicing_whatever_the_seed(source):
    candidate = source.graph.space().uniform(0.5)
    expected = slice_model(source.model, source.graph, candidate, source.ranking)
    assert same(source.network(candidate), expected)
    assert same(source.network(candidate, 7), expected)
    assert list(source.modules) == ["network"]


def test_a_source_pickles_and_moves_without_changing(source):
    candidate = source.graph.space().uniform(0.5)
    again = pickle.loads(pickle.dumps(source))
    assert same(again.network(candidate), source.network(candidate))
    assert source.to("cpu") is source
    moved = source.to("meta")
    assert {p.device.type for p in moved.network(candidate).parameters()} == {"meta"}
    assert {p.device.type for p in source.model.parameters()} == {"cpu"}
    assert moved.graph is source.graph  # plans of slicing are kept by graph


def test_a_source_of_ones_own_is_asked_by_evaluators(source, tiny_data):
    from abcsearch import AdaptiveBN, AdaptiveBNOptions

    fresh = Fresh(source.model, source.graph, source.ranking)
    check_source(source)
    check_source(fresh)
    candidate, options = (
        source.graph.space().uniform(0.5),
        AdaptiveBNOptions(metric="neg_loss", batch_size=32),
    )
    evaluator = AdaptiveBN(fresh, tiny_data, options)
    first, again, other = (evaluator(candidate, seed) for seed in (1, 1, 2))
    assert first.fitness == again.fitness != other.fitness
    assert AdaptiveBN(source, tiny_data, options)(candidate, 1).fitness not in (
        first.fitness,
        other.fitness,
    )


def _changing(self, candidate):
    with torch.no_grad():
        next(self.model.parameters()).add_(1)
    return Sliced.network(self, candidate)


def _drawing(self, candidate):
    network = Sliced.network(self, candidate)
    with torch.no_grad():
        next(network.parameters()).normal_()
    return network


def _whole(self, candidate):
    del candidate
    return copy.deepcopy(self.model)


WRONG = {
    "returns int for": lambda self, candidate: 1,
    "fails for .* ZeroDivisionError": lambda self, candidate: 1 / 0,
    "gives the same module twice": lambda self, candidate: self.model,
    "other weights at every call: draw random numbers from the seed": _drawing,
    "parameters, expected": _whole,
    "changes its module 'network' when it makes networks": _changing,
}


@pytest.mark.parametrize("words", WRONG)
def test_a_source_that_breaks_its_word_is_refused(source, words):
    class Own(Source):
        def network(self, candidate, seed=0):
            return WRONG[words](self, candidate)

    own = Own(copy.deepcopy(source.model), source.graph, source.ranking)
    with pytest.raises(ModelError, match=f"source Own .*{words}"):
        check_source(own)


def test_what_is_no_source_is_refused(source):
    with pytest.raises(ModelError, match=r"Linear is no source: derive it from abcsearch\.Source"):
        check_source(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="abstract"):
        Source(source.model, source.graph, source.ranking)
