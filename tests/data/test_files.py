"""CIFAR, ImageNet and npz in their real formats, and what is said of files that are none."""

import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from abcsearch.data.registry import load_data
from abcsearch.data.split import Split
from abcsearch.data.stream import Stream
from abcsearch.errors import DataError


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_cifar(path, classes=10, per_file=20):
    """Writes the files of CIFAR-10 or 100, each of a few images; returns images (n, 32, 32, 3) and labels by split."""
    ten = classes == 10
    folder = path / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir()
    files = {f"data_batch_{i}": "train" for i in range(1, 6)} | {"test_batch": "test"}
    if not ten:
        files, per_file = {"train": "train", "test": "test"}, 200
    kept = {"train": ([], []), "test": ([], [])}
    for seed, (file, part) in enumerate(files.items()):
        data, labels = draw(per_file, 3072, seed=seed), [i % classes for i in range(per_file)]
        content = {
            "data": data,
            "labels" if ten else "fine_labels": labels,
            "coarse_labels": [0] * per_file,
        }
        (folder / file).write_bytes(
            pickle.dumps({**content, "filenames": ["a.png"] * per_file}, protocol=2)
        )
        kept[part][0].append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        kept[part][1].extend(labels)
    return folder, {
        part: (np.concatenate(images), labels) for part, (images, labels) in kept.items()
    }


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_as_it_is_distributed_and_normalised_by_its_training_images(
    tmp_path, name, classes
):
    folder, written = write_cifar(tmp_path, classes)
    data = load_data(name, path=str(tmp_path), validation=0.5, seed=3)
    train, labels = written["train"]
    mean, std = train.mean(axis=(0, 1, 2)) / 255, (train / 255).std(axis=(0, 1, 2), ddof=1)
    test = (written["test"][0] / 255 - mean) / std
    np.testing.assert_allclose(data.test.images.permute(0, 2, 3, 1).numpy(), test, atol=1e-5)
    assert data.test.labels.tolist() == written["test"][1]
    assert (data.classes, data.seed) == (classes, 3)
    known = {image.tobytes(): label for image, label in zip(train, labels, strict=True)}
    both = torch.cat([data.train.images, data.validation.images]).permute(0, 2, 3, 1).numpy()
    found = ((both * std + mean) * 255).round().astype(np.uint8)
    assert len({image.tobytes() for image in found}) == len(train)
    expected = torch.cat([data.train.labels, data.validation.labels]).tolist()
    assert [known[image.tobytes()] for image in found] == expected
    again = load_data(name, path=str(folder), validation=0.5, seed=3)  # the inner folder itself
    assert again.fingerprint() == data.fingerprint()
    given = load_data(name, path=str(folder), validation=0.5, mean=[0.5] * 3, std=[0.25] * 3)
    np.testing.assert_allclose(
        given.test.images, (written["test"][0].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25, atol=1e-5
    )


META = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}
PIPES = ["pipe"] if hasattr(os, "mkfifo") else []
WRONG_NAMES = {
    "too few": lambda names: names[1:],
    "one twice": lambda names: [*names[1:], names[1]],
    "numbers": lambda names: [*range(len(names))],
    "an empty one": lambda names: ["", *names[1:]],
    "several lines": lambda names: ["a\nb", *names[1:]],
    "half a character": lambda names: ["\ud800", *names[1:]],
    "a text": lambda names: "x" * len(names),
    "none": lambda _: None,
}


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_names_of_classes_are_those_of_the_file_beside_the_data(tmp_path, name, classes):
    """Which changes nothing else: the data of a run are the same with and without."""
    folder, _ = write_cifar(tmp_path, classes)
    file, key = META[name]
    without = load_data(name, path=str(tmp_path), validation=0.5)
    assert without.class_names == ()
    names = [f"thing {number}" for number in range(classes)]
    (folder / file).write_bytes(pickle.dumps({key: names, "num_vis": 3072}, protocol=2))
    data = load_data(name, path=str(tmp_path), validation=0.5)
    assert data.class_names == tuple(names)
    assert data.fingerprint() == without.fingerprint()
    binary = {key.encode(): [one.encode() for one in names]}  # as Python 2 has pickled it
    (folder / file).write_bytes(b"(d" + b"".join(_python_2(binary)) + b".")
    assert load_data(name, path=str(tmp_path), validation=0.5).class_names == tuple(names)


