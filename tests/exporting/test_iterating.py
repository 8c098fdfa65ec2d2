"""Iterated pruning: trace, rank, slice and export three times; every plan is against the first constructor."""

import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from abcsearch.budget import Budget
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.exporting import export, load
from abcsearch.models.registry import Constructor
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded
from abcsearch.runs.entry import search
from abcsearch.runs.settings import SpaceOptions


def resnet18(classes=10):
    return torchvision.models.resnet18(num_classes=classes)


CASES = [
    ("resnet20", {}, True),
    ("resnet20", {"shortcut": "projection"}, True),
    ("vgg16_cifar", {}, False),
    ("mobilenet_v2_cifar", {}, True),
    ("tests.exporting.test_iterating:resnet18", {"classes": 5}, True),
]


@pytest.mark.parametrize(("name", "options", "blocks"), CASES, ids=lambda value: str(value)[-20:])
def test_three_rounds_of_pruning_come_back_bit_for_bit_from_the_first_constructor(
    tmp_path, name, options, blocks
):
    record = Constructor(name=name, options=options)
    network = record.build().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch_seeded(0, "statistics"):
                module.running_mean.uniform_(-0.1, 0.1)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    levels = ("filter", "stage", "block") if blocks else ("filter", "stage")
    sizes, dropped, draws = (
        [sum(p.numel() for p in network.parameters())],
        [0],
        np.random.default_rng(0),
    )
    for turn in range(3):
        graph = trace_channels(network, images)
        space = graph.space(alpha=0.8, levels=levels)
        candidate = list(space.sample(draws))
        switches = [
            place for place, dimension in enumerate(space.dimensions) if dimension.kind == "block"
        ]
        for place in switches:
            candidate[place] = 1
        if switches:  # one block less every time
            candidate[switches[turn % len(switches)]] = 0
        network = slice_model(network, graph, tuple(candidate), rank_channels(network, graph))
        made = export(network, tmp_path, example_input=images, constructor=name, options=options)
        plan = json.loads((made.path / "plan.json").read_text())
        assert plan["constructor"] == {"name": name, "options": options}
        expected, network = network, load(made)
        with torch.inference_mode():
            assert torch.equal(network(images[:1]), expected(images[:1]))
        assert type(network) is type(expected)
        sizes.append(sum(p.numel() for p in network.parameters()))
        dropped.append(len(plan["dropped"]))
    assert sizes == sorted(set(sizes), reverse=True)
    assert dropped == ([0, 1, 2, 3] if blocks else [0, 0, 0, 0])


def test_a_result_is_searched_exported_and_searched_again(tmp_path, tiny_data):
    options = {"in_channels": 1, "classes": 2, "widths": [8, 10], "depths": [2, 2]}
    with torch_seeded(0, "init"):
        network = SmallResNet(**options)
    for turn in range(2):
        result = search(
            network,
            tiny_data,
            budget=Budget(macs=0.6),
            n_trials=6,
            space=SpaceOptions(levels=("filter", "stage", "block")),
            run_dir=tmp_path / f"run{turn}",
        )
        made = export(
            result.model(), tmp_path / f"{turn}", example_input=tiny_data.example, options=options
        )
        before, network = network, load(made)
        assert sum(p.numel() for p in network.parameters()) < sum(
            p.numel() for p in before.parameters()
        )
    with torch.inference_mode():
        assert torch.equal(network(tiny_data.example), result.model()(tiny_data.example))
