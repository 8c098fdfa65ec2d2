"""Moments of what readers read: of exactly what their outputs are computed from, whatever the layer."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels import moments
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.moments import Sample, reader_moments, readers_of
from abcsearch.errors import RankingError
from tests.channels.networks import programs
from tests.channels.oracle import few, images
from tests.channels.test_slicing import traced


def before(reader, *, spatial=2, channels=6):
    """A network with a layer that reads `channels` prunable ones, and its input."""
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[spatial]
    torch.manual_seed(0)
    model = nn.Sequential(
        convolution(2, channels, 1), nn.ReLU(), reader, nn.Flatten(), nn.LazyLinear(3)
    ).double()
    x = torch.randn(5, 2, *[6] * spatial, dtype=torch.float64)
    model(x)
    return model.eval(), x


LAYERS = {
    "plain": (2, lambda: nn.Conv2d(6, 4, 3)),
    "padded": (2, lambda: nn.Conv2d(6, 4, (3, 1), padding=(2, 1), bias=False)),
    "strided": (2, lambda: nn.Conv2d(6, 4, 3, stride=(2, 1), padding=1)),
    "dilated": (2, lambda: nn.Conv2d(6, 4, 2, dilation=2)),
    "same": (2, lambda: nn.Conv2d(6, 4, (3, 5), padding="same", dilation=2)),
    "reflected": (2, lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="reflect")),
    "round": (2, lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")),
    "grouped": (2, lambda: nn.Conv2d(6, 4, 3, groups=2)),
    "line": (1, lambda: nn.Conv1d(6, 4, 3, stride=2)),
    "volume": (3, lambda: nn.Conv3d(6, 4, (1, 2, 3))),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("positions", [3, 1000])
def test_outputs_are_the_weight_times_what_is_looked_at(name, positions):
    spatial, make = LAYERS[name]
    model, x = before(make(), spatial=spatial)
    graph = trace_channels(model, x[:1])
    reader = next(r for r in readers_of(model, graph) if r.path == "2")
    sample = Sample(reader, 7, positions)
    with torch.no_grad():
        seen = model[1](model[0](x))
        rows, outputs = (
            sample.inputs(model[2], seen, 3),
            sample.outputs(model[2], model[2](seen), 3),
        )
    split = reader.split(model[2].weight)
    computed = (rows @ split.flatten(2).mT).movedim(0, 1).flatten(1)
    if reader.bias:
        computed = computed + model[2].bias
    torch.testing.assert_close(computed, outputs, rtol=0, atol=1e-12)
    assert torch.equal(reader.merged(split, model[2].weight), model[2].weight)
    assert torch.equal(rows, sample.inputs(model[2], seen, 3))
    assert len(outputs) == len(x) * min(positions, model[2](seen)[0, 0].numel())


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_all_inputs(name):
    spatial, make = LAYERS[name]
    model, x = before(make(), spatial=spatial)
    graph = trace_channels(model, x[:1])
    seen = reader_moments(model, graph, [x[:2], x[2:]])["2"]
    with torch.no_grad():
        maps = model[1](model[0](x))
    rows = [
        Sample(seen.reader, 0).inputs(model[2], part, number)
        for number, part in enumerate((maps[:2], maps[2:]))
    ]
    every = torch.cat(rows, dim=1).numpy()
    assert seen.rows == every.shape[1]
    np.testing.assert_allclose(seen.mean, every.mean(axis=1), atol=1e-12)
    for group, matrix in enumerate(every):
        np.testing.assert_allclose(seen.gram[group], matrix.T @ matrix / len(matrix), atol=1e-12)
        np.testing.assert_allclose(seen.covariance[group], np.cov(matrix.T, bias=True), atol=1e-12)


@few(15)
@given(programs(), st.integers(0, 2**16))
def test_readers_of_random_networks_read_the_channels_that_the_graph_says(program, seed):
    model = program.build(seed)
    graph, _ = traced(model)
    before_it, x = copy.deepcopy(model.state_dict()), images(batch=4)
    seen = reader_moments(model, graph, x, seed=seed)
    modules = dict(model.named_modules())
    for path, found in seen.items():
        weight = modules[path].weight
        split = found.reader.split(weight)
        assert split.shape[2:] == (found.reader.units, found.reader.entries)
        assert torch.equal(found.reader.merged(split, weight), weight)
        assert torch.linalg.eigvalsh(found.gram).min() > -1e-9 * max(
            1.0, float(found.gram.abs().max())
        )
    again = reader_moments(model, graph, x, seed=seed)
    assert all(torch.equal(seen[path].gram, again[path].gram) for path in seen)
    assert all(torch.equal(tensor, before_it[name]) for name, tensor in model.state_dict().items())
    reading = {m.parameter for group in graph.prunable for m in group.members if m.reads}
    assert {found.reader.weight for found in seen.values()} <= reading


def test_a_batch_norm_right_behind_a_reader_takes_its_constants():
    torch.manual_seed(0)
    blocks = [
        nn.Conv2d(4, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 5, 1, bias=False),
        nn.ReLU(),
    ]
    twice = nn.BatchNorm2d(5)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), *blocks, nn.BatchNorm2d(5), nn.Conv2d(5, 5, 1, bias=False), twice
    ).eval()
    model.append(nn.Conv2d(5, 5, 1, bias=False)).append(twice).append(nn.Conv2d(5, 2, 1))
    x = torch.randn(3, 2, 8, 8)
    seen = reader_moments(model, trace_channels(model, x[:1]), x)
    assert {path: (found.reader.norm, found.reader.centred) for path, found in seen.items()} == {
        "1": ("2", True),
        "3": ("", False),  # a ReLU is between
        "6": ("", False),  # one norm for two
        "8": ("", False),
        "10": ("", True),  # a bias
    }


class Middle(nn.Module):
    """A reader, what comes between it and a norm, and the norm; the rest leads the norm's input on."""

    def __init__(self, between, *, named=False, norms=1):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norms, self.last = (
            nn.ModuleList(nn.BatchNorm2d(6) for _ in range(norms)),
            nn.Linear(6, 3),
        )
        self.between, self.named = between, named

    def forward(self, x):
        before = self.first(x).relu()
        x = self.between(self.second(before), before)
        return self.last(
            sum(norm(input=x) if self.named else norm(x) for norm in self.norms).mean((2, 3))
        )


