"""Splits: what they accept, and that none shares an image with another."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import DataError


def numbered(labels):
    """Images whose only pixel is their number."""
    return torch.arange(len(labels), dtype=torch.float32)[:, None, None, None], torch.tensor(labels)


def numbers(split):
    return set(split.images.flatten().int().tolist())


IMAGES, LABELS = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (IMAGES[:, 0, 0], LABELS, "(4, 2) torch.float32"),
        (IMAGES.double(), LABELS, "torch.float64"),
        (IMAGES[:0], LABELS[:0], "(0, 1, 2, 2)"),
        (IMAGES[..., :0], LABELS, "(4, 1, 2, 0)"),
        (IMAGES, LABELS[:3], "found (3,) torch.int64"),
        (IMAGES, LABELS.int(), "torch.int32"),
        (IMAGES, LABELS[:, None], "(4, 1)"),
        (IMAGES, LABELS - 1, "found -1"),
        (IMAGES.numpy(), LABELS, "ndarray"),
        (IMAGES, [0, 1, 0, 1], "list"),
        (torch.full_like(IMAGES, float("nan")), LABELS, "not in 4 of 4 images, first in number 0"),
        (
            IMAGES + torch.tensor([0, float("inf")]),
            LABELS,
            "not in 4 of 4 images, first in number 0",
        ),
    ],
)
def test_a_split_refuses_what_training_cannot_use(images, labels, words):
    with pytest.raises(DataError) as caught:
        Split(images, labels)
    assert words in str(caught.value)


def test_a_part_holds_the_images_and_labels_at_its_positions():
    split = Split(*numbered([0, 1, 2, 0]))
    part = split.part(torch.tensor([3, 1]))
    assert part.images.flatten().tolist() == [3, 1]
    assert part.labels.tolist() == [0, 1]
    assert (len(split), len(part)) == (4, 2)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(8, 30), min_size=1, max_size=4),
    share=st.floats(0.25, 0.7),
    seed=st.integers(0, 99),
)
def test_every_training_image_is_in_exactly_one_split_and_classes_keep_their_share(
    counts, share, seed
):
    labels = [c for c, n in enumerate(counts) for _ in range(n)]
    images, targets = numbered(labels)
    data = Data.from_tensors(
        (images, targets), (images[:1] - 1, targets[:1]), validation=share, seed=seed
    )
    assert numbers(data.train) | numbers(data.validation) == set(range(len(labels)))
    assert len(data.train) + len(data.validation) == len(labels)
    assert len(data.validation) == np.ceil(share * len(labels))
    for split in (data.train, data.validation):
        assert split.labels.tolist() == [
            labels[number] for number in split.images.flatten().int().tolist()
        ]
    for c, count in enumerate(counts):
        assert abs(int((data.validation.labels == c).sum()) - share * count) <= 1.5


def test_the_split_depends_on_its_seed_only():
    train, test = numbered([0, 1] * 50), numbered([0, 1])
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    one = Data.from_tensors(train, test, seed=1)
    np.random.seed(2)  # noqa: NPY002
    same, other = (Data.from_tensors(train, test, seed=seed) for seed in (1, 2))
    assert numbers(one.validation) == numbers(same.validation) != numbers(other.validation)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_the_global_random_state_is_left_alone():
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    Data.from_tensors(numbered([0, 1] * 10), numbered([0, 1]))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([0, 1] * 5, {"validation": 0.0}, "in (0, 1), or their number, below 10, found 0.0"),
        ([0, 1] * 5, {"validation": 1.0}, "found 1.0"),
        ([0, 1] * 5, {"validation": float("nan")}, "found nan"),
        ([0, 1] * 5, {"seed": -1}, "at least 0, found -1"),
        ([0, 0, 0, 1], {}, "cannot hold 0.2 of 4 training images out"),
        ([0, 1, 2] * 2, {"validation": 0.1}, "cannot hold 0.1 of 6"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(labels, options, words):
    with pytest.raises(DataError) as caught:
        Data.from_tensors(numbered(labels), numbered([0, 1]), **options)
    assert words in str(caught.value)


def test_splits_of_different_image_sizes_are_refused():
    with pytest.raises(DataError, match=r"mine.*train \(1, 1, 1\).*test \(1, 2, 2\)"):
        Data.from_tensors(numbered([0, 1] * 10), (IMAGES, LABELS), name="mine")


def test_classes_and_example():
    data = Data.from_tensors(numbered([0, 1] * 10), numbered([0, 4]))
    assert data.classes == 5
    assert data.example.shape == (1, 1, 1, 1)


def test_the_fingerprint_sees_every_image_and_label():
    split = Split(torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 0, 0]))
    data = Data(name="a", train=split, validation=split.part(torch.arange(3)), test=split)
    assert dataclasses.replace(data, name="b", seed=4).fingerprint() == data.fingerprint()
    for part in ("train", "validation", "test"):
        old = getattr(data, part)
        images, labels = old.images.clone(), old.labels.clone()
        images[-1, 0, 1, 1] += 1e-6
        labels[-1] += 1
        for changed in (Split(images, old.labels), Split(old.images, labels)):
            assert dataclasses.replace(data, **{part: changed}).fingerprint() != data.fingerprint()
    # The layout in memory is not part of the data.
    same = Split(split.images.contiguous(memory_format=torch.channels_last), split.labels)
    assert dataclasses.replace(data, train=same).fingerprint() == data.fingerprint()
