"""Mixup, cutmix and RandAugment: what they do to images and labels, and what they are refused for."""

import hashlib

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from abcsearch.data.registry import load_data
from abcsearch.data.scale import Scale
from abcsearch.data.split import Split
from abcsearch.data.stream import Stream
from abcsearch.errors import ConfigError, DataError
from abcsearch.training.loop import train
from abcsearch.training.mixing import Mixing, augmented, check_mixing, widened
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score
from tests.training.toys import network, stripes, weights


@pytest.fixture
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def batch(n=8, classes=3):
    """Every image is its own number everywhere."""
    images = torch.arange(float(n))[:, None, None, None].expand(n, 3, 6, 6).contiguous()
    return images, torch.arange(n) % classes


@pytest.mark.usefixtures("_seeded")
def test_mixup_blends_images_and_labels_alike():
    images, labels = batch()
    for _ in range(20):
        mixed, shares = Mixing(Recipe(mixup=0.8), Split(images, labels))(images, labels)
        assert torch.allclose(shares.sum(dim=1), torch.ones(8))
        others, values = images.roll(1, 0)[:, 0, 0, 0], mixed[:, 0, 0, 0]
        # The same share everywhere
        assert torch.equal(mixed, values[:, None, None, None].expand_as(mixed))
        own = ((values - others) / (images[:, 0, 0, 0] - others))[1:].mean()
        onehot = nn.functional.one_hot(labels, 3).float()
        torch.testing.assert_close(
            shares, own * onehot + (1 - own) * onehot.roll(1, 0), atol=1e-5, rtol=1e-5
        )


@pytest.mark.usefixtures("_seeded")
def test_cutmix_pastes_an_area_and_gives_labels_its_share():
    images, labels = batch()
    areas = set()
    for _ in range(20):
        mixed, shares = Mixing(Recipe(cutmix=1.0), Split(images, labels))(images, labels)
        pasted = (mixed != images).flatten(1).float().mean(dim=1)
        assert bool(((mixed == images) | (mixed == images.roll(1, 0))).all())
        onehot, area = nn.functional.one_hot(labels, 3).float(), pasted[:, None]
        torch.testing.assert_close(shares, (1 - area) * onehot + area * onehot.roll(1, 0))
        areas.add(round(float(pasted[0]), 3))
    assert len(areas) > 5


@pytest.mark.usefixtures("_seeded")
def test_with_both_one_is_drawn_for_every_batch():
    images, labels = batch()
    mixing, whole = Mixing(Recipe(mixup=5.0, cutmix=1.0), Split(images, labels)), 0
    for _ in range(60):
        mixed, _ = mixing(images, labels)
        whole += bool((mixed == mixed[:, :1, :1, :1]).all() and not torch.equal(mixed, images))
    assert 15 < whole < 45


def test_shares_are_widened_to_the_outputs():
    shares = widened(torch.tensor([[0.25, 0.75]]), torch.zeros(1, 5))
    assert shares.tolist() == [[0.25, 0.75, 0, 0, 0]]
    model = network(classes=5)
    recipe = Recipe(epochs=1, batch_size=16, mixup=0.4, cutmix=1.0, label_smoothing=0.1)
    train(model, stripes(), recipe)


