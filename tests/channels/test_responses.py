"""Data for criteria: what is taken, what is refused, and that nothing of the caller's changes."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from abcsearch.channels.criteria import CRITERIA
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.responses import BATCH_SIZE
from abcsearch.errors import RankingError

WITH_DATA = [name for name, entry in CRITERIA.items() if entry.needs]


def network():
    """Everything that could leave a trace: batch norm, dropout, dropout that is always on."""
    torch.manual_seed(0)

    class Noise(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.2, True)

    first = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), Noise()]
    return nn.Sequential(*first, nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def dataset(count=100):
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 6, 6, generator=draws), torch.randint(3, (count,), generator=draws)


def plain(batches):
    """Scores that do not depend on how the images are batched, for a network without noise."""
    model = network()
    model[4] = nn.Identity()
    graph = trace_channels(model, torch.zeros(1, 3, 6, 6))
    return [rank_channels(model, graph, "hrank", data=data).scores for data in batches]


def test_data_in_every_form_that_is_at_hand():
    x, labels = dataset()
    loader = DataLoader(TensorDataset(x, labels), batch_size=30)
    forms = [
        (x, labels),
        [x, labels],
        x,
        loader,
        DataLoader(TensorDataset(x), batch_size=7),
        [(x[:50], labels[:50]), [x[50:], labels[50:]]],
        [x[:50], x[50:]],
        ((batch, None) for batch in x.split(33)),
        [(x[:0], labels[:0]), ((x,), labels)],
        x[:, None].unbind(0),
    ]
    first, *others = plain(forms)
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_two_tensors_are_cut_into_batches(monkeypatch):
    seen = []
    entry = CRITERIA["apoz"]
    watching = type(entry)(lambda maps: seen.append(len(maps)) or entry.per_image(maps))
    monkeypatch.setitem(CRITERIA, "watching", watching)
    x, labels = dataset(BATCH_SIZE + 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    rank_channels(model, trace_channels(model, x[:1]), "watching", data=(x, labels))
    assert seen == [BATCH_SIZE, 5]


def test_every_batch_is_asked_for_once():
    x, labels = dataset(8)
    model = network()
    graph = trace_channels(model, x[:1])
    for name in WITH_DATA:
        batches = iter([(x, labels)] * 3)
        rank_channels(model, graph, name, data=batches)
        assert next(batches, None) is None


def test_several_inputs_are_a_tuple():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x, y):
            return self.last((self.a(x) + self.b(y)).relu())

    model, inputs = Two(), (torch.randn(6, 3), torch.randn(6, 2))
    graph = trace_channels(model, inputs)
    for name in WITH_DATA:
        (scores,) = rank_channels(
            model, graph, name, data=[(inputs, torch.zeros(6, dtype=torch.int64))]
        ).scores
        assert scores.shape == (4,)
    with pytest.raises(
        RankingError, match=r"fails on images \(6, 3\) torch.float32: .*missing 1 required"
    ):
        rank_channels(model, graph, "apoz", data=[inputs[0]])


X, LABELS = dataset(4)[0], torch.tensor([0, 2, 1, 0])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "criterion 'taylor' looks at images and labels and there are none: pass data="),
        ([], "data is empty: there is no image in it"),
        (iter(()), "data is empty"),
        (X[:0], "data is empty"),
        ((X[:0], LABELS[:0]), "data is empty"),
        (5, "data is an iterable of (images, labels) batches, or two tensors, found int"),
        (["ab"], "a batch of data is images or (images, labels), all torch tensors, found (str)"),
        ({"x": X}, "found (str)"),
        ([(X.numpy(), LABELS.numpy())], "found (ndarray, ndarray)"),
        ([(X, LABELS, LABELS)], "found (Tensor, Tensor, Tensor)"),
        ([(X, [1, 2])], "found (Tensor, list)"),
        ([()], "found ()"),
        ([((), LABELS)], "found (tuple, Tensor)"),
        ([torch.tensor(1.0)], "found (Tensor)"),
        ((X, LABELS[:3]), "data has 4 images and 3 labels"),
        (
            (X[:, :2], LABELS),
            "data do not fit the network: it fails on images (4, 2, 6, 6) torch.float32: ",
        ),
        (
            (X.double(), LABELS),
            "data do not fit the network: it fails on images (4, 3, 6, 6) torch.float64: ",
        ),
        (X, "labels are missing: each batch of data must be (images, labels)"),
        ([(X, LABELS[:3])], "labels are (4,) classes for 4 images, found (3,) torch.int64"),
        ([(X, LABELS.float())], "labels are (4,) classes for 4 images, found (4,) torch.float32"),
        ((X, LABELS + 1), "label 3 has no output: the model has 3 classes, counted from 0"),
        ((X, LABELS - 2), "label -2 has no output"),
        (
            (X * float("nan"), LABELS),
            "criterion 'taylor' finds no finite score in group '0'; check the trained weights and",
        ),
    ],
)
@pytest.mark.parametrize("name", ["taylor", "taylor_gate"])
def test_what_those_with_gradients_refuse(data, words, name):
    model = network()
    with pytest.raises(RankingError, match=re.escape(words.replace("'taylor'", f"'{name}'"))):
        rank_channels(model, trace_channels(model, X[:1]), name, data=data)


NOT_FINITE = {
    "nisp": "the input of the last layer is not finite; check the trained weights and the data",
    "curl": "criterion 'curl' finds no finite score in group '0'; check the trained weights and the data",
}


@pytest.mark.parametrize("name", ["apoz", "hrank", "entropy", "curl", "nisp"])
def test_what_the_others_refuse(name):
    model = network()
    graph = trace_channels(model, X[:1])
    for data, words in (
        (None, f"criterion '{name}' looks at images and there are none: pass data="),
        ([], "data is empty"),
        (X[:, :2], "data do not fit the network"),
        (
            X * float("inf"),
            NOT_FINITE.get(
                name, r"the input of Conv2d\(6, 4, .*\) is not finite; check the trained"
            ),
        ),
    ):
        with pytest.raises(RankingError, match=words):
            rank_channels(model, graph, name, data=data)


def test_taylor_needs_logits():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with pytest.raises(
        RankingError,
        match=r"must return logits \(batch, classes\) for 4 images, found \(4, 3, 6, 6\)",
    ):
        rank_channels(model, trace_channels(model, X), "taylor", data=(X, LABELS))


def snapshot(model):
    """Everything of a network and of torch's random state that ranking must leave alone."""
    state = {
        name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    modules = [
        (
            m.training,
            list(m._forward_pre_hooks.items()),
            list(m._forward_hooks.items()),
            list(m._backward_hooks),
        )
        for m in model.modules()
    ]
    return state, gradients, modules, torch.get_rng_state().clone()


def assert_same(before, after):
    for old, new in zip(before[:2], after[:2], strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])