def _python_2(table):
    """Yields the pickle of texts by texts as Python 2 wrote it, behind an empty dict."""
    for name, texts in table.items():
        yield b"S" + repr(name.decode()).encode() + b"\n("
        yield from (b"S" + repr(one.decode()).encode() + b"\n" for one in texts)
        yield b"ls"


@pytest.mark.parametrize("what", [*WRONG_NAMES, "a list", "cut", "bytes", "code", "folder", *PIPES])
def test_without_sound_names_there_are_none(tmp_path, what):
    folder, _ = write_cifar(tmp_path)
    file, names = folder / "batches.meta", [f"thing {number}" for number in range(10)]
    whole = pickle.dumps({"label_names": names})
    match what:
        case "a list":
            file.write_bytes(pickle.dumps(names))
        case "cut" | "bytes":
            file.write_bytes(whole[:-9] if what == "cut" else bytes(range(256)))
        case "code":
            file.write_bytes(pickle.dumps({"label_names": names, "more": Evil()}))
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case _:
            file.write_bytes(pickle.dumps({"label_names": WRONG_NAMES[what](names)}))
    assert load_data("cifar10", path=str(tmp_path), validation=0.5).class_names == ()


def test_cifar_as_python_2_has_pickled_it(tmp_path):
    """The published files: strings of bytes, numpy 1's module names, flags of dtype as numbers."""
    folder, written = write_cifar(tmp_path)
    for index, file in enumerate(sorted(folder.iterdir())):
        images = written["test" if file.name == "test_batch" else "train"][0]
        images = images if file.name == "test_batch" else images[20 * index : 20 * index + 20]
        data = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).tobytes()
        old = (
            b"\x80\x02}q\x01(U\x04data"
            + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        )
        old += b"(K\x01K\x14M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        old += b"J\xff\xff\xff\xff" * 2
        old += b"K\x00tb\x89T" + len(data).to_bytes(4, "little") + data + b"tb"
        old += b"U\x06labels](" + b"".join(b"K" + bytes([i % 10]) for i in range(20)) + b"eu."
        new = file.read_bytes()
        file.write_bytes(old)
        assert np.array_equal(
            pickle.loads(old.replace(b"K\x00K\x01\x87R", b"\x89\x88\x87R"), encoding="latin1")[
                "data"
            ],
            pickle.loads(new)["data"],
        )
    data = load_data("cifar10", path=str(tmp_path), validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 50, 20)


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


def changed(**values):
    def spoil(folder):
        file = folder / "data_batch_3"
        file.write_bytes(pickle.dumps({**pickle.loads(file.read_bytes()), **values}))

    return spoil


def written(content):
    return lambda folder: (folder / "data_batch_3").write_bytes(content)