BETWEEN = {
    "nothing": (lambda x, _: x, lambda x, _: x),
    "relu": (lambda x, _: F.relu(x), lambda x, _: F.relu(x, inplace=True)),
    "clamp": (lambda x, _: x.clamp(min=-0.1), lambda x, _: x.clamp_(min=-0.1)),
    "shortcut": (lambda x, before: x + before, lambda x, before: x.add_(before)),
    "scale": (lambda x, _: x * 2, lambda x, _: x.mul_(2)),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", BETWEEN)
def test_a_norm_is_right_behind_a_layer_whose_outputs_nothing_has_changed(name, named, inference):
    x = torch.randn(5, 2, 4, 4)
    for between in BETWEEN[name]:
        model = Middle(between, named=named).eval()
        graph = trace_channels(model, x[:1])
        with torch.inference_mode(inference):
            seen = reader_moments(model, graph, x)
        assert {path: one.reader.norm for path, one in seen.items()} == {
            "second": "norms.0" if name == "nothing" else "",
            "last": "",
        }


def test_of_two_norms_neither_takes_up_a_constant_for_both():
    x = torch.randn(5, 2, 4, 4)
    model = Middle(lambda x, _: x, norms=2).eval()
    assert reader_moments(model, trace_channels(model, x[:1]), x)["second"].reader.norm == ""


def test_what_serves_several_layers_or_more_than_reading_is_no_reader():
    torch.manual_seed(0)
    first, second, third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
    second.weight = first.weight
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1),
        first,
        nn.ReLU(),
        second,
        nn.ReLU(),
        third,
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    graph = trace_channels(model, torch.zeros(1, 2, 4, 4))
    assert [reader.path for reader in readers_of(model, graph)] == ["5", "7"]


def test_flattened_channels_and_a_layer_that_is_too_large(monkeypatch):
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    x = torch.randn(9, 2, 4, 4)
    graph = trace_channels(model, x[:1])
    whole = reader_moments(model, graph, x)["3"]
    assert (whole.reader.units, whole.reader.entries, whole.gram.shape) == (6, 16, (1, 96, 96))
    monkeypatch.setattr(moments, "LARGEST", 95)
    with pytest.warns(
        UserWarning, match=r"3 reads 96 numbers for every output, .* 0.0 GiB: only 6 channels are"
    ):
        pooled = reader_moments(model, graph, x)["3"]
    assert pooled.gram.shape == (1, 6, 6)
    assert pooled.rows == 9 * 16
    blocks = whole.gram[0].reshape(6, 16, 6, 16).diagonal(dim1=1, dim2=3).mean(dim=2)
    torch.testing.assert_close(pooled.gram[0], blocks, atol=1e-6, rtol=1e-6)


def test_a_wide_layer_without_entries_to_leave_out_says_nothing(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 96), nn.ReLU(), nn.Linear(96, 3)).eval()
    x = torch.randn(9, 4)
    graph = trace_channels(model, x[:1])
    monkeypatch.setattr(moments, "LARGEST", 95)  # warnings are errors
    assert reader_moments(model, graph, x)["2"].gram.shape == (1, 96, 96)


def test_a_transposed_convolution_is_looked_at_by_channels():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 3, 2, 2)).eval()
    x = torch.randn(9, 2, 4, 4)
    found = reader_moments(model, trace_channels(model, x[:1]), x)["2"]
    assert (found.reader.axis, found.reader.units, found.reader.entries) == (0, 6, 4)
    with torch.no_grad():
        rows = model[1](model[0](x)).movedim(1, -1).reshape(-1, 6).double()
    torch.testing.assert_close(found.gram[0], rows.T @ rows / len(rows))


def test_channels_that_go_together_are_one_unit():
    torch.manual_seed(0)
    for last in (nn.Conv2d(6, 2, 1), nn.ConvTranspose2d(6, 2, 2, 2)):
        model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 6, 3, groups=3), last)
        x = torch.randn(9, 2, 4, 4)
        seen = reader_moments(model, trace_channels(model, x[:1]), x)["2"]
        with torch.no_grad():
            maps = model[:2](x).double()
        each = (
            maps.movedim(1, -1).reshape(-1, 6)
            if last.weight.shape[2] == 1
            else maps.reshape(9, 3, -1).mT.flatten(0, 1)
        )
        torch.testing.assert_close(seen.gram[0], each.T @ each / len(each))


def test_inputs_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    graph = trace_channels(model, torch.zeros(1, 2, 4, 4))
    with torch.no_grad():
        model[0].bias[0] = float("inf")
    with pytest.raises(
        RankingError,
        match=r"the input of 2 \(Conv2d\(6, 3.* is not finite; check the trained weights",
    ):
        reader_moments(model, graph, torch.zeros(2, 2, 4, 4))
    with pytest.raises(RankingError, match="data is empty"):
        reader_moments(model, graph, torch.zeros(0, 2, 4, 4))
