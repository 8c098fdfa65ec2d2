"""Weights that forward computes, paddings that it works out, activations that blocks share, tensors without entries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.oracle import assert_close, counted, images, random_candidate, scrambled
from tests.channels.sharing import check_gates, check_shared


class Written(nn.Conv2d):
    """A convolution with a forward of its own."""

    def _conv(self, x, weight, padding=None):
        padding = self.padding if padding is None else padding
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Same(Written):
    """TensorFlow's padding, as EfficientNet has it."""

    def forward(self, x):
        (high, wide), (kh, kw) = x.shape[-2:], self.weight.shape[-2:]
        ph = max(
            (-(-high // self.stride[0]) - 1) * self.stride[0]
            + (kh - 1) * self.dilation[0]
            + 1
            - high,
            0,
        )
        pw = max(
            (-(-wide // self.stride[1]) - 1) * self.stride[1]
            + (kw - 1) * self.dilation[1]
            + 1
            - wide,
            0,
        )
        if ph > 0 or pw > 0:
            x = F.pad(x, [pw // 2, pw - pw // 2, ph // 2, ph - ph // 2])
        return self._conv(x, self.weight, 0)


class Standardised(Written):
    """Of NFNet: each row by a batch norm."""

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        return self._conv(
            x, F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        )


class Scaled(Written):
    """Of NFNet, with a gain for each row."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain, self.scale = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1)), 0.3

    def forward(self, x):
        gain = (self.gain * self.scale).view(-1)
        rows = F.batch_norm(
            self.weight.view(1, self.out_channels, -1), None, None, gain, training=True
        )
        return self._conv(x, rows.reshape_as(self.weight))


class Centred(Written):
    """Of BiT."""

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return self._conv(x, (self.weight - mean) / torch.sqrt(var + 1e-10))


class Unit(nn.Linear):
    """Rows of length one."""

    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


class Rows(nn.Module):
    """A linear layer over channels, at their axis."""

    def __init__(self):
        super().__init__()
        self.unit = Unit(8, 8)

    def forward(self, x):
        return self.unit(x.movedim(1, 3)).movedim(3, 1)


def convolution(kind, **options):
    return lambda: kind(8, 8, 3, **options)


WEIGHTS = {
    "standardised": convolution(Standardised, padding=1),
    "scaled": convolution(Scaled, padding=1, bias=False),
    "centred": convolution(Centred, padding=1),
    "unit": Rows,
}
PADDINGS = {
    "same": ({"0": 8, "2": 8, "4": 6}, convolution(Same)),
    "same depthwise": ({"0": 8, "4": 6}, convolution(Same, groups=8)),
    "same grouped": ({"0": 4, "2": 4, "4": 6}, convolution(Same, groups=2)),
    "same dilated": ({"0": 8, "2": 8, "4": 6}, convolution(Same, dilation=(2, 1))),
}


def network(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.SiLU(),
            make(),
            nn.SiLU(),
            nn.Conv2d(8, 6, 3, padding=1),
        )
        return scrambled(nn.Sequential(*parts, nn.Flatten(), nn.Linear(96, 3)))


def check(model, graph, x):
    ranking = rank_channels(model, graph, "random")
    for seed in range(2):
        candidate = random_candidate(graph, np.random.default_rng(seed))
        small = slice_model(model, graph, candidate, ranking)
        assert counted(small, x[:1]) == (
            int(graph.costs.macs([candidate])[0]),
            int(graph.costs.params([candidate])[0]),
        )
        check_gates(model, graph, candidate, ranking, x)
        check_shared(model, graph, candidate, ranking, x)


@pytest.mark.parametrize("name", WEIGHTS)
def test_rows_of_a_weight_that_is_computed_go(name):
    model = network(WEIGHTS[name])
    graph = trace_channels(model, images(1))
    own = "2.unit" if name == "unit" else "2"
    assert {group.name: group.channels for group in graph.prunable} == {own: 8, "4": 6}
    assert "forward computes its weight from all that a row reads" in str(graph.groups[0].fixed)
    check(model, graph, images())


@pytest.mark.parametrize("name", PADDINGS)
def test_paddings_that_forward_works_out(name):
    groups, make = PADDINGS[name]
    model = network(make)
    graph = trace_channels(model, images(1))
    assert {group.name: group.channels for group in graph.prunable} == groups
    check(model, graph, images())


GROUPED = {
    "standardised depthwise": (8, convolution(Standardised, padding=1, groups=8)),
    "scaled depthwise": (8, convolution(Scaled, padding=1, bias=False, groups=8)),
    "centred in pairs": (4, convolution(Centred, padding=1, groups=4)),
    "standardised in halves": (2, convolution(Standardised, padding=1, groups=2)),
    "twice as many": (
        8,
        lambda: nn.Sequential(
            Standardised(8, 16, 3, padding=1, groups=8), Standardised(16, 8, 1, groups=8)
        ),
    ),
}


@pytest.mark.parametrize("name", GROUPED)
def test_whole_groups_of_a_weight_that_is_computed_go(name):
    count, make = GROUPED[name]
    model = network(make)
    graph = trace_channels(model, images(1))
    assert {group.name: group.channels for group in graph.prunable} == {"0": count, "4": 6}
    check(model, graph, images())


class Counted(Standardised):
    """With a number of groups that is written in forward."""

    def _conv(self, x, weight, padding=None):
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, 4)


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_groups_of_a_computed_weight_that_are_written_stay():
    model = network(lambda: Counted(8, 8, 3, padding=1, groups=4))
    graph = trace_channels(model, images(1))
    assert [group.name for group in graph.prunable] == ["4"]
    assert "a size there would not follow" in str(graph.groups[0].fixed)
    check(model, graph, images())


class Biased(Written):
    """With a bias that forward computes."""

    def __init__(self, bias, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.biases = bias

    def forward(self, x):
        bias = self.biases(self.bias)
        return F.conv2d(x, self.weight, bias, self.stride, self.padding, 1, self.groups)


def _half_zeroed(bias):
    """As Swin V2 leaves out the bias of keys."""
    bias = bias.clone()
    length = bias.numel() // 2
    bias[length : 2 * length].zero_()
    return bias


BIASES = {
    "scaled": (lambda b: b * 0.3 + 1, 8, {}),
    "half zeroed": (_half_zeroed, 4, {}),
    "of a depthwise one": (torch.sigmoid, 0, {"groups": 8}),
    "of two groups": (torch.tanh, 4, {"groups": 2}),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_that_is_computed_for_each_output(name):
    bias, count, options = BIASES[name]
    model = network(lambda: Biased(bias, 8, 8, 3, padding=1, **options))
    graph = trace_channels(model, images(1))
    groups = {group.name: group.channels for group in graph.prunable}
    assert groups.pop("0") == (4 if name == "of two groups" else 8)
    assert groups == ({"4": 6, "2": count} if count else {"4": 6})
    check(model, graph, images())


@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_a_bias_in_which_outputs_are_mixed_keeps_them():
    model = network(lambda: Biased(lambda b: b - b.mean(), 8, 8, 3, padding=1))
    graph = trace_channels(model, images(1))
    check(model, graph, images())
    assert "2" not in {group.name for group in graph.prunable}


class Table(nn.Module):
    """Adds rows of what a small network makes of a table, picked by numbers that stay."""

    def __init__(self, shape):
        super().__init__()
        self.table = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 8))
        self.register_buffer("places", torch.randn(7, 2))
        self.register_buffer("index", torch.arange(16).reshape(shape) % 7)

    def forward(self, x):
        rows = torch.sigmoid(self.table(self.places))[self.index]
        return x + rows.reshape(4, 4, -1).permute(2, 0, 1)


@pytest.mark.parametrize("shape", [(16,), (4, 4), (1, 16, 1)])
def test_rows_of_channels_that_numbers_pick(shape):
    model = network(lambda: Table(shape))
    graph = trace_channels(model, images(1))
    groups = {group.name: group.channels for group in graph.prunable}
    assert groups == {"0": 8, "2.table.0": 5, "4": 6}
    check(model, graph, images())


def test_a_weight_that_columns_are_mixed_in_keeps_all():
    class Mixed(Written):
        def forward(self, x):
            return self._conv(x, self.weight - self.weight.mean(0, keepdim=True))

    model = network(lambda: Mixed(8, 8, 3, padding=1))
    with pytest.warns(UserWarning, match="it reduces rows of a weight"):
        graph = trace_channels(model, images(1))
    assert [group.name for group in graph.prunable] == ["4"]


EMPTY = {
    "one without axes": lambda x: torch.cat([torch.tensor([], dtype=x.dtype), x], 1),
    "none of the channels": lambda x: torch.cat([x[:, :0], x], 1),
    "new": lambda x: torch.cat([x.new_empty(len(x), 0, *x.shape[2:]), x], 1),
    "of no image": lambda x: torch.cat([x[:0], x], 0),
}


@pytest.mark.parametrize("name", EMPTY)
def test_tensors_without_entries(name):
    class Empty(nn.Module):
        def forward(self, x):
            return EMPTY[name](x)

    model = network(Empty)
    graph = trace_channels(model, images(1))
    assert {group.name: group.channels for group in graph.prunable} == {"0": 8, "4": 6}
    check(model, graph, images())


class Residual(nn.Module):
    """A block of EDSR."""

    def __init__(self, c, act):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), act, nn.Conv2d(c, c, 3, padding=1))

    def forward(self, x):
        y = self.body(x).mul(0.1)
        y += x
        return y


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.SiLU()])
def test_blocks_that_share_an_activation(act):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = nn.Sequential(*[Residual(6, act) for _ in range(3)])
        model = scrambled(
            nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), blocks, nn.Conv2d(6, 3, 3), act)
        )
    graph = trace_channels(model, images(1))
    assert [block.name for block in graph.blocks] == ["1.0", "1.1", "1.2"]
    full = tuple(group.channels for group in graph.prunable)
    for kept in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0)):
        small = slice_model(model, graph, (*full, *kept), rank_channels(model, graph, "random"))
        left = nn.Sequential(model[0], *[model[1][i] for i in range(3) if kept[i]], *model[2:])
        with torch.no_grad():
            assert_close(small(images()), left(images()))


def test_blocks_that_share_weights_stay():
    shared = nn.PReLU(6)
    blocks = nn.Sequential(*[Residual(6, shared) for _ in range(2)])
    model = scrambled(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), blocks, nn.Conv2d(6, 3, 3)))
    assert [block.name for block in trace_channels(model, images(1)).blocks] == ["1"]  # all of them
