"""Repaired networks: as near to the full one as weights of the layers that read can bring them."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch import shortages
from abcsearch.channels import repair
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.moments import Sample, reader_moments
from abcsearch.channels.orders import Ranking
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.repair import Repaired, solve
from abcsearch.channels.source import Sliced, check_source
from abcsearch.errors import ConfigError, RankingError
from abcsearch.shortages import shortage
from tests.channels.networks import programs
from tests.channels.oracle import few, images, random_candidate
from tests.channels.test_moments import LAYERS, before
from tests.channels.test_slicing import traced

HOWS = ("one_shot", "sequential")
EVERY = (*HOWS, "scalar")


@pytest.fixture
def exact(monkeypatch):
    """Hardly any ridge, so that what can be computed exactly is."""
    monkeypatch.setattr(repair, "RIDGE", 1e-12)


def repaired(model, x, how="one_shot", keep=None):
    """A source that keeps the first channels of every group, or those of `keep`; and its graph."""
    graph = trace_channels(model, x[:1])
    scores = [-np.arange(group.channels, dtype=float) for group in graph.prunable]
    if keep is not None:
        scores = [
            np.isin(np.arange(group.channels), keep).astype(float) for group in graph.prunable
        ]
    return Repaired(
        Sliced(model, graph, Ranking(criterion="given", scores=tuple(scores))), x, how
    ), graph


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
        pull = np.sqrt(ridge * ((inputs - middle) ** 2).mean(0).mean() * len(rows)) * np.eye(
            len(kept)
        )
        zeros = np.zeros((len(kept), wanted.shape[1]))
        fit, *_ = np.linalg.lstsq(
            np.r_[inputs - middle, pull], np.r_[wanted - mean, zeros], rcond=None
        )
        np.testing.assert_allclose(solved[group].flatten(1)[:, kept].T, fit, atol=1e-6)
        if reader.centred:
            offset = constant.reshape(reader.conv_groups, -1)[group]
            np.testing.assert_allclose(offset, (wanted - inputs @ fit).mean(0), atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ridge", [1e-12, 0.3])
def test_factors_are_those_of_least_squares(name, ridge, monkeypatch):
    """Of the sums that an output is made of, one for each channel, against numpy on all samples."""
    monkeypatch.setattr(repair, "RIDGE", ridge)
    spatial, make = LAYERS[name]
    model, x = before(make(), spatial=spatial)
    seen = reader_moments(model, trace_channels(model, x[:1]), x)["2"]
    reader = seen.reader
    units = torch.tensor([0, 2] if reader.conv_groups > 1 else [0, 2, 3])
    weight, constant = solve(seen, model[2].weight, units, scalar=True)
    with torch.no_grad():
        every = Sample(reader, 0).inputs(model[2], model[1](model[0](x)), 0).numpy()
    full, solved = reader.split(model[2].weight.detach()).numpy(), reader.split(weight).numpy()
    for group, rows in enumerate(every):
        each = rows.reshape(len(rows), reader.units, reader.entries)
        made = np.einsum("rue,oue->rou", each, full[group])
        middle = made.mean(0) if reader.centred else np.zeros(made.shape[1:])
        terms, wanted = made - middle, (made - middle).sum(2)
        kept = terms[:, :, units].reshape(-1, len(units))
        pull = np.sqrt(ridge * (kept**2).sum(0).mean()) * np.eye(len(units))
        fit, *_ = np.linalg.lstsq(np.r_[kept, pull], np.r_[wanted.ravel(), pull.sum(1)], rcond=None)
        np.testing.assert_allclose(
            solved[group][:, units], full[group][:, units] * fit[:, None], atol=1e-6
        )
        assert not np.delete(solved[group], units, axis=1).any()
        if reader.centred:
            offset = constant.reshape(reader.conv_groups, -1)[group]
            left = middle.sum(1) - middle[:, units] @ fit
            np.testing.assert_allclose(offset, left, atol=1e-6)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("gone", [1, 2])
def test_factors_make_up_for_a_copy_that_is_read_in_proportion(gone):
    """What one of two copies is read with is three times what the other is: factors 4, or 4/3, by which one stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = (
            nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval(),
            torch.randn(50, 5),
        )
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = model[0].weight[1], model[0].bias[1]
        model[2].weight[:, 2] = 3 * model[2].weight[:, 1]
    kept = [channel for channel in range(4) if channel != gone]
    source, _ = repaired(model, x, "scalar", keep=kept)
    network = source.network((3,))
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x), atol=1e-5, rtol=1e-5)
        factors = network[2].weight / model[2].weight[:, kept]
    torch.testing.assert_close(
        factors.mean(dim=0),
        torch.tensor([1.0, 4.0 if gone == 2 else 4 / 3, 1.0]),
        atol=1e-4,
        rtol=0,
    )
    assert source.in_turn() is source  # else the weights would be others


