"""Repaired networks: as near to the full one as weights of the layers that read can bring them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels import repair
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.moments import Sample, reader_moments
from abcsearch.channels.ranking import Ranking, rank_channels
from abcsearch.channels.repair import Repaired, solve
from abcsearch.channels.source import Sliced, check_source
from tests.channels.networks import programs
from tests.channels.oracle import few, images, random_candidate
from tests.channels.test_moments import LAYERS, before
from tests.channels.test_slicing import traced

HOWS = ("one_shot", "sequential")


@pytest.fixture
def exact(monkeypatch):
    """Hardly any ridge, so that what can be computed exactly is."""
    monkeypatch.setattr(repair, "RIDGE", 1e-12)


def repaired(model, x, how="one_shot", keep=None):
    """A source that keeps the first channels of every group, or those of `keep`; and its graph."""
    graph = trace_channels(model, x[:1])
    scores = [-np.arange(group.channels, dtype=float) for group in graph.prunable]
    if keep is not None:
        scores = [np.isin(np.arange(group.channels), keep).astype(float) for group in graph.prunable]
    return Repaired(Sliced(model, graph, Ranking(criterion="given", scores=tuple(scores))), x, how), graph


def once(network):
    """The tensors of a network by name; those that modules share, once."""
    return dict([*network.named_parameters(), *network.named_buffers()])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ridge", [1e-12, 0.3])
def test_solutions_are_those_of_least_squares(name, ridge, monkeypatch):
    monkeypatch.setattr(repair, "RIDGE", ridge)
    spatial, make = LAYERS[name]
    model, x = before(make(), spatial=spatial)
    seen = reader_moments(model, trace_channels(model, x[:1]), x)["2"]
    reader = seen.reader
    units = torch.tensor([0, 2] if reader.conv_groups > 1 else [0, 2, 3])
    weight, constant = solve(seen, model[2].weight, units)
    with torch.no_grad():
        every = Sample(reader, 0).inputs(model[2], model[1](model[0](x)), 0).numpy()
    full, solved = reader.split(model[2].weight.detach()).flatten(2).numpy(), reader.split(weight)
    gone = np.setdiff1d(np.arange(reader.units), units)
    assert not solved[:, :, gone].any()
    kept = (units[:, None] * reader.entries + torch.arange(reader.entries)).flatten().numpy()
    for group, rows in enumerate(every):
        inputs, wanted = rows[:, kept], rows @ full[group].T
        middle, mean = (inputs.mean(0), wanted.mean(0)) if reader.centred else (0.0, 0.0)
        pull = np.sqrt(ridge * ((inputs - middle) ** 2).mean(0).mean() * len(rows)) * np.eye(len(kept))
        zeros = np.zeros((len(kept), wanted.shape[1]))
        fit, *_ = np.linalg.lstsq(np.r_[inputs - middle, pull], np.r_[wanted - mean, zeros], rcond=None)
        np.testing.assert_allclose(solved[group].flatten(1)[:, kept].T, fit, atol=1e-6)
        if reader.centred:
            offset = constant.reshape(reader.conv_groups, -1)[group]
            np.testing.assert_allclose(offset, (wanted - inputs @ fit).mean(0), atol=1e-6)


READERS = {
    **{name: make for name, (spatial, make) in LAYERS.items() if spatial == 2 and name not in ("grouped",)},
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 2, 2),
    "behind a norm": lambda: nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(216, 4)),
}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", READERS)
def test_channels_that_follow_from_others_cost_nothing(name, how):
    torch.manual_seed(0)
    first, mix = nn.Conv2d(2, 6, 1), torch.randn(3, 3)
    with torch.no_grad():
        first.weight[3:] = torch.einsum("ab,bchw->achw", mix, first.weight[:3])
        first.bias[3:] = mix @ first.bias[:3] + 1  # and a constant
    reader = READERS[name]()
    model = nn.Sequential(first, reader, nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(60, 2, 6, 6, dtype=torch.float64)
    model(x)
    model.eval()
    source, graph = repaired(model, x, how)
    candidate = tuple(3 if group.name == "0" else group.channels for group in graph.prunable)
    # Where a border is padded with zeros, the constant by which channels differ is none there.
    partly = name in ("padded", "strided", "same", "transposed")
    with torch.no_grad():
        wanted, sliced, mended = model(x), Sliced.network(source, candidate)(x), source.network(candidate)(x)
    error = (sliced - wanted).abs().max()
    assert error > 1e-2
    # A norm that takes statistics anew divides by a variance that is larger by a fraction of 1 / images.
    limit = 0.9 * error if partly else 1e-3 if name == "behind a norm" else 1e-5
    assert (mended - wanted).abs().max() < limit


@few(12)
@given(programs(), st.integers(0, 2**16))
def test_random_networks_are_repaired_in_their_readers_alone(program, seed):
    model, rng = program.build(seed), np.random.default_rng(seed)
    graph, _ = traced(model)
    ranking = rank_channels(model, graph, "random", seed=seed)
    state, x = copy.deepcopy(model.state_dict()), images(batch=6)
    source = Repaired(Sliced(model, graph, ranking), x)
    candidate = random_candidate(graph, rng)
    sliced, mended = once(Sliced.network(source, candidate)), once(source.network(candidate))
    allowed = {one.reader.weight for one in source.moments().values()}
    allowed |= {f"{path}.bias" for path in source.moments()}
    allowed |= {f"{one.reader.norm}.running_mean" for one in source.moments().values() if one.reader.norm}
    changed = {name for name in sliced if not torch.equal(sliced[name], mended[name])}
    assert changed <= allowed
    assert all(mended[name].isfinite().all() for name in mended)
    full = graph.space(alpha=1.0).full
    whole = once(source.network(full))
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    in_turn = once(Repaired(Sliced(model, graph, ranking), x, "sequential").network(candidate))
    assert all(in_turn[name].shape == mended[name].shape for name in mended)
    assert all(tensor.isfinite().all() for tensor in in_turn.values())
    other = pickle.loads(pickle.dumps(source))
    assert all(torch.equal(tensor, mended[name]) for name, tensor in once(other.network(candidate)).items())


@few(10)
@given(programs(), st.integers(0, 2**16))
def test_no_other_weights_of_a_reader_come_nearer(program, seed):
    model, rng = program.build(seed).double(), np.random.default_rng(seed)
    graph, _ = traced(model)
    seen = reader_moments(model, graph, images(batch=6).double())
    for path, one in seen.items():
        reader, weight = one.reader, model.get_parameter(f"{path}.weight").detach()
        units = torch.from_numpy(np.sort(rng.permutation(reader.units)[: rng.integers(1, reader.units + 1)]))
        second = one.covariance if reader.centred else one.gram
        solved, full = reader.split(solve(one, weight, units)[0]).flatten(2), reader.split(weight).flatten(2)
        mask = torch.zeros(reader.units, reader.entries, dtype=torch.float64)
        mask[units] = 1
        kept = second.diagonal(dim1=1, dim2=2)[:, mask.flatten().bool()]
        pull = repair.RIDGE * kept.mean(dim=1)[:, None, None]

        def loss(other, full=full, second=second, pull=pull):
            rest = full - other
            return float((rest @ second * rest).sum() + (pull * other**2).sum())

        for scale in (1e-3, 0.1, 1.0):
            noise = torch.from_numpy(rng.normal(0, scale, solved.shape)) * mask.flatten()
            assert loss(solved) <= loss(solved + noise) + 1e-9


def test_solutions_are_kept_and_may_be_forgotten(monkeypatch, tiny_model):
    x = torch.randn(8, 1, 8, 8)
    source, graph = repaired(tiny_model, x)
    rng = np.random.default_rng(0)
    candidates = [random_candidate(graph, rng) for _ in range(6)]
    once = [source.network(c).state_dict() for c in candidates]
    counted = []
    monkeypatch.setattr(repair, "solve", lambda *given: counted.append(1) or solve(*given))
    again = [source.network(c).state_dict() for c in candidates]
    assert not counted
    monkeypatch.setattr(repair, "_MEMORY", 0)
    forgetful, _ = repaired(tiny_model, x)
    third = [forgetful.network(c).state_dict() for c in candidates]
    assert len(counted) > 6
    for states in zip(once, again, third, strict=True):
        assert all(torch.equal(states[0][name], other[name]) for other in states for name in other)
    check_source(source)


def test_frozen_weights_stay_and_a_network_that_is_frozen_whole_does_not_count_as_such(tiny_model):
    x = torch.randn(8, 1, 8, 8)
    tiny_model.stages[0][0].conv2.weight.requires_grad_(False)
    source, graph = repaired(tiny_model, x)
    assert "stages.0.0.conv2" not in source.moments()
    assert len(source.moments()) > 2
    half = tuple(max(1, group.channels // 2) for group in graph.prunable)
    name = "stages.0.0.conv2.weight"
    assert torch.equal(source.network(half).get_parameter(name), Sliced.network(source, half).get_parameter(name))
    frozen, _ = repaired(tiny_model.requires_grad_(False), x)
    assert "stages.0.0.conv2" in frozen.moments()
    assert not any(parameter.requires_grad for parameter in frozen.network(half).parameters())


def test_dead_channels_and_images_fewer_than_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[0].bias[:3] = -1
        model[0].bias[3:] = 2
    x = torch.randn(2, 1, 4, 4)
    for how in HOWS:
        source, _ = repaired(model.eval(), x, how)
        network = source.network((3, 3))  # nothing but dead channels is left
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
        live, _ = repaired(model, x, how, keep=[3, 4, 5])
        torch.testing.assert_close(live.network((3, 3))(x), model(x), atol=0.2, rtol=0.1)


def test_blocks_that_are_dropped_are_left_alone(tiny_model):
    x = torch.randn(8, 1, 8, 8)
    for how in HOWS:
        source, graph = repaired(tiny_model, x, how)
        widths = tuple(max(1, group.channels // 2) for group in graph.prunable)
        candidate = (*widths, *[0] * len(graph.blocks))
        assert graph.blocks
        out = source.network(candidate)(x)
        assert out.isfinite().all()


def test_a_prepared_source_is_compared_with_what_was_brought(tiny_model):
    x = torch.randn(8, 1, 8, 8)
    brought = copy.deepcopy(tiny_model)
    graph = trace_channels(tiny_model, x[:1])
    sliced = Sliced(tiny_model, graph, rank_channels(tiny_model, graph)).beside(brought)
    assert Repaired(sliced, x).full is brought
    assert Repaired(Sliced(tiny_model, graph, sliced.ranking), x).full is tiny_model
