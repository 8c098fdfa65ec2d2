"""Drawn shapes: masks and labels that belong to the same images, alike whenever they are drawn."""

import numpy as np
import pytest
import torch

from abcsearch.data.images import IGNORED
from abcsearch.data.registry import load_data
from abcsearch.errors import DataError

FEW = {"train": 40, "test": 12}


def test_masks_are_alike_whenever_they_are_drawn_and_edges_do_not_count():
    data, again, other = (
        load_data("shape_masks", **FEW, **more) for more in ({}, {}, {"drawing": 1})
    )
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()
    assert data.train.shape == (3, 32, 32)
    labels = data.train.labels
    assert labels.unique().tolist() == [IGNORED, 0, 1, 2, 3]
    beside = [(labels[:, :-1], labels[:, 1:]), (labels[:, :, :-1], labels[:, :, 1:])]
    for one, next_ in beside:  # where two classes meet, the pixel of the first one is ignored
        assert bool(((one == next_) | (one == IGNORED) | (next_ == IGNORED)).all())
    assert 0.02 < (labels == IGNORED).float().mean() < 0.3


def test_labels_say_which_shapes_are_in_the_mask():
    masks, tags = load_data("shape_masks", **FEW), load_data("shape_tags", **FEW)
    assert torch.equal(masks.test.images, tags.test.images)
    assert tags.objective == "multilabel"
    for mask, tag in zip(masks.test.labels, tags.test.labels, strict=True):
        large = [number for number in (1, 2, 3) if int((mask == number).sum()) > 0]
        assert set(large) <= set((tag.nonzero().flatten() + 1).tolist())
    assert np.all(tags.train.labels.mean(dim=0).numpy() > 0.2)


@pytest.mark.parametrize("name", ["shape_masks", "shape_tags"])
def test_numbers_out_of_range_are_told(name):
    with pytest.raises(
        DataError, match=f"{name}: train is at least 2, test 1, size 16 pixels, .*found size = 8"
    ):
        load_data(name, size=8)
    with pytest.raises(DataError, match="validation is the share"):
        load_data(name, validation=1.5, train=20)
