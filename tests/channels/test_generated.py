"""Weights from keep ratios: nothing added is slicing bit for bit; what is added is what the formula says."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels.fixed import Fixed
from abcsearch.channels.generated import Generated, Generator, made_weights
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.sharing import shared_network
from abcsearch.channels.source import check_source
from abcsearch.errors import CandidateError, ModelError
from abcsearch.models.resnet import SmallResNet
from abcsearch.training.checkpoints import network_hash
from tests.channels.networks import programs, strange_network
from tests.channels.oracle import few, images, random_candidate, scrambled
from tests.channels.test_slicing import traced

FORMS = [pytest.param(False, id="residual"), pytest.param(True, id="low_rank")]


def source_of(model, *, low_rank=False, hidden=3, outputs=False, free=None):
    """A source whose generator has been drawn from a seed: its outputs too, or 0."""
    dtype = next(model.parameters()).dtype
    graph = (
        traced(model)[0]
        if dtype == torch.float64
        else trace_channels(model, images(batch=1).to(dtype))
    )
    ranking = rank_channels(model, graph, "random", seed=1)
    made = made_weights(model, graph, range(len(graph.prunable)) if free is None else free)
    generator = Generator(made, hidden=hidden, low_rank=low_rank).to_like(model)
    generator.drawn(torch.Generator().manual_seed(0), outputs=outputs)
    return Generated(model, graph, ranking, generator)


def by_hand(source, name, candidate, low_rank):
    """The whole weight of a candidate, in numpy."""
    state = {key: value.numpy() for key, value in source.generator.state_dict().items()}
    number = [one.name for one in source.generator.made].index(name)
    one = source.generator.made[number]
    own = {
        key.split(".", 2)[2]: value
        for key, value in state.items()
        if key.startswith(f"_makers.{number}.")
    }

    def features(ratios):
        return np.maximum(own["hidden"] @ np.array(ratios, own["hidden"].dtype) + own["offset"], 0)

    ratios = [candidate[group] / source.graph.prunable[group].channels for group in one.groups]
    moved = features(ratios) - features([1] * len(ratios))
    weight = dict(source.model.named_parameters())[name].detach().numpy()
    if not low_rank:
        return weight + (own["outputs.0"] @ moved).reshape(weight.shape)
    for number, axis in enumerate(one.axes):
        factors = 1 + own[f"outputs.{number}"] @ moved
        weight = weight * factors.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    return weight


def check_candidate(source, candidate, low_rank):
    """Every tensor is a slice: of what the formula says, or of the network's own."""
    made = {
        one.name: by_hand(source, one.name, candidate, low_rank) for one in source.generator.made
    }
    like = copy.deepcopy(source.model)
    with torch.no_grad():
        for name, weight in made.items():
            dict(like.named_parameters())[name].copy_(torch.from_numpy(weight))
    expected = Fixed(like, source.graph, source.ranking).network(candidate)
    network = source.network(candidate)
    for (name, tensor), (other, wanted) in zip(
        network.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-6)
    return network


def check_both_ways(source, candidate):
    """A step trains what an evaluation sees: the same outputs, and gradients reach the generator."""
    before = network_hash(source.model)
    weights = source.generator.weights(source.model, source.graph, candidate)
    shared = shared_network(source.model, source.graph, candidate, source.ranking, weights)
    x = images(batch=2)
    outputs = shared(x.clone())
    assert torch.equal(outputs.detach(), source.network(candidate)(x.clone()).detach())
    outputs.square().sum().backward()
    assert network_hash(source.model) == before
    source.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("low_rank", FORMS)
@few(10)
@given(program=programs(), seed=st.integers(0, 2**16))
def test_random_networks(low_rank, program, seed):
    model, rng = program.build(seed), np.random.default_rng(seed)
    source = source_of(model, low_rank=low_rank)
    candidate = random_candidate(source.graph, rng)
    plain = Fixed(model, source.graph, source.ranking)
    assert network_hash(source.network(candidate)) == network_hash(plain.network(candidate))
    source.generator.drawn(torch.Generator().manual_seed(seed), outputs=True)
    full = source.graph.space(alpha=1.0).full
    assert network_hash(source.network(full)) == network_hash(plain.network(full))
    check_candidate(source, candidate, low_rank)
    check_both_ways(source, candidate)


