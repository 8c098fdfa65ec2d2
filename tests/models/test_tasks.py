"""Networks for other tasks than classification: what they return, and that slicing them is exact."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import ModelError
from abcsearch.models.edsr import SmallEDSR
from abcsearch.models.fcn import SmallFCN
from tests.channels.oracle import images, random_candidate, scrambled
from tests.channels.sharing import check_gates, check_shared


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_begins_as_interpolation_and_slices_exactly(scale):
    network = SmallEDSR(channels=8, blocks=2, scale=scale)
    x = images(2, 7)
    wanted = F.interpolate(x.float(), scale_factor=scale, mode="bicubic", align_corners=False)
    assert torch.equal(network(x.float()), wanted)
    nn.init.normal_(network.tail.weight, generator=torch.Generator().manual_seed(0))
    network = scrambled(network)
    graph = trace_channels(network, images(1, 7))
    assert [group.name for group in graph.groups if group.fixed] == ["tail"]
    assert [group.kind for group in graph.prunable].count("stage") == 1
    ranking = rank_channels(network, graph, "random", seed=0)
    candidate = random_candidate(graph, np.random.default_rng(0))
    check_gates(network, graph, candidate, ranking, x, rounding=1e-11)
    check_shared(network, graph, candidate, ranking, x)


def test_edsr_refuses_other_scales():
    with pytest.raises(ModelError, match=r"enlarges 2, 3, 4 or 8 times.*found scale = 5"):
        SmallEDSR(scale=5)


@pytest.mark.parametrize("aux", [True, False])
def test_fcn_returns_what_torchvision_does_and_slices(aux):
    network = scrambled(SmallFCN(classes=5, widths=(4, 6, 8), aux=aux))
    x = images(2, 12)
    found = network(x)
    assert list(found) == ["out", "aux"][: 1 + aux]
    assert {tuple(logits.shape) for logits in found.values()} == {(2, 5, 12, 12)}
    graph = trace_channels(network, images(1, 12))
    ranking = rank_channels(network, graph, "random", seed=0)
    candidate = random_candidate(graph, np.random.default_rng(0))
    smaller = slice_model(network, graph, candidate, ranking)
    assert {name: tuple(logits.shape) for name, logits in smaller(x).items()} == dict.fromkeys(
        found, (2, 5, 12, 12)
    )
    assert graph.costs.params([candidate])[0] == sum(p.numel() for p in smaller.parameters())
    with pytest.raises(ModelError, match=r"two stages at least.*widths = \[4\]"):
        SmallFCN(widths=[4])