@pytest.mark.parametrize(
    "options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_it_learns_from_mixed_images_and_the_seed_decides_the_draws(options):
    recipe = Recipe(epochs=12, batch_size=16, lr=0.1, **options)
    results = []
    for seed in (0, 0, 1):
        model = network()
        state = torch.get_rng_state()
        train(model, stripes(), recipe, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(weights(model))
    assert score(model, stripes(seed=1))["top1"] > 0.8
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_mixing_other_labels_is_refused():
    with pytest.raises(
        ConfigError, match="labels of a classification, found the objective 'regression'"
    ):
        train(
            network(),
            Split(torch.rand(64, 1, 6, 6), torch.rand(64, 3)),
            Recipe(mixup=0.2),
            objective="regression",
        )


# -- RandAugment

SCALE = Scale(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def coloured(n=32, scale=SCALE):
    """Images in memory of bytes, and these bytes."""
    pixels = torch.randint(
        0, 256, (n, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return Split(scale.apply(pixels).permute(0, 3, 1, 2), torch.arange(n) % 2, scale), pixels


@pytest.mark.usefixtures("_seeded")
def test_randaugment_changes_the_very_bytes(monkeypatch):
    from torchvision.transforms import v2

    split, pixels = coloured()
    monkeypatch.setattr(v2, "RandAugment", lambda magnitude: lambda image: 255 - image)
    _, change = augmented(Recipe(randaugment=9), split)
    torch.testing.assert_close(change(split.images), SCALE.apply(255 - pixels).permute(0, 3, 1, 2))


@pytest.mark.usefixtures("_seeded")
def test_randaugment_draws_for_every_image_and_grows_with_its_magnitude():
    split, _ = coloured()
    same = Split(split.images[:1].expand(32, 3, 8, 8).contiguous(), split.labels, SCALE)
    distances = []
    for magnitude in (1, 30):
        _, change = augmented(Recipe(randaugment=magnitude), same)
        found = torch.cat([change(same.images) for _ in range(4)])
        assert len(found.flatten(1).unique(dim=0)) > 20
        inside = SCALE.undo(found.permute(0, 2, 3, 1))
        assert inside.min() > -1e-5
        assert inside.max() < 1 + 1e-5
        distances.append(float((found - same.images[:1]).abs().mean()))
    assert distances[0] < distances[1]


def test_randaugment_of_a_stream_is_done_where_it_is_decoded_and_in_training_only():
    _, pixels = coloured()
    source = TensorDataset(pixels.permute(0, 3, 1, 2).contiguous(), torch.arange(32) % 2)
    results = []
    for workers in (0, 2):
        stream = Stream(source=source, labels=torch.arange(32) % 2, scale=SCALE, workers=workers)
        changed, change = augmented(Recipe(randaugment=9), stream)
        assert change is None
        assert torch.equal(changed.loaded().images, stream.loaded().images)
        draws = torch.Generator().manual_seed(0)
        plain, found = (next(s.shuffled(32, draws.clone_state()))[0] for s in (stream, changed))
        assert not torch.equal(plain, found)
        results.append(found)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["digits"])
def test_data_sets_of_bytes_know_their_normalisation(name):
    data = load_data(name)
    for split in (data.train, data.validation, data.test):
        values = split.scale.undo(split.rows)
        assert float(values.min()) == pytest.approx(0, abs=1e-5)
        assert float(values.max()) == pytest.approx(1, abs=1e-5)
    check_mixing(Recipe(randaugment=5), data.train, "classification")
    train(network(classes=10), data.train, Recipe(epochs=1, batch_size=256, randaugment=5), steps=2)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (stripes(), "how these images were normalised is not known"),
        (stripes(scale=Scale()), "found -1.95 to 2.18 when the normalisation is undone"),
        (Split(torch.rand(64, 2, 6, 6), torch.arange(64) % 2, Scale()), "1 or 3 channels, found 2"),
    ],
)
def test_images_without_known_pixels_are_refused_before_training(split, words):
    model = network(channels=split.shape[0])
    before = hashlib.sha256(weights(model).numpy().tobytes()).hexdigest()
    with pytest.raises(DataError, match=words):
        train(model, split, Recipe(randaugment=9))
    assert hashlib.sha256(weights(model).numpy().tobytes()).hexdigest() == before


def test_labels_of_pixels_are_refused():
    split = Split(torch.rand(64, 1, 6, 6), torch.zeros(64, 6, 6, dtype=torch.int64), Scale())
    with pytest.raises(ConfigError, match="not labels of pixels"):
        train(nn.Conv2d(1, 2, 1), split, Recipe(randaugment=9), objective="segmentation")
