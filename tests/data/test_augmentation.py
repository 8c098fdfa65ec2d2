"""Augmentation: every image is a shift and mirror image of its own, as drawn."""

import itertools

import numpy as np
import pytest
import torch

from abcsearch.data.augmentation import draw_moves


def moved(image, down, right, mirrored):
    """The slow way: pixel by pixel."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(max(0, down), min(height, height + down)):
        for column in range(max(0, right), min(width, width + right)):
            place = width - 1 - column if mirrored else column
            result[:, row, place] = image[:, row - down, column - right]
    return result


@pytest.mark.parametrize(
    ("shift", "flip", "channels"), [(0, False, 1), (2, False, 1), (0, True, 3), (1, True, 3)]
)
def test_every_augmented_image_is_a_shift_and_mirror_image_of_its_own(shift, flip, channels):
    generator = torch.Generator().manual_seed(0)
    images = 1 + torch.rand(200, channels, 4, 5, generator=generator)
    kept = images.clone()
    (moves,) = draw_moves(1, 200, generator, shift=shift, flip=flip, device=torch.device("cpu"))
    found = moves.apply(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(images, kept)
    moves = range(-shift, shift + 1)
    kinds = list(itertools.product(moves, moves, (False, True) if flip else (False,)))
    drawn = []
    for before, after in zip(images, found, strict=True):
        matches = [kind for kind in kinds if torch.equal(moved(before, *kind), after)]
        assert len(matches) == 1
        drawn += matches
    assert set(drawn) == set(kinds)
    assert abs(np.mean([kind[2] for kind in drawn]) - (0.5 if flip else 0)) < 0.1
