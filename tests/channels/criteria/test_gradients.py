"""Criteria of gradients: scores against gradients by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.criteria import CRITERIA, GradientCriterion
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import RankingError
from tests.channels.criteria.known import Branches, ranked
from tests.channels.oracle import images


def test_taylor_is_zero_where_nobody_listens():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    )
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
    found = rank_channels(
        model, graph, "taylor", data=[(x[:5], labels[:5]), (x[5:], labels[5:])]
    ).scores[0]
    expected = torch.zeros(4, dtype=torch.float64)
    model.eval()
    for part in (slice(0, 5), slice(5, 7)):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[part]), labels[part]).backward()
        squares = [
            (p.grad.double() * p.detach().double()) ** 2
            for p in (*first.parameters(), *norm.parameters())
        ]
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
    expected = sum(
        ((p.grad.double() * p.detach().double()) ** 2).reshape(4, -1).sum(1) for p in parameters
    )
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


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda weight, gradient: weight.nothing,
            r"per_weight of the criterion fails on \(4, 3\), \(4, 3\): .*attribute",
        ),
        (
            lambda weight, gradient: weight.sum(),
            r"per_weight returns one number per element, \(4, 3\), found \(\)",
        ),
    ],
)
def test_a_mistake_in_a_function_of_gradients_is_named(monkeypatch, function, words):
    monkeypatch.setitem(CRITERIA, "own", GradientCriterion(function))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(RankingError, match=words):
        ranked(model, "own", (torch.randn(2, 3), torch.tensor([0, 1])))


def test_a_function_of_gradients(monkeypatch):
    monkeypatch.setitem(
        CRITERIA, "slope", GradientCriterion(lambda weight, gradient: gradient.abs())
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    data = (torch.randn(6, 3), torch.arange(6) % 2)
    found = ranked(model, "slope", data).scores[0]
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    expected = model[0].weight.grad.abs().sum(1) + model[0].bias.grad.abs()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


# --- taylor_gate ---


def test_gates_are_the_square_of_the_sum_over_what_reads():
    torch.manual_seed(0)
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(first, nn.BatchNorm1d(4), nn.SiLU(), last)
    x, labels = torch.randn(7, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    graph = trace_channels(model, x[:1])
    batches = [(x[:5], labels[:5]), (x[5:], labels[5:])]
    found = rank_channels(model, graph, "taylor_gate", data=batches).scores[0]
    expected = torch.zeros(4, dtype=torch.float64)
    model.eval()
    for images_of_batch, labels_of_batch in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(images_of_batch), labels_of_batch).backward()
        expected += (
            len(labels_of_batch)
            / 7
            * (last.weight.grad * last.weight).detach().double().sum(dim=0) ** 2
        )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


def test_gates_sum_over_all_readers_before_the_square():
    torch.manual_seed(0)
    model, x, labels = Branches(), images(batch=4).float(), torch.tensor([0, 1, 1, 0])
    graph = trace_channels(model, x)
    scores = rank_channels(model, graph, "taylor_gate", data=(x, labels)).scores
    nn.functional.cross_entropy(model(x), labels).backward()
    layers = (model.plain, model.rectified)
    sums = sum(
        (layer.weight.grad * layer.weight).detach().double().sum(dim=(0, 2, 3)) for layer in layers
    )
    found = {group.name: values for group, values in zip(graph.prunable, scores, strict=True)}
    np.testing.assert_allclose(found["c"], sums[:5].numpy() ** 2, rtol=1e-4)
    np.testing.assert_allclose(found["a"], sums[5:].numpy() ** 2, rtol=1e-4)


def test_a_gate_predicts_what_removal_does():
    # The outputs hardly change, so that the loss is linear in them.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model[2].weight.data *= 1e-5
    data = (torch.randn(6, 3).double(), torch.arange(6) % 2)
    found = ranked(model, "taylor_gate", data).scores[0]
    before = nn.functional.cross_entropy(model(data[0]), data[1])
    for channel in range(4):
        twin = copy.deepcopy(model)
        twin[2].weight.data[:, channel] = 0
        change = (nn.functional.cross_entropy(twin(data[0]), data[1]) - before).detach()
        assert found[channel] == pytest.approx(change.item() ** 2, rel=1e-3)


def test_dead_channels_have_gates_without_a_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    )
    for parameter in (*model[0].parameters(), *model[1].parameters()):
        parameter.data[1] = 0
    model[4].weight.data.view(3, 5, 4)[:, 3] = 0
    scores = ranked(model, "taylor_gate", (images(batch=8).float(), torch.arange(8) % 3)).scores[0]
    assert (scores[[1, 3]] == 0).all()
    assert (scores[[0, 2, 4]] > 0).all()
