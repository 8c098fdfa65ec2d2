"""Pairs of patches: they belong together, and what does not fit is told."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from abcsearch.data.pairs import Cut
from abcsearch.data.registry import load_data
from abcsearch.data.split import Split
from abcsearch.errors import DataError


def picture(seed, width=50, height=70):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        (tmp_path / part).mkdir()
        for number in range(count):
            picture(10 * (part == "test") + number).save(tmp_path / part / f"{number}.png")
    return tmp_path


def loaded(folder, **options):
    return load_data("superresolution_folder", path=str(folder), patch=12, **options)


def refused(folder, words, **options):
    with pytest.raises(DataError, match=words):
        loaded(folder, **options)


def bytes_of(images):
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_patches_are_the_image_and_the_image_made_smaller(folder):
    data = loaded(folder, validation=1)
    assert data.objective == "superresolution"
    assert data.held_out
    assert data.test.shape == (3, 12, 12)
    assert len(data.train) == 3 * len(data.validation) == 3 * 2 * 2
    whole = picture(10)
    small = np.array(whole.resize((25, 35), Image.Resampling.BICUBIC))
    for place, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        low = small[12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
        high = np.array(whole)[24 * row : 24 * row + 24, 24 * column : 24 * column + 24]
        assert np.array_equal(bytes_of(data.test.images[place : place + 1])[0], low)
        assert np.array_equal(bytes_of(data.test.labels[place : place + 1])[0], high)


def test_whole_images_are_held_out_by_the_seed(folder):
    def held(seed):
        return {
            own.tobytes()
            for own in bytes_of(loaded(folder, validation=1, seed=seed).validation.images)
        }

    data = loaded(folder, validation=1)
    assert held(0).isdisjoint({own.tobytes() for own in bytes_of(data.train.images)})
    assert len({frozenset(held(seed)) for seed in range(8)}) > 1
    (folder / "val").mkdir()
    picture(99).save(folder / "val" / "a.jpg", quality=100)
    with_val = loaded(folder)
    assert not with_val.held_out
    assert (len(with_val.train), len(with_val.validation)) == (16, 4)
    with pytest.warns(UserWarning, match="so much is held out of train, and val is not read"):
        assert loaded(folder, validation=0.5).held_out
    assert len(loaded(folder, patches=3).test) == 6


def test_small_images_may_lie_beside_the_large_ones(folder):
    for part, names in (("train", ["a", "b"]), ("test", ["a"])):
        for file in (folder / part).iterdir():
            file.unlink()
        for number, name in enumerate(names):
            for kind in ("high", "low"):
                (folder / part / kind).mkdir(exist_ok=True)
            picture(number, 48, 72).save(folder / part / "high" / f"{name}.png")
            picture(50 + number, 24, 36).save(
                folder / part / "low" / f"{name}{'x2' if number else ''}.png"
            )
    data = loaded(folder, validation=1)
    assert np.array_equal(
        bytes_of(data.test.images[:1])[0], np.array(picture(50, 24, 36))[:12, :12]
    )
    picture(0, 25, 36).save(folder / "test" / "low" / "a.png")
    refused(
        folder,
        "a.png is 48x72, and the small one 25x36: not 2 times as large; set scale",
        validation=1,
    )
    (folder / "test" / "low" / "a.png").rename(folder / "test" / "low" / "c.png")
    refused(folder, r"a.png has no small one: expected .*low/a.png or ax2.png", validation=1)
    picture(0, 24, 36).save(folder / "test" / "low" / "a.png")
    refused(
        folder,
        r"1 small image of .*test without a large one: .*c.png; remove them, or add to",
        validation=1,
    )


def test_what_does_not_fit_is_told(folder):
    refused(
        folder, "scale is how many times larger images become, one of 2, 3, 4, 8; found 5", scale=5
    )
    refused(
        folder,
        "patches is how many are cut out of an image at most, at least 1, found 0",
        patches=0,
    )
    with pytest.raises(
        DataError, match="patch is the height and width of small patches, at least 10 at scale 2"
    ):
        load_data("superresolution_samples", patch=9)
    picture(0, 30, 20).save(folder / "train" / "b.png")
    refused(
        folder, r"train/b.png is 30x20, smaller than one patch, 24x24; lower patch, or remove it"
    )
    (folder / "train" / "b.png").write_bytes(b"none")
    refused(folder, r"image .*train/b.png cannot be read: .*; repair or remove it")
    (folder / "train" / "b.png").unlink()
    for file in (folder / "test").iterdir():
        file.unlink()
    refused(folder, r"data folder .*test has no images; they end in .png")
    (folder / "test").rmdir()
    refused(folder, re.escape(f"{folder / 'test'} is missing"))


def test_scikit_learns_photos_are_pairs_without_a_download():
    data, again, other = (load_data("superresolution_samples", seed=seed) for seed in (0, 0, 1))
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()
    assert torch.equal(data.test.images, other.test.images)
    assert (len(data.train), len(data.validation), len(data.test)) == (140, 36, 77)
    assert data.test.labels.shape == (77, 3, 32, 32)
    # Pairs show the same: small pixels are about the mean of their large ones
    for split in (data.train, data.test):
        means = torch.nn.functional.avg_pool2d(split.labels, 2)
        assert (means - split.images).abs().mean() < 0.3 * split.images.std()


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize(("shift", "flip"), [(2, False), (0, True), (3, True)])
def test_images_and_their_enlarged_ones_are_moved_together(scale, shift, flip):
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(10, 3, 6, 7, generator=draws)
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    seen = 0
    for low, high in Split(images, large).shuffled(5, draws, shift=shift, flip=flip):
        assert torch.equal(low.repeat_interleave(scale, 2).repeat_interleave(scale, 3), high)
        seen += sum(bool((image == before).all()) for image in low for before in images)
    assert seen < 10
    with pytest.raises(
        DataError, match="only class numbers of every pixel, boxes, and images of as many channels"
    ):
        next(Split(images, large[:, :2]).shuffled(5, draws, shift=shift, flip=flip))
    assert Cut(scale=2, patch=10).shrunk(picture(0, 21, 31))[1].size == (20, 30)
