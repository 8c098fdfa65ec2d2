"""Metrics of images drawn with replacement: what the metric itself says of as many copies of each image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abcsearch.data.images import IGNORED
from abcsearch.data.split import Split
from abcsearch.errors import ConfigError
from abcsearch.training.collected import Metrics
from abcsearch.training.multilabel import LabelScores
from abcsearch.training.objectives import CLASSIFICATION, Objective, top1
from abcsearch.training.resampling import DRAWS, draws_of, mean_known
from abcsearch.training.scoring import Tally
from abcsearch.training.segmentation import MeanIoU


def finished(kind, outputs, labels, times):
    """What a metric says of each image so many times."""
    metric = kind()
    rows = torch.arange(len(labels)).repeat_interleave(torch.as_tensor(times))
    metric.add(outputs[rows], labels[rows])
    return metric.finish()


def check(kind, outputs, labels, seed):
    metric, half = kind(), max(1, len(labels) // 2)
    for batch in (slice(0, half), slice(half, None)):
        if len(labels[batch]):
            metric.add(outputs[batch], labels[batch])
    counts = next(draws_of(len(labels)))[seed % 900 :][:4]
    drawn = metric.resampled(counts)
    for row, times in enumerate(counts):
        wanted = finished(kind, outputs, labels, times)
        assert drawn.keys() == wanted.keys()
        assert {name: values[row] for name, values in drawn.items()} == pytest.approx(wanted)
    once = metric.resampled(np.ones((1, len(labels)), dtype=np.int64))
    assert {name: values[0] for name, values in once.items()} == pytest.approx(metric.finish())


@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), labels=st.integers(1, 4))
@settings(max_examples=30)
def test_scores_of_labels_are_those_of_copies_of_the_images(seed, n, labels):
    draws = torch.Generator().manual_seed(seed)
    outputs = torch.randint(-3, 4, (n, labels), generator=draws).float()  # some are the same
    there = (torch.rand(n, labels, generator=draws) < 0.4).float()
    check(LabelScores, outputs, there, seed)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 8), classes=st.integers(2, 5))
@settings(max_examples=30)
def test_intersection_over_union_is_that_of_copies_of_the_images(seed, n, classes):
    draws = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, classes, 3, 4, generator=draws)
    labels = torch.randint(0, classes, (n, 3, 4), generator=draws)
    labels[torch.rand(n, 3, 4, generator=draws) < 0.2] = IGNORED
    check(MeanIoU, outputs, labels, seed)


def test_draws_are_the_same_for_as_many_images_and_each_draws_all():
    first, again = (np.concatenate(list(draws_of(37))) for _ in range(2))
    assert (first == again).all()
    assert first.shape == (DRAWS, 37)
    assert (first.sum(axis=1) == 37).all()
    assert len(np.unique(first, axis=0)) > 0.99 * DRAWS
    assert abs(first.mean() - 1) < 1e-9
    assert 0.9 < first.var() < 1.1  # as of a Poisson distribution
    assert mean_known(np.array([[1.0, np.nan], [np.nan, np.nan]])).tolist() == [1.0, 0.0]


def test_many_images_are_drawn_in_several_goes_and_are_the_same_draws(monkeypatch):
    whole = next(draws_of(25))
    monkeypatch.setattr("abcsearch.training.resampling._AT_ONCE", 25 * 300)
    several = list(draws_of(25))
    assert [len(one) for one in several] == [300, 300, 300, 100]
    assert (np.concatenate(several) == whole).all()


def split(n=60):
    draws = torch.Generator().manual_seed(0)
    return Split(torch.randn(n, 3, 1, 1, generator=draws), torch.arange(n) % 3)


def test_means_of_images_are_drawn_with_their_standard_error():
    tally = Tally(CLASSIFICATION, resampled=True)
    tally.add(nn.Flatten(), split(), batch_size=7)
    drawn = tally.resampled()
    assert list(drawn) == ["top1", "top5"]  # losses are not shown
    share = tally.means()["top1"]
    assert drawn["top1"].shape == (DRAWS,)
    assert drawn["top1"].mean() == pytest.approx(share, abs=0.01)
    assert drawn["top1"].std() == pytest.approx((share * (1 - share) / 60) ** 0.5, rel=0.1)
    assert (drawn["top5"] == 1).all()


class Silent(Metrics):
    """Of a user, from before intervals."""

    def add(self, outputs, labels):
        """Takes nothing."""

    def finish(self):
        return 0.5


class Wrong(Silent):
    def resampled(self, counts):
        return {"wrong": np.zeros(len(counts) + 1)}


class Failing(Silent):
    def resampled(self, counts):
        return 1 / 0


def goal(**whole):
    return Objective(loss=F.cross_entropy, metrics={"top1": top1}, whole=whole)


def test_metrics_that_do_not_say_have_none():
    tally = Tally(goal(silent=Silent), resampled=True)
    tally.add(nn.Flatten(), split())
    assert list(tally.resampled()) == ["top1"]
    assert list(tally.means()) == ["silent", "top1"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Wrong, r"'wrong': resampled\(\) returns one number per draw, \(1000,\), found \(1001,\)"),
        (Failing, r"'wrong' of the whole data set failed: ZeroDivisionError"),
    ],
)
def test_what_a_metric_of_the_user_returns_is_checked(kind, said):
    tally = Tally(goal(wrong=kind), resampled=True)
    tally.add(nn.Flatten(), split())
    with pytest.raises(ConfigError, match=said):
        tally.resampled()
