"""Several labels at once: average precision and F1 of all images."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score
from torch import nn

from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import DataError, ModelError
from abcsearch.training.multilabel import LabelScores
from abcsearch.training.scoring import score


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(4, 30), st.integers(2, 5), st.integers(1, 9))
def test_scores_are_scikit_learns(seed, n, labels, size):
    draws = torch.Generator().manual_seed(seed)
    there = (torch.rand(n, labels, generator=draws) < 0.4).float()
    there[0], there[1] = 1, 0  # all labels occur
    outputs = (3 * torch.randn(n, labels, generator=draws)).round()  # with ties
    metrics = LabelScores()
    for own, wanted in zip(outputs.split(size), there.split(size), strict=True):
        metrics.add(own, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = {
            "macro_ap": average_precision_score(there.numpy(), outputs.numpy(), average="macro"),
            "macro_f1": f1_score(
                there.numpy(), outputs.numpy() > 0, average="macro", zero_division=0
            ),
            "micro_f1": f1_score(
                there.numpy(), outputs.numpy() > 0, average="micro", zero_division=0
            ),
        }
    assert metrics.finish() == pytest.approx(wanted)


def test_labels_that_no_image_has_are_left_out_and_nan_stays_nan():
    there = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    metrics = LabelScores()
    metrics.add(torch.tensor([[2.0, 5.0], [1.0, -5.0], [3.0, 5.0]]), there)
    assert metrics.finish() == pytest.approx({"macro_ap": 1.0, "macro_f1": 0.8, "micro_f1": 4 / 7})
    metrics.add(torch.full((1, 2), float("nan")), torch.zeros(1, 2))
    assert all(map(math.isnan, metrics.finish().values()))
    empty = LabelScores()
    empty.add(torch.ones(3, 2), torch.zeros(3, 2))
    assert set(empty.finish().values()) == {0.0}


def test_images_have_shares_of_right_answers():
    split = Split(
        torch.tensor([[3.0, -3], [3, 3]])[..., None, None], torch.tensor([[1.0, 0], [1, 0]])
    )
    found = score(nn.Flatten(), split, objective="multilabel", batch_size=1)
    assert found["label_accuracy"] == 0.75
    assert found["neg_bce"] == pytest.approx(
        -(3 * math.log1p(math.exp(-3)) + math.log1p(math.exp(3))) / 4, rel=1e-5
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.ones(20, 3) * 0.5, "found 0.5 in number 0"),
        (torch.arange(20), r"found \(16,\) torch.int64$"),
        (
            torch.ones(20, 3, dtype=torch.int64),
            r"found \(16, 3\) torch.int64; convert them with labels.float\(\)",
        ),
        (torch.ones(20, 3, 1), r"found \(16, 3, 1\) torch.float32$"),
    ],
)
def test_labels_that_are_not_multi_hot_are_told(labels, words):
    pair = (torch.rand(20, 1, 4, 4), labels)
    with pytest.raises(
        DataError,
        match=rf"train: labels of a multi-label .* \(n, labels\) float32 of 0 and 1, {words}",
    ):
        Data.from_tensors(pair, pair, objective="multilabel")


def test_data_of_people_become_multi_hot_and_counts_must_agree():
    images, labels = torch.rand(20, 1, 4, 4), torch.randint(0, 2, (20, 3))
    data = Data.of((images, labels.numpy()), (images, labels), objective="multilabel")
    assert data.test.labels.dtype == torch.float32
    assert torch.equal(data.test.labels, labels.float())
    with pytest.raises(
        DataError,
        match="all splits have the same labels, found train 3, validation 3, test 2 of them",
    ):
        Data.of((images, labels), (images, labels[:, :2]), objective="multilabel")
    with pytest.raises(
        DataError, match=r"3 labels per image.*several labels at once.*objective=\"multilabel\""
    ):
        Data.of((images, labels), (images, labels))
    with pytest.raises(
        ModelError, match=r"a logit for each of 3 labels, \(20, 3\) for 20 images, found \(20, 16\)"
    ):
        score(nn.Flatten(), data.test, objective="multilabel")
