"""Streams: the same images as in memory, whatever decodes them; epochs; pickling without copies."""

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from abcsearch.data.folders import Folder, bytes_of
from abcsearch.data.images import IGNORED
from abcsearch.data.scale import Scale
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.data.stream import Stream
from abcsearch.errors import DataError

SCALE = Scale(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(10):
            Image.fromarray(draws.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(
                root / name / f"{number}.png"
            )
    return Folder(root)


def stream_of(folder, **options):
    options = {"evaluation": bytes_of, "scale": SCALE, "workers": 0, **options}
    return Stream(source=folder, labels=folder.labels, **options)


def joined(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("workers", [0, 1, 2, None])
def test_batches_are_the_loaded_images_in_order_whatever_the_workers(folder, workers):
    stream = stream_of(folder, workers=workers)
    split = stream.loaded()
    for source in (stream, split):
        sizes = []
        for images, labels in source.batches(8):
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            sizes.append(len(images))
        assert sizes == [8, 8, 4]
        images, labels = joined(source.batches(8))
        assert torch.equal(images, split.images)
        assert torch.equal(labels, folder.labels)


def test_the_loaded_images_are_those_of_the_files_normalised(folder):
    split = stream_of(folder).loaded()
    for index in range(len(folder)):
        pixels = np.array(Image.open(folder.file(index)), dtype=np.float64) / 255
        expected = (pixels - SCALE.mean) / SCALE.std
        np.testing.assert_allclose(
            split.images[index].permute(1, 2, 0).numpy(), expected, atol=1e-5
        )


def test_a_part_of_a_part_holds_the_images_at_its_positions(folder):
    stream = stream_of(folder)
    part = stream.part(torch.tensor([19, 3, 8, 0])).part(torch.tensor([2, 0]))
    assert isinstance(part, Stream)
    assert torch.equal(part.loaded().images, stream.loaded().images[[8, 19]])
    assert part.labels.tolist() == [0, 1]
    assert (len(part), part.shape) == (2, (3, 6, 5))


@pytest.mark.parametrize("augmentation", [{}, {"shift": 2, "flip": True}])
def test_an_epoch_of_a_stream_has_every_image_once_with_its_label(folder, augmentation):
    for source in (stream_of(folder), stream_of(folder).loaded()):
        images, labels = joined(source.shuffled(6, generator(), **augmentation))
        assert len(images) == 18  # the incomplete batch is left out
        assert images.is_contiguous(memory_format=torch.channels_last)
        if not augmentation:
            known = {
                image.numpy().tobytes(): int(label)
                for image, label in zip(*joined(source.batches(20)), strict=True)
            }
            found = [image.numpy().tobytes() for image in images]
            assert len(set(found)) == 18
            assert [known[image] for image in found] == labels.tolist()
            assert labels.tolist() != sorted(labels.tolist())


def test_an_epoch_is_the_same_bits_whatever_the_workers_and_the_global_state(folder):
    training = v2.Compose([v2.RandomResizedCrop((6, 5)), v2.RandomHorizontalFlip(), bytes_of])
    epochs = []
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        before = torch.get_rng_state()
        draws, stream = generator(), stream_of(folder, training=training, workers=workers)
        epochs.append([joined(stream.shuffled(4, draws, shift=1, flip=True)) for _ in range(2)])
        assert torch.equal(torch.get_rng_state(), before)
    for first, second in epochs[1:]:
        for one, other in ((epochs[0][0], first), (epochs[0][1], second)):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    assert not torch.equal(epochs[0][0][0], epochs[0][1][0])
    # Evaluation is never augmented.
    stream = stream_of(folder, training=training)
    assert torch.equal(stream.loaded().images, stream_of(folder).loaded().images)


def test_an_epoch_that_is_left_early_leaves_nothing_behind(folder):
    stream = stream_of(folder, workers=2)
    for _ in range(2):
        batches = stream.shuffled(4, generator())
        next(batches)
        batches.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augmented", [False, True])
def test_a_corrupt_image_is_named_wherever_it_is_decoded(folder, tmp_path, workers, augmented):
    (tmp_path / "cat").mkdir()
    for index in range(4):
        Image.new("RGB", (5, 6)).save(tmp_path / "cat" / f"{index}.png")
    broken = tmp_path / "cat" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    stream = stream_of(Folder(tmp_path), workers=workers)
    with pytest.raises(DataError) as caught:
        list(stream.shuffled(2, generator()) if augmented else stream.batches(2))
    assert f"image {broken} cannot be read" in str(caught.value)
    assert "repair or remove it" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match=r"2\.png cannot be read"):
        stream.loaded()


class Items:
    def __init__(self, *images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], 0


BYTES = torch.zeros(3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            [BYTES, BYTES.double()],
            "image 1 of Items must be a .* tensor, found (3, 4, 4) torch.float64",
        ),
        ([BYTES, BYTES[0]], "image 1 of Items is (4, 4), the first is (3, 4, 4)"),
        ([BYTES, BYTES[0, 0]], "found (4,) torch.uint8"),
        ([BYTES, BYTES.numpy()], "found ndarray"),
        ([BYTES, BYTES[:, 1:]], "image 1 of Items is (3, 3, 4), the first is (3, 4, 4)"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_of_another_shape_or_type_is_named(images, words, workers):
    stream = Stream(source=Items(*images), labels=torch.tensor([0, 1]), workers=workers)
    for read in (stream.loaded, lambda: list(stream.batches(2))):
        with pytest.raises(DataError) as caught:
            read()
        for part in words.split(" .* "):
            assert part in str(caught.value)


class Exits(Items):
    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None:
            import os

            os._exit(3)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_one_clear_message():
    stream = Stream(source=Exits(BYTES, BYTES), labels=torch.tensor([0, 1]), workers=1)
    with pytest.raises(
        DataError, match=r"a process that decodes images has died.*/dev/shm for workers = 1"
    ):
        list(stream.batches(2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": 5}, "map-style Dataset (with __getitem__ and __len__), found 5"),
        (
            {"labels": torch.zeros(1, dtype=torch.int64)},
            "labels are (2,) int64 for 2 images, found (1,)",
        ),
        ({"labels": torch.tensor([0, -1])}, "labels count classes from 0, found -1"),
        ({"workers": -1}, "at least 0, found -1"),
        ({"source": [], "labels": torch.zeros(0)}, "at least one image"),
    ],
)
def test_a_stream_of_what_cannot_be_streamed_is_refused(options, words):
    with pytest.raises(DataError) as caught:
        Stream(**{"source": Items(BYTES, BYTES), "labels": torch.tensor([0, 1]), **options})
    assert words in str(caught.value)


def test_data_of_streams_decode_search_validation_only(folder):
    seen = []

    class Counts(Folder):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    counts = Counts.__new__(Counts)
    counts.__dict__.update(vars(folder))
    data = Data.from_images(stream_of(counts), stream_of(counts), validation=6, seed=1)
    assert isinstance(data.validation, Split)
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 6, 20)
    assert data.validation.labels.bincount().tolist() == [3, 3]
    assert data.classes == 2
    assert data.example.shape == (1, 3, 6, 5)
    assert len(seen) < 6 + 6  # its six, and a few to see the shape
    whole = stream_of(folder).loaded()
    both = torch.cat([data.train.loaded().images, data.validation.images])
    assert sorted(map(bytes, both.flatten(1).numpy())) == sorted(
        map(bytes, whole.images.flatten(1).numpy())
    )


def test_the_fingerprint_of_a_stream_sees_names_sizes_labels_and_normalisation(tmp_path):
    def data(scale=SCALE):
        folder = Folder(tmp_path)
        return Data.from_images(
            stream_of(folder, scale=scale), stream_of(folder, scale=scale), validation=0.5
        )

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(40):
            Image.new("RGB", (5, 6), (number, 0, 0)).save(tmp_path / name / f"{number:02}.png")
    first = data().fingerprint()
    assert data().fingerprint() == first
    assert data(Scale()).fingerprint() != first
    kept = tmp_path / "cat" / "07.png"
    content = kept.read_bytes()
    kept.write_bytes(content + b"more")
    assert data().fingerprint() != first
    kept.write_bytes(content)
    assert data().fingerprint() == first
    kept.rename(tmp_path / "cat" / "07b.png")
    assert data().fingerprint() != first


def test_pickled_for_ray_images_are_buffers_that_are_not_copied():
    split = Split(torch.rand(50, 3, 8, 8), torch.arange(50))
    buffers = []
    plain = pickle.dumps(split, protocol=5, buffer_callback=buffers.append)
    assert len(plain) < 2000
    # A read-only view, as of an object store.
    again = pickle.loads(plain, buffers=[memoryview(bytes(buffer.raw())) for buffer in buffers])
    assert torch.equal(again.images, split.images)
    assert torch.equal(again.labels, split.labels)
    assert again.images.is_contiguous(memory_format=torch.channels_last)
    here = pickle.loads(plain, buffers=buffers)
    assert here.images.data_ptr() == split.images.data_ptr()
    data = Data(name="a", train=split, validation=split, test=split)
    assert pickle.loads(pickle.dumps(data)).fingerprint() == data.fingerprint()


def test_passed_to_a_process_of_pythons_own_images_are_shared_memory():
    split = Split(torch.zeros(50, 3, 8, 8), torch.arange(50))
    plain = ForkingPickler.dumps([split])
    assert len(plain) < 2000
    (again,) = ForkingPickler.loads(plain)
    again.images.add_(1)  # nobody should: that it is seen shows that there is one memory
    assert float(split.images.mean()) == 1
    assert again.images.is_contiguous(memory_format=torch.channels_last)


def test_a_copy_on_a_device_is_made_once_and_can_be_trained_on():
    split = Split(torch.rand(4, 3, 2, 2), torch.arange(4))
    assert split.to("cpu") is split
    with torch.inference_mode():
        moved = split.to("meta")  # a device that every machine has
        assert split.to(torch.device("meta")) is moved
    assert not moved.images.is_inference()
    assert moved.images.device.type == "meta"
    assert next(iter(split.batches(2, device="meta")))[0].shape == (2, 3, 2, 2)


def test_labels_of_pixels_are_moved_with_their_images():
    maps = torch.randint(1, 9, (60, 5, 4), generator=generator())
    split = Split(maps[:, None].float(), maps)
    for images, labels in split.shuffled(20, generator(), shift=2, flip=True):
        assert torch.equal(labels == IGNORED, images[:, 0] == 0)
        assert torch.equal(labels.clamp_min(0).float(), images[:, 0])
        assert not torch.equal(labels, maps[:20])


@pytest.mark.parametrize("labels", [torch.rand(4, 2, 2), torch.zeros(4, 3, 3, dtype=torch.int64)])
def test_maps_that_cannot_be_moved_with_the_images_are_refused(labels):
    split = Split(torch.rand(4, 1, 2, 2), labels)
    assert len(list(split.shuffled(2, generator()))) == 2
    with pytest.raises(
        DataError, match=r"cannot be shifted and mirrored with them.*set shift = 0 and flip = false"
    ):
        next(iter(split.shuffled(2, generator(), flip=True)))
