"""The drawn data set: the same images whenever it is asked for, and boxes that are those of its shapes."""

import numpy as np
import pytest
import torch

from abcsearch.data.boxes import unpacked
from abcsearch.data.registry import load_data
from abcsearch.data.shapes import CLASSES, draw
from abcsearch.errors import DataError
from abcsearch.rng import numpy_stream

SMALL = {"train": 24, "test": 6, "size": 32}


def test_it_is_drawn_alike_and_only_the_split_depends_on_the_seed():
    one, again, other = (load_data("shapes", **SMALL, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    assert torch.equal(one.test.images, other.test.images)
    assert torch.equal(one.test.labels, other.test.labels)
    both = [
        sorted(x.numpy().tobytes() for part in (d.train, d.validation) for x in part.images)
        for d in (one, other)
    ]
    assert both[0] == both[1]
    assert load_data("shapes", **SMALL, drawing=1).fingerprint() != one.fingerprint()
    assert (len(one.train), len(one.validation), len(one.test), one.objective) == (
        19,
        5,
        6,
        "detection",
    )
    assert one.train.images.shape[1:] == (3, 32, 32)


def test_fewer_images_are_the_first_ones():
    few, more = load_data("shapes", **SMALL), load_data("shapes", train=24, test=8, size=32)
    assert torch.equal(few.test.images, more.test.images[:6])


def test_boxes_are_the_edges_of_shapes_which_stand_out():
    seen = []
    for number in range(60):
        image, target = draw(numpy_stream(3, "test", number), 48)
        assert 1 <= len(target["boxes"]) <= 4
        seen += target["labels"]
        for (x1, y1, x2, y2), label in zip(target["boxes"], target["labels"], strict=True):
            assert 0 <= x1 < x2 <= 48
            assert 0 <= y1 < y2 <= 48
            middle = image[(y1 + y2) // 2, (x1 + x2) // 2].astype(float)
            if CLASSES[label - 1] == "square" and len(target["boxes"]) == 1:
                inside = image[y1:y2, x1:x2].astype(float)
                assert np.abs(inside - middle).max() < 90  # of one colour, up to the edges
            if CLASSES[label - 1] != "square":
                # Its corner is background
                assert np.abs(image[y1, x1].astype(float) - middle).mean() > 15
    assert set(seen) == {1, 2, 3}


def test_boxes_hardly_overlap():
    from torchvision.ops import box_iou

    for own in unpacked(load_data("shapes", train=60, test=1).train.labels):
        overlaps = box_iou(own["boxes"], own["boxes"]).fill_diagonal_(0)
        assert float(overlaps.max()) <= 0.11


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": 1}, "train = 1"),
        ({"test": 0}, "test = 0"),
        ({"size": 8}, "size = 8"),
        ({"drawing": -1}, "drawing = -1"),
        ({"validation": 1.0}, "validation is the share"),
        ({"seed": -1}, "seed of the split"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(DataError, match=said):
        load_data("shapes", **{**SMALL, **options})
