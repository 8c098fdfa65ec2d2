"""The model of forward time: it finds the steps of a machine whose times are exact, and is the same after a round trip."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from abcsearch import trace_channels
from abcsearch.channels.fast_widths import fast_widths
from abcsearch.channels.latency import LatencyModel, LatencyOptions, timed_from_plain
from abcsearch.channels.options import SpaceOptions
from abcsearch.channels.timed import LayerTimes
from abcsearch.channels.work import LayerWork
from abcsearch.errors import ModelError
from tests import own_runtimes

QUICK = LatencyOptions(repeats=1)
IMAGE = torch.zeros(1, 3, 32, 32)


def own(name):
    return LatencyOptions(runtime=f"tests.own_runtimes:{name}", repeats=1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 48, 3, padding=1, stride=2), nn.BatchNorm2d(48), nn.ReLU()]
    layers += [nn.Conv2d(48, 64, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(64, 10)).eval()
    return model, trace_channels(model, IMAGE)


@pytest.fixture(scope="module")
def stepped(network):
    return LatencyModel.measure(*network, IMAGE, own("stepped"))


@pytest.fixture(scope="module")
def smooth(network):
    return LatencyModel.measure(*network, IMAGE, own("smooth"))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    return model, trace_channels(model, IMAGE)


def rows_of(graph, count=20, **space):
    draws = np.random.default_rng(3)
    return [graph.space(**space).sample(draws) for _ in range(count)]


def times_of(graph, model, rows, step):
    from abcsearch import rank_channels, slice_model

    ranking = rank_channels(model, graph, "random")
    networks = [slice_model(model, graph, row, ranking) for row in rows]
    return [1000 * own_runtimes.seconds_of(network, IMAGE, step) for network in networks]


@pytest.mark.parametrize(("name", "step"), [("stepped", 8), ("smooth", 1)])
def test_structures_that_were_not_measured_are_predicted(network, name, step, request):
    costs, (model, graph) = request.getfixturevalue(name), network
    rows = rows_of(graph)
    expected, measured = costs.latency_ms(rows), np.array(times_of(graph, model, rows, step))
    assert np.median(np.abs(expected / measured - 1)) < 0.02
    assert costs.error < 0.02
    by_macs = graph.costs.macs(rows) * np.median(measured / graph.costs.macs(rows))
    assert np.median(np.abs(by_macs / measured - 1)) > 3 * np.median(
        np.abs(expected / measured - 1)
    )
    full = [group.channels for group in graph.prunable]
    assert costs.latency_ms([full])[0] == pytest.approx(costs.full_ms, rel=0.03)
    assert costs.full_ms == pytest.approx(times_of(graph, model, [full], step)[0])


def test_the_fast_widths_of_a_machine_with_steps_are_its_multiples(network, stepped, smooth):
    _, graph = network
    fast = fast_widths(stepped, graph, SpaceOptions(alpha=1.0, levels=("filter", "stage")))
    assert list(fast) == [group.name for group in graph.prunable]
    assert [len(widths) for widths in fast.values()] == [4, 6, 8]
    assert all(width % 8 == 0 for widths in fast.values() for width in widths)
    below = fast_widths(stepped, graph, SpaceOptions(alpha=0.9, lowest=0.5))
    assert list(below.values()) == [(16, 24), (24, 32, 40), (32, 40, 48, 56)]
    every = fast_widths(smooth, graph, SpaceOptions(alpha=1.0))
    assert list(every.values()) == [d.choices for d in graph.space(alpha=1.0).dimensions]


def test_fast_widths_keep_to_a_divisor_and_to_what_there_is(network, smooth):
    _, graph = network
    for divisor, choices in ((12, [(12, 24), (12, 24, 36), (12, 24, 36, 48)]), (64, None)):
        fast = fast_widths(smooth, graph, SpaceOptions(divisor=divisor))
        usual = [d.choices for d in graph.space(divisor=divisor).dimensions]
        assert list(fast.values()) == usual
        assert choices in (None, usual)


def test_blocks_take_time_only_where_they_are_kept(resnet):
    model, graph = resnet
    levels = ("filter", "stage", "block")
    costs = LatencyModel.measure(model, graph, IMAGE, own("smooth"), levels=levels)
    rows = rows_of(graph, levels=levels, alpha=1.0)
    measured = np.array(times_of(graph, model, rows, 1))
    assert np.median(np.abs(costs.latency_ms(rows) / measured - 1)) < 0.03


def test_layers_add_up_to_the_networks_macs(resnet):
    _, graph = resnet
    rows = rows_of(graph, levels=("filter", "stage", "block"))
    layers, axes = graph.costs.layer_macs(rows), graph.costs.layer_axes(rows)
    assert layers.shape == (20, len(graph.costs.layers))
    assert axes.shape == (20, len(graph.costs.layers), 4)
    np.testing.assert_array_equal(layers.sum(axis=1), graph.costs.macs(rows))
    # Products of a layer are in one class of multiples, and all of them are there
    work = LayerWork(graph)
    columns = [i for i, name in enumerate(work.names) if ": products in multiples" in name]
    np.testing.assert_allclose(work(rows)[:, columns].sum(axis=1), graph.costs.macs(rows))
    assert (work(rows) >= 0).all()


def test_a_round_trip_changes_nothing_and_other_networks_are_refused(network, stepped, resnet):
    _, graph = network
    rows = rows_of(graph)
    again = timed_from_plain(stepped.to_plain(), graph)
    np.testing.assert_array_equal(again.latency_ms(rows), stepped.latency_ms(rows))
    assert again.to_plain() == stepped.to_plain()
    assert again.where == {"runtime": "tests.own_runtimes:stepped", "threads": 1, "batch": 1}
    with pytest.raises(ModelError, match="of another network; it differs in"):
        timed_from_plain(stepped.to_plain(), resnet[1])


def test_times_of_earlier_versions_are_read_as_they_were(network):
    _, graph = network
    plain = {name: [[0.0, 10.0**7], [0.0, 2.0]] for name in ("(rest)", *graph.costs.layers)}
    times = timed_from_plain(plain, graph)
    assert isinstance(times, LayerTimes)
    rows = rows_of(graph, 3)
    np.testing.assert_allclose(times.latency_ms(rows), 4 * graph.costs.macs(rows) / 10.0**7)
    assert times.to_plain() == plain
    assert times.params(rows).tolist() == graph.costs.params(rows).tolist()
    with pytest.raises(ModelError, match=r"of another network; it differs in \(rest\)"):
        timed_from_plain({"other": [[1], [1]]}, graph)


def test_the_network_is_left_as_it_was(network):
    model, graph = network
    before = copy.deepcopy(model.state_dict())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    threads = torch.get_num_threads()
    model.train()
    LatencyModel.measure(model, graph, IMAGE, QUICK)
    assert all(module.training for module in model.modules())
    assert all(p.is_contiguous() for p in model.parameters())
    model.eval()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"threads": "1"}, {"repeats": -1}, {"batch": True}, {"finalists": -1}]
)
def test_options_out_of_range(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(
        ModelError, match=rf"^latency: {name} is (a whole number|at least \d), found {value!r}$"
    ):
        LatencyOptions(**wrong)