def array_pickle(kind, state, raw):
    """Returns the pickle of {"data": an array} whose type says of itself what it likes, as numpy would believe it."""
    dtype = pickle.dumps(kind, protocol=2)[2:-1] + b"K\x00K\x01\x87R" + pickle.dumps(state, 2)[2:-1]
    head = b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return (
        head
        + b"(K\x01K\x01\x85cnumpy\ndtype\n"
        + dtype
        + b"b\x89"
        + pickle.dumps(raw, 2)[2:-1]
        + b"tbs."
    )


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("O", (3, "|", None, None, None, -1, -1, 0)),
        ([("a", "u1")], (3, "|", None, ("a",), {}, 8, 1, 0)),
        ("u1", (3, "|", None, None, None, 8, 1, 63)),
    ],
)
def test_arrays_of_a_pickle_cannot_have_bytes_taken_for_addresses(tmp_path, kind, state):
    folder, _ = write_cifar(tmp_path)
    flags = np.dtype("O").flags, np.dtype("u1").flags
    (folder / "data_batch_3").write_bytes(array_pickle(kind, state, "A" * 8))
    with pytest.raises(DataError, match="data_batch_3"):
        load_data("cifar10", path=str(tmp_path))
    assert (np.dtype("O").flags, np.dtype("u1").flags) == flags


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_key_that_is_nested_without_an_end_is_damage(tmp_path, name):
    """The hash of such a tuple would end the process."""
    folder, _ = write_cifar(tmp_path)
    (folder / name).write_bytes(b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.")
    if name == "batches.meta":
        assert load_data("cifar10", path=str(tmp_path), validation=0.5).class_names == ()
        return
    with pytest.raises(DataError, match="more than 1000 tuples"):
        load_data("cifar10", path=str(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda f: f.rename(f.parent / "other"),
            "cifar-10-batches-py/data_batch_1 is missing; expected the unpacked",
        ),
        (lambda f: (f / "data_batch_3").unlink(), "data_batch_3 is missing"),
        (lambda f: (f / "test_batch").unlink(), "test_batch is missing"),
        (written(b""), "data_batch_3 is damaged, or no file of CIFAR: pickle exhausted"),
        (written(b"<html>404</html>"), "data_batch_3 is damaged"),
        (
            lambda f: (f / "data_batch_3").write_bytes((f / "data_batch_3").read_bytes()[:900]),
            "data_batch_3 is damaged",
        ),
        (
            written(pickle.dumps(Evil())),
            "data_batch_3 is damaged, or no file of CIFAR: it holds a posix.system",
        ),
        (written(pickle.dumps([1])), "data_batch_3 is no file of CIFAR: it holds a list"),
        (
            changed(data=draw(20, 3071)),
            "'data' is an array (n, 3072) of uint8, found (20, 3071) uint8",
        ),
        (changed(data=draw(20, 3072).astype(float)), "found (20, 3072) float64"),
        (changed(data=None), "'data' is an array (n, 3072) of uint8, found nothing"),
        (changed(labels=[0] * 19), "'labels' is a list of 20 class numbers, found a list of 19"),
        (changed(labels=["cat"] * 20), "found a list of 20 with 'cat'"),
        (
            changed(labels=[0] * 19 + [10]),
            "'labels': labels are in 0 to 9, found 10 at position 19",
        ),
        (changed(labels=[-1] + [0] * 19), "'labels': labels are in 0 to 9, found -1 at position 0"),
    ],
)
def test_what_is_wrong_with_a_file_of_cifar_is_said_with_its_name(tmp_path, spoil, words):
    folder, _ = write_cifar(tmp_path)
    spoil(folder)
    with pytest.raises(DataError) as caught:
        load_data("cifar10", path=str(tmp_path))
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


def test_cifar_without_images_of_a_class_is_refused(tmp_path):
    folder, _ = write_cifar(tmp_path)
    for file in folder.glob("data_batch_*"):
        content = pickle.loads(file.read_bytes())
        file.write_bytes(
            pickle.dumps({**content, "labels": [label % 9 for label in content["labels"]]})
        )
    with pytest.raises(
        DataError, match=r"training images have all of 10 classes, found none of \[9\]"
    ):
        load_data("cifar10", path=str(tmp_path))


def write_imagenet(path, kind="JPEG"):
    draws = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for name in ("n01440764", "n01443537"):
            (path / part / name).mkdir(parents=True)
            for number in range(count):
                size = draws.integers(20, 60, 2)
                Image.fromarray(draw(*size, 3, seed=number)).save(
                    path / part / name / f"{name}_{number}.{kind}"
                )


def test_imagenet_is_streamed_cropped_at_random_for_training_and_in_the_middle_otherwise(tmp_path):
    write_imagenet(tmp_path)
    options = {"size": 16, "resize": 20, "validation": 4, "workers": 0}
    data = load_data("imagenet", path=str(tmp_path), **options)
    assert isinstance(data.train, Stream)
    assert isinstance(data.test, Stream)
    assert isinstance(data.validation, Split)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 6)
    assert data.example.shape == (1, 3, 16, 16)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for image, file in zip(
        data.test.loaded().images, sorted((tmp_path / "val").rglob("*.JPEG")), strict=True
    ):
        whole = Image.open(file)
        scale = 20 / min(whole.size)
        small = whole.resize([int(side * scale) for side in whole.size], Image.Resampling.BILINEAR)
        left, top = (round((side - 16) / 2) for side in small.size)
        expected = (np.array(small.crop((left, top, left + 16, top + 16))) / 255 - mean) / std
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    draws = torch.Generator().manual_seed(0)
    (one, _), (other, _) = (
        next(data.train.shuffled(12, draws)),
        next(data.train.shuffled(12, draws)),
    )
    assert one.shape == (12, 3, 16, 16)
    plain = data.train.loaded().images
    assert not any(torch.equal(a, b) for image in (one, other) for a in image for b in plain)
    assert data.fingerprint() == load_data("imagenet", path=str(tmp_path), **options).fingerprint()