@pytest.mark.filterwarnings("ignore:criterion '.*gamma' does not apply")
@pytest.mark.parametrize("name", list(CRITERIA))
def test_nothing_of_the_callers_changes(name):
    x, labels = dataset()
    model = network().train()
    model[0].eval()
    graph = trace_channels(model, x[:1])
    model[5].register_forward_pre_hook(lambda module, args: None)
    nn.functional.cross_entropy(model(x), labels).backward()
    identities = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]

    def data(fails):
        yield from DataLoader(TensorDataset(x, labels), batch_size=40, shuffle=True)
        if fails:
            raise OSError("disk is gone")

    before = snapshot(model)
    rank_channels(model, graph, name, data=data(fails=False))
    assert_same(before, snapshot(model))
    if CRITERIA[name].needs:
        with pytest.raises(OSError, match="disk is gone"):
            rank_channels(model, graph, name, data=data(fails=True))
        assert_same(before, snapshot(model))
        with pytest.raises(RankingError, match="data do not fit"):
            rank_channels(model, graph, name, data=x[:, :1])
        assert_same(before, snapshot(model))
    assert identities == [id(tensor) for tensor in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("name", WITH_DATA)
def test_same_seed_same_scores(name):
    x, labels = dataset()
    model = network()
    graph = trace_channels(model, x[:1])
    loader = DataLoader(TensorDataset(x, labels), batch_size=16, shuffle=True)

    def found(seed):
        torch.rand(1)  # wherever the caller's random state is
        few = itertools.islice(loader, 2)
        return [s.tolist() for s in rank_channels(model, graph, name, data=few, seed=seed).scores]

    assert found(3) == found(3)
    assert found(3) != found(4)


@pytest.mark.filterwarnings("ignore:criterion '.*gamma' does not apply")
@pytest.mark.parametrize("name", list(CRITERIA))
def test_layout_of_weights_and_images_does_not_matter(name):
    x, labels = dataset()
    model = network()
    graph = trace_channels(model, x[:1])
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    scores = [
        rank_channels(m, graph, name, data=(data, labels)).scores
        for m, data in ((model, x), (other, x.to(memory_format=torch.channels_last)))
    ]
    assert [s.tolist() for s in scores[0]] == [s.tolist() for s in scores[1]]
