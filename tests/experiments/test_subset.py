"""Some images of every class."""

import pytest

from experiments.subset import subset


def test_the_first_of_every_class_and_all_test_images(stand_in, tmp_path):
    source, target = stand_in / "cifar10-jpeg", tmp_path / "few"
    assert subset(source, target, 3) == 30

    def names(folder, split):
        return {str(path.relative_to(folder / split)) for path in (folder / split).rglob("*.jpg")}

    every = sorted({path.parent.name for path in (source / "train").rglob("*.jpg")})
    assert names(target, "train") == {f"{name}/{n}.jpg" for name in every for n in range(3)}
    assert names(target, "test") == names(source, "test")
    file = f"{every[0]}/0.jpg"
    assert (target / "train" / file).read_bytes() == (source / "train" / file).read_bytes()


def test_what_is_missing_is_said_and_nothing_is_copied(stand_in, tmp_path):
    source, target = stand_in / "cifar10-jpeg", tmp_path / "few"
    with pytest.raises(ValueError, match="has 10 images, fewer than the 11"):
        subset(source, target, 11)
    with pytest.raises(ValueError, match="no train/CLASS and test"):
        subset(source / "train", target, 1)
    assert not target.exists()
    subset(source, target, 1)
    with pytest.raises(ValueError, match="is there already"):
        subset(source, target, 1)
