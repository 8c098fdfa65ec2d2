"""Weights that are computed at every use become plain ones of the same values, in a copy, and nothing else changes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from abcsearch.channels.baking import baked, computed
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
    pytest.mark.filterwarnings("ignore:tensors of the network are computed:UserWarning"),
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


def test_a_plain_network_is_not_copied_and_another_is_named(recwarn):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert baked(model) is model
    assert not recwarn
    several_layers = nn.Sequential(*(doubled(nn.Linear(2, 2)) for _ in range(5)))
    with pytest.warns(UserWarning, match=r"\(0\.weight, 1\.weight, 2\.weight and 2 more\)"):
        baked(several_layers)


def test_one_that_cannot_be_copied_is_refused():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = doubled(nn.Linear(2, 2))

        def __deepcopy__(self, memo):
            raise RuntimeError("it holds a lock")

    with pytest.raises(ModelError, match="Locked cannot be copied: it holds a lock"):
        baked(Locked())
