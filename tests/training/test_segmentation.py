"""Mean intersection over union of a whole data set, and auxiliary heads."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.data.images import IGNORED
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import DataError, ModelError
from abcsearch.training.lesson import Supervised
from abcsearch.training.loop import train
from abcsearch.training.objectives import OBJECTIVES
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score
from abcsearch.training.segmentation import MeanIoU


def logits_of(answers, classes):
    return F.one_hot(answers, classes).movedim(-1, 1).float()


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 5), st.integers(1, 4))
def test_all_images_share_one_confusion_matrix(seed, n, classes, size):
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n, 3, 4), generator=draws)
    labels[torch.rand(n, 3, 4, generator=draws) < 0.3] = IGNORED
    answers = torch.randint(0, classes, (n, 3, 4), generator=draws)
    metric = MeanIoU()
    for own, given_ in zip(labels.split(size), answers.split(size), strict=True):
        metric.add(logits_of(given_, classes), own)
    shares = []
    counted = labels != IGNORED
    for number in range(classes):
        said, there = (answers == number) & counted, labels == number
        if union := int((said | there).sum()):
            shares.append(int((said & there).sum()) / union)
    assert metric.finish()["miou"] == pytest.approx(sum(shares) / len(shares) if shares else 0)
    assert metric.finish() == metric.finish()


def test_it_is_no_mean_of_images():
    labels = torch.zeros(2, 2, 2, dtype=torch.int64)
    labels[0, 0, 0] = (
        1  # class 1 is one pixel of the first image, which is answered; and answered wrongly in the second
    )
    answers = labels.clone()
    answers[1] = 1
    split = Split(logits_of(answers, 2), labels)
    found = score(nn.Identity(), split, objective="segmentation", batch_size=1)
    assert found["miou"] == pytest.approx((3 / 7 + 1 / 5) / 2)  # by images it would be (1 + 0) / 2
    assert found["pixel_accuracy"] == 0.5


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out, self.aux = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 3, 1),
            nn.Conv2d(4, 3, 1),
        )

    def forward(self, x):
        x = self.body(x)
        return {"out": self.out(x), "aux": self.aux(x)}


@pytest.fixture
def masks():
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (12, 4, 5), generator=draws)
    return Split(labels[:, None] + 0.1 * torch.randn(12, 1, 4, 5, generator=draws), labels)


@pytest.mark.parametrize("weight", [0.0, 0.4, 2.0])
def test_the_auxiliary_head_counts_in_training_alone(masks, weight):
    torch.manual_seed(0)
    network = TwoHeads()
    lesson = Supervised(network, objective="segmentation")
    lesson.begin(Recipe(epochs=1, aux=weight, label_smoothing=0.1), masks)
    loss = lesson.step(masks.images, masks.labels, torch.Generator())
    with torch.no_grad():
        both = network(masks.images)
    own = {
        name: F.cross_entropy(logits, masks.labels, label_smoothing=0.1)
        for name, logits in both.items()
    }
    torch.testing.assert_close(loss, own["out"] + weight * own["aux"])
    before, scores = (
        copy.deepcopy(network.state_dict()),
        score(network, masks, objective="segmentation"),
    )
    with torch.no_grad():
        network.aux.weight.fill_(7)
    assert score(network, masks, objective="segmentation") == scores
    network.load_state_dict(before)
    train(network, masks, Recipe(epochs=1, batch_size=6, aux=weight), objective="segmentation")
    assert torch.equal(network.aux.weight, before["aux.weight"]) == (weight == 0)
    assert Recipe().aux == 0.4


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            torch.zeros(12, 4, 5),
            r"class numbers of pixels, \(n, 4, 5\) int64, found .*float32; convert them with masks.l",
        ),
        (
            torch.zeros(12, dtype=torch.int64),
            r"class numbers of pixels, \(n, 4, 5\) int64, found \(9,\) torch.int64",
        ),
        (torch.zeros(12, 4, 5, 1, dtype=torch.int64), r"found \(9, 4, 5, 1\) torch.int64"),
    ],
)
def test_masks_of_another_kind_are_told(masks, labels, words):
    pair = (masks.images, labels)
    with pytest.raises(
        DataError,
        match=f"train: labels of a segmentation are {words}" if "class" in words else words,
    ):
        Data.from_tensors(pair, pair, objective="segmentation")


def test_masks_that_do_not_fit_the_network_are_told(masks):
    torch.manual_seed(0)
    other = Split(masks.images, masks.labels[:, :2])
    with pytest.raises(
        ModelError,
        match=r"must return logits \(batch, classes, 2, 5\) for 12 images, found \(12, 3, 4, 5",
    ):
        score(TwoHeads(), other, objective="segmentation")
    void = masks.labels.clone()
    void[3, 0, 0] = 255
    with pytest.raises(DataError, match=r"label 255 has no output.*say so: ignore_index = 255"):
        score(TwoHeads(), Split(masks.images, void), objective="segmentation")
    goal = OBJECTIVES["segmentation"]
    assert goal.headline == "miou"
    ignored = masks.labels.where(torch.arange(12)[:, None, None] != 3, IGNORED)
    assert 0 <= score(TwoHeads(), Split(masks.images, ignored), objective=goal)["miou"] <= 1
