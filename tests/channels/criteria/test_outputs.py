"""curl: the divergence without a channel against slicing, wherever the rest of the network begins."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.orders import Ranking
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import RankingError
from tests.channels.criteria.known import ranked
from tests.channels.networks import CLASSES, programs, strange_network
from tests.channels.oracle import few, images
from tests.channels.test_slicing import traced


def divergence(without, whole):
    """The mean of KL(without || whole) over images."""
    p, q = without.double().softmax(dim=1), whole.double().softmax(dim=1)
    return float((p * (p.log() - q.log())).sum(dim=1).mean())


def check_against_slicing(model, graph, x):
    """The score of some channel of each group is the divergence of the network from which it is cut out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rank_channels(model, graph, "curl", data=[x[:3], x[3:]]).scores
    with torch.no_grad():
        whole = model(x)
        for index, group in enumerate(graph.prunable):
            if group.channels == 1 or not any(m.sums for m in group.members):
                continue
            channel = group.channels // 2
            scores = [np.ones(g.channels) for g in graph.prunable]
            scores[index][channel] = 0
            candidate = [g.channels - (g is group) for g in graph.prunable]
            without = slice_model(
                model, graph, candidate, Ranking(criterion="own", scores=tuple(scores))
            )(x)
            assert found[index][channel] == pytest.approx(
                divergence(without, whole), rel=1e-6, abs=1e-13
            )


@few(10)
@given(programs(), st.integers(0, 2**16))
def test_curl_is_the_divergence_of_the_network_without_the_channel(program, seed):
    model = program.build(seed)
    check_against_slicing(model, traced(model)[0], images(batch=5))


# Weights that read in several ways, and operations that change in place what the rest of the network begins with.
@pytest.mark.parametrize(
    "name", ["recurrent", "tied_transposed", "tied", "grouped", "cat_itself", "transposed_lanes"]
)
def test_curl_where_weights_read_in_several_ways(name):
    model = strange_network(name)
    check_against_slicing(model, traced(model)[0], images(batch=5))


class InPlace(nn.Module):
    """What the first reader gets is changed afterwards, by itself and through a view, and read again."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, CLASSES, 1),
        )

    def forward(self, x):
        x = self.first(x)
        rows = x[:, :, 1:]
        inner = self.second(x)
        rows.mul_(2.0)
        x.add_(inner)
        return self.third(x.relu_()).mean((2, 3)) + rows.sum((2, 3))[:, :1].detach() * 0


def test_curl_with_operations_in_place():
    torch.manual_seed(0)
    model = InPlace().double().eval()
    check_against_slicing(model, trace_channels(model, images(batch=1)), images(batch=5))


def test_dead_channels_have_exactly_no_effect_and_others_the_known_one():
    torch.manual_seed(0)
    last = nn.Linear(4, 2, bias=False)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), last)
    model[0].weight.data.zero_()
    # What the channels are, whatever the image; one is dead
    model[0].bias.data[:] = torch.tensor([1.0, 0.0, 2.0, 1.0])
    # One is not read
    last.weight.data[:] = torch.tensor([[0.5, 7.0, 0.25, 0.0], [0.0, -7.0, 0.0, 0.0]])
    scores = ranked(model, "curl", torch.randn(70, 3)).scores[0]
    assert scores[1] == scores[3] == 0
    # Logits (1, 0), without either of the two others (0.5, 0).
    with_, without = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    np.testing.assert_allclose(scores[[0, 2]], divergence(without, with_), rtol=1e-6)


def test_small_effects_are_not_lost_in_rounding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    model[2].weight.data *= 1e-6 * torch.tensor([1.0, 2.0, 3.0, 4.0])
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(1.0)
    columns = model[2].weight.detach()
    shares = model[2].bias.detach().softmax(dim=0)[:, None]
    # Half the variance
    expected = 0.5 * ((shares * columns**2).sum(dim=0) - (shares * columns).sum(dim=0) ** 2)
    np.testing.assert_allclose(
        ranked(model, "curl", torch.randn(5, 3).double()).scores[0], expected, rtol=1e-3
    )


def test_random_numbers_in_forward_are_the_same_with_and_without_a_channel():
    class Noise(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, True)

    torch.manual_seed(0)
    model = nn.Sequential(
        Noise(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), Noise(), nn.Linear(5, 2)
    )
    model[1].bias.data[2] = model[1].weight.data[2] = 0
    model[3].weight.data[1], model[3].bias.data[1] = 0, 0
    first, second = ranked(model, "curl", torch.randn(70, 3)).scores
    assert first[2] == second[1] == 0
    assert np.count_nonzero(first) == 3


def test_what_curl_refuses():
    torch.manual_seed(0)
    maps = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with pytest.raises(
        RankingError,
        match=r"must return logits \(batch, classes\) for 2 images, found \(2, 3, 4, 4\)",
    ):
        ranked(maps, "curl", images().float())
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    graph = trace_channels(model, torch.ones(1, 3))
    model[2].weight.data[0, 1] = float("nan")
    with pytest.raises(RankingError, match="criterion 'curl' finds no finite score in group '0'"):
        rank_channels(model, graph, "curl", data=torch.ones(2, 3))


def test_curl_where_answers_are_certain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, CLASSES)).eval()
    x = torch.randn(50, 3)
    graph = trace_channels(model, x[:1])
    for scale in (1.0, 1e3, 1e6):
        with torch.no_grad():
            model[2].weight *= scale
        (scores,) = rank_channels(model, graph, "curl", data=x).scores
        for channel, score in enumerate(scores):
            with torch.no_grad():
                weight = model[2].weight.clone()
                weight[:, channel] = 0
                logits = F.linear(model[:2](x), weight, model[2].bias).double().log_softmax(dim=1)
                whole = model(x).double().log_softmax(dim=1)
            expected = float((logits.exp() * (logits - whole)).sum(dim=1).mean())
            assert score == pytest.approx(expected, rel=1e-4, abs=1e-6)
