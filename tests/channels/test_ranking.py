"""Rankings: orders that are known by construction, coupled members added up, mistakes named."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.orders import Ranking
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import RankingError, TraceError
from tests.channels.oracle import images


def two_layers(norm=True):
    torch.manual_seed(0)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), middle, nn.ReLU(), nn.Conv2d(4, 2, 1))


def filled(rows):
    """A (4, 3, 1, 1) weight from 4 rows."""
    return torch.tensor(rows, dtype=torch.float32).view(4, 3, 1, 1)


def rank(model, criterion, **arguments):
    graph = trace_channels(model, images(batch=1).float())
    return rank_channels(model, graph, criterion, **arguments)


def test_l1_and_l2_differ_where_they_should():
    model = two_layers()
    model[0].weight.data = filled([[3, 0, 0], [-2, 2, 0], [0, 0, 1], [2, 2, -2]])
    l1, l2 = rank(model, "l1"), rank(model, "l2")
    np.testing.assert_allclose(l1.scores[0], [3, 4, 1, 6])
    np.testing.assert_allclose(l2.scores[0], [3, 8**0.5, 1, 12**0.5], rtol=1e-6)
    assert l1.orders[0].tolist() == [3, 1, 0, 2]
    assert l2.orders[0].tolist() == [3, 0, 1, 2]
    assert l1.kept(0, 2).tolist() == [1, 3]
    assert l1.scores[0].dtype == np.float64


def test_bn_gamma_is_the_absolute_scale():
    model = two_layers()
    model[1].weight.data = torch.tensor([0.5, -3.0, 0.1, 1.0])
    model[1].bias.data = torch.tensor([9.0, 0.0, 9.0, 9.0])
    assert rank(model, "bn_gamma").orders[0].tolist() == [1, 3, 0, 2]


def test_without_a_batch_norm_l1_stands_in():
    model = two_layers(norm=False)
    with pytest.warns(
        UserWarning, match="criterion 'bn_gamma' does not apply to 0; l1 is used there"
    ):
        found = rank(model, "bn_gamma")
    np.testing.assert_array_equal(found.scores[0], rank(model, "l1").scores[0])


class Coupled(nn.Module):
    """Two convolutions that are added, a depthwise one and a linear one behind them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 8, 1, groups=4)
        self.linear = nn.Linear(8, 2)

    def forward(self, x):
        return self.linear(
            self.depthwise(self.norm(self.a(x)) + self.other(self.b(x))).mean((2, 3))
        )


def test_scores_are_added_over_all_coupled_members():
    model = Coupled()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.a.weight.data[0], model.b.weight.data[1], model.b.weight.data[0] = 1.0, -1.5, 0.25
    model.depthwise.weight.data[4:6] = 2.0  # both outputs of channel 2
    model.linear.weight.data[:] = 100.0  # a consumer, which does not count
    model.a.bias.data[3] = 100.0  # nor do biases
    np.testing.assert_allclose(rank(model, "l1").scores[0], [3.75, 4.5, 4, 0])
    np.testing.assert_allclose(
        rank(model, "l2").scores[0], [1.25 * 3**0.5, 1.5 * 3**0.5, 4, 0], rtol=1e-6
    )
    model.norm.weight.data[:] = torch.tensor([1.0, -2.0, 0.0, 0.5])
    model.other.weight.data[:] = torch.tensor([0.0, 1.0, 1.5, 0.0])
    np.testing.assert_allclose(rank(model, "bn_gamma").scores[0], [1, 3, 1.5, 0.5])


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=9), st.data())
def test_kept_channels_nest(scores, data):
    ranking = Ranking(criterion="l1", scores=(np.array(scores),))
    width = data.draw(st.integers(1, len(scores)))
    kept, more = ranking.kept(0, width).tolist(), ranking.kept(0, width + 1).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == width
    assert set(kept) <= set(more)
    removed = set(range(len(scores))) - set(kept)
    assert all((-scores[k], k) < (-scores[r], r) for k in kept for r in removed)


def test_random_is_seeded():
    model = Coupled()
    orders = [rank(model, "random", seed=seed).orders[0].tolist() for seed in (0, 0, 1, 2, 3, 4)]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 3
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    state = torch.get_rng_state()
    rank(model, "random")
    assert torch.equal(state, torch.get_rng_state())


def test_groups_draw_different_orders():
    model = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 30, 30, 1) for i in range(4)))
    orders = rank(model, "random").orders
    assert len({tuple(order.tolist()) for order in orders}) == 3


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_gamma"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(criterion, value):
    model = two_layers()
    model[0].weight.data[2, 0] = value
    model[1].weight.data[2] = value
    with pytest.raises(
        RankingError, match=f"criterion '{criterion}' finds no finite score in group '0'; check"
    ):
        rank(model, criterion)


def test_an_unknown_criterion():
    with pytest.raises(RankingError, match="unknown criterion 'bn_gama'; did you mean 'bn_gamma'"):
        rank(two_layers(), "bn_gama")
    with pytest.raises(
        RankingError, match="unknown criterion 'xyz'; choose one of: apoz, bn_gamma, "
    ):
        rank(two_layers(), "xyz")


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_another_network_is_refused(criterion):
    graph = trace_channels(two_layers(), images(batch=1).float())
    with pytest.raises(
        TraceError, match=r"another network: 0.weight has shape .* there and None here"
    ):
        rank_channels(Coupled(), graph, criterion)


def test_the_model_is_not_changed():
    model = two_layers()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for criterion in ("l1", "l2", "bn_gamma"):
        rank(model, criterion)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
