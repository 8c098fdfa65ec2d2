"""`inspect_model`: groups, blocks, shares of costs, reasons, a drawing."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.models.registry import MODELS
from abcsearch.planning.inspection import Inspection, inspect_model
from abcsearch.runs.settings import SpaceOptions

IMAGE = torch.zeros(1, 3, 32, 32)
ALL = SpaceOptions(levels=("filter", "stage", "block"))


@pytest.fixture(scope="module")
def network():
    return MODELS["resnet20"]().eval()


@pytest.fixture(scope="module")
def inspected(network):
    return inspect_model(network, IMAGE, ALL)


def test_every_group_and_block_is_there_with_what_a_search_may_choose(network, inspected):
    graph = trace_channels(network, IMAGE)
    space = graph.space(levels=ALL.levels)
    names = [group.name for group in inspected.groups]
    assert names == [group.name for group in graph.groups] + [block.name for block in graph.blocks]
    choices = {group.name: group.choices for group in inspected.groups if group.choices}
    assert choices == {d.name: d.choices for d in space.dimensions}
    assert {g.name: g.fixed for g in inspected.groups if g.fixed} == {
        "linear": "the network's output"
    }


def test_shares_are_what_the_smallest_width_alone_saves(network, inspected):
    graph = trace_channels(network, IMAGE)
    full = np.array([*(group.channels for group in graph.prunable), *(1 for _ in graph.blocks)])
    open_groups = [group for group in inspected.groups if group.fixed is None]
    for index, group in enumerate(open_groups):
        cut = full.copy()
        cut[index] = 0 if group.level == "block" else 1
        for cost, share in ((graph.costs.macs, group.macs), (graph.costs.params, group.params)):
            before, after = cost([full])[0], cost([cut])[0]
            assert share == pytest.approx(1 - after / before)
            assert 0 < share < 1


def test_totals_name_costs_and_what_is_prunable(inspected):
    costs, prunable, size = inspected.totals
    assert costs == "40,551,040 macs, 269,722 params, peak activation 192 KiB for one 3x32x32 input"
    assert prunable.startswith(
        "12 of 13 groups prunable, 7 blocks can be dropped; prunable share: 99.9% of macs"
    )
    assert size == "10^13 structures in the space"


def test_a_level_that_is_not_searched_keeps_its_only_choice(network):
    found = inspect_model(network, IMAGE, SpaceOptions(levels=("filter",)))
    for group in found.groups:
        if group.fixed is None:
            assert (len(group.choices) > 1) == (group.level == "filter")
    assert {g.fixed for g in found.groups if g.level == "block"} == {"level not searched"}


def test_nothing_to_prune_is_shown_with_its_reasons(tmp_path):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.two(self.one(x).cumsum(1)).cumsum(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        found = inspect_model(Mixing(), IMAGE, ALL)
    assert [group.fixed for group in found.groups] == [
        "cumsum (cumsum): it mixes the channels",
        "cumsum (cumsum_1): it mixes the channels",
    ]
    assert found.unsupported == ("cumsum (cumsum) and 1 more cumsum: it mixes the channels",)
    assert all(len(group.cells()) == len(Inspection.HEAD) for group in found.groups)
    found.draw(tmp_path / "none.png")


def test_the_drawing_is_a_png_of_any_network(inspected, tmp_path):
    for name, found in {
        "few": inspected,
        "many": inspect_model(MODELS["densenet40"](), IMAGE, ALL),
    }.items():
        path = tmp_path / f"{name}.png"
        found.draw(path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
