"""Boxes as labels: what is taken, what is refused, and that they move with their images."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.data.augmentation import draw_moves
from abcsearch.data.boxes import check_boxes, moved, packed, unpacked, without_crowds
from abcsearch.data.images import class_count, hardest
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import DataError
from abcsearch.training.checks import check_training
from abcsearch.training.recipe import Recipe

BOX = [1.0, 2.0, 4.0, 6.0]


def target(*boxes, labels=None, **more):
    """Boxes of the first classes."""
    return {
        "boxes": [*boxes],
        "labels": [*range(1, len(boxes) + 1)] if labels is None else labels,
        **more,
    }


def images(count, height=8, width=10):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


boxes = st.tuples(st.floats(0, 8), st.floats(0, 6), st.floats(0.5, 2), st.floats(0.5, 2))


@given(
    st.lists(
        st.lists(st.tuples(boxes, st.integers(1, 300), st.integers(0, 1)), max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_packed_comes_back(every):
    targets = [
        {
            "boxes": torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _, _ in own]).reshape(
                -1, 4
            ),
            "labels": torch.tensor([label for _, label, _ in own], dtype=torch.int64),
            "iscrowd": torch.tensor([crowd for _, _, crowd in own], dtype=torch.int64),
        }
        for own in every
    ]
    labels = packed(targets)
    check_boxes(labels, len(targets))
    for before, after in zip(targets, unpacked(labels), strict=True):
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert [after[key].dtype for key in after] == [torch.float32, torch.int64, torch.int64]
    learned = without_crowds(unpacked(labels))
    assert [len(own["boxes"]) for own in learned] == [
        sum(1 for _, _, crowd in own if not crowd) for own in every
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([1], "has a dict of boxes and labels, found list"),
        ({"boxes": [BOX]}, "has boxes and labels, found boxes; labels is missing"),
        ({}, "found nothing; boxes is missing"),
        (target([1, 2, 3]), r"boxes are \(m, 4\), x1, y1, x2, y2 in pixels, found \(1, 3\)"),
        (target(BOX, labels=[1, 2]), r"labels are \(1,\), one for each of 1 box, found \(2,\)"),
        (target(BOX, iscrowd=[0, 0]), r"iscrowd are \(1,\)"),
        (
            target([4, 2, 1, 6]),
            r"box 0 is \[4.0, 2.0, 1.0, 6.0\], which is empty.*add these to x and y",
        ),
        (target(BOX, [1, 2, 3, 2]), "box 1 is .* which is empty"),
        (target([1, 2, float("nan"), 6]), "numbers must be finite"),
        (target([1, 2, float("inf"), 6]), "numbers must be finite"),
        (
            target(BOX, labels=[0]),
            "box 0 has label 0; classes of objects are whole numbers from 1, 0 is the background",
        ),
        (target(BOX, labels=[-1]), "has label -1"),
        (target(BOX, labels=[1.5]), "has label 1.5"),
        (target(BOX, labels=["cat"]), "labels are numbers, found"),
        (target(BOX, labels=[True]), "numbers must be finite"),
        (target(BOX, iscrowd=[2]), "iscrowd 2, which is 0 or 1"),
        (target("box"), "boxes are numbers"),
    ],
)
def test_what_is_no_target_is_refused_by_the_number_of_its_image(wrong, said):
    with pytest.raises(DataError, match=rf"(?s)mine: image 1.*{said}"):
        packed([target(BOX), wrong], "mine")


def test_targets_without_boxes_are_some():
    every = [
        target(),
        target(BOX),
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)},
        {"boxes": [], "labels": []},
    ]
    labels = packed(every)
    assert labels.shape == (4, 1, 6)
    assert [len(own["boxes"]) for own in unpacked(labels)] == [0, 1, 0, 0]
    assert packed([target()]).shape == (1, 1, 6)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([0, 0, 11, 4], "outside of its image, which is 10 wide and 8 high"),
        ([0, 0, 4, 9], "outside"),
        ([-1, 0, 4, 4], "outside"),
    ],
)
def test_boxes_outside_of_their_image_are_refused(box, said):
    train = (images(6), [target([0, 0, 10, 8])] * 5 + [target(box)])
    with pytest.raises(DataError, match=f"(?s)data: train: image \\d: box 0.*{said}"):
        Data.of(train, (images(2), [target(BOX)] * 2), validation=1, objective="detection")


def test_a_data_set_is_of_boxes_or_not():
    plain, boxed = (images(6), torch.arange(6).float()), (images(6), [target(BOX)] * 6)
    with pytest.raises(
        DataError, match=r"labels of a detection are a dict for each image.*found others in train"
    ):
        Data.of(plain, plain, objective="detection")
    with pytest.raises(DataError, match="found others in test"):
        Data(
            name="odd",
            train=_split(boxed),
            validation=_split(boxed),
            test=Split(*plain),
            objective="mine",
        )
    with pytest.raises(DataError, match=r"detection"):
        Data.of(boxed, boxed, objective="classification")
    with pytest.raises(DataError, match="no image has a box"):
        Data.of((images(6), [target()] * 6), boxed, objective="detection")
    with pytest.raises(DataError, match=r"boxes are of images \(channels, height, width\)"):
        Data.of(
            (torch.randn(6, 3, 8), boxed[1]),
            (torch.randn(6, 3, 8), boxed[1]),
            objective="detection",
        )
    with pytest.raises(DataError, match="values are float32"):
        Split(images(6), torch.zeros(6, 3, 4, dtype=torch.float64))


def _split(pair):
    return Split(pair[0], packed(pair[1]))


class Named:
    """A Dataset whose items name all."""

    def __init__(self, count, form):
        self.count, self.form = count, form

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image, label = (
            images(self.count)[index],
            target(*[BOX] * (index % 3), labels=[2] * (index % 3)),
        )
        forms = {
            "pair": (image, label),
            "flat": {
                "image": image,
                "boxes": label["boxes"],
                "labels": label["labels"],
                "image_id": index,
            },
            "nested": {"image": image, "target": {**label, "area": 3.0}},
        }
        return forms[self.form]


@pytest.mark.parametrize("form", ["pair", "flat", "nested"])
def test_datasets_of_targets_are_read_in_all_forms(form):
    data = Data.of(Named(9, form), Named(4, form), validation=3, objective="detection")
    assert [len(own["boxes"]) for own in unpacked(data.test.labels)] == [0, 1, 2, 0]
    assert torch.equal(data.test.images, images(4))
    assert data.classes == 2
    assert (len(data.train), len(data.validation)) == (6, 3)
    again = pickle.loads(pickle.dumps(data.test, protocol=5))
    assert torch.equal(again.labels, data.test.labels)
    other = Data.of(
        Named(9, form), (images(4), [target(BOX)] * 4), validation=3, objective="detection"
    )
    assert data.fingerprint() != other.fingerprint()


def test_bytes_with_boxes_are_normalised():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 10, 3), dtype=np.uint8)
    data = Data.of(
        (pixels, [target(BOX)] * 8),
        (pixels, [target(BOX)] * 8),
        validation=2,
        objective="detection",
    )
    assert data.train.scale is not None
    assert data.train.labels.dtype == torch.float64


def test_the_highest_class_is_found_and_not_the_highest_coordinate():
    labels = packed([target([0, 0, 10, 8]), target(BOX, labels=[7]), target()])
    assert hardest(labels).tolist() == [1]
    assert class_count(labels) == 7


@given(seed=st.integers(0, 500), shift=st.integers(0, 3), flip=st.booleans())
def test_boxes_move_as_the_pixels_in_them(seed, shift, flip):
    # One box per image, painted with its number; where it is afterwards, there is its box.
    generator = torch.Generator().manual_seed(seed)
    rows, targets = torch.zeros(12, 8, 10, 1), []
    for number, image in enumerate(rows):
        x1, y1 = (
            int(torch.randint(0, 7, (), generator=generator)),
            int(torch.randint(0, 5, (), generator=generator)),
        )
        x2, y2 = (
            x1 + int(torch.randint(1, 4, (), generator=generator)),
            y1 + int(torch.randint(1, 4, (), generator=generator)),
        )
        image[y1:y2, x1:x2] = number + 1
        targets.append(target([x1, y1, x2, y2], labels=[number + 1]))
    (moves,) = draw_moves(1, 12, generator, shift=shift, flip=flip, device=torch.device("cpu"))
    labels = moves.apply_to_labels(packed(targets), (1, 8, 10))
    check_boxes(labels, 12)
    for number, (image, own) in enumerate(zip(moves.apply(rows), unpacked(labels), strict=True)):
        there = image[..., 0] == number + 1
        painted = []
        if there.any():
            across, down = (
                there.any(dim=0).nonzero().flatten(),
                there.any(dim=1).nonzero().flatten(),
            )
            painted = [
                [float(across[0]), float(down[0]), float(across[-1]) + 1, float(down[-1]) + 1]
            ]
        assert own["boxes"].tolist() == painted
        assert own["labels"].tolist() == [number + 1] * len(painted)


def test_slivers_are_no_boxes_any_more_and_crowds_stay_crowds():
    labels = packed([target([0.0, 0.0, 2.5, 4.0], [3.0, 3.0, 6.0, 6.0], iscrowd=[0, 1])])
    left = moved(labels, (8, 10), torch.tensor([[0], [2]]), None)  # by two columns
    (own,) = unpacked(left)
    assert own["boxes"].tolist() == [[1.0, 3.0, 4.0, 6.0]]
    assert own["iscrowd"].tolist() == [1]
    check_boxes(left, 1)


def test_epochs_of_a_split_move_boxes_and_mixing_is_refused():
    split = Split(images(4), packed([target(BOX)] * 4))
    (batch,) = split.shuffled(4, torch.Generator().manual_seed(0), flip=True, shift=1)
    assert {len(own["boxes"]) for own in unpacked(batch[1])} == {1}
    assert not torch.equal(batch[1], split.labels)
    for setting, said in (
        ({"mixup": 0.2}, "mixup and cutmix mix labels of a classification"),
        ({"randaugment": 3}, "not labels of pixels or boxes"),
        ({"distillation": 0.5}, "'detection' has no divergence"),
        ({"label_smoothing": 0.1}, "the loss is the network's own, found 0.1; set it to 0"),
    ):
        with pytest.raises(Exception, match=said):
            check_training(
                Recipe(batch_size=2, **setting), split, "detection", taught=False, scored=True
            )
