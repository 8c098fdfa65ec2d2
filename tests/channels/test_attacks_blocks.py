"""Modules that look like residual blocks but are not, and costs that do not follow: what slicing would get wrong.

A block may be dropped, or not be one; the network must never compute anything but the original with nothing added.
"""

import copy
import itertools
import signal
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import TraceError
from tests.channels.oracle import assert_close, counted, images, scrambled
from tests.channels.test_activation import measured

C = 6


class Branch(nn.Module):
    """A function of one or two tensors; whatever it adds comes from its convolutions."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv, self.relu, self.stride = nn.Conv2d(C, C, 3, padding=1), nn.ReLU(inplace=True), 1
        self.gamma = nn.Parameter(torch.ones(1, C, 1, 1))

    def forward(self, x, y=None, flag=None):
        return self.function(self, x) if y is None else self.function(self, x, y)


class Net(nn.Module):
    """A convolution, a function of the module and its output, and a convolution behind it."""

    def __init__(self, function, out=C, **parts):
        super().__init__()
        self.function = function
        self.stem, self.end = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(out, 4, 1)
        self.scale = nn.Parameter(torch.ones(1, C, 1, 1))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.end(self.function(self, self.stem(x)))


class Sum(nn.Module):
    def forward(self, a, b):
        return a + b


def call(m, x):
    return m.b(x)


def residual(m, x):
    return x + m.conv(x)


def activated(m, x):
    return torch.relu(x + m.conv(x))


def relu_behind(m, x):
    y = F.relu_(m.b(x))
    return torch.cat([x, y], 1)


def relu_behind_two(m, x):
    y = F.relu_(m.b2(m.b(x)))
    return torch.cat([x, y], 1)


def added_behind(m, x):
    y = m.b(x)
    y += torch.sigmoid(x)
    return torch.cat([x, y], 1)


def into_later_block(m, x):
    return torch.cat([x, m.b2(m.b(x))], 1)


def changed_after_relu(m, x):
    y = torch.relu(x)
    y.sub_(0.5)
    return m.b(y)


def minus(m, x):
    return m.b(torch.add(torch.relu(x), torch.relu(m.other(x)), alpha=-1))


def unpacked(m, x):
    y, _ = m.b(x)
    return y


# Each is a function of the network and its parts; for one module, `b`, the function of that.
CASES = {
    # The block changes its input in place: its identity is not what came in.
    "activation in place before the branch": lambda: Net(
        call, b=Branch(lambda m, x: x + m.conv(m.relu(x)))
    ),
    "function in place before the branch": lambda: Net(
        call, b=Branch(lambda m, x: x + m.conv(x.mul_(2)))
    ),
    "a view changed in place": lambda: Net(
        call, b=Branch(lambda m, x: x + m.conv(F.relu_(x.view(x.shape))))
    ),
    # A block makes a new tensor, an identity does not: what is done in place behind it reaches its input.
    "activation in place behind the block": lambda: Net(relu_behind, 2 * C, b=Branch(residual)),
    "activation in place behind two blocks": lambda: Net(
        relu_behind_two, 2 * C, b=Branch(residual), b2=Branch(residual)
    ),
    "addition in place behind the block": lambda: Net(added_behind, 2 * C, b=Branch(residual)),
    "the next block adds in place": lambda: Net(
        into_later_block, 2 * C, b=Branch(residual), b2=Branch(lambda m, x: x.add_(m.conv(x)))
    ),
    # ReLU of what may be negative.
    "a negative number added": lambda: Net(
        lambda m, x: m.b(torch.relu(x) + -1.0), b=Branch(activated)
    ),
    "a difference": lambda: Net(minus, b=Branch(activated), other=nn.Conv2d(C, C, 1)),
    "subtracted in place": lambda: Net(changed_after_relu, b=Branch(activated)),
    # Not what it looks like.
    "dropout that is always on": lambda: Net(
        call, b=Branch(lambda m, x: F.dropout(x + m.conv(x), 0.5))
    ),
    # Called in ways that nn.Identity does not take.
    "keyword": lambda: Net(lambda m, x: m.b(x=x), b=Branch(residual)),
    "option": lambda: Net(lambda m, x: m.b(x, flag=True), b=Branch(residual)),
    "the same tensor twice": lambda: Net(
        lambda m, x: m.b(x, x), b=Branch(lambda m, x, y: x + m.conv(y))
    ),
    "a parameter beside it": lambda: Net(
        lambda m, x: m.b(x, m.scale), b=Branch(lambda m, x, y: x + m.conv(x) * y)
    ),
    "a list in": lambda: Net(lambda m, x: m.b([x]), b=Branch(lambda m, x: x[0] + m.conv(x[0]))),
    "a tuple out, indexed": lambda: Net(
        lambda m, x: m.b(x)[0], b=Branch(lambda m, x: (x + m.conv(x),))
    ),
    "a tuple out, unpacked": lambda: Net(unpacked, b=Branch(lambda m, x: (x + m.conv(x), None))),
    "a dict out": lambda: Net(
        lambda m, x: m.b(x)["y"], b=Branch(lambda m, x: {"y": x + m.conv(x)})
    ),
    # Never called: a container.
    "ModuleDict": lambda: Net(
        lambda m, x: m.b["add"](x, m.b["conv"](x)),
        b=nn.ModuleDict({"add": Sum(), "conv": nn.Conv2d(C, C, 3, padding=1)}),
    ),
    "ModuleList": lambda: Net(
        lambda m, x: m.b[1](x, m.b[0](x)), b=nn.ModuleList([nn.Conv2d(C, C, 3, padding=1), Sum()])
    ),
    # Read from outside.
    "attribute read": lambda: Net(lambda m, x: m.b(x) * m.b.stride, b=Branch(residual)),
    "parameter read": lambda: Net(lambda m, x: m.b(x * m.b.gamma), b=Branch(residual)),
    # A block without memory of its own in front.
    "a view of a parameter goes in": lambda: Net(
        lambda m, x: x + m.b(m.query.expand(1, -1, -1, -1)),
        b=Branch(residual),
        query=nn.Parameter(torch.randn(1, C, 4, 4)),
    ),
}


def built(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scrambled(make())


def traced(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        return trace_channels(model, x)


def run(model, x):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(x.clone())


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_dropped_wrong(name):
    model = built(CASES[name])
    graph = traced(model, images(1))
    ranking = rank_channels(model, graph, "random")
    full = tuple(group.channels for group in graph.prunable)
    for kept in itertools.product((0, 1), repeat=len(graph.blocks)):
        silent = copy.deepcopy(model)
        for block, keep in zip(graph.blocks, kept, strict=True):
            for module in silent.get_submodule(block.name).modules() if not keep else ():
                if isinstance(module, nn.Conv2d):  # nothing is added
                    nn.init.zeros_(module.weight)
                    nn.init.zeros_(module.bias)
        assert_close(
            run(slice_model(model, graph, (*full, *kept), ranking), images()), run(silent, images())
        )


def test_a_block_that_returns_more_in_training_is_none():
    def both(m, x):
        return (x + m.conv(x), m.gamma) if m.training else x + m.conv(x)

    def first(m, x):
        return m.b(x)[0] if m.training else m.b(x)

    model = built(lambda: Net(first, b=Branch(both)))
    graph = traced(model, images(1))
    full = tuple(group.channels for group in graph.prunable)
    sliced = slice_model(
        model, graph, (*full, *(0 for _ in graph.blocks)), rank_channels(model, graph)
    )
    assert sliced.train()(images()).shape == (2, 4, 4, 4)  # not the first image


def test_macs_of_a_weight_computed_in_a_block_go_with_it():
    def standardised(m, x):
        return x + F.conv2d(x, m.conv.weight - m.conv.weight.mean(), padding=1)

    check_costs(built(lambda: Net(call, b=Branch(standardised))))


def test_macs_of_a_block_with_a_weight_from_outside_go_with_it():
    outer = nn.Parameter(torch.randn(C, C, 1, 1))

    def borrowing(m, x):
        return x + F.conv2d(x, m.borrowed[0])

    model = built(lambda: Net(call, b=Branch(borrowing), outer=outer))
    model.b.borrowed = [model.outer]
    check_costs(model)


def check_costs(model):
    graph = traced(model, images(1))
    full = tuple(group.channels for group in graph.prunable)
    for keep in (1, 0) if graph.blocks else ():
        candidate = (*full, keep)
        sliced = slice_model(model, graph, candidate, rank_channels(model, graph))
        costs = graph.costs.macs([candidate])[0], graph.costs.params([candidate])[0]
        assert costs == counted(sliced, images(1))


def test_costs_are_those_of_one_image_whatever_the_batch():
    class Table(nn.Module):
        """Works on something that has no batch axis besides the images."""

        def __init__(self):
            super().__init__()
            self.a, self.hidden = nn.Conv2d(3, C, 1), nn.Linear(8, C)
            self.query = nn.Parameter(torch.randn(C, 8))

        def forward(self, x):
            return self.a(x) * self.hidden(self.query).mean(1).view(1, -1, 1, 1)

    model = built(Table)
    one, two = (traced(model, images(batch)).costs for batch in (1, 2))
    assert two.macs([()])[0] == one.macs([()])[0] == counted(model, images(1))[0]
    assert (
        two.peak_activation([()])[0] == one.peak_activation([()])[0] == measured(model, images(1))
    )


def test_peak_activation_without_a_batch_axis():
    model = scrambled(nn.Sequential(nn.Conv2d(3, C, 1), nn.ReLU(), nn.Conv2d(C, 4, 1)))
    x = images(1)[0]
    graph = traced(model, x)
    assert graph.costs.peak_activation([(C,)])[0] == measured(model, x)


def test_blocks_are_found_in_time():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.b = nn.Conv2d(3, C, 1), nn.MaxPool2d(1), Branch(activated)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            for _ in range(40):
                x = x + self.pool(x)
            return self.b(x)

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        traced(built(Doubling), images(1))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_images_are_not_changed_where_the_first_block_is_dropped():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + self.conv(x)

    layers = [Small(), nn.ReLU(inplace=True), nn.Conv2d(3, C, 1), nn.Conv2d(C, 4, 1)]
    model = built(lambda: nn.Sequential(*layers))
    graph = traced(model, images(1))
    sliced = slice_model(model, graph, (C, *(0 for _ in graph.blocks)), rank_channels(model, graph))
    x = images()
    with torch.no_grad():
        sliced(x)
    assert torch.equal(x, images())


@pytest.mark.parametrize("kinds", list(itertools.product(range(3), repeat=2)))
def test_peak_activation_without_blocks_that_add_in_place(kinds):
    ways = (residual, lambda m, x: x.add_(m.conv(x)), lambda m, x: m.conv(x).add_(x))

    def skipping(m, x):
        x = torch.relu(x)
        return m.b3(m.b2(m.b(x))) + x

    a, b = (ways[kind] for kind in kinds)
    model = built(lambda: Net(skipping, b=Branch(a), b2=Branch(b), b3=Branch(a)))
    graph = traced(model, images(1))
    ranking = rank_channels(model, graph)
    for kept in itertools.product((0, 1), repeat=len(graph.blocks)):
        candidate = (*(group.channels for group in graph.prunable), *kept)
        sliced = slice_model(model, graph, candidate, ranking)
        assert graph.costs.peak_activation([candidate])[0] == measured(sliced, images(1))


@pytest.mark.parametrize(
    "layer",
    [nn.GroupNorm(1, C), nn.BatchNorm2d(C), nn.Softmax(1), nn.GroupNorm(1, C, affine=False)],
    ids=str,
)
def test_a_layer_that_was_replaced_since_tracing_is_noticed(layer):
    model = built(lambda: nn.Sequential(nn.Conv2d(3, C, 1), nn.ReLU(), nn.Conv2d(C, 4, 1)))
    graph = traced(model, images(1))
    ranking = rank_channels(model, graph)
    model[1] = layer.double()
    with pytest.raises(TraceError, match="another network"):
        slice_model(model, graph, (3,), ranking)
