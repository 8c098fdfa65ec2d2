"""Losses, metrics and outputs of any task."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abcsearch.data.images import IGNORED
from abcsearch.data.split import Split
from abcsearch.errors import ConfigError, DataError, ModelError
from abcsearch.training.objectives import OBJECTIVES, OUTPUTS, Objective, find_objective, output_of
from abcsearch.training.scoring import predict, score

seeds = st.integers(0, 10**6)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=st.integers(1, 6), classes=st.integers(2, 5), ignored=st.booleans())
def test_segmentation_metrics_are_those_of_a_loop_over_images_and_classes(
    seed, n, classes, ignored
):
    outputs = drawn(seed, n, classes, 3, 4)
    labels = torch.randint(0, classes, (n, 3, 4), generator=torch.Generator().manual_seed(seed))
    if ignored:
        labels[:, 0, 0] = IGNORED
    metrics = OBJECTIVES["segmentation"].metrics
    for image in range(n):
        counted = labels[image] != IGNORED
        found, wanted = outputs[image].argmax(dim=0)[counted], labels[image][counted]
        assert metrics["pixel_accuracy"](outputs, labels)[image] == pytest.approx(
            float((found == wanted).float().mean())
        )
        loss = F.cross_entropy(outputs[image][None], labels[image][None], ignore_index=IGNORED)
        assert metrics["neg_loss"](outputs, labels)[image] == pytest.approx(-float(loss), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    n=st.integers(1, 6),
    classes=st.integers(2, 5),
    places=st.sampled_from([(), (3,), (2, 3)]),
)
def test_divergence_to_the_full_network_is_kullback_and_leiblers(seed, n, classes, places):
    ours, full = drawn(seed, n, classes, *places), drawn(seed + 1, n, classes, *places)
    found = OBJECTIVES["classification"].to_full["neg_kl"](ours, full)
    p, q = full.double().softmax(dim=1), ours.double().softmax(dim=1)
    expected = (p * (p / q).log()).sum(dim=1).reshape(n, -1).mean(dim=1)
    torch.testing.assert_close(found.double(), -expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(OBJECTIVES["classification"].to_full["neg_kl"](full, full), torch.zeros(n))


def test_the_full_network_itself_has_no_divergence_and_any_other_has_some():
    split = Split(drawn(0, 50, 4, 1, 1), torch.arange(50) % 4)
    full = predict(nn.Flatten(), split, batch_size=7)
    assert torch.equal(full, split.images.flatten(1))
    assert score(nn.Flatten(), split, full=full)["neg_kl"] == 0
    other = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    found = [score(other, split, full=full, batch_size=size)["neg_kl"] for size in (50, 7)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] < 0


def test_regression_scores_numbers():
    split = Split(drawn(0, 20, 2, 1, 1), drawn(1, 20, 2))
    found = score(nn.Flatten(), split, objective="regression", batch_size=6)
    errors = (split.images.flatten(1) - split.labels).double()
    assert found == {
        "neg_mse": pytest.approx(-float((errors**2).mean())),
        "neg_mae": pytest.approx(-float(errors.abs().mean())),
    }
    with pytest.raises(
        ModelError, match=r"must return \(20, 2\) numbers for 20 images, found \(20, 1, 2\)"
    ):
        score(Row(), split, objective="regression")


class Row(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, None]


def test_an_objective_of_ones_own_scores_and_checks(monkeypatch):
    seen = []

    def check(outputs, labels):
        seen.append((len(outputs), len(labels)))

    largest = Objective(
        loss=F.cross_entropy, metrics={"largest": lambda o, _: o.amax(dim=1)}, check=check
    )
    monkeypatch.setitem(OBJECTIVES, "largest", largest)
    split = Split(drawn(0, 5, 3, 1, 1), torch.zeros(5, dtype=torch.int64))
    for objective in ("largest", largest):
        found = score(nn.Flatten(), split, objective=objective, batch_size=3)
        assert found == {
            "largest": pytest.approx(float(split.images.flatten(1).amax(dim=1).mean()))
        }
    assert seen == [(3, 3), (2, 2)] * 2


def test_an_unknown_objective_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match="unknown objective 'clasification'; did you mean 'classification'"
    ):
        find_objective("clasification")


def test_labels_beyond_the_outputs_are_refused_in_whichever_batch_they_are():
    split = Split(torch.rand(6, 2, 1, 1), torch.tensor([0, 1, 0, 1, 0, 7]))
    with pytest.raises(
        DataError, match="label 7 has no output: the model has 2 classes, counted from 0"
    ):
        score(nn.Flatten(), split, batch_size=2)


Both = namedtuple("Both", "logits aux")


class Returning(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, x):
        return self.made(x.flatten(1))


class Below(Returning):
    pass


@pytest.mark.parametrize("made", [lambda x: {"out": x, "aux": x + 1}, lambda x: Both(x, x + 1)])
def test_outputs_of_torchvisions_kind_are_found(made):
    x = torch.rand(2, 3, 1, 1)
    assert torch.equal(output_of(Returning(made), Returning(made)(x)), x.flatten(1))


def test_a_registered_selector_holds_for_the_class_and_those_below_it(monkeypatch):
    monkeypatch.setitem(OUTPUTS, Returning, lambda returned: returned["second"])
    x = torch.rand(2, 3, 1, 1)
    for kind in (Returning, Below):
        network = kind(lambda x: {"out": x, "second": x + 1})
        assert torch.equal(output_of(network, network(x)), x.flatten(1) + 1)
    monkeypatch.setitem(OUTPUTS, Below, lambda returned: returned)
    with pytest.raises(ModelError, match=r"OUTPUTS\[Below\] must select a tensor, found dict"):
        output_of(network, network(x))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda x: (x, x),
            r"Returning must return logits, found a tuple; .*OUTPUTS\[Returning\].* returned\[0\]",
        ),
        (lambda x: {"a": x, "b": x}, r"found a dict with a, b; say .*: returned\['a'\]"),
        (lambda _x: None, "found a NoneType"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_to_write(made, words):
    with pytest.raises(ModelError, match=words):
        score(Returning(made), Split(torch.rand(2, 3, 1, 1), torch.tensor([0, 1])))
