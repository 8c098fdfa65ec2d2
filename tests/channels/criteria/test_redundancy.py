"""Criteria of responses alone: known correlations, clusters and labels."""

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.criteria import CRITERIA, redundancy
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.pooling import response_covariances
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import RankingError
from tests.channels.criteria.known import mixed
from tests.channels.criteria.test_reading import Coupled, brute

# --- pfa ---


def test_the_most_correlated_channel_goes_and_of_a_pair_that_with_more_relatives():
    correlation = np.eye(5)
    for i, j, value in ((0, 1, 0.9), (1, 2, 0.5), (3, 0, -0.95), (3, 2, 0.4), (2, 4, 0.3)):
        correlation[i, j] = correlation[j, i] = value
    deviation = np.array([1.0, 2, 3, 4, 0])
    scores = CRITERIA["pfa"].of(correlation * deviation * deviation[:, None])
    # 4 does not vary. Of 0 and 3, both at 0.95, 0 has 0.9 beside it; then 1 and 2 at 0.5, of which 2 has 0.4 beside it.
    assert np.argsort(scores).tolist() == [4, 0, 2, 1, 3]
    np.testing.assert_allclose(scores[[4, 0, 2, 1, 3]], [0, 0.05, 0.5, 1, 1], atol=1e-12)


def test_of_two_alike_in_all_the_weaker_one_goes():
    assert np.argsort(CRITERIA["pfa"].of(np.array([[9.0, 1], [1, 4]]))).tolist() == [1, 0]
    assert np.argsort(CRITERIA["pfa"].of(np.array([[4.0, 1], [1, 9]]))).tolist() == [0, 1]


# --- subspace ---


@pytest.mark.parametrize("seed", range(3))
def test_one_of_every_cluster_is_kept_the_strongest(seed):
    rng = np.random.default_rng(seed)
    cluster = rng.permutation(np.repeat(np.arange(4), [1, 2, 3, 5]))
    factor = rng.permutation(np.arange(1.0, 12)) * rng.choice([-1, 1], size=11)
    rows = rng.normal(size=(300, 4))[:, cluster] * factor
    scores = CRITERIA["subspace"].of(rows.T @ rows)
    kept = np.argsort(-scores)[:4]
    assert sorted(cluster[kept]) == [0, 1, 2, 3]
    assert all(abs(factor[c]) == np.abs(factor[cluster == cluster[c]]).max() for c in kept)


def test_subspace_of_one_or_no_channel_that_varies():
    gram = np.diag([0.0, 2, 0])
    assert CRITERIA["subspace"].of(gram).argmax() == 1
    assert not CRITERIA["subspace"].of(np.zeros((2, 2)))[1].any()
    assert len(CRITERIA["subspace"].of(np.ones((1, 1)))) == 1


# --- discriminant ---


def labelled(count=200):
    """A network of 8 independent channels, of which 2, 5 and 7 say all there is to say of the targets."""
    model, x = mixed(torch.eye(8), count=count)
    with torch.no_grad():
        response = model[:2](x).mean((2, 3))
    return (
        model,
        x,
        response @ torch.eye(8, dtype=torch.float64)[[2, 5, 7]].T @ torch.ones(3, 2).double(),
    )


def test_channels_that_say_nothing_of_the_targets_go_first():
    model, x, targets = labelled()
    graph = trace_channels(model, x[:1])
    ranking = rank_channels(model, graph, "discriminant", data=[(x, targets)])
    assert sorted(ranking.orders[0][:3]) == [2, 5, 7]
    # All is explained, but for the ridge
    assert ranking.scores[0].max() == pytest.approx(1, abs=0.2)
    classes = (targets[:, 0] > 0).long()
    head = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ranking = rank_channels(head, trace_channels(head, x[:1]), "discriminant", data=(x, classes))
    assert sorted(ranking.orders[0][:3]) == [2, 5, 7]


def test_the_whole_score_is_what_ridge_regression_explains():
    torch.manual_seed(0)
    model = Coupled().double().eval()
    x = torch.randn(60, 3, 7, 7, dtype=torch.float64)
    labels = torch.arange(60) % 2
    graph = trace_channels(model, x[:1])
    scores = rank_channels(
        model, graph, "discriminant", data=[(x[:25], labels[:25]), (x[25:], labels[25:])]
    ).scores
    with torch.no_grad():
        stage, other = (model.a(x) + model.b(x)).relu(), model.c(x).relu()
    targets = np.eye(2)[labels] - np.eye(2)[labels].mean(0)
    problems = []
    for maps, blocks in (
        (stage, [[c] for c in range(6)]),
        (torch.cat([other, stage, stage - 1], 1), [[4 + c, 10 + c] for c in range(6)]),
    ):
        responses = maps.mean((2, 3)).numpy()
        responses = responses - responses.mean(0)
        second, cross = responses.T @ responses / 60, responses.T @ targets / 60
        ridge = redundancy.SHRINKAGE * np.trace(second) / len(second) * np.eye(len(second))
        problems.append((second, np.linalg.solve(second + ridge, cross), blocks))
    expected = brute(problems, 6, redundancy.SHRINKAGE, total=np.sum(targets**2) / 60)
    names = [group.name for group in graph.prunable]
    np.testing.assert_allclose(scores[names.index("a")], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, r"labels are missing: each batch of data must be \(images, labels\)"),
        (torch.zeros(15, dtype=torch.int64), "data has 16 images and 15 labels"),
        (torch.full((16,), 9), "label 9 has no output: the model has 5 classes, counted from 0"),
        (
            torch.full((16,), float("nan")),
            r"targets are finite numbers, one or more for each of 16 images, found",
        ),
    ],
)
def test_labels_that_are_needed(labels, words):
    model, x = mixed(torch.eye(4))
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    data = x if labels is None else (x, labels)
    with pytest.raises(RankingError, match=words):
        rank_channels(model, trace_channels(model, x[:1]), "discriminant", data=data)


def test_fewer_images_than_channels_are_told():
    model, x = mixed(torch.eye(6), count=5)
    words = "5 images are fewer than the 6 numbers that 2 reads: they fit in more than one way, and a small ridge"
    with pytest.warns(UserWarning, match=words) as caught:
        rank_channels(
            model, trace_channels(model, x[:1]), "discriminant", data=[(x, torch.randn(5))]
        )
    assert caught[0].filename == __file__
    linear = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 2))
    words = (
        r"6 samples are fewer than the 9 numbers that 2 reads \(likewise 1 other layer\): they fit"
    )
    x = torch.randn(6, 3)
    for name in ("refit", "subspace"):
        with pytest.warns(UserWarning, match=words) as caught:
            rank_channels(linear, trace_channels(linear, x), name, data=x)
        assert caught[0].filename == __file__
    with pytest.warns(
        UserWarning, match="6 images are fewer than the 9 .*: correlations are partly chance"
    ) as caught:
        response_covariances(linear, trace_channels(linear, x), x)
    assert caught[0].filename == __file__
