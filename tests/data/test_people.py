"""Data as people have them: arrays, Datasets, DataLoaders; of one, two and three dimensions."""

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from abcsearch.budget import Budget
from abcsearch.data.registry import load_data
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.data.stream import Stream
from abcsearch.data.user_data import from_datasets
from abcsearch.errors import ConfigError, DataError, ExampleError
from abcsearch.exporting import export, load
from abcsearch.rng import torch_seeded
from abcsearch.runs.entry import search
from abcsearch.training.finetuning import finetune
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import predict, score

DRAWS = np.random.default_rng(0)
BYTES = DRAWS.integers(0, 256, (24, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(24) % 2


class Items:
    """A Dataset of whatever is made of an image and its label."""

    def __init__(self, make, count=24):
        self._make, self._count = make, count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        if index >= self._count:
            raise IndexError(index)
        return self._make(BYTES[index], int(LABELS[index]))


class Flowing(IterableDataset):
    def __iter__(self):
        return iter(Items(lambda image, label: (Image.fromarray(image), label)))


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)


WAYS = {
    "numpy, channels last": (BYTES, LABELS),
    "numpy, channels second": (np.moveaxis(BYTES, -1, 1), LABELS.astype(np.uint8)),
    "torch, channels second": (
        torch.from_numpy(np.moveaxis(BYTES, -1, 1).copy()),
        torch.from_numpy(LABELS)[:, None],
    ),
    "torch, channels last": (torch.from_numpy(BYTES), list(LABELS)),
    "labels of 32 bits": (BYTES, torch.tensor(LABELS, dtype=torch.int32)),
    "a list": [(Image.fromarray(image), label) for image, label in zip(BYTES, LABELS, strict=True)],
    "PIL images": Items(lambda image, label: (Image.fromarray(image), label)),
    "arrays": Items(lambda image, label: [image, np.int32(label)]),
    "named": Items(
        lambda image, label: {"pixel_values": tensor(image), "labels": torch.tensor(label), "id": 3}
    ),
    "a loader": DataLoader(
        Items(lambda image, label: (tensor(image), label)), batch_size=5, shuffle=True
    ),
    "iterable": Flowing(),
}


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_to_have_bytes_are_the_same_data(way):
    expected = Data.of((BYTES, LABELS), (BYTES, LABELS), validation=0.25)
    found = Data.of(WAYS[way], WAYS[way], validation=0.25)
    assert found.fingerprint() == expected.fingerprint()
    assert found.held_out
    values = BYTES.reshape(-1, 3) / 255
    shown = (BYTES / 255 - values.mean(axis=0)) / values.std(axis=0, ddof=1)
    np.testing.assert_allclose(found.test.images.permute(0, 2, 3, 1).numpy(), shown, atol=1e-5)
    given = Data.of(WAYS[way], WAYS[way], validation=WAYS[way], mean=[0.5] * 3, std=[0.25] * 3)
    assert not given.held_out
    assert torch.equal(given.validation.images, given.train.images)
    np.testing.assert_allclose(
        given.train.images.permute(0, 2, 3, 1).numpy(), (BYTES / 255 - 0.5) / 0.25, atol=1e-5
    )


def test_floats_are_inputs_as_they_are_and_splits_and_streams_are_taken():
    images = torch.randn(24, 3, 4, 4, dtype=torch.float64)
    split = Split(images.float(), torch.from_numpy(LABELS))
    stream = Stream(
        source=TensorDataset(images.float(), split.labels), labels=split.labels, workers=0
    )
    expected = Data.from_tensors((split.images, split.labels), (split.images, split.labels))
    for way in (
        (images.numpy(), LABELS),
        (images.half().double().half() * 0 + images.float(), LABELS),
        split,
    ):
        assert Data.of(way, way, name="tensors").fingerprint() == expected.fingerprint()
    data = Data.of(stream, split, validation=(images.numpy(), LABELS))
    assert isinstance(data.train, Stream)
    assert torch.equal(data.validation.images, split.images)


def test_grey_bytes_and_targets_of_a_regression():
    grey = BYTES[..., 0]
    data = Data.of((grey, LABELS * 2), (grey, LABELS * 2), objective="regression")
    assert data.train.shape == (1, 6, 5)
    assert data.train.labels.dtype == torch.float32
    masks = [(Image.fromarray(image), Image.fromarray(image[..., 0])) for image in BYTES]
    data = Data.of(masks, masks, objective="segmentation", ignore_index=255)
    assert data.test.labels.shape == (24, 6, 5)


@pytest.mark.parametrize(
    ("train", "options", "words"),
    [
        (
            "images/",
            {},
            "is (images, labels) as arrays, a Dataset, a DataLoader, a Split or a Stream, found str",
        ),
        ({"image": BYTES}, {}, "found dict"),
        ([], {}, "data: train has at least one image"),
        ((BYTES.astype(np.int64), LABELS), {}, "data: train: images are an array of bytes (uint8)"),
        ((BYTES[:, :, :, 0].reshape(24, -1).astype(float), LABELS), {}, "(24, 30) torch.float32"),
        ((BYTES.astype(np.float32), LABELS), {}, "np.moveaxis(images, -1, 1)"),
        ((BYTES, np.eye(2)[LABELS]), {}, "labels.argmax(1)"),
        ((BYTES, LABELS[:5]), {}, "for 24 images"),
        ((BYTES, ["cat"] * 24), {}, "has labels that are numbers or tensors of one shape"),
        (
            (np.moveaxis(BYTES, -1, 1) / 255, LABELS),
            {},
            "found bytes in test and inputs as they are in train",
        ),
        ((BYTES, LABELS), {"ignore_index": 255}, "is the label of pixels that do not count"),
        ((BYTES, LABELS), {"mean": [0.5]}, "mean and std are given together"),
        ((BYTES, LABELS), {"validation": True}, "found bool"),
        ([(BYTES[0], 1, "name")] * 3, {}, "found tuple of 3 at 0; return just these two"),
        (
            [{"picture": BYTES[0], "label": 1}] * 3,
            {},
            "or named image and label, found picture, label at 0",
        ),
        ([(BYTES[0], 0), (BYTES[0][:3], 1)], {}, "the first is"),
    ],
)
def test_what_is_none_of_these_is_told(train, options, words):
    with pytest.raises(DataError, match=re.escape(words)):
        Data.of(train, (BYTES, LABELS), **options)


def test_mean_and_std_are_for_bytes():
    floats = (np.moveaxis(BYTES, -1, 1) / 255, LABELS)
    with pytest.raises(DataError, match="mean and std are for bytes"):
        Data.of(floats, floats, mean=[0.5] * 3, std=[0.5] * 3)


def test_a_dataset_that_draws_at_random_is_told():
    draws = np.random.default_rng(0)
    drawn = Items(
        lambda image, label: (draws.permutation(image.ravel()).reshape(image.shape), label)
    )
    with pytest.warns(
        UserWarning, match="train: its first image is another one when it is read again"
    ):
        Data.of(drawn, (BYTES, LABELS))


def test_pixels_that_do_not_count_have_any_number(tmp_path):
    labels = DRAWS.integers(0, 3, (24, 6, 5)).astype(np.uint8)
    labels[:, 0] = 255
    images = BYTES[..., :1]
    wanted = torch.from_numpy(labels.astype(np.int64))
    wanted[wanted == 255] = -100
    np.savez(
        tmp_path / "d.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    options = {"objective": "segmentation", "ignore_index": 255}
    pair = (
        TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)),
    ) * 2
    for data in (
        Data.of((images, labels), (images, labels), **options),
        load_data("npz", path=str(tmp_path / "d.npz"), classes=3, **options),
        from_datasets(pair, **options),
        from_datasets(pair, **options, stream=True, workers=0),
    ):
        assert torch.equal(data.test.labels, wanted)
    data = Data.of((images, labels), (images, labels), objective="segmentation")
    with pytest.raises(DataError, match=r"label 255 has no output: .* say so: ignore_index = 255"):
        score(nn.Conv2d(1, 3, 1), data.validation, objective="segmentation")


