"""What a slice has learned is written back where it came from, and nowhere else."""

import copy

import pytest
import torch

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.putting_back import put_back
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.models.registry import MODELS

NETWORKS = {
    "small_resnet": ({"widths": [6, 8], "depths": [1, 1]}, (1, 8, 8)),
    "mobilenet_v2_cifar": ({}, (3, 32, 32)),
    "densenet40": ({}, (3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_slicing_again_gives_the_slice_and_all_else_is_as_it_was(name):
    options, shape = NETWORKS[name]
    model = MODELS.find(name)(
        **({"in_channels": 1, "classes": 2} if name == "small_resnet" else {}), **options
    ).eval()
    graph = trace_channels(model, torch.zeros(1, *shape))
    ranking = rank_channels(model, graph, "l1")
    candidate = graph.space().uniform(0.6)
    before, sliced = (
        copy.deepcopy(model.state_dict()),
        slice_model(model, graph, candidate, ranking),
    )
    with torch.no_grad():
        for tensor in sliced.state_dict().values():
            tensor.add_(1)
    put_back(model, graph, candidate, ranking, sliced)
    again = slice_model(model, graph, candidate, ranking).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in sliced.state_dict().items())
    changed = {name: (tensor != before[name]) for name, tensor in model.state_dict().items()}
    assert all(
        torch.equal(tensor[own], before[name][own] + 1)
        for name, tensor in model.state_dict().items()
        for own in [changed[name]]
    )
    assert {name: int(own.sum()) for name, own in changed.items()} == {
        name: tensor.numel() for name, tensor in sliced.state_dict().items()
    }
