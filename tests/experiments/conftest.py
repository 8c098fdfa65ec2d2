"""A little of CIFAR-10, of CIFAR-100 and of ImageNet, in their real formats."""

import pickle

import numpy as np
import pytest
from PIL import Image


def cifar100(folder, draws):
    """Writes a little of CIFAR-100."""
    folder.mkdir()
    for file, count in (("train", 200), ("test", 100)):
        pixels = draws.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": pixels, "fine_labels": [i % 100 for i in range(count)]}
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder with a little of CIFAR-10, of CIFAR-100 and of ImageNet, as they are distributed."""
    folder = tmp_path_factory.mktemp("data")
    draws = np.random.default_rng(0)
    cifar = folder / "cifar-10-batches-py"
    cifar.mkdir()
    for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        content = {
            "data": draws.integers(0, 256, (20, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(20)],
        }
        (cifar / file).write_bytes(pickle.dumps(content, protocol=2))
    cifar100(folder / "cifar-100-python", draws)
    for part, count in (("train", 10), ("test", 2)):
        for name in range(10):
            place = folder / "cifar10-jpeg" / part / f"class{name}"
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                    place / f"{number}.jpg"
                )
    for part, count in (("train", 4), ("val", 1)):
        for wnid in ("n01440764", "n01443537"):
            place = folder / "imagenet" / part / wnid
            place.mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(draws.integers(0, 256, (80, 90, 3), dtype=np.uint8))
                picture.save(place / f"{wnid}_{number}.JPEG")
    return folder
