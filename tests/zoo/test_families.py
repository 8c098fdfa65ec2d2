"""The oracles of slicing and costs on whole networks of all families, in double precision: `make test-zoo`.

Inputs are the smallest that work. Networks too large for a test machine in double precision (LARGE) are traced and
counted without weights, at their usual size; a shallower one of the same family, layer for layer as wide, is checked
for exactness in their place where no smaller sibling is in the list.
"""

import copy
import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from experiments.benchmarks.families import FAMILIES, build, usual_size
from tests.channels.oracle import images, random_candidate
from tests.channels.sharing import check_gates, check_shared
from tests.channels.zoo import (
    TOLERANCE,
    blind,
    check_network,
    cost,
    counted,
    full,
    layer_macs,
    settled,
    shares,
)

pytestmark = pytest.mark.zoo


@dataclass(frozen=True)
class Expected:
    """What a family must reach.

    groups: the share of groups that can be pruned, at least; macs: the share of macs, with one channel per group;
    size: of the images; extra_macs: see `check_network`.
    """

    groups: float = 0.9
    macs: float = 0.95
    size: int = 32
    extra_macs: bool = False


# Small images are padded to whole windows of attention
EXPECTED = {
    "AlexNet, VGG": Expected(groups=0.85),
    "ResNet": Expected(groups=0.85),
    "ResNeXt": Expected(),
    "SE-ResNet": Expected(),
    "ECA-ResNet": Expected(groups=0.55, macs=0.8),
    "SK-ResNet": Expected(groups=0.75, macs=0.9),
    "ResNeSt": Expected(),
    "Res2Net": Expected(groups=0.4, macs=0.85),
    "RegNet": Expected(),
    "DenseNet": Expected(),
    "DPN": Expected(groups=0.85, macs=0.9),
    "DLA": Expected(groups=0.5, macs=0.85),
    "HRNet": Expected(),
    "VoVNet": Expected(),
    "Inception": Expected(groups=0.85, size=96),
    "Xception": Expected(),
    "SqueezeNet": Expected(),
    "ShuffleNetV2": Expected(groups=0.8),
    "MobileNetV2": Expected(),
    "MobileNetV3": Expected(),
    "MobileNetV4": Expected(groups=0.5),
    "MNASNet": Expected(),
    "EfficientNet": Expected(),
    "MixNet, ReXNet": Expected(groups=0.2, macs=0.2),
    "GhostNet": Expected(),
    "LCNet": Expected(),
    "RepVGG": Expected(groups=0.8),
    "MobileOne": Expected(groups=0.75),
    "HGNet": Expected(),
    "StarNet, FasterNet": Expected(groups=0.7, macs=0.85),
    "CSPNet, DarkNet": Expected(groups=0.85),
    "NFNet": Expected(groups=0.0, macs=0.0),
    "ConvNeXt": Expected(groups=0.45, macs=0.7),
    "ViT": Expected(groups=0.6, macs=0.5, extra_macs=True),
    "Swin": Expected(groups=0.4, macs=0.1, extra_macs=True),
    "MaxViT": Expected(groups=0.6, macs=0.7, size=224),
    "FCN, DeepLabV3, LR-ASPP": Expected(),
}
# Networks that need another size, or reach less than their family.
SIZES = {"alexnet": 64, "timm/ghostnetv2_100": 64}
LESS = {"timm/convnextv2_atto": Expected(groups=0.0, macs=0.0)}
EVALUATED_ONLY = {"inception_v3"}  # in training mode its auxiliary classifier needs larger images
VIT = torchvision.models.VisionTransformer
# Checked without weights, and what stands for them: layers as wide, fewer of them.
LARGE = {
    "regnet_y_128gf": None,
    "vit_l_16": lambda: VIT(64, 16, num_layers=3, num_heads=16, hidden_dim=1024, mlp_dim=4096),
    "vit_l_32": lambda: VIT(64, 32, num_layers=3, num_heads=16, hidden_dim=1024, mlp_dim=4096),
    "vit_h_14": lambda: VIT(56, 14, num_layers=3, num_heads=16, hidden_dim=1280, mlp_dim=5120),
}
NAMES = [(family, name) for family, names in FAMILIES.items() for name in names]


