"""Cuts of small and large tensors are what indexing gives; memory is only used again when nobody has it."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.fast import memory
from abcsearch.channels.fast.cutting import cut, cut_into, is_large, left_shape
from abcsearch.channels.fast.memory import Memory, room
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model


def some(count, seed):
    return torch.from_numpy(
        np.sort(np.random.default_rng(seed).permutation(count)[: max(1, count // 2)])
    )


@pytest.fixture
def no_spare(monkeypatch):
    monkeypatch.setattr(memory, "_spare", [])


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(300, 600), (700, 1, 3, 80), (90, 200, 3, 3), (3, 70000, 1), (512, 16, 17)]
)
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (0, 2), (1, 2)])
def test_large_cuts(shape, axes, dtype):
    if max(axes) >= len(shape):
        return
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    cuts = [(axis, some(shape[axis], axis)) for axis in axes]
    expected = tensor
    for axis, kept in cuts:
        expected = expected[(slice(None),) * axis + (kept,)]
    assert is_large(tensor)
    result = Memory(room(left_shape(tensor, cuts), dtype)).empty(left_shape(tensor, cuts), dtype)
    cut_into(result, tensor, cuts)
    assert torch.equal(result, expected)
    assert torch.equal(cut(tensor, cuts), expected)
    assert result.is_contiguous()


def test_what_is_not_large():
    big = torch.zeros(400, 400)
    assert is_large(big)
    assert is_large(nn.Parameter(big))
    assert not is_large(big[:10])
    assert not is_large(big.t())
    assert not is_large(big.to("meta"))
    assert not is_large(big.to(torch.complex64).conj())
    assert not is_large(torch.zeros(40, 40, 10, 10).to(memory_format=torch.channels_last))


def test_memory_is_used_again_only_when_all_tensors_are_gone(no_spare):
    size = room((1000,), torch.float32) * 2
    first = Memory(size)
    one, two = first.empty((1000,), torch.float32), first.empty((10, 100), torch.float32)
    assert one.data_ptr() % 64 == two.data_ptr() % 64 == 0
    assert one.untyped_storage().nbytes() == 4000
    one.fill_(1)
    two.fill_(2)
    place = one.data_ptr()
    view = two.numpy()[3:]  # somebody still looks at it
    del first, one, two
    second = Memory(size).empty((1000,), torch.float32).fill_(3)
    assert (view == 2).all()
    del view, second
    gc.collect()
    assert len(memory._spare) == 1  # the first that came back; the other one is the system's again
    third = Memory(size).empty((1000,), torch.float32)
    assert third.data_ptr() == place
    assert not memory._spare


def test_spare_memory_that_is_too_small_or_too_much_goes(no_spare, monkeypatch):
    del_me = Memory(64).empty((1,), torch.float32)
    del del_me
    small = len(memory._spare[0])
    large = Memory(2 * small).empty((2 * small,), torch.uint8)
    assert not memory._spare
    del large
    assert len(memory._spare[0]) >= 2 * small
    memory._spare.clear()
    monkeypatch.setattr(memory, "_MOST", 1 << 20)
    del_me = Memory(1 << 21).empty((1 << 21,), torch.uint8)
    del del_me
    assert not memory._spare
    Memory(0)
    assert not memory._spare


def big_network():
    layers = [
        nn.Conv2d(3, 256, 3, padding=1),
        nn.BatchNorm2d(256),
        nn.ReLU(),
        nn.Conv2d(256, 128, 3, padding=1),
    ]
    layers += [
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(1152, 600),
        nn.ReLU(),
        nn.Linear(600, 300),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_candidates_with_large_tensors_live_side_by_side(layout, no_spare):
    model = big_network().to(memory_format=layout)
    graph = trace_channels(model, torch.zeros(1, 3, 8, 8))
    ranking = rank_channels(model, graph)
    candidates = [
        tuple(int(g.channels * ratio) for g in graph.prunable) for ratio in (0.5, 0.9, 0.3, 0.5)
    ]
    built = [slice_model(model, graph, candidate, ranking) for candidate in candidates]
    states = [{name: t.clone() for name, t in m.state_dict().items()} for m in built]
    rows, columns, flat = (torch.from_numpy(ranking.kept(i, candidates[0][i])) for i in (0, 1, 2))
    assert torch.equal(built[0][3].weight, model[3].weight[columns][:, rows])
    entries = (columns[:, None] * 9 + torch.arange(9)).flatten()
    assert torch.equal(built[0][7].weight, model[7].weight[flat][:, entries])
    del built[1], built[1]
    gc.collect()
    with torch.no_grad():
        for parameter in slice_model(model, graph, candidates[1], ranking).parameters():
            parameter.fill_(1.0)
    for network, state in zip(built, (states[0], states[3]), strict=True):
        assert all(
            torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items()
        )
    pointers = [
        t.untyped_storage().data_ptr()
        for network in [model, *built]
        for t in network.state_dict().values()
    ]
    assert len(set(pointers)) == len(pointers)
    assert not any(
        t._is_view() for network in built for t in network.state_dict(keep_vars=True).values()
    )


def test_buffers_can_be_written_in_place():
    model = big_network()
    graph = trace_channels(model, torch.zeros(1, 3, 8, 8))
    sliced = slice_model(
        model, graph, tuple(2 for _ in graph.prunable), rank_channels(model, graph)
    )
    sliced[1].running_mean.add_(sliced[1].weight)  # with gradients recorded
    assert sliced[1].running_mean.requires_grad


def test_half_of_a_network_on_the_meta_device():
    model = big_network().to("meta")
    graph = trace_channels(model, torch.zeros(1, 3, 8, 8, device="meta"))
    ranking = rank_channels(model, graph, "random")
    sliced = slice_model(model, graph, tuple(g.channels // 2 for g in graph.prunable), ranking)
    assert sliced[7].weight.shape == (300, 576)
    assert sliced[7].weight.is_meta
