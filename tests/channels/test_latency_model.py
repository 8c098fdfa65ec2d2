"""The model of forward time: exact where it was measured, rising with work, and the same after a round trip."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from abcsearch import trace_channels
from abcsearch.channels import latency
from abcsearch.channels.latency import LatencyModel, LatencyOptions
from abcsearch.errors import ModelError

QUICK = LatencyOptions(repeats=2)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    return model, trace_channels(model, torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def measured(resnet):
    return LatencyModel.measure(*resnet, torch.zeros(1, 3, 32, 32), QUICK)


def uniform(graph, ratio):
    return [max(1, int(group.channels * ratio + 1e-9)) for group in graph.prunable]


def test_layers_add_up_to_the_networks_macs(resnet):
    _, graph = resnet
    space = graph.space(levels=("filter", "stage", "block"))
    rows = [space.sample(np.random.default_rng(seed)) for seed in range(20)]
    layers = graph.costs.layer_macs(rows)
    assert layers.shape == (20, len(graph.costs.layers))
    np.testing.assert_array_equal(layers.sum(axis=1), graph.costs.macs(rows))
    dropped = space.full[: len(graph.prunable)] + (0,) * len(graph.blocks)
    gone = [
        name
        for name, work in zip(graph.costs.layers, graph.costs.layer_macs([dropped])[0], strict=True)
        if not work
    ]
    assert gone
    assert all(any(name.startswith(f"{block.name}.") for block in graph.blocks) for name in gone)


def test_uniform_networks_are_predicted_as_they_were_measured(resnet, monkeypatch):
    model, graph = resnet
    times = [3.0 + number for number in range(10)]
    layers = len(graph.costs.layers)
    monkeypatch.setattr(latency, "measure_latency", lambda *_, **__: times)
    monkeypatch.setattr(latency, "_layer_shares", lambda *_: np.full(layers, 0.5 / layers))
    found = LatencyModel.measure(model, graph, torch.zeros(1, 3, 32, 32), QUICK)
    rows = [uniform(graph, ratio / 10) for ratio in range(1, 11)]
    np.testing.assert_allclose(found.latency_ms(rows), times)


def test_times_rise_with_every_dimension(resnet, measured):
    _, graph = resnet
    space = graph.space(levels=("filter", "stage", "block"))
    rng = np.random.default_rng(0)
    for _ in range(20):
        here = space.indices(space.sample(rng))
        up = [
            here + unit
            for unit in np.eye(len(space), dtype=int)
            if (here + unit <= space.last_indices).all()
        ]
        low, *higher = measured.latency_ms(space.values([here, *up]))
        assert min(higher) >= low
        assert low > 0


def test_a_round_trip_changes_nothing_and_other_networks_are_refused(resnet, measured):
    _, graph = resnet
    rows = [uniform(graph, 0.35), uniform(graph, 0.8)]
    again = LatencyModel.from_plain(measured.to_plain(), graph.costs)
    np.testing.assert_array_equal(again.latency_ms(rows), measured.latency_ms(rows))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    other = trace_channels(net, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ModelError, match="of another network; it differs in"):
        LatencyModel.from_plain(measured.to_plain(), other.costs)


def test_the_network_is_left_as_it_was(resnet):
    model, graph = resnet
    before = copy.deepcopy(model.state_dict())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    threads = torch.get_num_threads()
    model.train()
    LatencyModel.measure(model, graph, torch.zeros(1, 3, 32, 32), QUICK)
    assert all(module.training for module in model.modules())
    model.eval()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"threads": "1"}, {"repeats": -1}, {"batch": True}]
)
def test_options_out_of_range(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(
        ModelError, match=rf"^latency: {name} is (a whole number|at least 1), found {value!r}$"
    ):
        LatencyOptions(**wrong)
