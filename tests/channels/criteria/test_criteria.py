"""All criteria: any network and its permutation, the user's own criteria."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels.criteria import (
    CRITERIA,
    ActivationCriterion,
    Criterion,
    GradientCriterion,
    WeightCriterion,
    apoz,
    taylor,
)
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import RankingError
from abcsearch.models.resnet import SmallResNet
from tests.channels.criteria.known import ramp, ranked, selecting
from tests.channels.networks import CLASSES, programs
from tests.channels.oracle import assert_close, few, images, scrambled


def permuted(model, graph, rng):
    """Permutes the channels of every prunable group in place; returns the permutations."""
    tensors = graph.tensors(model)
    orders = [rng.permutation(group.channels) for group in graph.prunable]
    with torch.no_grad():
        for group, order in zip(graph.prunable, orders, strict=True):
            for m in group.members:
                entries = m.entries[np.argsort(m.channels, kind="stable")].reshape(
                    group.channels, -1
                )
                index = np.arange(tensors[m.parameter].shape[m.axis])
                index[entries] = entries[order]
                tensors[m.parameter].copy_(
                    tensors[m.parameter].index_select(m.axis, torch.from_numpy(index))
                )
    return orders


@few(10)
@given(programs(), st.integers(0, 2**16))
def test_permuted_channels_have_permuted_scores(program, seed):
    model = program.build(seed)
    x, labels = images(batch=5), torch.arange(5) % CLASSES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = trace_channels(model, x[:1])
        names = [name for name in CRITERIA if name != "random"]
        before = {name: rank_channels(model, graph, name, data=(x, labels)) for name in names}
        with torch.no_grad():
            outputs = model(x)
            orders = permuted(model, graph, np.random.default_rng(seed))
            assert_close(model(x), outputs)
        for name in names:
            after = rank_channels(model, graph, name, data=(x, labels))
            for old, new, order in zip(before[name].scores, after.scores, orders, strict=True):
                np.testing.assert_allclose(
                    new, old[order], rtol=1e-6, atol=1e-9 * (1 + np.abs(old).max()), err_msg=name
                )


@few(5)
@given(programs(), st.integers(0, 2**16))
def test_scores_of_all_batches_are_their_mean_by_images(program, seed):
    model = program.build(seed)
    x, labels = images(batch=5), torch.arange(5) % CLASSES
    parts = [(x[:3], labels[:3]), (x[3:], labels[3:])]
    graph = trace_channels(model, x[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("apoz", "taylor", "taylor_gate", "curl"):
            whole, first, second = (
                rank_channels(model, graph, name, data=d) for d in (parts, parts[:1], parts[1:])
            )
            for both, a, b in zip(whole.scores, first.scores, second.scores, strict=True):
                np.testing.assert_allclose(
                    both, (3 * a + 2 * b) / 5, rtol=1e-9, atol=1e-15, err_msg=name
                )


# Those that order at random, by how alike channels are, or by what reads them alone.
ELSEWHERE = {"random", "fpgm", "scsp", "reader_l2", "nisp"}
READING = {
    "refit",
    "thinet",
    "thinet_tpami",
    "lasso",
    "reader_l2",
    "reader_l2_gamma",
    "reader_l2_filters",
    "taylor",
    "taylor_gate",
    "curl",
}


@pytest.fixture(scope="module")
def half_dead():
    """A residual network in which half of the channels of each group are made of nothing, its graph, and which."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scrambled(SmallResNet(in_channels=3, classes=CLASSES, widths=(6, 8), depths=(1, 1)))
    graph = trace_channels(model, images(batch=1, size=8))
    tensors, rng = graph.tensors(model), np.random.default_rng(0)
    dead = [rng.permutation(group.channels)[: group.channels // 2] for group in graph.prunable]
    with torch.no_grad():
        for group, channels in zip(graph.prunable, dead, strict=True):
            for m in group.members:
                if not m.reads and m.parameter in graph.trainable:
                    rows = torch.from_numpy(m.entries[np.isin(m.channels, channels)])
                    tensors[m.parameter].index_fill_(m.axis, rows, 0.0)
        for name, tensor in tensors.items():
            if name.endswith("running_mean"):
                tensor.zero_()
    return model, graph, dead


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in ELSEWHERE])
def test_channels_that_are_made_of_nothing_go_first(half_dead, name):
    model, graph, dead = half_dead
    data = (images(batch=12, size=8), torch.arange(12) % CLASSES)
    ranking = rank_channels(model, graph, name, data=data)
    for order, scores, channels in zip(ranking.orders, ranking.scores, dead, strict=True):
        assert set(order[-len(channels) :].tolist()) == set(channels.tolist())
        assert (scores[channels] == 0).all()
    half = slice_model(
        model,
        graph,
        [g.channels - len(d) for g, d in zip(graph.prunable, dead, strict=True)],
        ranking,
    )
    with torch.no_grad():
        assert_close(half(data[0]), model(data[0]))


@pytest.mark.parametrize("name", sorted(READING))
def test_channels_that_nothing_listens_to_go_first(half_dead, name):
    model, graph, dead = copy.deepcopy(half_dead[0]), half_dead[1], half_dead[2]
    tensors = graph.tensors(model)
    with torch.no_grad():
        for parameter in model.parameters():  # what was made of nothing is so no longer
            parameter.add_(torch.where(parameter == 0, 0.3, 0.0))
        for group, channels in zip(graph.prunable, dead, strict=True):
            for m in group.members:
                if m.sums:
                    rows = torch.from_numpy(m.entries[np.isin(m.channels, channels)])
                    tensors[m.parameter].index_fill_(m.axis, rows, 0.0)
    data = (images(batch=12, size=8), torch.arange(12) % CLASSES)
    ranking = rank_channels(model, graph, name, data=data)
    for order, scores, channels in zip(ranking.orders, ranking.scores, dead, strict=True):
        assert set(order[-len(channels) :].tolist()) == set(channels.tolist())
        assert (
            scores[channels] == 0
        ).all() or name == "taylor"  # what makes a stage goes on into what is added to it


