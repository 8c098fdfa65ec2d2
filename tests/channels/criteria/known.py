"""Small networks for criteria, in which the order of channels is known."""

import numpy as np
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels


def ranked(model, criterion, data=None, **options):
    """A ranking of a network that is traced on one image of the data."""
    first = data[0] if isinstance(data, tuple) else data
    graph = trace_channels(model, first[:1])
    return rank_channels(model, graph, criterion, data=data, **options)


def selecting(weights, biases, *, after=None, consumer=None):
    """1x1 convolution with given weights (channels, inputs) and biases, ReLU, a consumer of ones."""
    weights = torch.tensor(weights, dtype=torch.float32)
    first = nn.Conv2d(weights.shape[1], len(weights), 1)
    first.weight.data[:] = weights[:, :, None, None]
    first.bias.data[:] = torch.tensor(biases)
    second = consumer or nn.Conv2d(len(weights), 2, 1)
    nn.init.ones_(second.weight)
    return nn.Sequential(first, nn.ReLU(), *(after or []), second)


def ramp(count=16, size=3):
    """Images that are constant, of value 0, 1 ... count - 1."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(
        count, 1, size, size
    )


class Branches(nn.Module):
    """The sum of two branches (one group) beside a third one (its own group), read by two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.plain, self.rectified, self.last = (
            nn.Conv2d(9, 2, 1),
            nn.Conv2d(9, 2, 3),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        x = torch.cat([self.c(x), self.a(x) + self.b(x)], 1)
        return self.last(
            torch.cat([self.plain(x).mean((2, 3)), self.rectified(x.relu()).mean((2, 3))], 1)
        )


def mixed(mixing, *, reader=None, after=(), count=16):
    """Images of which a first layer makes channels by a mixing (channels, inputs), and a layer that reads them.

    Inputs are independent; nothing is cut off, so that the channels are exactly what the mixing says.
    """
    mixing = torch.as_tensor(mixing, dtype=torch.float64)
    torch.manual_seed(0)
    channels, inputs = mixing.shape
    reader = reader or nn.Conv2d(channels, 5, 3, padding=1)
    model = nn.Sequential(
        nn.Conv2d(inputs, channels, 1, bias=False), nn.Identity(), *after, reader
    ).double()
    model[0].weight.data[:] = mixing[:, :, None, None]
    return model.eval(), torch.randn(count, inputs, 6, 6, dtype=torch.float64)


def lost(model, x, kept):
    """The share of the last layer's outputs that no weights of it make from the kept channels."""
    with torch.no_grad():
        maps = model[:-1](x)
        last = model[-1]
        if isinstance(last, nn.Linear):
            rows = maps.unflatten(1, (model[0].out_channels, -1))
        else:
            rows = nn.functional.unfold(maps, last.kernel_size, padding=last.padding)
            rows = rows.unflatten(1, (maps.shape[1], -1)).movedim(3, 1).flatten(0, 1)
    every = rows.flatten(1) - rows.flatten(1).mean(0)
    outputs = every @ last.weight.detach().flatten(1).T
    left = (rows - rows.mean(0))[:, kept].flatten(1)
    fit = left @ torch.linalg.lstsq(left, outputs, driver="gelsd").solution
    return float((fit - outputs).norm() / outputs.norm())


def order_of(model, x, criterion):
    """The channels of the first group, the best first."""
    graph = trace_channels(model, x[:1])
    ranking = rank_channels(model, graph, criterion, data=(x, torch.arange(len(x)).double() % 5))
    return ranking.orders[0].tolist()


ZEROS = [1, 4, 5, 6, 9]


def with_zeros():
    mixing = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).double()
    mixing[ZEROS] = 0
    return mixing


def duplicated():
    order = np.random.default_rng(3).permutation(12)
    return torch.eye(6)[order % 6], order % 6


SHAPES = {
    "patches": lambda c: {},
    "one": lambda c: {"reader": nn.Conv2d(c, 5, 1, bias=False)},
    "linear": lambda c: {
        "reader": nn.Linear(c, 5),
        "after": [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    },
    "flat": lambda c: {
        "reader": nn.Linear(c * 9, 5),
        "after": [nn.AvgPool2d(2), nn.Flatten()],
        "count": c * 9,
    },
}
