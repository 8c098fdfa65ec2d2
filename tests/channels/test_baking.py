"""Weights that are computed at every use become plain ones of the same values, in a copy, and nothing else changes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from abcsearch.channels.baking import baked, baked_words, computed
from abcsearch.channels.groups import trace_channels
from abcsearch.errors import ModelError
from abcsearch.rng import torch_seeded


class Doubled(nn.Module):
    """A parametrisation of the user's own."""

    def forward(self, weight):
        return 2 * weight


def doubled(layer):
    return parametrize.register_parametrization(layer, "weight", Doubled())


def masked(layer):
    return prune.l1_unstructured(layer, "weight", 0.3)


def masked_twice(layer):
    return prune.ln_structured(masked(layer), "weight", 0.3, n=2, dim=0)


def masked_biases(layer):
    return prune.random_unstructured(masked(layer), "bias", 2)


def several(layer):
    return doubled(parametrizations.weight_norm(layer))


KINDS = [
    weight_norm,
    spectral_norm,
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    doubled,
    several,
    masked,
    masked_twice,
    masked_biases,
]
kinds = pytest.mark.parametrize(
    "kind", KINDS, ids=[f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for kind in KINDS]
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
]


def network(kind):
    """Three layers whose weights are computed, of which two are copies of each other, and a plain one."""
    with torch_seeded(0, "baking"):
        middle = kind(nn.Conv2d(6, 6, 3, padding=1))
        try:
            twin = copy.deepcopy(middle)
        except RuntimeError:  # a hook's tensors have a history
            twin = kind(nn.Conv2d(6, 6, 3, padding=1))
        layers = [kind(nn.Conv2d(2, 6, 3)), nn.ReLU(), middle, nn.ReLU(), twin, nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def images():
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@kinds
@pytest.mark.parametrize("training", [False, True])
def test_a_copy_computes_the_same_and_the_network_stays_as_it_is(kind, training):
    model = network(kind).train(training)
    model(images()).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = baked(model)
    assert computed(plain) == {}
    assert [type(layer) for layer in plain] == [
        nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear
    ]  # fmt: skip
    assert all(layer.training is training for layer in plain)
    assert plain.state_dict().keys() == {
        f"{place}.{name}" for place in (0, 2, 4, 8) for name in ("weight", "bias")
    }
    plain.load_state_dict(plain.state_dict())
    now = model.state_dict()
    assert before.keys() == now.keys()
    assert all(torch.equal(before[name], now[name]) for name in now)
    assert list(computed(model)) == ["0", "2", "4"]
    torch.testing.assert_close(plain.eval()(images()), model.eval()(images()))
    model(images()).sum().backward()  # as it could before


@kinds
@pytest.mark.parametrize("trains", [False, True])
def test_what_is_frozen_stays_a_frozen_parameter(kind, trains):
    model = network(kind).requires_grad_(trains)
    plain = baked(model)
    assert {name for name, _ in plain.named_parameters()} == plain.state_dict().keys()
    assert all(parameter.requires_grad is trains for parameter in plain.parameters())


@kinds
def test_their_channels_can_go(kind):
    graph = trace_channels(baked(network(kind)), images())
    assert [group.name for group in graph.prunable] == ["0", "2", "4"]


def test_a_weight_that_another_layer_has_as_it_is_is_not_changed_there():
    model = nn.Sequential(doubled(nn.Linear(4, 4)), nn.Linear(4, 4))
    model[1].weight = model[0].parametrizations.weight.original
    plain, x = baked(model), torch.randn(3, 4)
    torch.testing.assert_close(plain(x), model(x))
    torch.testing.assert_close(plain[1].weight, model[1].weight)
    torch.testing.assert_close(plain[0].weight, 2 * model[1].weight)


def test_a_computed_buffer_stays_a_buffer():
    layer = nn.Module()
    layer.register_buffer("weight", torch.ones(3))
    plain = baked(doubled(layer))
    assert [name for name, _ in plain.named_buffers()] == ["weight"]
    assert plain.weight.tolist() == [2, 2, 2]


def test_a_plain_network_is_not_copied_and_another_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert baked(model) is model
    assert not baked_words(model)
    several_layers = nn.Sequential(*(doubled(nn.Linear(2, 2)) for _ in range(5)))
    assert "(0.weight, 1.weight, 2.weight and 2 more)" in baked_words(several_layers)


def both_masked(model):
    prune.l1_unstructured(model[0], "weight", 8)
    prune.random_unstructured(model[2], "weight", 8)


def half_masked(model):
    prune.l1_unstructured(model[0], "weight", 8)


def both_normed(model):
    for place in (0, 2):
        doubled(model[place])


@pytest.mark.parametrize("change", [half_masked, both_masked, both_normed])
def test_tied_weights_stay_what_they_are(change):
    """What a layer computes of a weight that another one has, too, is nothing to that one."""
    with torch_seeded(0, "tied"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    change(model)
    x = torch.randn(5, 4)
    plain, expected = baked(model), model(x)
    torch.testing.assert_close(plain(x), expected)
    torch.testing.assert_close(model(x), expected)
    alike = plain[0].weight is plain[2].weight
    assert alike == (change is both_normed)
    with torch.no_grad():
        plain[0].weight.zero_()
    assert bool(plain[2].weight.any()) != alike


def test_tensors_of_the_same_sources_are_one():
    model = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(3, 3)) for _ in range(2)))
    for name in ("original0", "original1"):
        source = getattr(model[0].parametrizations.weight, name)
        setattr(model[1].parametrizations.weight, name, source)
    plain = baked(model)
    assert plain[0].weight is plain[1].weight
    assert len(list(plain.parameters())) == 3


