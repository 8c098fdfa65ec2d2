"""Sparsity and codebooks: what goes is the smallest, values are those of k-means, and training keeps both."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

from abcsearch import Recipe, codebook, sparsify, train
from abcsearch.errors import ModelError
from abcsearch.testing.lessons import LessonContract
from abcsearch.transforms.base import weighted
from abcsearch.transforms.codebook import Shared, k_means
from abcsearch.transforms.sparse import Masked


def net(seed=0, classes=2):
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
    ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    ).eval()


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 0.99), st.sampled_from(["layer", "global"]), st.integers(0, 9))
def test_the_smallest_weights_go_and_nothing_else_changes(share, scope, seed):
    model = net(seed)
    before = copy.deepcopy(model.state_dict())
    if scope == "global" and share > 0.9:  # a layer may lose all of its weights, which is refused
        return
    made = sparsify(model, share, scope=scope)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    pairs = {
        path: (layer.weight.abs(), weighted(model)[path].weight.abs())
        for path, layer in weighted(made).items()
    }
    pools = [list(pairs)] if scope == "global" else [[path] for path in pairs]
    for pool in pools:
        new, old = (torch.cat([pairs[path][i].flatten() for path in pool]) for i in (0, 1))
        assert int((new == 0).sum()) == int(share * len(old))
        assert torch.equal(new[new != 0], old[new != 0])
        if bool((new == 0).any()) and bool((new != 0).any()):
            assert old[new == 0].max() <= old[new != 0].min()
    others = [name for name in before if not (name.endswith("weight") and name[0] in "037")]
    assert all(torch.equal(made.state_dict()[name], before[name]) for name in others)


def test_a_layer_that_would_lose_all_its_weights_is_named():
    model = net()
    model[3].weight.data *= 1e-6
    with pytest.raises(
        ModelError, match=r"leaves none of the weights of 3: lower it, put the layer into fixed"
    ):
        sparsify(model, 0.9, scope="global")
    assert (sparsify(model, 0.9)[3].weight != 0).any()


def test_fixed_layers_and_tied_weights():
    model = net()
    made = sparsify(model, 0.5, fixed=["7"])
    assert torch.equal(made[7].weight, model[7].weight)
    assert (made[0].weight == 0).any()
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert int((sparsify(tied, 0.5)[1].weight == 0).sum()) == 8
    with pytest.raises(ModelError, match="unknown layer of fixed: '8'"):
        sparsify(model, 0.5, fixed=["8"])
    model[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="weight of 0 is not finite"):
        codebook(model)
    for wrong in (0.0, 1.0, -1):
        with pytest.raises(ModelError, match="a share in"):
            sparsify(net(), wrong)
    with pytest.raises(ModelError, match="from 1 to 16"):
        codebook(net(), bits=17)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(2, 200))
def test_centres_are_those_of_scikit_learn(seed, count, size):
    """From the same beginning, where none of its clusters ends empty (which it then moves elsewhere)."""
    values = np.random.default_rng(seed).normal(size=size)
    mine = k_means(values, count)
    assert (np.diff(mine) > 0).all()
    near = np.abs(values[:, None] - mine).argmin(1)
    for i, centre in enumerate(mine):  # each is the mean of what is nearest to it
        assert centre == pytest.approx(values[near == i].mean(), abs=1e-9)
    if len(mine) == count < size:
        begin = np.linspace(values.min(), values.max(), count)[:, None]
        theirs = KMeans(count, init=begin, n_init=1, max_iter=1000, tol=0).fit(values[:, None])
        if len(np.unique(np.abs(values[:, None] - begin.T).argmin(1))) == count:
            error = ((values - mine[near]) ** 2).sum()
            assert error == pytest.approx(theirs.inertia_, rel=1e-6) or error < theirs.inertia_


def test_few_numbers_are_their_own_centres():
    assert k_means(np.array([3.0, 1.0, 3.0]), 4).tolist() == [1.0, 3.0]
    made = codebook(net(), bits=16, linear_bits=16)
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), net().parameters(), strict=True)
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_codebook_has_so_many_values_and_zeros_stay(bits):
    sparse = sparsify(net(), 0.7)
    made = codebook(sparse, bits, linear_bits=bits)
    for path, layer in weighted(made).items():
        assert len(layer.weight.detach().unique()) <= 2**bits
        assert torch.equal(layer.weight == 0, weighted(sparse)[path].weight == 0)


RECIPES = [
    Recipe(epochs=2, batch_size=30, lr=0.05),
    Recipe(
        epochs=2,
        batch_size=30,
        lr=0.01,
        optimizer="adamw",
        weight_decay=0.1,
        ema=0.5,
        clip_norm=1.0,
        keep="best",
    ),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_keeps_zeros_and_shared_values(tiny_data, recipe):
    sparse = sparsify(net(), 0.7)
    for begin, kind in ((sparse, Masked), (codebook(sparse, 3, linear_bits=3), Shared)):
        model = copy.deepcopy(begin)
        lesson = kind(model, list(weighted(model)))
        train(lesson, tiny_data.train, recipe, validation=tiny_data.validation)
        lesson.settle()
        for path, layer in weighted(model).items():
            old = weighted(begin)[path].weight
            assert not torch.equal(layer.weight, old)
            assert (layer.weight[old == 0] == 0).all()
            for value in old.unique() if kind is Shared else ():
                assert len(layer.weight[old == value].unique()) == 1


def test_gradients_of_a_codebook_are_means_of_its_weights():
    model = codebook(net(), 2, linear_bits=2)
    plain = copy.deepcopy(model).train()
    images, labels = torch.randn(8, 1, 6, 6), torch.arange(8) % 2
    nn.functional.cross_entropy(plain(images), labels).backward()
    lesson = Shared(model.train(), list(weighted(model)))
    images_ = type("Labels", (), {"labels": labels})()
    lesson.begin(Recipe(), images_)
    lesson.step(images, labels, torch.Generator())
    for path, layer in weighted(model).items():
        theirs = weighted(plain)[path].weight.grad
        for value in layer.weight.detach().unique():
            same = layer.weight == value
            assert torch.allclose(
                layer.weight.grad[same], theirs[same].mean().expand(int(same.sum())), atol=1e-7
            )


class TestMasked(LessonContract):
    def make(self):
        model = sparsify(net(classes=3), 0.5)
        return Masked(model, list(weighted(model)))


class TestShared(LessonContract):
    def make(self):
        model = codebook(net(classes=3), 3, linear_bits=3)
        return Shared(model, list(weighted(model)))
