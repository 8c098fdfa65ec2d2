"""nisp: linear networks with whole numbers by hand, inf_fs by its series, wherever channels are read."""

import copy
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from abcsearch.channels.criteria.propagation import inf_fs
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import RankingError
from abcsearch.models.registry import Constructor
from tests.channels.criteria.known import ranked
from tests.channels.networks import strange_network
from tests.channels.oracle import images, scrambled
from tests.channels.test_slicing import traced


def linear(weight):
    """A linear layer without bias."""
    weight = torch.tensor(weight).double()
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    layer.weight.data = weight
    return layer


class Chain(nn.Module):
    """Three linear layers; the second is also read by itself, through an addition."""

    def __init__(self, *, residual=False, middle=None):
        super().__init__()
        self.first = linear([[1, 2], [3, -4], [5, 6]])
        self.second = linear([[1, -2, 0], [0, 3, 0], [-1, 1, 0]])
        self.last = linear([[1, 1, 1], [1, -1, 2]])
        self.one, self.two = (copy.deepcopy(middle or nn.Identity()) for _ in range(2))
        self.residual = residual

    def forward(self, x):
        x = self.one(self.first(x))
        return self.last(self.two(x + self.second(x) if self.residual else self.second(x)))


X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    "middle", [nn.Identity(), nn.ReLU(), nn.BatchNorm1d(3), nn.Sequential(nn.Tanh(), nn.Dropout())]
)
@pytest.mark.parametrize("residual", [False, True])
def test_importance_flows_back_through_absolute_weights_whatever_lies_between(middle, residual):
    model = Chain(residual=residual, middle=middle.double()).eval()
    graph = trace_channels(model, X[:1])
    scores = rank_channels(model, graph, "nisp", data=X).scores
    found = {group.name: values for group, values in zip(graph.prunable, scores, strict=True)}
    features = []
    model.last.register_forward_pre_hook(lambda _, args: features.append(args[0].detach().numpy()))
    model(X)
    last = inf_fs(features[0])
    through = np.abs([[1, -2, 0], [0, 3, 0], [-1, 1, 0]]).T @ last
    if residual:  # one group, which both layers read
        np.testing.assert_allclose(found["first"], last + through, rtol=1e-9)
    else:
        np.testing.assert_allclose(found["second"], last, rtol=1e-9)
        np.testing.assert_allclose(found["first"], through, rtol=1e-9)
        assert found["first"][2] == 0  # whatever makes it, nothing reads it


def test_positions_are_added_up_as_a_transposed_convolution_does():
    torch.manual_seed(0)
    first, second, last = (
        nn.Conv2d(2, 3, 1),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Linear(4, 2),
    )
    model = nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last
    ).double()
    x = torch.randn(9, 2, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    inner, outer = ranked(model, "nisp", x).scores
    spread = torch.tensor(outer / 16)[None, :, None, None].expand(1, 4, 4, 4)
    back = nn.functional.conv_transpose2d(spread, second.weight.detach().abs(), stride=2, padding=1)
    np.testing.assert_allclose(inner, back.sum(dim=(0, 2, 3)).numpy(), rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["grouped", "cat_itself", "transposed_lanes", "tied", "tied_transposed"]
)
def test_importance_where_weights_read_in_several_ways(name):
    model = strange_network(name)
    graph, _ = traced(model)
    for scores in rank_channels(model, graph, "nisp", data=images(batch=6)).scores:
        assert (scores >= 0).all()
        assert scores.max() > 0


def test_what_is_passed_is_memory_of_its_own_where_it_was():
    class Block(nn.Module):
        def __init__(self, *, plain):
            super().__init__()
            self.first, self.second, self.third = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.Conv2d(4, 5, 1),
            )
            self.last, self.plain = nn.Linear(5, 2), plain

        def forward(self, x):
            x = self.first(x)
            y = x.relu()
            if self.plain:
                y = (y + self.second(x)).relu()
            else:
                y += self.second(x)
                y.relu_()
            # The values of y decide, too
            return self.last((self.third(x) + self.third(y * y)).mean((2, 3)))

    models = [Block(plain=plain).double() for plain in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    plain, other = (ranked(model, "nisp", images(batch=6)).scores for model in models)
    for a, b in zip(plain, other, strict=True):
        assert (a > 0).all()
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5_cifar", "googlenet_cifar", "resnet110"])
def test_importance_in_networks_of_the_registry(name):
    model = scrambled(Constructor(name=name, options={"classes": 5}).build())
    graph = trace_channels(model, images(batch=1, size=8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scores in rank_channels(model, graph, "nisp", data=images(batch=3, size=8)).scores:
            assert np.isfinite(scores).all()


def test_inf_fs_is_the_sum_over_all_paths():
    values = np.random.default_rng(0).normal(size=(30, 5))
    values[:, 3] = values[:, 2] ** 3  # alike in rank
    rho = spearmanr(values).statistic
    joined = 0.5 * np.maximum.outer(values.std(axis=0), values.std(axis=0)) + 0.5 * (
        1 - np.abs(rho)
    )
    paths = 0.9 / np.abs(np.linalg.eigvals(joined)).max() * joined
    expected, power = np.zeros(5), np.eye(5)
    for _ in range(400):
        power = power @ paths
        expected += power.sum(axis=1)
    np.testing.assert_allclose(inf_fs(values), expected, rtol=1e-9)


def test_constant_features_are_left_out():
    values = np.random.default_rng(0).normal(size=(30, 4))
    constant = np.insert(values, 2, 7.0, axis=1)
    found = inf_fs(constant)
    assert found[2] == 0
    np.testing.assert_allclose(np.delete(found, 2), inf_fs(values), rtol=1e-12)
    np.testing.assert_array_equal(inf_fs(np.ones((5, 3))), [1, 1, 1])
    np.testing.assert_array_equal(inf_fs(values[:1]), [1, 1, 1, 1])  # of one image, all are
    assert inf_fs(values[:, :1]).shape == (1,)


def test_responses_that_are_not_finite():
    model = Chain()
    with pytest.raises(
        RankingError, match="the input of the last layer is not finite; check the trained weights"
    ):
        ranked(model, "nisp", X * float("nan"))
    model.last.weight.data[0, 0] = float("nan")  # it is not looked at
    assert all(np.isfinite(scores).all() for scores in ranked(model, "nisp", X).scores)


def test_groups_that_only_lead_elsewhere_get_l1():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.one, self.two = (
                nn.Linear(2, 3),
                nn.Linear(2, 3),
                nn.Linear(3, 2),
                nn.Linear(3, 2),
            )

        def forward(self, x):
            return self.one(self.a(x)), self.two(self.b(x))

    with pytest.warns(UserWarning, match="criterion 'nisp' does not apply to a; l1 is used there"):
        ranked(Two(), "nisp", X.float())
