"""Small networks and images that the tests of training share."""

import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.data.split import Split
from abcsearch.training.lesson import Lesson
from abcsearch.training.optimization import make_optimizer
from abcsearch.training.scoring import score


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
    patterns = torch.stack(
        [wave[:, None].expand(6, 6), wave[None, :].expand(6, 6), torch.zeros(6, 6)]
    )
    images = patterns[labels][:, None] + 0.3 * torch.randn(n, channels, 6, 6, generator=generator)
    return Split(images, labels, scale)


def points(n=4, inputs=3, seed=0):
    """A few points of two classes, for oracles in numpy: one batch is all of them."""
    images = torch.randn(n, 1, 1, inputs, generator=torch.Generator().manual_seed(seed))
    return Split(images, torch.arange(n) % 2)


def weights(model):
    return torch.cat([t.flatten().double() for t in model.state_dict().values()])


def exact(tensor, step=7):
    """Fills a tensor with fractions that are the same numbers on every machine, and returns it."""
    with torch.no_grad():
        return tensor.copy_(
            ((torch.arange(tensor.numel()) * step) % 31 - 15).reshape(tensor.shape) / 32
        )


def exact_network(step=7):
    """A network whose hash, and so what a checkpoint is of, is the same on every machine."""
    model = Net()
    for number, parameter in enumerate(model.parameters()):
        exact(parameter, step + number)
    return model


def exact_stripes(n=48, step=11):
    return Split(exact(torch.empty(n, 1, 6, 6), step), torch.arange(n) % 3)


class Gates(nn.Module):
    """A number per channel."""

    def __init__(self, channels=6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))


class Gated(Lesson):
    """Two modules, two optimisers, two passes, and all kinds of state.

    The network is run with every channel times its gate, once with all and once with a drawn number of channels.
    """

    def __init__(self, seed=0, penalty=0.01, passes_back=False):
        self.model, self.gates = network(seed=seed), Gates()
        self.modules = {"model": self.model, "gates": self.gates}
        self.penalty, self.passes_back = penalty, passes_back
        self.sharpness, self.mean, self.told = 1.0, torch.zeros(6), []

    def optimizers(self, recipe):
        self._adam = torch.optim.Adam(self.gates.parameters(), lr=0.01)
        return {"model": make_optimizer(self.model, recipe), "gates": self._adam}

    def step(self, images, labels, draws):
        width = int(torch.randint(2, 6, (), generator=draws))
        losses = torch.zeros(())
        for kept in (6, width):
            gates = torch.sigmoid(self.sharpness * self.gates.weight) * (torch.arange(6) < kept)
            given = {
                "bn.weight": self.model.bn.weight * gates,
                "bn.bias": self.model.bn.bias * gates,
            }
            loss = F.cross_entropy(torch.func.functional_call(self.model, given, (images,)), labels)
            loss = loss + self.penalty * (self.gates.weight - self.mean).abs().sum()
            if self.passes_back:
                loss.backward()
                loss = loss.detach()
            losses = losses + loss
        return losses

    def after_step(self, progress):
        self.told.append(progress)
        self.sharpness = 1 + progress
        self.mean.lerp_(self.gates.weight.detach(), 0.1)
        self._adam.param_groups[0]["weight_decay"] = 0.1 * progress

    def after_epoch(self, epoch):
        self.told.append(epoch)
        with torch.no_grad():
            self.model.conv.weight[self.gates.weight.argmin()] *= 0.5

    def score(self, images):
        return score(self.model, images)["top1"]

    def same(self):
        return {"penalty": self.penalty, "passes_back": self.passes_back}

    def state_dict(self):
        return {"sharpness": self.sharpness, "mean": self.mean}

    def load_state_dict(self, state):
        self.sharpness = state["sharpness"]
        self.mean.copy_(state["mean"])