def test_imagenet_whose_val_images_are_not_sorted_is_refused_with_advice(tmp_path):
    write_imagenet(tmp_path)
    for file in (tmp_path / "val").rglob("*.JPEG"):
        file.rename(tmp_path / "val" / file.name)
    for folder in (tmp_path / "val").iterdir():
        if folder.is_dir():
            folder.rmdir()
    with pytest.raises(
        DataError,
        match=r"val has no folders of classes; expected .*/val/CLASS/IMAGE: sort the images",
    ):
        load_data("imagenet", path=str(tmp_path))
    with pytest.raises(
        DataError, match="size is at least 1 and at most resize, found size = 300 and resize = 256"
    ):
        load_data("imagenet", path=str(tmp_path), size=300)


def test_a_corrupt_file_of_a_stream_is_named(tmp_path):
    write_imagenet(tmp_path)
    broken = next((tmp_path / "val").rglob("*_1.JPEG"))
    broken.write_bytes(broken.read_bytes()[:100])
    data = load_data("imagenet", path=str(tmp_path), size=16, resize=20, validation=4, workers=2)
    with pytest.raises(DataError, match=re.escape(f"image {broken} cannot be read")):
        list(data.test.batches(2))


def test_an_image_folder_is_streamed_as_it_is_in_memory(tmp_path):
    write_imagenet(tmp_path, kind="png")
    options = {
        "path": str(tmp_path),
        "validation": 0.25,
        "size": 12,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "workers": 0,
    }
    memory, streamed = (
        load_data("image_folder", **options, stream=stream) for stream in (False, True)
    )
    assert isinstance(memory.train, Split)
    assert isinstance(streamed.train, Stream)
    assert memory.class_names == streamed.class_names == tuple(sorted(memory.class_names))
    assert {*memory.class_names} == {path.name for path in (tmp_path / "train").iterdir()}
    for part in ("train", "validation", "test"):  # its second folder may be called val
        one, other = getattr(memory, part), getattr(streamed, part).loaded()
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    epochs = [
        list(data.train.shuffled(3, torch.Generator().manual_seed(1), shift=2, flip=True))
        for data in (memory, streamed)
    ]
    for images, labels in epochs[1]:
        assert images.shape == (3, 3, 12, 12)
        assert labels.dtype == torch.int64
    assert len(epochs[0]) == len(epochs[1])


def save(path, **arrays):
    file = path / "data.npz"
    np.savez(file, **arrays)
    return str(file)


BYTES = {
    "train_images": draw(40, 6, 5, 3),
    "train_labels": np.arange(40, dtype=np.uint8) % 4,
    "test_images": draw(8, 6, 5, 3, seed=1),
    "test_labels": np.arange(8, dtype=np.int32)[:, None] % 4,
}


