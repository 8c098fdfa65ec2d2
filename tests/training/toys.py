"""Small networks and images that the tests of training share."""

import torch
from torch import nn

from abcsearch.data.splits import Split


class Net(nn.Module):
    """Convolution, batch norm, dropout: whatever has a state or draws."""

    def __init__(self, classes=3, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(6, classes)

    def forward(self, x):
        return self.linear(self.dropout(torch.relu(self.bn(self.conv(x)))).mean(dim=(2, 3)))


def network(kind=Net, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(**options)


def linear(inputs=3, classes=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes, bias=False))


def stripes(n=96, seed=0, channels=1, scale=None):
    """Horizontal stripes, vertical stripes, or none, plus noise: easy for a 3x3 convolution."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    wave = torch.tensor([1.0, -1.0]).repeat(3)
    patterns = torch.stack([wave[:, None].expand(6, 6), wave[None, :].expand(6, 6), torch.zeros(6, 6)])
    images = patterns[labels][:, None] + 0.3 * torch.randn(n, channels, 6, 6, generator=generator)
    return Split(images, labels, scale)


def points(n=4, inputs=3, seed=0):
    """A few points of two classes, for oracles in numpy: one batch is all of them."""
    images = torch.randn(n, 1, 1, inputs, generator=torch.Generator().manual_seed(seed))
    return Split(images, torch.arange(n) % 2)


def weights(model):
    return torch.cat([t.flatten().double() for t in model.state_dict().values()])
