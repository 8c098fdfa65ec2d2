"""Data sets by name: digits, folders of real images, and the user's own."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from abcsearch.data.registry import DATASETS, check_data_options, load_data
from abcsearch.data.splits import Data
from abcsearch.errors import DataError


def rows(images):
    return [row.numpy().tobytes() for row in images.flatten(1)]


def test_digits_has_one_fixed_test_set_and_no_image_in_two_splits():
    one, other = load_data("digits", seed=0), load_data("digits", seed=1, validation=0.5)
    assert (len(one.train), len(one.validation), len(one.test)) == (1077, 360, 360)
    assert (len(other.train), len(other.validation), len(other.test)) == (718, 719, 360)
    assert torch.equal(one.test.images, other.test.images)
    assert torch.equal(one.test.labels, other.test.labels)
    assert one.test.labels.bincount().tolist() == other.test.labels.bincount().tolist()
    assert rows(one.validation.images) != rows(other.validation.images)
    for data in (one, other):
        # The data set itself has no duplicates, so that images can stand for their positions.
        parts = [set(rows(split.images)) for split in (data.train, data.validation, data.test)]
        assert len(parts[0] | parts[1] | parts[2]) == sum(len(part) for part in parts) == 1797


def test_digits_are_the_images_of_scikit_learn_normalised_by_the_training_images():
    data, bunch = load_data("digits"), load_digits()
    known = {
        image.tobytes(): label
        for image, label in zip(bunch.images.astype(np.uint8), bunch.target, strict=True)
    }
    training = torch.cat([data.train.images, data.validation.images])
    assert abs(float(training.mean())) < 1e-5
    assert abs(float(training.std()) - 1) < 1e-5
    # The smallest value is a black pixel, 0, and the largest a white one, 16.
    low, high = float(training.min()), float(training.max())
    for split in (data.train, data.validation, data.test):
        grey = ((split.images[:, 0] - low) / (high - low) * 16).round().numpy().astype(np.uint8)
        assert [known[image.tobytes()] for image in grey] == split.labels.tolist()


def write_folder(path, *, size=(5, 4), classes=("cat", "dog"), per_class=4, kind="png"):
    """Writes random images in the ImageFolder layout; returns them as arrays by split and class."""
    draws = np.random.default_rng(0)
    images = {}
    for part in ("train", "test"):
        for name in classes:
            (path / part / name).mkdir(parents=True)
            for number in range(per_class):
                array = draws.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(array).save(path / part / name / f"{number}.{kind}")
                images.setdefault((part, name), []).append(array)
    return images


def test_image_folder_holds_the_very_pixels_normalised_by_training_images(tmp_path):
    images = write_folder(tmp_path)
    data = load_data("image_folder", path=str(tmp_path), validation=0.25)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 8)
    assert data.example.shape == (1, 3, 5, 4)
    train = np.stack([*images["train", "cat"], *images["train", "dog"]]).astype(np.float64) / 255
    mean, std = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2), ddof=1)
    expected = np.stack([*images["test", "cat"], *images["test", "dog"]]) / 255
    np.testing.assert_allclose(
        data.test.images.permute(0, 2, 3, 1).numpy(), (expected - mean) / std, atol=1e-5
    )
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4
    found = (
        torch.cat([data.train.images, data.validation.images]).permute(0, 2, 3, 1).numpy() * std
        + mean
    )
    labels = torch.cat([data.train.labels, data.validation.labels]).tolist()
    wanted = {
        (i.tobytes(), c) for c, name in enumerate(("cat", "dog")) for i in images["train", name]
    }
    assert {
        ((i * 255).round().astype(np.uint8).tobytes(), c)
        for i, c in zip(found, labels, strict=True)
    } == wanted


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_of_search_validation_is_it_in_memory_and_streamed(tmp_path, name):
    write_folder(tmp_path)
    shutil.copytree(tmp_path / "train", tmp_path / name)
    for file in [*(tmp_path / name).glob("*/[12].png"), *(tmp_path / "test").glob("*/3.png")]:
        file.unlink()
    usual = {"mean": [0.5] * 3, "std": [0.2] * 3, "workers": 0}
    memory, streamed = (
        load_data("image_folder", path=str(tmp_path), **usual, stream=s) for s in (False, True)
    )
    for data in (memory, streamed, load_data("image_folder", path=str(tmp_path))):
        assert (len(data.train), len(data.validation), len(data.test), data.held_out) == (
            8,
            4,
            6,
            False,
        )
        assert data.validation.labels.tolist() == [0, 0, 1, 1]
        everything = data.train.loaded().images
        # By the training images' mean and std
        assert torch.equal(data.validation.images, everything[[0, 3, 4, 7]])
    assert torch.equal(memory.validation.images, streamed.validation.images)
    with pytest.warns(
        UserWarning,
        match=rf"validation = 0.25: so much is held out of train, and {name} is not read",
    ):
        data = load_data("image_folder", path=str(tmp_path), validation=0.25)
    assert (len(data.train), len(data.validation), len(data.test), data.held_out) == (6, 2, 6, True)


def test_hidden_folders_are_no_classes_and_empty_ones_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert load_data("image_folder", path=str(tmp_path), validation=2).classes == 2
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir()
    (tmp_path / "train" / "ant" / "note.txt").write_text("none")
    with pytest.raises(
        DataError,
        match=r"train holds no images of 2 classes: ant, bee; images end in \.jpg, .* remove",
    ):
        load_data("image_folder", path=str(tmp_path))
    (tmp_path / "train" / "ant").rename(tmp_path / "ant")
    (tmp_path / "train" / "bee").rmdir()
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"val holds no images of 1 class: cat"):
        load_data("image_folder", path=str(tmp_path))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_image_folder_reads_other_colour_modes_as_rgb(tmp_path, mode):
    write_folder(tmp_path)
    Image.new("RGB", (4, 5), (255, 255, 255)).convert(mode).save(
        tmp_path / "test" / "cat" / "0.png"
    )
    data = load_data("image_folder", path=str(tmp_path), validation=0.25)
    assert data.test.images.shape == (8, 3, 5, 4)
    # White is the largest value that there can be, in every channel.
    assert bool(
        (data.test.images[0] >= data.train.images.amax(dim=(0, 2, 3))[:, None, None] - 1e-5).all()
    )


def test_image_folder_resizes_jpeg_files_of_different_sizes(tmp_path):
    write_folder(tmp_path, kind="jpg")
    Image.new("RGB", (9, 7)).save(tmp_path / "train" / "dog" / "9.jpg")
    with pytest.raises(
        DataError, match=r"9\.jpg is \(3, 7, 9\), the first is \(3, 5, 4\); set size"
    ):
        load_data("image_folder", path=str(tmp_path), validation=0.25)
    assert load_data(
        "image_folder", path=str(tmp_path), validation=0.25, size=6
    ).train.images.shape[1:] == (3, 6, 6)


def test_image_folder_names_a_corrupt_file_whatever_the_damage(tmp_path):
    write_folder(tmp_path, size=(16, 16))
    file = tmp_path / "train" / "dog" / "2.png"
    sound = file.read_bytes()
    draws = np.random.default_rng(1)
    damaged = [b"", b"not an image", sound[: len(sound) // 2], sound[:33], sound[:8]]
    for _ in range(20):  # any chunk's length, name, content or checksum
        at = int(draws.integers(8, len(sound)))
        damaged.append(sound[:at] + bytes([sound[at] ^ 255]) + sound[at + 1 :])
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(str(file))):
            load_data("image_folder", path=str(tmp_path), validation=0.25)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "test").rename(path / "gone"), ["test is missing", "CLASS/IMAGE"]),
        (lambda path: (path / "train" / "bird").mkdir(), ["holds no images", "bird"]),
        (
            lambda path: [f.unlink() for f in (path / "test").rglob("*.png")],
            ["test holds no images"],
        ),
        (
            lambda path: (path / "test" / "dog").rename(path / "test" / "dot"),
            ["different classes (in train alone: dog; in test alone: dot)"],
        ),
    ],
)
def test_image_folder_in_another_layout_is_refused(tmp_path, spoil, words):
    write_folder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        load_data("image_folder", path=str(tmp_path), validation=0.25)
    for word in words:
        assert word in str(caught.value)


def test_image_folder_whose_test_images_have_another_size_is_refused(tmp_path):
    write_folder(tmp_path)
    for file in (tmp_path / "test").rglob("*.png"):
        Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(DataError, match=r"train \(3, 5, 4\).*test \(3, 8, 8\)"):
        load_data("image_folder", path=str(tmp_path), validation=0.25)


def mine(*, size, count=8, **_others):
    return Data.from_tensors(
        (torch.rand(count, 1, size, size), torch.arange(count) % 2),
        (torch.rand(2, 1, size, size), torch.tensor([0, 1])),
    )


def test_a_data_set_of_ones_own_is_known_by_name(monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", mine)
    assert load_data("mine", size=3, anything="else").example.shape == (1, 1, 3, 3)
    with pytest.raises(DataError, match="'mine': option missing: size"):
        load_data("mine")


def test_what_a_loader_raises_or_returns_is_named(monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", lambda size=3: [][size])
    with pytest.raises(DataError, match=r"'mine' cannot be loaded with size=5: IndexError"):
        load_data("mine", size=5)
    monkeypatch.setitem(DATASETS, "mine", lambda: "data")
    with pytest.raises(DataError, match=r"'mine' returned str, expected abcsearch\.Data"):
        load_data("mine")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digit", {}, ["unknown data set 'digit'", "did you mean 'digits'"]),
        (
            "digits",
            {"validaton": 0.2, "sede": 1},
            ["did you mean 'validation'", "did you mean 'seed'"],
        ),
        ("image_folder", {"siz": 5}, ["did you mean 'size'", "option missing: path"]),
    ],
)
def test_all_mistakes_in_name_and_options_are_found_without_loading(name, options, words):
    with pytest.raises(DataError) as caught:
        check_data_options(name, options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {"validation": "a lot"}),
        ("image_folder", {"path": 5}),
        ("image_folder", {"path": ".", "size": 0}),
    ],
)
def test_options_of_the_wrong_type_or_range_are_data_errors(name, options):
    with pytest.raises(DataError, match=name):
        load_data(name, **options)
