"""Criteria: orders that are known by construction, any network and its permutation, the user's own criteria."""

import math
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
    entropy,
    hrank,
)
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import RankingError
from tests.channels.networks import CLASSES, programs
from tests.channels.oracle import assert_close, few, images


def ranked(model, criterion, data=None, **options):
    """A ranking of a network that is traced on one image of the data."""
    first = data[0] if isinstance(data, tuple) else data
    graph = trace_channels(model, first[:1])
    return rank_channels(model, graph, criterion, data=data, **options)


def selecting(weights, biases, *, after=None, consumer=None):
    """1x1 convolution with given weights (channels, inputs) and biases, ReLU, a consumer of ones."""
    weights = torch.tensor(weights, dtype=torch.float32)
    first = nn.Conv2d(weights.shape[1], len(weights), 1)
    first.weight.data[:] = weights[:, :, None, None]
    first.bias.data[:] = torch.tensor(biases)
    second = consumer or nn.Conv2d(len(weights), 2, 1)
    nn.init.ones_(second.weight)
    return nn.Sequential(first, nn.ReLU(), *(after or []), second)


def ramp(count=16, size=3):
    """Images that are constant, of value 0, 1 ... count - 1."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 1, size, size)


# --- fpgm ---


def test_fpgm_is_the_sum_of_distances_to_all_filters_of_the_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 1))
    filters = model[0].weight.detach().double().flatten(1).numpy()
    expected = [sum(np.sqrt(((one - other) ** 2).sum()) for other in filters) for one in filters]
    np.testing.assert_allclose(ranked(model, "fpgm", images().float()).scores[0], expected, rtol=1e-6)


def test_fpgm_drops_duplicates_first_whatever_their_norm_and_keeps_outliers():
    model = selecting([[9, 9], [9, 9], [9, 9], [0, 0], [9, 10]], [0.0] * 5)
    ranking = ranked(model, "fpgm", torch.ones(1, 2, 3, 3))
    assert ranking.orders[0].tolist()[:2] == [3, 4]
    assert sorted(ranking.orders[0].tolist()[2:]) == [0, 1, 2]
    assert ranked(model, "l1", torch.ones(1, 2, 3, 3)).orders[0][-1] == 3


class Branches(nn.Module):
    """The sum of two branches (one group) beside a third one (its own group), read by two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.plain, self.rectified, self.last = nn.Conv2d(9, 2, 1), nn.Conv2d(9, 2, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.cat([self.c(x), self.a(x) + self.b(x)], 1)
        return self.last(torch.cat([self.plain(x).mean((2, 3)), self.rectified(x.relu()).mean((2, 3))], 1))


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
        return self.last(torch.cat([self.first(x) + torch.cat([one, two, two], 1), one], 1)).mean((2, 3))


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
    np.testing.assert_allclose(rank_channels(model, graph, "apoz", data=[x[:4], x[4:]]).scores[0], [0.6, 0.2])


def test_apoz_is_the_mean_over_the_layers_that_read_a_channel():
    torch.manual_seed(0)
    model = Branches()
    x = images(batch=6).float()
    graph = trace_channels(model, x[:1])
    found = {g.name: s for g, s in zip(graph.prunable, rank_channels(model, graph, "apoz", data=x).scores, strict=True)}
    with torch.no_grad():
        for name, response in (("c", model.c(x)), ("a", model.a(x) + model.b(x))):
            rectified = (response > 0).double().mean((0, 2, 3)).numpy()  # the other reader sees no zero at all
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
    np.testing.assert_allclose(rank_channels(model, graph, "apoz", data=x).scores[0], [1, 0.5, 0.75])


def test_readers_that_are_not_called_as_modules_are_not_seen_and_l1_stands_in():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
            self.functional = False

        def forward(self, x):
            x = self.first(x).relu()
            second = nn.functional.linear(x, self.second.weight) if self.functional else self.second(x)
            return self.third(second.relu())

    torch.manual_seed(0)
    model, x = Functional(), torch.randn(5, 3)
    graph = trace_channels(model, x)
    model.functional = True
    with pytest.warns(UserWarning, match=r"criterion 'apoz' does not apply to first; l1 is used there") as caught:
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
        np.testing.assert_allclose(rank_channels(model, graph, "apoz", data=data).scores[0], [1, 0.5, 0.75])
        np.testing.assert_allclose(rank_channels(model, graph, "hrank", data=data).scores[0], [2, 1, 2])


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
        np.testing.assert_allclose(rank_channels(model, graph, "hrank", data=data).scores[0], [5 / 3, 1])


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
    np.testing.assert_allclose(rank_channels(model, graph, "entropy", data=batches).scores[0], [math.log(4), 0])


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
    skewed = torch.tensor([0.0] * 12 + [1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None]  # bins 12, 1, 1, 2
    shares = np.array([12, 1, 1, 2]) / 16
    assert entropy(skewed).item() == pytest.approx(-(shares * np.log(shares)).sum())
    noise = 1 + 1e-8 * torch.rand(16, 1, dtype=torch.float64)
    assert entropy(noise).item() == 0


# --- taylor ---


def test_taylor_is_zero_where_nobody_listens():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    model[4].weight.data.view(3, 5, 4)[:, [1, 3]] = 0
    scores = ranked(model, "taylor", (images(batch=8).float(), torch.arange(8) % 3)).scores[0]
    assert (scores[[1, 3]] == 0).all()
    assert (scores[[0, 2, 4]] > 0).all()


def test_taylor_against_gradients_by_hand():
    torch.manual_seed(0)
    first, norm, last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    norm.running_mean += 0.3
    model = nn.Sequential(first, norm, nn.ReLU(), last).train()
    x, labels = torch.randn(7, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    graph = trace_channels(model, x[:1])
    found = rank_channels(model, graph, "taylor", data=[(x[:5], labels[:5]), (x[5:], labels[5:])]).scores[0]
    expected = torch.zeros(4, dtype=torch.float64)
    model.eval()
    for part in (slice(0, 5), slice(5, 7)):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[part]), labels[part]).backward()
        squares = [(p.grad.double() * p.detach().double()) ** 2 for p in (*first.parameters(), *norm.parameters())]
        expected += len(x[part]) / 7 * sum(s.reshape(4, -1).sum(1) for s in squares)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_taylor_adds_up_coupled_layers():
    torch.manual_seed(0)
    model = Branches()
    x, labels = images(batch=4).float(), torch.tensor([0, 1, 1, 0])
    graph = trace_channels(model, x)
    scores = rank_channels(model, graph, "taylor", data=(x, labels)).scores
    found = next(s for g, s in zip(graph.prunable, scores, strict=True) if g.name == "a")
    nn.functional.cross_entropy(model(x), labels).backward()
    parameters = [*model.a.parameters(), *model.b.parameters()]
    expected = sum(((p.grad.double() * p.detach().double()) ** 2).reshape(4, -1).sum(1) for p in parameters)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_taylor_looks_at_frozen_weights_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    data = (torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]))
    before = ranked(model, "taylor", data).scores[0]
    model.requires_grad_(requires_grad=False)
    np.testing.assert_array_equal(ranked(model, "taylor", data).scores[0], before)
    assert not any(p.requires_grad for p in model.parameters())
    for block in (torch.no_grad, torch.inference_mode):
        with block():
            np.testing.assert_array_equal(ranked(model, "taylor", data).scores[0], before)


