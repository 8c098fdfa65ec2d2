"""Criteria of weights: orders that are known by construction."""

import numpy as np
import torch
from torch import nn

from tests.channels.criteria.known import Branches, ranked, selecting
from tests.channels.oracle import images


def test_fpgm_is_the_sum_of_distances_to_all_filters_of_the_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 1))
    filters = model[0].weight.detach().double().flatten(1).numpy()
    expected = [sum(np.sqrt(((one - other) ** 2).sum()) for other in filters) for one in filters]
    np.testing.assert_allclose(
        ranked(model, "fpgm", images().float()).scores[0], expected, rtol=1e-6
    )


def test_fpgm_drops_duplicates_first_whatever_their_norm_and_keeps_outliers():
    model = selecting([[9, 9], [9, 9], [9, 9], [0, 0], [9, 10]], [0.0] * 5)
    ranking = ranked(model, "fpgm", torch.ones(1, 2, 3, 3))
    assert ranking.orders[0].tolist()[:2] == [3, 4]
    assert sorted(ranking.orders[0].tolist()[2:]) == [0, 1, 2]
    assert ranked(model, "l1", torch.ones(1, 2, 3, 3)).orders[0][-1] == 3


def test_fpgm_adds_up_coupled_layers():
    torch.manual_seed(0)
    model = Branches()
    x = images().float()
    total = torch.zeros(4, dtype=torch.float64)
    for layer in (model.a, model.b):
        filters = layer.weight.detach().double().flatten(1)
        total += (filters[:, None] - filters[None]).norm(dim=2).sum(dim=1)
    (found,) = [s for s in ranked(model, "fpgm", x).scores if len(s) == 4]
    np.testing.assert_allclose(found, total.numpy(), rtol=1e-6)


class Split(nn.Module):
    """A layer whose first two channels are tied to one layer, and its last four, in pairs, to another one."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        return self.last(torch.cat([self.first(x) + torch.cat([one, two, two], 1), one], 1)).mean(
            (2, 3)
        )


def test_distances_are_to_all_filters_of_a_layer_that_computes_two_groups():
    torch.manual_seed(0)
    model = Split()

    def distances(layer):
        filters = layer.weight.detach().double().flatten(1)
        return (filters[:, None] - filters[None]).norm(dim=2).sum(dim=1).numpy()

    first, second = ranked(model, "fpgm", images().float()).scores
    of_all = distances(model.first)
    np.testing.assert_allclose(first, of_all[:2] + distances(model.one), rtol=1e-6)
    np.testing.assert_allclose(second, of_all[2:4] + of_all[4:] + distances(model.two), rtol=1e-6)
