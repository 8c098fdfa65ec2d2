"""scsp: one channel of each cluster, for every number of clusters."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, ward
from scipy.spatial.distance import pdist
from torch import nn

from abcsearch.channels.criteria.clusters import scsp
from abcsearch.channels.group import ChannelGroup, Member
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import RankingError
from tests.channels.criteria.known import Branches, ranked
from tests.channels.networks import programs
from tests.channels.oracle import few, images
from tests.channels.test_slicing import traced


def layer(filters):
    """A network whose only prunable channels have these filters, (channels, inputs)."""
    model = nn.Sequential(
        nn.Linear(filters.shape[1], len(filters)), nn.ReLU(), nn.Linear(len(filters), 2)
    ).double()
    model[0].weight.data = torch.as_tensor(filters).double()
    return model


def order_of(filters):
    return ranked(layer(filters), "scsp", torch.ones(1, filters.shape[1]).double()).orders[0]


@pytest.mark.parametrize("seed", range(5))
def test_one_of_each_exact_cluster_is_kept(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 5)
    cluster = rng.permutation(np.repeat(np.arange(5), sizes))
    filters = rng.normal(size=(5, 7))[cluster]
    kept = order_of(filters)[:5]
    assert sorted(cluster[kept].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_k_kept_channels_are_one_of_each_of_k_clusters_and_the_largest(seed):
    rng = np.random.default_rng(seed)
    filters = rng.normal(size=(12, 3)) * rng.uniform(0.2, 3, size=(12, 1))
    apart = pdist(filters)
    # Column i: 12 - i clusters
    cuts = cut_tree(ward(np.sqrt(2 - 2 * np.exp(-(apart**2) / (2 * np.median(apart) ** 2)))))
    order, norms = order_of(filters), np.linalg.norm(filters, axis=1)
    for count in range(1, 13):
        kept, cluster = order[:count], cuts[:, 12 - count]
        assert sorted(cluster[kept].tolist()) == list(range(count))
        assert all(norms[k] == norms[cluster == cluster[k]].max() for k in kept)


def test_filters_of_coupled_layers_are_clustered_together():
    torch.manual_seed(0)
    model = Branches()
    # Alike in either layer, in both only in pairs.
    for parameter, pattern in ((model.a.weight, [0, 0, 1, 1]), (model.b.weight, [0, 1, 0, 1])):
        parameter.data[:] = parameter.data[pattern].clone()
    model.a.weight.data[3], model.b.weight.data[3] = model.a.weight.data[0], model.b.weight.data[0]
    ranking = ranked(model, "scsp", images(1).float())
    (order,) = [o for o in ranking.orders if len(o) == 4]
    assert {0, 3} & set(order[:3].tolist()) in ({0}, {3})
    assert {1, 2} <= set(order[:3].tolist())


@pytest.mark.parametrize("filters", [np.ones((4, 3)), np.zeros((4, 3)), np.eye(4)])
def test_clusters_of_filters_that_are_all_alike_or_equally_far_apart(filters):
    scores = ranked(layer(filters), "scsp", torch.ones(1, filters.shape[1]).double()).scores
    assert [sorted(s.tolist()) for s in scores] == [[0, 1, 2, 3]]


def test_a_single_channel_is_a_cluster():
    one = np.zeros(1, dtype=np.int64)
    member = Member(parameter="weight", axis=0, entries=one, channels=one, reads=False, sums=False)
    group = ChannelGroup(name="", channels=1, kind="filter", fixed=None, members=(member,))
    np.testing.assert_array_equal(scsp({"weight": torch.ones(1, 3)}, group), [0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_filters_that_are_not_finite(value):
    filters = np.ones((4, 3))
    filters[1, 1] = value
    with pytest.raises(RankingError, match="criterion 'scsp' finds no finite score in group '0'"):
        order_of(filters)


@few(10)
@given(programs(), st.integers(0, 2**16))
def test_scale_of_the_weights_does_not_matter(program, seed):
    model = program.build(seed)
    graph, _ = traced(model)
    before = rank_channels(model, graph, "scsp").scores
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.25)
    for old, new in zip(before, rank_channels(model, graph, "scsp").scores, strict=True):
        assert sorted(old.tolist()) == list(range(len(old)))
        assert old.tolist() == new.tolist()
