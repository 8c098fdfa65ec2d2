"""PSNR and SSIM against what is known and against loops over windows."""

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.data.split import Split
from abcsearch.errors import DataError, ModelError
from abcsearch.training.image_quality import SHAVED, luma, psnr, ssim
from abcsearch.training.objectives import metric_text
from abcsearch.training.scoring import score


def drawn(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_noise_of_one_byte_is_48_decibels():
    grey = (drawn(0, 2, 1, 30, 40) * 200 + 20).round() / 255
    signs = torch.randint(0, 2, grey.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(
        psnr(grey + signs / 255, grey), torch.full((2,), 48.1308).double(), rtol=0, atol=1e-3
    )
    assert psnr(grey, grey).tolist() == [100.0, 100.0]
    assert metric_text("psnr", 48.1308) == "48.13 dB"


def test_brightness_is_that_of_bt601_of_clipped_and_rounded_bytes():
    colours = torch.tensor(
        [[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1.7, -0.3, 0.2501]]
    )
    found = luma(colours[..., None, None].expand(-1, -1, 20, 20))[:, 0, 0] * 255
    wanted = [16, 235, 81.481, 144.553, 40.966, 16 + 65.481 + 24.966 * 64 / 255]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=2e-4)


def test_what_lies_at_the_edges_does_not_count():
    wanted = drawn(0, 1, 3, 30, 34)
    outputs = drawn(1, 1, 3, 30, 34)
    other = outputs.clone()
    other[..., :SHAVED, :], other[..., -SHAVED:] = 0, 1
    for metric in (psnr, ssim):
        assert torch.equal(metric(other, wanted), metric(outputs, wanted))
    other[..., SHAVED, SHAVED] = 1 - outputs[..., SHAVED, SHAVED]
    assert not torch.equal(psnr(other, wanted), psnr(outputs, wanted))


def ssim_by_loop(x, y):
    places = np.arange(11) - 5
    line = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            top = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
            found.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(found))


@pytest.mark.parametrize("channels", [1, 3])
def test_structural_similarity_is_that_of_a_loop_over_windows(channels):
    wanted = drawn(2, 3, channels, 27, 24)
    outputs = (wanted + 0.2 * drawn(3, 3, channels, 27, 24) - 0.1).clamp(0, 1)
    found = ssim(outputs, wanted)
    for number in range(3):
        pair = [luma(images)[number].double().numpy() for images in (outputs, wanted)]
        assert float(found[number]) == pytest.approx(ssim_by_loop(*pair), abs=1e-5)
    assert torch.equal(ssim(wanted, outputs), found)
    torch.testing.assert_close(ssim(wanted, wanted), torch.ones(3))


def test_sizes_that_cannot_be_compared_are_told():
    split = Split(drawn(0, 4, 3, 12, 12), drawn(1, 4, 3, 24, 24))
    twice = nn.Upsample(scale_factor=2)
    assert list(score(twice, split, objective="superresolution")) == ["psnr", "ssim"]
    with pytest.raises(
        ModelError,
        match=r"must return \(4, 3, 24, 24\) for 4 images, found \(4, 3, 36, 36\): model and",
    ):
        score(nn.Upsample(scale_factor=3), split, objective="superresolution")
    small = Split(drawn(0, 4, 3, 9, 9), drawn(1, 4, 3, 18, 18))
    with pytest.raises(
        DataError,
        match=r"compared from 19 pixels of height and width on, found \(18, 18\); take larger",
    ):
        score(twice, small, objective="superresolution")
    classes = Split(drawn(0, 4, 3, 12, 12), torch.arange(4))
    with pytest.raises(
        DataError, match=r"labels of super-resolution are the images .* found \(4,\) torch.int64"
    ):
        score(twice, classes, objective="superresolution")