# Channels and sizes of an image, by dimensions.
SHAPES = {1: (2, 20), 2: (2, 6, 7), 3: (1, 4, 6, 5)}


def images_of(dimensions, count=60, classes=3):
    """Images that a small network learns: the mean of the first channel is the class."""
    labels = torch.arange(count) % classes
    images = torch.randn(count, *SHAPES[dimensions], generator=torch.Generator().manual_seed(0))
    return images + labels.view(-1, *(1,) * (images.ndim - 1)), labels


def network_of(dimensions):
    convolution, norm, pool = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
        2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
    }[dimensions]
    layers = [convolution(SHAPES[dimensions][0], 8, 3, padding=1), norm(8), nn.ReLU()]
    layers += [
        convolution(8, 12, 3, padding=1, stride=2),
        nn.ReLU(),
        pool(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    ]
    with torch_seeded(0, "init"):
        return nn.Sequential(
            *[layer if not hasattr(layer, "reset_parameters") else _anew(layer) for layer in layers]
        )


def _anew(layer):
    layer.reset_parameters()
    return layer


@pytest.mark.parametrize("dimensions", SHAPES)
def test_splits_and_streams_of_any_dimension_hold_the_same(dimensions):
    images, labels = images_of(dimensions)
    split = Split(images.clone(), labels)
    source = TensorDataset(images, labels)
    streamed = Stream(source=source, labels=labels, workers=0)
    assert split.shape == streamed.shape == SHAPES[dimensions]
    some = torch.tensor([3, 1, 7])
    for own in (
        split,
        streamed,
        pickle.loads(pickle.dumps(split)),
        split.to("cpu"),
        streamed.loaded(),
    ):
        assert torch.equal(own.part(some).loaded().images, images[some])
        for batch, at in zip(own.batches(25), range(0, 60, 25), strict=True):
            assert torch.equal(batch[0], images[at : at + 25])
            assert torch.equal(batch[1], labels[at : at + 25])
    epochs = [list(own.shuffled(16, torch.Generator().manual_seed(1))) for own in (split, streamed)]
    for (one, its), (other, their) in zip(*epochs, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(its, their)
    if dimensions != 2:
        for own in (split, streamed):
            with pytest.raises(DataError, match="are not shifted and mirrored"):
                next(own.shuffled(16, torch.Generator().manual_seed(1), flip=True))
        with pytest.raises(ConfigError, match=r"flip: for images of height and width, found \("):
            train(network_of(dimensions), split, Recipe(epochs=1, batch_size=16, lr=0.1, flip=True))


@pytest.mark.parametrize("dimensions", [1, 3])
def test_bytes_of_any_dimension_are_normalised_per_channel(dimensions):
    shape = (24, 3, *SHAPES[dimensions][1:])
    values = DRAWS.integers(0, 256, shape, dtype=np.uint8)
    if dimensions == 1:  # (n, channels, length) of bytes is taken as grey images
        values = values[:, :, None]
    data = Data.of((torch.from_numpy(values), LABELS), (torch.from_numpy(values), LABELS))
    assert data.train.shape == values.shape[1:]
    every = data.test.images.transpose(0, 1).flatten(1).double()
    assert torch.allclose(every.mean(dim=1), torch.zeros(3).double(), atol=1e-5)
    assert torch.allclose(every.std(dim=1), torch.ones(3).double(), atol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_signals_and_volumes_go_the_whole_way(tmp_path, dimensions):
    images, labels = images_of(dimensions, 120)
    data = Data.of(
        (images[:90].numpy(), labels[:90].numpy()), (images[90:], labels[90:]), validation=0.3
    )
    model = network_of(dimensions)
    recipe = Recipe(epochs=6, lr=0.05, batch_size=16)
    train(model, data.train, recipe)
    full = score(model, data.test)["top1"]
    assert full > 0.6
    options = {"name": "adaptive_bn", "batch_size": 16}
    result = search(
        model,
        data,
        budget=Budget(macs=0.6),
        n_trials=4,
        run_dir=tmp_path / "run",
        searcher="random",
        evaluator=options,
    )
    assert result.best.evaluation.macs <= 0.6 * int(
        result.task.graph.costs.macs([result.task.space.full])[0]
    )
    again = search(
        model,
        data,
        budget=Budget(macs=0.6),
        n_trials=4,
        run_dir=tmp_path / "two",
        searcher="random",
        evaluator=options,
    )
    assert [t.evaluation.metrics for t in result.trials] == [
        t.evaluation.metrics for t in again.trials
    ]
    tuned = finetune(result.model(), data, recipe)
    assert tuned.after["top1"] > 0.5
    export(tuned.model, tmp_path / "net.pt2", example_input=data.example)
    found = predict(load(tmp_path / "net.pt2"), data.test)
    torch.testing.assert_close(found, predict(tuned.model, data.test), atol=1e-5, rtol=1e-4)


def test_grey_images_without_a_channel_are_told(tmp_path):
    images = torch.randn(40, 8, 8)
    data = Data.of((images, torch.arange(40) % 2), (images, torch.arange(40) % 2))
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    with pytest.raises(
        ExampleError, match=r"taken as signals, \(channels, length\); grey images have a channel"
    ):
        search(model, data, budget=Budget(macs=0.5), n_trials=1, run_dir=tmp_path / "run")
