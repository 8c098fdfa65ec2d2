"""Small networks for criteria, in which the order of channels is known."""

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
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 1, size, size)


class Branches(nn.Module):
    """The sum of two branches (one group) beside a third one (its own group), read by two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.plain, self.rectified, self.last = nn.Conv2d(9, 2, 1), nn.Conv2d(9, 2, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.cat([self.c(x), self.a(x) + self.b(x)], 1)
        return self.last(torch.cat([self.plain(x).mean((2, 3)), self.rectified(x.relu()).mean((2, 3))], 1))