def made(family, name, size):
    if name in LARGE:
        return LARGE[name]()
    model = build(name, **({"image_size": size} if family == "ViT" else {}))
    if name.startswith("vgg"):  # 120 of its 130 million parameters are here
        model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 64), nn.Linear(64, 48)
        model.classifier[6] = nn.Linear(48, 1000)
    return model


def trace(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        return trace_channels(model, x)


def skip_without_timm(name):
    if name.startswith("timm/") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install '.[zoo]'")


def reached(name, expected, graph):
    groups, macs = shares(graph)
    least = LESS.get(name, expected)
    assert groups >= least.groups
    assert macs >= least.macs


CHECKED = [(f, n) for f, n in NAMES if LARGE.get(n, True) is not None]


def prepared(family, name):
    """A network in double precision, its graph, the size of its images, and whether it is large."""
    size = SIZES.get(
        name, 56 if name == "vit_h_14" else 64 if family == "ViT" else EXPECTED[family].size
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = settled(made(family, name, size), images(8 if size < 200 else 2, size, seed=3))
    large = sum(parameter.numel() for parameter in model.parameters()) > 60e6
    # Tracing copies the network twice, gradients take as much memory again.
    device = "meta" if large else "cpu"
    return model, trace(copy.deepcopy(model).to(device), images(1, size).to(device)), size, large


@pytest.mark.parametrize(("family", "name"), CHECKED)
def test_sliced_networks_compute_what_the_zeroed_original_does(family, name):
    skip_without_timm(name)
    expected = EXPECTED[family]
    model, graph, size, large = prepared(family, name)
    reached(name, expected, graph)
    if not large:
        unseen = blind(model, graph, images(2, size))
        assert len(unseen) <= 0.1 * len(graph.prunable), unseen
    check_network(
        model, graph, images(2, size), structures=1 if large else 2, extra_macs=expected.extra_macs
    )


@pytest.mark.parametrize(("family", "name"), CHECKED)
def test_gates_equal_slicing_and_shared_slices_are_sliced_networks(family, name):
    skip_without_timm(name)
    model, graph, size, _ = prepared(family, name)
    ranking = rank_channels(model, graph, "random", seed=1)
    candidate = random_candidate(graph, np.random.default_rng(0))
    x = images(4 if size < 200 else 2, size)
    modes = (False,) if name in EVALUATED_ONLY else (False, True)
    check_gates(
        model, graph, candidate, ranking, x, rounding=TOLERANCE, modes=modes, conditioned=True
    )
    check_shared(model, graph, candidate, ranking, x, modes=modes)


@pytest.mark.parametrize("name", LARGE)
def test_networks_too_large_are_counted_without_weights(name):
    (family,) = (family for family, names in FAMILIES.items() if name in names)
    size = usual_size(name)
    model = build(name, **({"image_size": size} if family == "ViT" else {})).to("meta")
    x = torch.zeros(1, 3, size, size, device="meta")
    graph = trace(model, x)
    reached(name, EXPECTED[family], graph)
    ranking = rank_channels(model, graph, "random", seed=1)
    extra = layer_macs(model, x) - cost(graph, full(graph))[0] if EXPECTED[family].extra_macs else 0
    for candidate in (full(graph), random_candidate(graph, np.random.default_rng(0))):
        assert counted(slice_model(model, graph, candidate, ranking), x, extra) == cost(
            graph, candidate
        )


CLASSIFIERS = sorted(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_torchvision_can_lose_nearly_all_of_their_macs(name):
    size = usual_size(name)
    x = torch.zeros(1, 3, size, size, device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        graph = trace_channels(build(name).to("meta"), x, check=False)
    assert shares(graph)[1] >= 0.95, [(group.name, group.fixed) for group in graph.groups]


def test_all_classifiers_of_torchvision_are_here():
    here = {name for names in FAMILIES.values() for name in names if not name.startswith("timm/")}
    classifiers = set(CLASSIFIERS)
    assert len(classifiers) >= 80
    assert here - classifiers == set(FAMILIES["FCN, DeepLabV3, LR-ASPP"])
    assert classifiers <= here
    assert sum(name.startswith("timm/") for names in FAMILIES.values() for name in names) >= 60
    assert EXPECTED.keys() == FAMILIES.keys()