# --- all of them ---


def permuted(model, graph, rng):
    """Permutes the channels of every prunable group in place; returns the permutations."""
    tensors = graph.tensors(model)
    orders = [rng.permutation(group.channels) for group in graph.prunable]
    with torch.no_grad():
        for group, order in zip(graph.prunable, orders, strict=True):
            for m in group.members:
                entries = m.entries[np.argsort(m.channels, kind="stable")].reshape(group.channels, -1)
                index = np.arange(tensors[m.parameter].shape[m.axis])
                index[entries] = entries[order]
                tensors[m.parameter].copy_(tensors[m.parameter].index_select(m.axis, torch.from_numpy(index)))
    return orders


@few(25)
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


def test_every_criterion_says_what_it_is():
    for name, entry in CRITERIA.items():
        assert entry.description, name
        assert entry.source or name == "random", name
    assert [name for name, entry in CRITERIA.items() if not entry.needs] == ["random", "l1", "l2", "bn_gamma", "fpgm"]


# --- the user's own ---


def test_a_criterion_of_ones_own_works_by_name(monkeypatch):
    model = selecting([[1.0], [0.0], [2.0]], [0.0, 3.0, 0.0])
    graph = trace_channels(model, ramp(1))

    class Backwards(Criterion):
        def scores(self, subject):
            return [np.arange(group.channels)[::-1] for group in subject.graph.prunable]

    own = {
        "bias": WeightCriterion(lambda tensors, group: tensors[group.name + ".bias"].double().numpy()),
        "strength": ActivationCriterion(lambda maps: maps.abs().mean(dim=(2, 3))),
        "peak": ActivationCriterion(lambda maps: maps.amax(dim=(2, 3)), lambda values: values.amax(dim=0)),
        "backwards": Backwards(),
    }
    for name, entry in own.items():
        monkeypatch.setitem(CRITERIA, name, entry)
    assert rank_channels(model, graph, "bias").scores[0].tolist() == [0, 3, 0]
    np.testing.assert_allclose(rank_channels(model, graph, "strength", data=ramp()).scores[0], [7.5, 3, 15])
    np.testing.assert_allclose(rank_channels(model, graph, "peak", data=ramp()).scores[0], [15, 3, 30])
    assert rank_channels(model, graph, "backwards").orders[0].tolist() == [0, 1, 2]
    with pytest.raises(RankingError, match="unknown criterion 'strenght'; did you mean 'strength'"):
        rank_channels(model, graph, "strenght")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (WeightCriterion(lambda tensors, group: np.zeros(2)), r"'own' gives group '0' scores \(2,\), not \(3,\)"),
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
        (ActivationCriterion(apoz, lambda values: 1 / 0), r"over_images of the criterion fails on \(16, 3\): division"),
        (ActivationCriterion(apoz, lambda values: values), r"'own' gives group '0' scores \(16, 3\), not \(3,\)"),
    ],
)
def test_mistakes_in_a_criterion_of_ones_own_are_named(monkeypatch, entry, words):
    monkeypatch.setitem(CRITERIA, "own", entry)
    with pytest.raises(RankingError, match=words):
        ranked(selecting([[1.0]] * 3, [0.0] * 3), "own", ramp())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda weight, gradient: weight.nothing,
            r"per_weight of the criterion fails on \(4, 3\), \(4, 3\): .*attribute",
        ),
        (lambda weight, gradient: weight.sum(), r"per_weight returns one number per element, \(4, 3\), found \(\)"),
    ],
)
def test_a_mistake_in_a_function_of_gradients_is_named(monkeypatch, function, words):
    monkeypatch.setitem(CRITERIA, "own", GradientCriterion(function))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(RankingError, match=words):
        ranked(model, "own", (torch.randn(2, 3), torch.tensor([0, 1])))


def test_a_function_of_gradients(monkeypatch):
    monkeypatch.setitem(CRITERIA, "slope", GradientCriterion(lambda weight, gradient: gradient.abs()))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    data = (torch.randn(6, 3), torch.arange(6) % 2)
    found = ranked(model, "slope", data).scores[0]
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    expected = model[0].weight.grad.abs().sum(1) + model[0].bias.grad.abs()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