def test_npz_of_bytes_is_normalised_and_of_floats_taken_as_it_is(tmp_path):
    data = load_data("npz", path=save(tmp_path, **BYTES), validation=0.25)
    train = BYTES["train_images"] / 255
    mean, std = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2), ddof=1)
    expected = (BYTES["test_images"] / 255 - mean) / std
    np.testing.assert_allclose(data.test.images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert data.test.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert (len(data.train), len(data.validation)) == (30, 10)
    grey = {
        **BYTES,
        "train_images": BYTES["train_images"][..., 0],
        "test_images": BYTES["test_images"][..., 0],
    }
    assert load_data("npz", path=save(tmp_path, **grey), validation=0.25).example.shape == (
        1,
        1,
        6,
        5,
    )
    floats = {
        **BYTES,
        **{
            k: draw(len(BYTES[k]), 2, 3, 3).astype(np.float32)
            for k in ("train_images", "test_images")
        },
    }
    data = load_data("npz", path=save(tmp_path, **floats), validation=0.25)
    assert np.array_equal(data.test.images.numpy(), floats["test_images"])


@pytest.mark.parametrize(
    ("objective", "labels", "dtype"),
    [
        ("regression", np.arange(40.0), torch.float32),
        ("regression", np.ones((40, 3), np.int64), torch.float32),
        ("segmentation", np.full((40, 6, 5), -100, np.int16), torch.int64),
    ],
)
def test_npz_holds_labels_of_other_objectives(tmp_path, objective, labels, dtype):
    arrays = {**BYTES, "train_labels": labels, "test_labels": labels[:8]}
    data = load_data(
        "npz", path=save(tmp_path, **arrays), objective=objective, validation=4, classes=100
    )
    assert data.objective == objective
    assert data.train.labels.shape == (36, *labels.shape[1:])
    assert data.train.labels.dtype == dtype


def objects():
    values = np.empty(40, dtype=object)
    values[:] = [[1]] * 40
    return values


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"test_labels": None},
            "missing: test_labels (found: train_images, train_labels, test_images)",
        ),
        (
            {"train_images": draw(40, 30)},
            "train_images is (n, height, width, channels) uint8 or (n, channels, height",
        ),
        ({"train_images": draw(40, 3, 3, 3).astype(np.float64)}, "found (40, 3, 3, 3) float64"),
        ({"train_images": draw(0, 3, 3, 3)}, "not empty, found (0, 3, 3, 3) uint8"),
        ({"train_labels": np.array(["cat"] * 40)}, "train_labels are numbers, found (40,) <U3"),
        (
            {"train_labels": np.arange(39)},
            "train_labels: labels are (40,) int64 for 40 images, found (39,)",
        ),
        ({"train_labels": -np.arange(40)}, "train_labels: labels count classes from 0, found -39"),
        (
            {"train_labels": np.arange(40.0) % 4},
            "labels of a classification are (n,) int64, found (40,) torch.float32",
        ),
        (
            {"train_labels": objects()},
            "no file of numpy.savez with plain arrays: Object arrays cannot be loaded",
        ),
        (
            {"test_images": draw(8, 3, 6, 5).astype(np.float32)},
            "have one type, found torch.uint8 and torch.float32",
        ),
        ({"test_images": draw(8, 5, 5, 3)}, "test (3, 5, 5)"),
    ],
)
def test_what_is_wrong_with_an_npz_is_said_with_its_name(tmp_path, arrays, words):
    arrays = {name: value for name, value in {**BYTES, **arrays}.items() if value is not None}
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError) as caught:
        load_data("npz", path=path)
    assert words in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 3}, "train_labels: labels are in 0 to 2, found 3 at position 3"),
        ({"mean": [0.5] * 3}, "mean and std are given together"),
        ({"mean": [0.5], "std": [0.5]}, "one number per channel, found 1 for 3 channels"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0]}, "std above 0"),
        ({"mean": [0.5] * 3, "std": [0.5] * 2}, "one number per channel each"),
        (
            {"mean": ["a"] * 3, "std": [0.5] * 3},
            "mean is a list with one number per channel, found ['a', 'a', 'a']",
        ),
        ({"mean": 0.5, "std": 0.5}, "mean is a list with one number per channel, found 0.5"),
        ({"validation": 40}, "below 40, found 40"),
        ({"validation": 3}, "cannot hold 3 of 40 training images out"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, words):
    with pytest.raises(DataError) as caught:
        load_data("npz", path=save(tmp_path, **BYTES), **options)
    assert words in str(caught.value)


def test_an_npz_that_is_damaged_or_something_else_is_named(tmp_path):
    file = Path(save(tmp_path, **BYTES))
    sound = file.read_bytes()
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    flipped = sound[:500] + bytes([sound[500] ^ 255]) + sound[501:]
    for content in (b"", b"text", sound[:300], plain.getvalue(), flipped):
        file.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(str(file))):
            load_data("npz", path=str(file))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet", "image_folder", "npz"])
def test_a_path_that_is_missing_is_named_with_what_should_be_there(tmp_path, name):
    path = str(tmp_path / "gone")
    with pytest.raises(
        DataError, match=re.escape(path) + r".* is missing; expected .*\(check the path option"
    ):
        load_data(name, path=path)


@pytest.mark.parametrize(
    ("name", "locked"),
    [
        ("cifar10", "."),
        ("cifar10", "cifar-10-batches-py/data_batch_2"),
        ("imagenet", "."),
        ("imagenet", "train"),
        ("imagenet", "val/n01443537"),
        ("image_folder", "train/n01440764"),
        ("npz", "data.npz"),
    ],
)
def test_a_path_without_permission_is_named(tmp_path, monkeypatch, name, locked):
    write_cifar(tmp_path)
    write_imagenet(tmp_path)
    file = save(tmp_path, **BYTES)
    refused = tmp_path / locked

    def guarded(function):
        def call(path, *args, **options):
            if isinstance(path, str | os.PathLike) and Path(path) == refused:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **options)

        return call

    # Tests may run as a user who may read everything.
    for owner, function in ((os, "scandir"), (os, "listdir"), (Path, "open"), (io, "open")):
        monkeypatch.setattr(owner, function, guarded(getattr(owner, function)))
    monkeypatch.setattr("builtins.open", guarded(open))
    with pytest.raises(DataError, match=re.escape(f"{refused} may not be read: no permission")):
        load_data(name, path=file if name == "npz" else str(tmp_path))
