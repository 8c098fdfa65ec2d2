"""Metrics against numpy and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import nn

from abcsearch.data.split import Split
from abcsearch.errors import DataError, ModelError
from abcsearch.training.scoring import modes_kept, score


def logits_as_images(n, classes, seed):
    """Images that are their own logits under nn.Flatten, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = 3 * torch.randn(n, classes, 1, 1, generator=generator)
    return Split(images, torch.randint(0, classes, (n,), generator=generator))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    classes=st.integers(6, 12),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 999),
)
def test_metrics_are_those_of_scikit_learn_whatever_the_batch_size(n, classes, batch_size, seed):
    split = logits_as_images(n, classes, seed)
    found = score(nn.Flatten(), split, batch_size=batch_size)
    logits, labels, names = (
        split.images.flatten(1).double().numpy(),
        split.labels.numpy(),
        list(range(classes)),
    )
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert tuple(found) == ("top1", "top5", "neg_loss")
    assert found["top1"] == pytest.approx(top_k_accuracy_score(labels, logits, k=1, labels=names))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=names))
    assert found["neg_loss"] == pytest.approx(-log_loss(labels, shares, labels=names), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 5])
def test_with_five_classes_or_fewer_top5_is_one(classes):
    found = score(nn.Flatten(), logits_as_images(20, classes, 0))
    assert found["top5"] == 1
    assert 0 < found["top1"] < 1


def test_scoring_runs_in_evaluation_mode_without_gradients_and_changes_nothing():
    seen = []
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten())
    model[1].eval()
    model.register_forward_hook(
        lambda m, *_: seen.append((m[0].training, m[1].training, torch.is_grad_enabled()))
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score(model, logits_as_images(10, 3, 0), batch_size=4)
    assert seen == [(False, False, False)] * 3
    assert [m.training for m in model] == [True, False, True]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_come_back_also_when_the_block_raises():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fails():
        with modes_kept(model):
            model.eval()
            model[1].train()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (nn.Identity(), ModelError, r"for 4 images, found \(4, 3, 1, 1\)"),
        (nn.Flatten(0), ModelError, r"found \(12,\)"),
        (nn.Unflatten(0, (2, 2)), ModelError, r"found \(2, 2, 3, 1, 1\)"),
        (
            nn.Sequential(nn.Flatten(), nn.LSTM(3, 3)),
            ModelError,
            "must return logits, found a tuple; say",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3, 2)),
            DataError,
            "label 2 has no output: the model has 2 classes",
        ),
    ],
)
def test_what_is_not_logits_for_the_labels_is_refused(model, error, words):
    with pytest.raises(error, match=words):
        score(model, Split(torch.rand(4, 3, 1, 1), torch.tensor([0, 1, 2, 0])))


def test_scores_do_not_depend_on_the_order_of_the_images():
    split = logits_as_images(30, 7, 1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    one, other = score(nn.Flatten(), split), score(nn.Flatten(), split.part(order))
    assert one["top1"] == other["top1"]
    assert one["neg_loss"] == pytest.approx(other["neg_loss"])
