"""The slicing and cost oracles on torchvision's networks, at small inputs in double precision."""

import warnings

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.oracle import assert_close, counted, images, random_candidate, scrambled, zeroed

# Name, input size, and how many groups can be pruned at least.
ZOO = [
    ("resnet18", 32, 12),
    ("vgg11_bn", 32, 9),
    ("mobilenet_v2", 32, 20),
    ("densenet121", 32, 100),
    ("squeezenet1_0", 32, 20),
    ("googlenet", 32, 40),
    ("resnext50_32x4d", 32, 4),
    ("shufflenet_v2_x0_5", 32, 10),
    ("efficientnet_b0", 32, 15),
]


def build(name):
    extra = {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=5, **extra)
        if name == "vgg11_bn":  # 120 of its 130 million parameters are here
            model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 16), nn.Linear(16, 8)
            model.classifier[6] = nn.Linear(8, 5)
        return scrambled(model)


def trace(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        return trace_channels(model, x)


@pytest.mark.parametrize(("name", "size", "groups"), ZOO)
def test_zoo(name, size, groups):
    model, x, one = build(name), images(2, size), images(1, size)
    graph = trace(model, one)
    assert len(graph.prunable) >= groups
    candidate = random_candidate(graph, np.random.default_rng(0))
    ranking = rank_channels(model, graph, "random", seed=1)
    sliced = slice_model(model, graph, candidate, ranking)
    with torch.no_grad():
        assert_close(sliced(x), zeroed(model, graph, candidate, ranking)(x))
    costs = graph.costs.macs([candidate])[0], graph.costs.params([candidate])[0]
    assert costs == counted(sliced, one)
    full = [[group.channels for group in graph.prunable]]
    assert (graph.costs.macs(full)[0], graph.costs.params(full)[0]) == counted(model, one)


def test_auxiliary_classifiers_of_training_follow():
    model = build("googlenet")
    graph = trace(model, images(1, 64))
    sliced = slice_model(model, graph, tuple(1 for _ in graph.prunable), rank_channels(model, graph)).train()
    assert [tuple(out.shape) for out in sliced(images(2, 64))] == [(2, 5)] * 3
    assert not any(group.name.startswith("aux") for group in graph.prunable)


def test_resnet50_has_4089_million_macs():
    model = torchvision.models.resnet50(weights=None).eval()
    with torch.device("meta"):
        example = torch.zeros(1, 3, 224, 224)
    graph = trace_channels(model.to("meta"), example)
    assert graph.costs.macs([[group.channels for group in graph.prunable]])[0] == 4089184256
    assert graph.costs.params([[group.channels for group in graph.prunable]])[0] == 25557032