READERS = {
    **{
        name: make
        for name, (spatial, make) in LAYERS.items()
        if spatial == 2 and name not in ("grouped",)
    },
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
        wanted, sliced, mended = (
            model(x),
            Sliced.network(source, candidate)(x),
            source.network(candidate)(x),
        )
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
    allowed |= {
        f"{one.reader.norm}.running_mean" for one in source.moments().values() if one.reader.norm
    }
    changed = {name for name in sliced if not torch.equal(sliced[name], mended[name])}
    assert changed <= allowed
    assert all(mended[name].isfinite().all() for name in mended)
    full = graph.space(alpha=1.0).full
    for how in HOWS:
        whole = once(Repaired(Sliced(model, graph, ranking), x, how).network(full))
        assert all(torch.equal(tensor, state[name]) for name, tensor in whole.items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    in_turn = once(Repaired(Sliced(model, graph, ranking), x, "sequential").network(candidate))
    assert all(in_turn[name].shape == mended[name].shape for name in mended)
    assert all(tensor.isfinite().all() for tensor in in_turn.values())
    other = pickle.loads(pickle.dumps(source))
    assert all(
        torch.equal(tensor, mended[name]) for name, tensor in once(other.network(candidate)).items()
    )


@few(10)
@given(programs(), st.integers(0, 2**16))
def test_no_other_weights_of_a_reader_come_nearer(program, seed):
    model, rng = program.build(seed).double(), np.random.default_rng(seed)
    graph, _ = traced(model)
    seen = reader_moments(model, graph, images(batch=6).double())
    for path, one in seen.items():
        reader, weight = one.reader, model.get_parameter(f"{path}.weight").detach()
        units = torch.from_numpy(
            np.sort(rng.permutation(reader.units)[: rng.integers(1, reader.units + 1)])
        )
        second = one.covariance if reader.centred else one.gram
        solved, full = (
            reader.split(solve(one, weight, units)[0]).flatten(2),
            reader.split(weight).flatten(2),
        )
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
    monkeypatch.setattr(
        repair, "solve", lambda *given, **options: counted.append(1) or solve(*given, **options)
    )
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
    assert torch.equal(
        source.network(half).get_parameter(name), Sliced.network(source, half).get_parameter(name)
    )
    frozen, _ = repaired(tiny_model.requires_grad_(False), x)
    assert "stages.0.0.conv2" in frozen.moments()
    assert not any(parameter.requires_grad for parameter in frozen.network(half).parameters())


def test_dead_channels_and_images_fewer_than_channels():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
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


class Chain(nn.Module):
    """Two convolutions and a linear layer, called by position or by name, with or without dropout."""

    def __init__(self, *, named=False, chance=0.0, always=False):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.named, self.chance, self.always = named, chance, always

    def forward(self, x):
        x = F.dropout(self.first(x).relu(), self.chance, training=self.always or self.training)
        x = self.norm(input=self.second(input=x)) if self.named else self.norm(self.second(x))
        x = x.relu().mean(dim=(2, 3))
        return self.last(input=x) if self.named else self.last(x)


def chain(**options):
    torch.manual_seed(0)
    return Chain(**options).eval()


@pytest.mark.parametrize("how", EVERY)
def test_layers_may_be_called_by_name(how):
    x = torch.randn(8, 1, 8, 8)
    networks = [repaired(chain(named=named), x, how)[0].network((4, 4)) for named in (False, True)]
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("options", [{"chance": 0.5}, {"chance": 0.5, "always": True}])
@pytest.mark.parametrize("training", [False, True])
def test_repair_draws_nothing_from_the_caller_and_is_the_same_at_every_call(how, options, training):
    x, model = torch.randn(8, 1, 8, 8), chain(**options).train(training)
    before = copy.deepcopy(model.state_dict())
    source, _ = repaired(model, x, how)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    networks = [source.network((4, 4)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(one[name], other[name]) for name in one)
    evaluated, _ = repaired(chain(**options), x, how)
    modeless = evaluated.network((4, 4)).state_dict()
    # It is in evaluation mode meanwhile
    assert all(torch.equal(one[name], modeless[name]) for name in one)
    for module in (*model.modules(), *networks[0].modules()):
        assert module.training is training
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def tied(model):
    model.second.bias = model.first.bias


def tied_behind(model):
    model.first.bias = model.second.bias


def frozen(model):
    model.second.bias.requires_grad_(False)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("change", [tied, tied_behind, frozen])
@pytest.mark.parametrize("norm", [True, False])
def test_biases_that_are_shared_or_frozen_stay(how, change, norm):
    model, x = chain(), torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        model.first.bias += 1
        model.second.bias += 1
    if not norm:
        model.norm = nn.Identity()
    change(model)
    source, graph = repaired(model, x, how)
    assert "second" in source.moments()
    half = tuple(group.channels // 2 for group in graph.prunable)
    sliced, mended = Sliced.network(source, half), source.network(half)
    assert torch.equal(sliced.second.bias, mended.second.bias)
    with torch.no_grad():
        wanted, sliced, mended = model(x), sliced(x), mended(x)
    assert (mended - wanted).square().mean() < 0.5 * (sliced - wanted).square().mean()


class Doubling(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Padding(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return F.conv2d(F.pad(x, (2, 2, 2, 2)), weight, bias)


class Bare(nn.Module):
    """Two layers, and a use of the second one's weight or bias that is no call of it."""

    def __init__(self, use):
        super().__init__()
        self.use, conv = use, use.startswith("conv")
        self.first = nn.Conv2d(3, 12, 1) if conv else nn.Linear(20, 12)
        self.second = nn.Conv2d(12, 12, 1) if conv else nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        h = torch.relu(self.first(x[:, 0, :1].flatten(1) if self.use[:4] != "conv" else x))
        weight, bias = self.second.weight, self.second.bias
        seen = self.second(h)
        if self.use == "conv":
            seen = seen.flatten(2).mean(2) + F.conv2d(2 * h + 1, weight).flatten(2).mean(2)
        elif self.use == "conv transposed":
            seen = F.conv_transpose2d(torch.relu(seen), weight).flatten(2).mean(2)
        else:
            other = 5 * torch.relu(self.first(x[:, 1, :1].flatten(1))) + 3
            seen = {
                "linear": lambda: seen + F.linear(other, weight),
                "transposed": lambda: F.linear(torch.relu(seen), weight.t()),
                "product": lambda: seen + other @ weight.T,
                "addmm": lambda: seen + torch.addmm(bias, other, weight.t()),
                "bias": lambda: seen + other.mean(1, keepdim=True) * bias,
            }[self.use]()
        return self.head(torch.relu(seen))


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize(
    "use", ["linear", "transposed", "product", "addmm", "bias", "conv", "conv transposed"]
)
def test_weights_that_forward_uses_besides_stay(use, how):
    """A fit to what their layer reads would be one for worse of what is computed with them elsewhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Bare(use).eval(), torch.randn(200, 3, 5, 20)
    source, graph = repaired(model, x, how)
    channels = [group.channels for group in graph.prunable]
    draws = np.random.default_rng(0)
    for _ in range(3):
        candidate = tuple(int(draws.integers(1, count + 1)) for count in channels)
        network = source.network(candidate)
        sliced = Sliced(model, graph, source.ranking).network(candidate)
        assert torch.equal(network.second.bias, sliced.second.bias) or use not in ("bias", "addmm")
        assert torch.equal(network.second.weight, sliced.second.weight) or use == "bias"
        assert network(x).isfinite().all()


@pytest.mark.parametrize("kind", [Doubling, Padding])
def test_layers_with_a_forward_of_their_own_stay(kind):
    model, x = chain(), torch.randn(8, 1, 5, 5)
    model.second = kind(8, 8, 3)
    for how in HOWS:
        source, graph = repaired(model, x, how)
        assert list(source.moments()) == ["last"]
        half = tuple(group.channels // 2 for group in graph.prunable)
        sliced, mended = Sliced.network(source, half), source.network(half)
        assert torch.equal(sliced.second.weight, mended.second.weight)
        assert not torch.equal(sliced.last.weight, mended.last.weight)


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("spread", [0.0, 1e-8, 1e-6, 1e-4])
@pytest.mark.parametrize("level", [0.1, 1.0, 1e4])
def test_channels_that_hardly_vary_are_constants(how, spread, level):
    torch.manual_seed(0)
    layers = [layer for _ in range(2) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), *layers, nn.Linear(64, 4)).eval()
    with torch.no_grad():
        model[0].weight *= spread
        model[0].bias.uniform_(0, level)
    x = torch.randn(200, 6)
    source, _ = repaired(model, x, how)
    with torch.no_grad():
        torch.testing.assert_close(
            source.network((32, 32, 32))(x), model(x), rtol=1e-3, atol=1e-3 * level
        )


def test_a_norm_that_gets_one_value_per_channel_keeps_its_statistics():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
    )
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(6, 2)).eval()
    for count in (1, 2):
        source, _ = repaired(model, torch.randn(count, 1, 4, 4), "sequential")
        network = source.network((3, 6))
        assert network(torch.zeros(1, 1, 4, 4)).isfinite().all()
        assert torch.equal(network[3].running_var, model[3].running_var) == (count == 1)
        assert not any(module.training for module in network.modules())


def test_what_is_no_way_to_repair_or_no_images_is_refused(tiny_model):
    x = torch.randn(8, 1, 8, 8)
    for how, advice in (
        ("sequental", "did you mean 'sequential'"),
        ("none", "choose one of: one_shot, scalar, sequential"),
    ):
        with pytest.raises(ConfigError, match=f"unknown repair '{how}'; {advice}"):
            repaired(tiny_model, x, how)
    for images_ in ((x, torch.zeros(8)), [x], x.numpy()):
        with pytest.raises(
            RankingError, match=f"are one tensor .*, found {type(images_).__name__}"
        ):
            Repaired(repaired(tiny_model, x)[0], images_)


@pytest.mark.parametrize("how", EVERY)
def test_images_stay_whatever_forward_does_with_them(how):
    x = torch.randn(8, 1, 8, 8)
    before = x.clone()
    networks = []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.ReLU(inplace=in_place), nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 6)
        ).eval()
        networks.append(repaired(model, x, how)[0].network((3,)).state_dict())
        assert torch.equal(x, before)
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


class Alone(nn.Module):
    """Layers that read channels and stay as they are, each for a reason of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.tied, self.again = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.again.weight = self.tied.weight
        self.own, self.bare, self.frozen = Doubling(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.frozen.weight.requires_grad_(requires_grad=False)
        self.head = nn.Linear(8 * 4, 3)

    def forward(self, x):
        for layer in (self.first, self.tied, self.again, self.own, self.bare):
            x = torch.relu(layer(x))
        x = torch.relu(self.frozen(x + F.conv2d(x, self.bare.weight)))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def test_layers_that_are_left_alone_are_named_and_so_are_few_samples():
    x = torch.randn(20, 8, 4, 4)
    source, _ = repaired(Alone().eval(), x)
    assert source.lines() == [
        "repair: 1 layer fitted anew; left as they are: tied, again (they share a weight); own, "
        "bare (forward computes with the weight itself); frozen (frozen)",
        "repair: head reads 32 numbers, of which there are 20 samples: the ridge decides between the ways to fit them",
    ]
    plain = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    (line,) = repaired(plain, x)[0].lines()
    assert line == "repair: 1 layer fitted anew; left as they are: none"


def test_a_machine_without_memory_for_moments_says_which_layer_takes_it(monkeypatch):
    source, graph = repaired(Alone().eval(), torch.randn(20, 8, 4, 4))
    needed = 8 * (32**2 + 3 * 8**2 + 32**2)
    monkeypatch.setattr(shortages, "free_memory", lambda: 8 * 2**10)
    words = r"second moments of what layers read \(head: 32 numbers\) take \d+ kB of memory, and 8 kB are free; fix the"
    with pytest.raises(RankingError, match=words) as caught:
        source.moments()
    assert shortage(caught.value) == "memory"  # the machine's, not the candidate's
    with pytest.raises(RankingError, match="second moments of what"):
        rank_channels(source.model, graph, "refit", data=source.images)
    monkeypatch.setattr(shortages, "free_memory", lambda: needed)
    assert "head" in source.moments()


@pytest.mark.parametrize("criterion", [None, "thinet", "pfa", "hrank", "nisp", "curl"])
def test_memory_that_ends_while_a_criterion_looks_is_the_machines(criterion, monkeypatch):
    model, x = Alone().eval(), torch.randn(20, 8, 4, 4)
    source, graph = repaired(model, x)

    def full(*_):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 72 bytes"
        )

    looks = {None: source.moments}.get(
        criterion,
        lambda: rank_channels(model, graph, criterion, data=(x, torch.arange(20) % 3)),
    )
    monkeypatch.setattr(nn.Linear, "forward", full)
    with pytest.raises(RankingError, match=r"this machine is short of memory .* 72 bytes.*; fix"):
        looks()
