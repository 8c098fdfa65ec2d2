"""Pooled responses: moments of all images, whatever reads them."""

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.pooling import pooled_moments, response_covariances
from tests.channels.test_moments import before

LAYERS = {
    "plain": lambda: nn.Conv2d(6, 4, 3),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 3, 2, 2),
    "flat": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, 4)),
}


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("name", ["plain", "grouped", "transposed", "flat"])
def test_moments_are_those_of_all_images(name, pool):
    layer = LAYERS[name]()
    model, x = before(layer)
    graph = trace_channels(model, x[:1])
    targets = torch.randn(5, 2, dtype=torch.float64)
    path = "2.1" if name == "flat" else "2"
    seen = pooled_moments(
        model, graph, [(x[:2], targets[:2]), (x[2:], targets[2:])], pool=pool, targets=True
    )[path]
    with torch.no_grad():
        maps = model[1](model[0](x)).flatten(2)
    groups = 2 if name == "grouped" else 1
    responses = (maps.amax(2) if pool == "max" else maps.mean(2)).unflatten(1, (groups, -1)).numpy()
    assert seen.images == 5
    units = 6 // groups
    for group in range(groups):
        every = np.cov(np.concatenate([responses[:, group], targets.numpy()], 1).T, bias=True)
        np.testing.assert_allclose(seen.covariance[group], every[:units, :units], atol=1e-12)
        np.testing.assert_allclose(seen.cross[group], every[:units, units:], atol=1e-12)
    assert seen.spread == pytest.approx(np.var(targets.numpy(), axis=0).sum())


def test_channels_that_go_together_are_one():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 2, 1)
    ).double()
    x = torch.randn(9, 2, 4, 4, dtype=torch.float64)
    (covariance,) = response_covariances(model, trace_channels(model, x[:1]), x)
    with torch.no_grad():
        expected = np.cov(model[:2](x).reshape(9, 3, -1).amax(2).numpy().T, bias=True)
    np.testing.assert_allclose(covariance, expected / np.trace(expected))


def test_tokens_are_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(7, 4, 3)  # (images, tokens, features)
    (covariance,) = response_covariances(model, trace_channels(model, x[:1]), x)
    with torch.no_grad():
        expected = np.cov(model[:2](x).amax(1).double().numpy().T, bias=True)
    np.testing.assert_allclose(covariance, expected / np.trace(expected), atol=1e-7)


def test_covariances_of_all_readers_are_added_and_constants_are_none():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            x = self.first(x)
            return self.a(x.relu()) + self.b(torch.cat([x, -2 * x], 1))

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(11, 2, 4, 4)
    model.first.weight.data[1] = 0
    model.first.bias.data[1] = 0.3
    graph = trace_channels(model, x[:1])
    names = [group.name for group in graph.prunable]
    covariance = response_covariances(model, graph, x)[names.index("first")]
    with torch.no_grad():
        maps = model.first(x).double().flatten(2)
    rectified, low, high = (
        np.cov(v.amax(2).numpy().T, bias=True) for v in (maps.relu(), maps, -2 * maps)
    )
    expected = rectified / np.trace(rectified) + (low + high) / np.trace(low + high)
    np.testing.assert_allclose(covariance, expected, atol=1e-7)
    assert not covariance[1].any()
    assert not covariance[:, 1].any()
