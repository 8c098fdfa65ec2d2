"""What the space tells of each layer, checked by hand."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.space import LAYER_DESCRIPTORS

ALL = ("filter", "stage", "block")


def described(model, example, levels=ALL):
    space = trace_channels(model, example).space(levels=levels)
    return {d.name: row for d, row in zip(space.dimensions, space.descriptors, strict=True)}


def test_resnet18():
    rows = described(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    # A convolution of the first stage; they all cost as much but the one with stride
    layer1 = 64 * 9 * 64 * 56 * 56
    assert rows["conv1"] == (3, 64, 224, 224, 2, 7, 3 * 49 * 64 * 112 * 112 + 2 * layer1)
    assert rows["layer1.0.conv1"] == (64, 64, 56, 56, 1, 3, layer1)
    assert rows["layer2.0.conv1"] == (64, 128, 56, 56, 2, 3, layer1 // 2)
    assert rows["layer2.0.conv2"] == (128, 128, 28, 28, 1, 3, 2 * layer1 + 64 * 128 * 28 * 28)
    assert len(rows["layer4.1"]) == len(LAYER_DESCRIPTORS)
    assert rows["layer4.1"] == (512, 512, 7, 7, 1, 3, 2 * layer1)


def test_mobilenet_v2():
    rows = described(torchvision.models.mobilenet_v2(), torch.zeros(1, 3, 224, 224))
    places = 112 * 112
    assert rows["features.0.0"] == (3, 32, 224, 224, 2, 3, places * 32 * 27 + places * 32 * 9)
    expansion, depthwise = 24 * 144 * 56 * 56, 9 * 144 * 56 * 56
    assert rows["features.3.conv.0.0"] == (24, 144, 56, 56, 1, 1, expansion + depthwise)
    assert rows["features.3"] == (24, 24, 56, 56, 1, 1, 2 * expansion + depthwise)


class Functions(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6, 3, 5, 3))
        self.head = nn.Linear(6, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(F.relu(self.head(F.conv2d(x, self.weight, stride=(2, 1)).mean((2, 3)))))


def test_functions_and_linear_layers():
    rows = described(Functions(), torch.zeros(1, 3, 9, 7), ("filter", "stage"))
    assert list(rows.values()) == [(3, 6, 9, 7, 2, 5, 3 * 15 * 6 * 3 * 5), (6, 4, 1, 1, 1, 1, 24)]


def test_sequences():
    model = nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.ReLU(), nn.Conv1d(4, 1, 1))
    assert list(described(model, torch.zeros(1, 2, 9), ("filter",)).values()) == [
        (2, 4, 1, 9, 2, 3, 2 * 3 * 4 * 4)
    ]


def test_the_same_network_has_the_same_space():
    model, example = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)),
        torch.zeros(1, 3, 9, 9),
    )
    assert trace_channels(model, example).space() == trace_channels(model, example).space()