@pytest.mark.parametrize("low_rank", FORMS)
@pytest.mark.parametrize("name", ["tied", "tied_depthwise", "recurrent", "shared_norm", "grouped"])
def test_tied_weights_and_shared_modules(name, low_rank):
    source = source_of(strange_network(name), low_rank=low_rank, outputs=True)
    candidate = tuple(2 for _ in source.graph.prunable)
    check_candidate(source, candidate, low_rank)
    check_both_ways(source, candidate)


@pytest.fixture(scope="module")
def residual():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scrambled(SmallResNet(3, 5, (4, 6, 8), (3, 2, 2)))


@pytest.mark.parametrize("low_rank", FORMS)
def test_dropped_blocks_and_what_a_source_promises(residual, low_rank):
    source = source_of(residual, low_rank=low_rank, outputs=True)
    check_source(source)
    for dropped in range(len(source.graph.blocks)):
        blocks = tuple(int(i != dropped) for i in range(len(source.graph.blocks)))
        candidate = (*(max(1, group.channels // 2) for group in source.graph.prunable), *blocks)
        network = check_candidate(source, candidate, low_rank)
        assert isinstance(network.get_submodule(source.graph.blocks[dropped].name), nn.Identity)
        check_both_ways(source, candidate)


def test_only_ratios_that_have_a_choice_are_read(residual):
    """Whatever other widths do, a weight that no searched group touches is the network's own."""
    graph, _ = traced(residual)
    inner = [number for number, group in enumerate(graph.prunable) if group.kind == "filter"]
    source = source_of(residual, outputs=True, free=inner)
    assert {group for one in source.generator.made for group in one.groups} == set(inner)
    untouched = {"conv.weight", "linear.weight"} & set(dict(residual.named_parameters()))
    assert untouched
    assert untouched.isdisjoint(one.name for one in source.generator.made)


def test_what_is_frozen_stays():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.LazyLinear(2)
    ).eval()
    model(torch.zeros(1, 3, 4, 4))
    model[2].weight.requires_grad_(False)
    graph = trace_channels(model, torch.zeros(1, 3, 4, 4))
    assert [one.name for one in made_weights(model, graph, range(2))] == ["0.weight", "4.weight"]


def test_it_pickles_and_moves(residual):
    source = source_of(residual, outputs=True)
    candidate = tuple(max(1, group.channels // 2) for group in source.graph.prunable)
    other = pickle.loads(pickle.dumps(source))
    assert network_hash(other.network(candidate)) == network_hash(source.network(candidate))
    assert source.to("cpu") is source
    assert {str(tensor.device) for tensor in source.to("meta").generator.state_dict().values()} == {
        "meta"
    }


def test_in_another_precision_weights_are_the_same(residual):
    source = source_of(copy.deepcopy(residual).float(), outputs=True)
    candidate = tuple(max(1, group.channels // 2) for group in source.graph.prunable)
    expected = network_hash(source.network(candidate))
    with torch.autocast("cpu", torch.bfloat16):
        assert network_hash(source.network(candidate)) == expected


def test_a_generator_of_another_network_or_space_is_refused(residual):
    source = source_of(residual)
    with torch.random.fork_rng(devices=[]):
        wider = scrambled(SmallResNet(3, 5, (4, 6, 10), (3, 2, 2)))
    graph, _ = traced(wider)
    with pytest.raises(
        ModelError, match=r"made for another network or space: it has a weight .* shape .* anew"
    ):
        Generated(wider, graph, rank_channels(wider, graph), source.generator)
    made = [one._replace(groups=(len(source.graph.prunable) - 1,)) for one in source.generator.made]
    with pytest.raises(ModelError, match="channels of groups"):
        Generated(residual, source.graph, source.ranking, Generator(made).to_like(residual))
    with pytest.raises(CandidateError):
        source.network((1, 2))