def test_every_criterion_says_what_it_is():
    for name, entry in CRITERIA.items():
        assert entry.description, name
        assert entry.source or name == "random", name
    weights = [
        "l1",
        "l2",
        "bn_gamma",
        "fpgm",
        "scsp",
        "reader_l2",
        "reader_l2_gamma",
        "reader_l2_filters",
    ]
    assert [name for name, entry in CRITERIA.items() if not entry.needs] == ["random", *weights]


def test_names_in_records_are_those_of_the_package():
    assert (
        CRITERIA.name_of(ActivationCriterion(apoz))
        == "abcsearch.channels.criteria:ActivationCriterion (object)"
    )
    assert (
        CRITERIA.name_of(GradientCriterion(taylor))
        == "abcsearch.channels.criteria:GradientCriterion (object)"
    )
    for name in ("l1", "l2", "bn_gamma", "fpgm"):
        path = f"abcsearch.channels.criteria:{name}"
        assert CRITERIA.name_of(CRITERIA[name].score) == path
        assert CRITERIA.find(path).score is CRITERIA[name].score
        assert CRITERIA.find(f"abcsearch.channels.criteria:{name.upper()}") is CRITERIA[name]


# --- the user's own ---


def test_a_criterion_of_ones_own_works_by_name(monkeypatch):
    model = selecting([[1.0], [0.0], [2.0]], [0.0, 3.0, 0.0])
    graph = trace_channels(model, ramp(1))

    class Backwards(Criterion):
        def scores(self, subject):
            return [np.arange(group.channels)[::-1] for group in subject.graph.prunable]

    own = {
        "bias": WeightCriterion(
            lambda tensors, group: tensors[group.name + ".bias"].double().numpy()
        ),
        "strength": ActivationCriterion(lambda maps: maps.abs().mean(dim=(2, 3))),
        "peak": ActivationCriterion(
            lambda maps: maps.amax(dim=(2, 3)), lambda values: values.amax(dim=0)
        ),
        "backwards": Backwards(),
    }
    for name, entry in own.items():
        monkeypatch.setitem(CRITERIA, name, entry)
    assert rank_channels(model, graph, "bias").scores[0].tolist() == [0, 3, 0]
    np.testing.assert_allclose(
        rank_channels(model, graph, "strength", data=ramp()).scores[0], [7.5, 3, 15]
    )
    np.testing.assert_allclose(
        rank_channels(model, graph, "peak", data=ramp()).scores[0], [15, 3, 30]
    )
    assert rank_channels(model, graph, "backwards").orders[0].tolist() == [0, 1, 2]
    with pytest.raises(RankingError, match="unknown criterion 'strenght'; did you mean 'strength'"):
        rank_channels(model, graph, "strenght")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            WeightCriterion(lambda tensors, group: np.zeros(2)),
            r"'own' gives group '0' scores \(2,\), not \(3,\)",
        ),
        (
            WeightCriterion(lambda tensors, group: np.full(3, np.nan)),
            r"no finite score in group '0'; check the trained",
        ),
        (
            ActivationCriterion(lambda maps: maps.mean(dim=3)),
            r"one number per image and channel, \(16, 3\), for .* 3\)",
        ),
        (
            ActivationCriterion(lambda maps: maps.mean((2, 3)) / 0),
            "no finite score in group '0'; check .* and the data",
        ),
        (
            ActivationCriterion(lambda maps: 1 / 0),
            r"per_image of the criterion fails on \(16, 3, 3, 3\): division by zero",
        ),
        (
            ActivationCriterion(apoz, lambda values: 1 / 0),
            r"over_images of the criterion fails on \(16, 3\): division",
        ),
        (
            ActivationCriterion(apoz, lambda values: values),
            r"'own' gives group '0' scores \(16, 3\), not \(3,\)",
        ),
    ],
)
def test_mistakes_in_a_criterion_of_ones_own_are_named(monkeypatch, entry, words):
    monkeypatch.setitem(CRITERIA, "own", entry)
    with pytest.raises(RankingError, match=words):
        ranked(selecting([[1.0]] * 3, [0.0] * 3), "own", ramp())


class Normalising(nn.Module):
    """Normalises its images, in place or not."""

    def __init__(self, *, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = (
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 3),
        )
        self.last, self.in_place = nn.Linear(6, 4), in_place

    def forward(self, x):
        x = x.sub_(0.5).div_(2) if self.in_place else x.sub(0.5).div(2)
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("name", CRITERIA)
def test_images_stay_whatever_forward_does_with_them(name):
    x, labels = torch.randn(20, 3, 8, 8), torch.arange(20) % 4
    before, scores = x.clone(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for in_place in (False, True):
            model = Normalising(in_place=in_place).eval()
            graph = trace_channels(model, x)
            scores.append(rank_channels(model, graph, name, data=[(x, labels), (x, labels)]).scores)
            assert torch.equal(x, before)
    for one, other in zip(*scores, strict=True):
        np.testing.assert_array_equal(one, other)
