"""The slicing and cost oracles on torchvision's networks, at small inputs in double precision.

These are some small ones of many families; `make test-zoo` runs all.
"""

import warnings

import pytest
import torch
import torchvision
from torch import nn

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from tests.channels.oracle import images
from tests.channels.zoo import check_network, settled

models = torchvision.models

# Name, options, input size, and how many groups can be pruned at least.
ZOO = [
    ("resnet18", {}, 32, 12),
    ("vgg11_bn", {}, 32, 10),
    ("mobilenet_v2", {}, 32, 25),
    ("mobilenet_v3_small", {}, 32, 27),
    ("mnasnet0_5", {}, 32, 25),
    ("densenet121", {}, 32, 120),
    ("squeezenet1_0", {}, 32, 25),
    ("googlenet", {}, 32, 57),
    ("resnext50_32x4d", {}, 32, 21),
    ("regnet_y_400mf", {}, 32, 38),
    ("shufflenet_v2_x0_5", {}, 32, 20),
    ("efficientnet_b0", {}, 32, 40),
    ("lraspp_mobilenet_v3_large", {"weights_backbone": None}, 32, 30),
]
SMALL = {
    "convnext": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(16, 32, 2), models.convnext.CNBlockConfig(32, None, 2)],
        num_classes=5,
    ),
    "swin": lambda: models.SwinTransformer(
        [4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5
    ),
    "vit": lambda: models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=5,
    ),
    "maxvit": lambda: models.MaxVit(
        input_size=(32, 32),
        stem_channels=8,
        partition_size=2,
        block_channels=[16, 32],
        block_layers=[1, 2],
        head_dim=8,
        stochastic_depth_prob=0.1,
        num_classes=5,
    ),
}


def build(name, **options):
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = models.get_model(name, weights=None, num_classes=5, **extra, **options)
    if name == "vgg11_bn":  # 120 of its 130 million parameters are here
        model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 16), nn.Linear(16, 8)
        model.classifier[6] = nn.Linear(8, 5)
    return model


def trace(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        return trace_channels(model, x)


@pytest.mark.parametrize(("name", "options", "size", "groups"), ZOO)
def test_zoo(name, options, size, groups):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = settled(build(name, **options), images(4, size, seed=3))
    graph = trace(model, images(1, size))
    assert len(graph.prunable) >= groups
    check_network(model, graph, images(2, size), structures=1)


@pytest.mark.parametrize(
    ("name", "groups"), [("convnext", 4), ("swin", 4), ("vit", 3), ("maxvit", 10)]
)
def test_small_networks_of_larger_families(name, groups):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = settled(SMALL[name](), images(4, 32, seed=3))
    graph = trace(model, images(1, 32))
    assert len(graph.prunable) >= groups
    check_network(model, graph, images(2, 32), structures=4, extra_macs=name == "swin")


def test_auxiliary_classifiers_of_training_follow():
    model = build("googlenet")
    graph = trace(model, images(1, 64).float())
    sliced = slice_model(
        model, graph, tuple(1 for _ in graph.prunable), rank_channels(model, graph)
    ).train()
    assert [tuple(out.shape) for out in sliced(images(2, 64).float())] == [(2, 5)] * 3
    assert not any(group.name.startswith("aux") for group in graph.prunable)


def test_resnet50_has_4089_million_macs():
    model = torchvision.models.resnet50(weights=None).eval()
    with torch.device("meta"):
        example = torch.zeros(1, 3, 224, 224)
    graph = trace_channels(model.to("meta"), example)
    assert graph.costs.macs([[group.channels for group in graph.prunable]])[0] == 4089184256
    assert graph.costs.params([[group.channels for group in graph.prunable]])[0] == 25557032
