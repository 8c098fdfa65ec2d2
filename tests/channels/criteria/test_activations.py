"""Criteria of feature maps: scores that are known by construction."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.criteria import entropy, hrank
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from tests.channels.criteria.known import Branches, ramp, ranked, selecting
from tests.channels.oracle import images

# --- apoz ---


def test_apoz_is_the_share_of_images_with_a_response():
    # Channel k responds to the images above its threshold: 16 of 16, 4 of 16, 12 of 16, none.
    model = selecting([[1.0]] * 4, [1.0, -11.5, -3.5, -99.0])
    ranking = ranked(model, "apoz", ramp())
    np.testing.assert_array_equal(ranking.scores[0], [1, 0.25, 0.75, 0])
    assert ranking.orders[0].tolist() == [0, 2, 1, 3]


def test_apoz_counts_positions_too_and_batches_by_their_images():
    model = selecting([[1.0], [1.0]], [0.0, -1.5])
    x = torch.zeros(5, 1, 2, 2)
    x[:, :, 0] = 1  # half of each map
    x[4] = 2
    np.testing.assert_allclose(ranked(model, "apoz", x).scores[0], [0.6, 0.2])
    graph = trace_channels(model, x[:1])
    np.testing.assert_allclose(
        rank_channels(model, graph, "apoz", data=[x[:4], x[4:]]).scores[0], [0.6, 0.2]
    )


def test_apoz_is_the_mean_over_the_layers_that_read_a_channel():
    torch.manual_seed(0)
    model = Branches()
    x = images(batch=6).float()
    graph = trace_channels(model, x[:1])
    found = {
        g.name: s
        for g, s in zip(
            graph.prunable, rank_channels(model, graph, "apoz", data=x).scores, strict=True
        )
    }
    with torch.no_grad():
        for name, response in (("c", model.c(x)), ("a", model.a(x) + model.b(x))):
            # The other reader sees no zero at all
            rectified = (response > 0).double().mean((0, 2, 3)).numpy()
            np.testing.assert_allclose(found[name], (1 + rectified) / 2, rtol=1e-6)


@pytest.mark.parametrize("order", ["flatten", "twice"])
def test_several_entries_per_channel_are_one_map(order):
    class Repeated(nn.Module):
        def forward(self, x):
            return torch.cat([x, x - 1], 1).relu()

    if order == "flatten":
        model = selecting([[1.0]] * 2, [0.0, -0.5], after=[nn.Flatten()], consumer=nn.Linear(18, 2))
    else:
        model = selecting([[1.0]] * 2, [0.0, -0.5], after=[Repeated()], consumer=nn.Conv2d(4, 2, 1))
    x = torch.zeros(1, 1, 3, 3)
    x[:, :, 0, :2] = torch.tensor([0.4, 5.0])
    expected = [2 / 9, 1 / 9] if order == "flatten" else [3 / 18, 2 / 18]
    np.testing.assert_allclose(ranked(model, "apoz", x).scores[0], expected)


def test_features_may_be_last():
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data[:], model[0].bias.data[:] = 1.0, torch.tensor([0.5, -1.5, -0.5])
    graph = trace_channels(model, torch.ones(1, 1))
    x = torch.arange(4.0).reshape(2, 2, 1)  # (batch, tokens, features)
    np.testing.assert_allclose(
        rank_channels(model, graph, "apoz", data=x).scores[0], [1, 0.5, 0.75]
    )


def test_readers_that_are_not_called_as_modules_are_not_seen_and_l1_stands_in():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
            self.functional = False

        def forward(self, x):
            x = self.first(x).relu()
            second = (
                nn.functional.linear(x, self.second.weight) if self.functional else self.second(x)
            )
            return self.third(second.relu())

    torch.manual_seed(0)
    model, x = Functional(), torch.randn(5, 3)
    graph = trace_channels(model, x)
    model.functional = True
    with pytest.warns(
        UserWarning, match=r"criterion 'apoz' does not apply to first; l1 is used there"
    ) as caught:
        scores = rank_channels(model, graph, "apoz", data=x).scores
    assert len(caught) == 1
    np.testing.assert_array_equal(scores[0], rank_channels(model, graph, "l1").scores[0])
    assert scores[1].max() <= 1


def test_shared_readers_are_seen_at_every_use():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(1, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.second(self.first(x).relu()) + self.second(self.first(x - 1).relu())

    model = Shared()
    model.first.weight.data[:], model.first.bias.data[:] = 1.0, torch.tensor([0.0, 9.0])
    graph = trace_channels(model, torch.ones(1, 1))
    group = next(i for i, g in enumerate(graph.prunable) if g.name == "first")
    scores = rank_channels(model, graph, "apoz", data=torch.tensor([[0.5], [-1.0]])).scores[group]
    np.testing.assert_allclose(scores, [0.25, 1.0])


def test_readers_may_be_called_by_keyword_and_without_a_batch():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1)
            self.keyword = False

        def forward(self, x):
            x = self.first(x).relu()
            return self.second(input=x) if self.keyword else self.second(x)

    model = Keyword()
    model.first.weight.data[:], model.first.bias.data[:] = 1.0, torch.tensor([1.0, -1.5, 0.0])
    graph = trace_channels(model, ramp(1))
    model.keyword = True
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None]
    for data in (x[None], [x]):
        np.testing.assert_allclose(
            rank_channels(model, graph, "apoz", data=data).scores[0], [1, 0.5, 0.75]
        )
        np.testing.assert_allclose(
            rank_channels(model, graph, "hrank", data=data).scores[0], [2, 1, 2]
        )


# --- hrank ---


def test_hrank_is_the_rank_of_the_map():
    torch.manual_seed(0)
    x = torch.rand(5, 2, 6, 6)
    x[:, 1] = torch.rand(5, 6, 1) * torch.rand(5, 1, 6)  # rank 1
    x[:, 1, :, 0] += torch.rand(5, 6)  # rank 2
    model = selecting([[0, 0], [1, 0], [0, 0], [0, 1], [0, 1]], [1.0, 0.0, 0.0, 0.0, 1.0])
    ranking = ranked(model, "hrank", x)
    np.testing.assert_array_equal(ranking.scores[0], [1, 6, 0, 2, 3])
    assert ranking.orders[0].tolist() == [1, 4, 3, 0, 2]


def test_hrank_is_the_mean_over_images_in_any_batches():
    x = torch.stack([torch.eye(4), torch.ones(4, 4), torch.zeros(4, 4)])[:, None]
    model = selecting([[1.0], [0.0]], [0.0, 1.0])
    for data in (x, [x[:1], x[1:]]):
        graph = trace_channels(model, x[:1])
        np.testing.assert_allclose(
            rank_channels(model, graph, "hrank", data=data).scores[0], [5 / 3, 1]
        )


def test_flattened_maps_are_put_back_for_hrank():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 4, 4)
    model = selecting([[1.0], [0.0]], [0.0, 1.0], after=[nn.Flatten()], consumer=nn.Linear(32, 2))
    np.testing.assert_array_equal(ranked(model, "hrank", x).scores[0], [4, 1])
    pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = selecting([[1.0], [0.0]], [0.0, 0.0], after=pooling, consumer=nn.Linear(2, 2))
    np.testing.assert_array_equal(ranked(model, "hrank", x).scores[0], [1, 0])


def test_many_maps_are_decomposed_in_parts():
    torch.manual_seed(0)
    maps = torch.rand(60, 100, 2, 3) * (torch.arange(100) % 2)[None, :, None, None]
    assert torch.equal(hrank(maps), 2.0 * (torch.arange(100) % 2).double().expand(60, 100))


# --- entropy ---


def test_entropy_of_known_responses():
    x = torch.cat([ramp(), ramp() % 2], 1)  # 16 images: 4 bins
    model = selecting([[0, 0], [1, 0], [0, 1], [1e-3, 0]], [0.7, 0.0, 0.0, 5.0])
    scores = ranked(model, "entropy", x).scores[0]
    np.testing.assert_allclose(scores, [0, math.log(4), math.log(2), math.log(4)], atol=1e-9)
    assert scores[0] == 0


def test_entropy_of_batches_is_that_of_all_images():
    model = selecting([[1.0], [0.0]], [0.0, 1.0])
    graph = trace_channels(model, ramp(1))
    batches = list(ramp().split(3))
    np.testing.assert_allclose(
        rank_channels(model, graph, "entropy", data=batches).scores[0], [math.log(4), 0]
    )


def test_entropy_is_of_the_mean_over_positions():
    x = ramp().clone()
    x[:, :, 0, 0] = 100  # the largest entry of every image
    x[:, :, 0, 1] -= 100 - x[:, :, 1, 1]  # the mean is that of the ramp again
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity(), nn.Conv2d(2, 2, 1))
    model[0].weight.data[:], model[0].bias.data[:] = 1.0, 0.0
    np.testing.assert_allclose(ranked(model, "entropy", x).scores[0], math.log(4))


def test_entropy_bins():
    assert entropy(torch.rand(1, 3, dtype=torch.float64)).tolist() == [0, 0, 0]
    many = torch.linspace(-1, 1, 40_000, dtype=torch.float64)[:, None]
    assert entropy(many).item() == pytest.approx(math.log(100), abs=1e-3)
    # Bins 12, 1, 1, 2
    skewed = torch.tensor([0.0] * 12 + [1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None]
    shares = np.array([12, 1, 1, 2]) / 16
    assert entropy(skewed).item() == pytest.approx(-(shares * np.log(shares)).sum())
    noise = 1 + 1e-8 * torch.rand(16, 1, dtype=torch.float64)
    assert entropy(noise).item() == 0