def test_copies_of_a_layer_are_not_taken_for_one():
    """Also where what was computed from what is gone, and memory given anew."""
    layers = []
    for _ in range(20):
        with torch_seeded(0, "alike"):
            layers.append(spectral_masked(nn.Linear(4, 4)))
    plain = baked(nn.Sequential(*layers))
    assert all(torch.equal(layer.weight, plain[0].weight) for layer in plain)
    assert len({id(layer.weight) for layer in plain}) == 20


class OfOther(nn.Module):
    """Gives a layer the weight of another one, or a row of it, or all rows of one."""

    def __init__(self, other, how):
        super().__init__()
        self.other, self.how = [other], how

    def forward(self, weight):
        given = self.other[0].weight
        return {"same": given, "turned": given.T, "expanded": given[:1].expand(4, 4)}[self.how]


@pytest.mark.parametrize("how", ["same", "turned", "expanded"])
def test_what_is_computed_has_memory_of_its_own(how):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parametrize.register_parametrization(model[1], "weight", OfOther(model[0], how))
    plain, x = baked(model), torch.randn(2, 4)
    torch.testing.assert_close(plain(x), model(x))
    with torch.no_grad():
        plain[0].weight.zero_()
        assert bool(plain[1].weight.any())
        plain[1].weight.add_(torch.ones(4, 4))


class Inner(nn.Module):
    """A parametrisation whose own layer is normed."""

    def __init__(self):
        super().__init__()
        self.layer = parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, weight):
        return self.layer(weight)


def inside_masked(layer):
    parametrizations.weight_norm(layer)
    prune.l1_unstructured(layer.parametrizations.weight, "original1", 5)
    return layer


def inside_doubled(layer):
    parametrizations.weight_norm(layer)
    parametrize.register_parametrization(layer.parametrizations.weight, "original1", Doubled())
    return layer


def by_a_layer(layer):
    return parametrize.register_parametrization(layer, "weight", Inner())


def normed_masked(layer):
    return prune.l1_unstructured(weight_norm(layer), "weight_v", 5)


def spectral_masked(layer):
    return prune.l1_unstructured(spectral_norm(layer), "weight_orig", 5)


def masked_normed(layer):
    layer = masked(layer)
    return parametrizations.weight_norm(layer, "weight_orig")


@pytest.mark.parametrize(
    "kind",
    [inside_masked, inside_doubled, by_a_layer, normed_masked, spectral_masked, masked_normed],
)
def test_one_inside_of_another_is_gone_with_it(kind):
    with torch_seeded(0, "inside"):
        model = nn.Sequential(kind(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)).eval()
        x = torch.randn(3, 4)
    model(x)
    plain = baked(model)
    torch.testing.assert_close(plain(x), model(x))
    assert list(plain.state_dict()) == ["0.bias", "0.weight", "2.weight", "2.bias"]
    assert type(plain[0]) is nn.Linear
    pickle.dumps(plain)


class Quantised(nn.Module):
    """Floats of integers."""

    def forward(self, weight):
        return weight.float() * 0.01


def test_types_may_change():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.randint(-9, 9, (4, 4)), requires_grad=False)
    parametrize.register_parametrization(layer, "weight", Quantised(), unsafe=True)
    plain, x = baked(nn.Sequential(layer)), torch.randn(2, 4)
    torch.testing.assert_close(plain(x), layer(x))
    assert plain[0].weight.dtype == torch.float32


def test_only_modes_of_what_goes_are_touched():
    block = nn.Module()
    block.scale = nn.Parameter(torch.ones(3))
    block.norm, block.drop = nn.BatchNorm1d(3).eval(), nn.Dropout()
    parametrize.register_parametrization(block, "scale", Doubled())
    plain = baked(block)
    assert (plain.training, plain.norm.training, plain.drop.training) == (True, False, True)


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, weight_norm, spectral_norm])
def test_recurrent_layers_that_have_run(kind):
    with torch_seeded(0, "recurrent"):
        model, x = kind(nn.LSTM(3, 5), "weight_hh_l0"), torch.randn(4, 2, 3)
    model(x)[0].sum().backward()
    plain = baked(model)
    torch.testing.assert_close(plain.eval()(x)[0], model.eval()(x)[0])
    plain(x)[0].sum().backward()
    assert plain.weight_hh_l0.grad.any()


def test_what_cannot_be_computed_is_named():
    class Failing(nn.Module):
        fails = False

        def forward(self, weight):
            if Failing.fails:
                raise RuntimeError("train only")
            return weight

    layer = parametrize.register_parametrization(nn.Linear(2, 2), "weight", Failing())
    Failing.fails = True
    with pytest.raises(ModelError, match=r"0\.weight of Sequential .* train only; bake = false"):
        baked(nn.Sequential(layer))


def test_a_lazy_network_is_left_to_those_who_trace_it():
    model = nn.Sequential(nn.LazyLinear(3), doubled(nn.Linear(3, 2)))
    assert baked(model) is model


def test_one_that_cannot_be_copied_is_refused():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = doubled(nn.Linear(2, 2))

        def __deepcopy__(self, memo):
            raise RuntimeError("it holds a lock")

    with pytest.raises(ModelError, match="Locked cannot be copied: it holds a lock"):
        baked(Locked())
