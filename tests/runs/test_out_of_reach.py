"""A budget below the smallest structure: the layers that keep it up are named, and the options that would help."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abcsearch import Budget, rank_channels, slice_model
from abcsearch.channels.options import SpaceOptions
from abcsearch.errors import TooSmallError
from abcsearch.models.resnet import SmallResNet
from abcsearch.runs.latency import bound
from abcsearch.runs.out_of_reach import fixed_layers
from abcsearch.runs.settings import SearchSettings
from abcsearch.transforms.ranked import plain_graph

MODEL = SmallResNet(in_channels=1, classes=2, widths=(8, 16), depths=(1, 1)).eval()
EXAMPLE = torch.zeros(1, 1, 8, 8)
PATHS = [name for name, module in MODEL.named_modules() if isinstance(module, nn.Conv2d)]


def refused(budget, **options):
    options = SpaceOptions(**options)
    model, graph = plain_graph(MODEL, EXAMPLE, options)
    run = SearchSettings(budget=Budget(**budget), n_trials=1, space=options)
    with pytest.raises(TooSmallError) as raised:
        bound(run, options.of(graph), graph.costs, model, graph, None)
    return str(raised.value)


@settings(max_examples=15, deadline=None)
@given(
    levels=st.sampled_from([("filter",), ("stage",), ("filter", "stage")]),
    fixed=st.sets(st.sampled_from(PATHS), max_size=2),
    cost=st.sampled_from(["macs", "params"]),
)
def test_they_are_the_layers_that_the_smallest_slice_leaves_as_wide_as_they_were(
    levels, fixed, cost
):
    """Of real weights: what is left of them is what is said of them."""
    options = SpaceOptions(levels=levels, fixed=tuple(sorted(fixed)), step=0.5, alpha=0.5)
    graph = options.traced(MODEL, EXAMPLE)
    if not any(group.kind in levels for group in graph.prunable):
        return
    space = options.of(graph)
    smallest = tuple(dimension.choices[0] for dimension in space.dimensions)
    slim = slice_model(MODEL, graph, smallest, rank_channels(MODEL, graph, "l1"))
    before, after = (
        {
            name: module.weight
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }
        for network in (MODEL, slim)
    )
    layers = fixed_layers(graph, space, levels, cost)
    kept = {name for name in before if len(after[name]) == len(before[name])}
    assert {layer.name for layer in layers} == kept
    assert [layer.share for layer in layers] == sorted(
        (layer.share for layer in layers), reverse=True
    )
    if cost == "params":
        every = sum(parameter.numel() for parameter in MODEL.parameters())
        for layer in layers:
            assert layer.share == pytest.approx(after[layer.name].numel() / every)


@pytest.mark.parametrize("cost", ["macs", "flops", "params"])
@pytest.mark.parametrize("ranks", [False, True])
def test_what_is_fixed_and_what_would_help_is_said(cost, ranks):
    asked = {"fixed": ("conv", "stages.0.0.conv1"), "ranks": ranks}
    said = refused({cost: 1}, **asked)
    assert "of the full network's" in said
    assert said.count("%") == 4  # all of them, and three by name
    assert "take conv, stages.0.0.conv1 out of space.fixed" in said
    assert 'add "block" to space.levels' in said
    said = refused({cost: 1}, levels=("filter", "block"), ranks=ranks)
    assert 'level "stage" is not searched' in said
    assert 'add "stage" to space.levels' in said


def test_options_that_would_not_help_are_not_named():
    assert "lower space.lowest (the smallest keep ratio is 0.6)" in refused(
        {"macs": 1}, lowest=0.6, levels=("filter", "stage", "block")
    )
    said = refused({"params": 1}, step=0.01)
    assert "lower space" not in said.partition("to get lower")[2]
    assert "stay" not in said
