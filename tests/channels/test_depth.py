"""Networks far deeper than Python lets functions call each other, and no step that grows faster than the network."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch import Budget, export, load, rank_channels, slice_model, trace_channels
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded


class Added(nn.Module):
    """A block without a ReLU behind its addition, as in ResNets with pre-activation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(torch.relu(x))


class Plain(nn.Module):
    """A chain of blocks and, in the end, a ReLU behind an addition of what came out of all of them."""

    def __init__(self, depth):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.chain = nn.Sequential(*(Added() for _ in range(depth)))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.chain(torch.relu(self.stem(x)))
        return self.head(torch.relu(x + x.abs()).mean((2, 3)))


@pytest.mark.parametrize(
    "make", [lambda: SmallResNet(1, 2, widths=(4,), depths=(300,)), lambda: Plain(400)]
)
def test_a_network_deeper_than_the_recursion_limit(make, tmp_path):
    with torch_seeded(0, "init"):
        model = make().eval()
        image = torch.randn(1, 1, 4, 4)
    before = sys.getrecursionlimit()
    graph = trace_channels(model, image)
    assert len(graph.blocks) >= 299
    space = graph.space(levels=("filter", "stage", "block"))
    candidate = (
        Budget(macs=0.5).bind(space, graph.costs).repair(space.full, np.random.default_rng(0))
    )
    network = slice_model(model, graph, candidate, rank_channels(model, graph))
    with torch.inference_mode():
        outputs = network(image)
        if isinstance(model, SmallResNet):
            options = {"in_channels": 1, "classes": 2, "widths": [4], "depths": [300]}
            export(
                network,
                tmp_path / "export",
                example_input=image,
                constructor="small_resnet",
                options=options,
            )
            assert torch.equal(load(tmp_path / "export")(image), outputs)
    assert sys.getrecursionlimit() == before
    assert int(graph.costs.macs([candidate])[0]) <= 0.5 * int(graph.costs.macs([space.full])[0])
