"""The training loop: deterministic, leaves everything else alone, and learns."""

import contextlib
import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from abcsearch.config import parse_config
from abcsearch.data.images import IGNORED
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.data.stream import Stream
from abcsearch.errors import ConfigError, DataError, ModelError
from abcsearch.rng import torch_stream
from abcsearch.training.checks import fitted
from abcsearch.training.finetuning import FineTuned, finetune
from abcsearch.training.loop import train
from abcsearch.training.optimization import rate_share
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import score

QUICK = Recipe(epochs=3, batch_size=16, lr=0.1, shift=1, flip=True)


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(6, classes)

    def forward(self, x):
        return self.linear(self.dropout(torch.relu(self.bn(self.conv(x)))).mean(dim=(2, 3)))


class Raises(Net):
    def forward(self, x):
        torch.rand(3)
        raise ZeroDivisionError


def network(kind=Net, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options)


def stripes(n=96, seed=0):
    """Horizontal stripes, vertical stripes, or none, plus noise: easy for a 3x3 convolution."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    wave = torch.tensor([1.0, -1.0]).repeat(3)
    patterns = torch.stack(
        [wave[:, None].expand(6, 6), wave[None, :].expand(6, 6), torch.zeros(6, 6)]
    )
    return Split(
        patterns[labels][:, None] + 0.3 * torch.randn(n, 1, 6, 6, generator=generator), labels
    )


def weights(model):
    return torch.cat([t.flatten().double() for t in model.state_dict().values()])


def trained(recipe=QUICK, *, seed=0, stream="pretrain"):
    model = network()
    train(model, stripes(), recipe, seed=seed, stream=stream)
    return weights(model)


def test_the_same_arguments_give_the_same_bits_whatever_the_global_state():
    torch.manual_seed(1)
    one = trained()
    torch.manual_seed(2)
    assert torch.equal(one, trained())


def test_seed_stream_and_recipe_matter():
    results = [
        trained(),
        trained(seed=1),
        trained(stream="finetune"),
        trained(Recipe(epochs=3, batch_size=16, lr=0.1)),
    ]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert not torch.equal(one, other)


def test_it_learns_an_easy_problem_and_reports_every_epoch():
    split, seen, model = stripes(), [], network()
    recipe = Recipe(epochs=6, batch_size=16, lr=0.1)
    train(
        model,
        split,
        recipe,
        seed=0,
        stream="pretrain",
        on_epoch=lambda *progress: seen.append(progress),
    )
    assert [entry[:2] for entry in seen] == [(epoch, 6) for epoch in range(1, 7)]
    assert seen[0][2] > 2 * seen[-1][2]
    held_out = stripes(seed=1)
    found = model.eval()(held_out.images).argmax(dim=1)
    assert float((found == held_out.labels).double().mean()) > 0.95


def state_of(model):
    modes = [module.training for module in model.modules()]
    return (
        modes,
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.get_num_threads(),
    )


@pytest.mark.parametrize("kind", [Net, Raises])
@pytest.mark.parametrize("threads", [1, 2])
def test_modes_random_state_and_threads_are_as_before_also_after_a_failure(kind, threads):
    model = network(kind)
    model.eval()
    model.bn.train()
    before = state_of(model)
    recipe = Recipe(epochs=1, batch_size=16, shift=1, threads=threads)
    if kind is Raises:
        with pytest.raises(ZeroDivisionError):
            train(model, stripes(), recipe, seed=0, stream="pretrain")
    else:
        train(model, stripes(), recipe, seed=0, stream="pretrain")
    assert state_of(model) == before


def test_threads_of_the_recipe_are_those_in_the_forward_pass():
    seen = set()
    model = network()
    model.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    train(model, stripes(), Recipe(epochs=1, batch_size=32, threads=3), seed=0, stream="pretrain")
    assert seen == {3}


def test_weight_decay_shrinks_matrices_and_leaves_vectors_alone():
    class Flat(nn.Module):
        """The parameters get gradients of zero, so that only the decay moves them."""

        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.linear = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2)

        def forward(self, x):
            return torch.zeros(len(x), 3) + 0 * sum(p.sum() for p in self.parameters())

    model = network(Flat)
    before = copy.deepcopy(dict(model.named_parameters()))
    train(
        model,
        stripes(),
        Recipe(epochs=2, batch_size=48, weight_decay=0.1),
        seed=0,
        stream="pretrain",
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            ratio = parameter / before[name]
            assert bool((ratio < 1 - 1e-4).all()), name
            torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
        else:
            assert torch.equal(parameter, before[name]), name


def test_the_steps_are_those_of_sgd_written_out_by_hand():
    """Nesterov momentum, weight decay and schedule against plain numpy on a linear model."""
    images = torch.randn(4, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.tensor([0, 1, 1, 0]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    weight = model[1].weight.detach().double().numpy().copy()
    recipe = Recipe(
        epochs=5,
        batch_size=4,
        lr=0.3,
        momentum=0.8,
        weight_decay=0.02,
        warmup_epochs=2,
        label_smoothing=0.1,
    )
    x, onehot = images.flatten(1).double().numpy(), np.eye(2)[split.labels.numpy()]
    targets = 0.9 * onehot + 0.1 / 2
    velocity = np.zeros_like(weight)
    for epoch in range(5):
        logits = x @ weight.T
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gradient = (shares - targets).T @ x / 4 + 0.02 * weight
        velocity = 0.8 * velocity + gradient if epoch else gradient
        weight -= 0.3 * rate_share(epoch, recipe) * (gradient + 0.8 * velocity)
    train(model, split, recipe, seed=0, stream="pretrain")
    np.testing.assert_allclose(model[1].weight.detach().numpy(), weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "warmup"), [(10, 2.0), (30, 1.0), (4, 0.5), (5, 0.0), (2, 100.0), (1, 1.0)]
)
def test_the_schedule_rises_linearly_to_one_and_falls_as_a_cosine_to_zero(epochs, warmup):
    recipe = Recipe(epochs=epochs, warmup_epochs=warmup)
    peak = min(warmup, epochs / 2)
    rising = [rate_share(t, recipe) for t in np.linspace(0, peak, 9)[:-1]] if peak else []
    falling = [rate_share(t, recipe) for t in np.linspace(peak, epochs, 9)]
    assert all(0 < share < 1 for share in rising)
    if peak:
        np.testing.assert_allclose(np.diff(rising), rising[1] - rising[0])
        assert rate_share(peak - 1e-9, recipe) == pytest.approx(1)
    np.testing.assert_allclose(
        falling, [0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(9)], atol=1e-12
    )


def test_every_image_is_seen_once_per_epoch_in_another_order():
    seen = []

    class Records(nn.Linear):
        def forward(self, x):
            seen.append(x.flatten().int().tolist())
            return super().forward(x.flatten(1))

    split = Split(torch.arange(10.0)[:, None, None, None], torch.arange(10) % 2)
    train(Records(1, 2), split, Recipe(epochs=2, batch_size=5, lr=1e-6), seed=0, stream="pretrain")
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    seen.clear()
    train(Records(1, 2), split, Recipe(epochs=1, batch_size=4, lr=1e-6), seed=0, stream="pretrain")
    assert [len(batch) for batch in seen] == [4, 4]  # the incomplete batch is left out


@pytest.mark.parametrize("steps", [1, 5, 6, 7, 20])
def test_steps_are_as_many_as_asked_for_and_span_the_schedule_of_all_epochs(steps, monkeypatch):
    recipe = Recipe(epochs=4, batch_size=16, warmup_epochs=1)
    rates, progress = [], []
    step = torch.optim.SGD.step

    def record(optimizer):
        rates.append(optimizer.param_groups[0]["lr"] / recipe.lr)
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    # 6 per epoch
    train(network(), stripes(), recipe, steps=steps, on_epoch=lambda *seen: progress.append(seen))
    assert rates == pytest.approx([rate_share(4 * i / steps, recipe) for i in range(steps)])
    epochs = math.ceil(steps / 6)
    assert [seen[:2] for seen in progress] == [(epoch, epochs) for epoch in range(1, epochs + 1)]
    assert all(math.isfinite(seen[2]) for seen in progress)
    with pytest.raises(
        ConfigError, match="steps is the number of optimiser steps, at least 1, found 0"
    ):
        train(network(), stripes(), recipe, steps=0)


def test_as_many_steps_as_epochs_have_are_these_epochs():
    one, other = network(), network()
    train(one, stripes(), QUICK, steps=18)
    train(other, stripes(), QUICK)
    torch.testing.assert_close(weights(one), weights(other))


def test_a_stream_is_trained_on_as_the_same_images_in_memory():
    split = stripes()
    source = TensorDataset(split.images, split.labels)
    results = []
    for workers in (0, 2):
        model = network()
        train(model, Stream(source=source, labels=split.labels, workers=workers), QUICK)
        results.append(weights(model))
        found = score(model, Stream(source=source, labels=split.labels, workers=workers))
        assert found == score(model, split)
    assert torch.equal(*results)
    # No draws but those of the order, and the same ones without augmentation.
    memory, streamed = network(), network()
    plain = Recipe(epochs=1, batch_size=48, lr=0.1)
    train(memory, split, plain)
    train(streamed, Stream(source=source, labels=split.labels, workers=0), plain)
    assert torch.equal(weights(memory), weights(streamed))


def test_an_image_that_cannot_be_read_stops_training_with_its_name():
    class Broken(TensorDataset):
        def __getitem__(self, index):
            if index == 7:
                raise ValueError("torn")
            return super().__getitem__(index)

    split = stripes()
    stream = Stream(source=Broken(split.images, split.labels), labels=split.labels, workers=1)
    with pytest.raises(DataError, match="image 7 of Broken cannot be read: torn"):
        train(network(), stream, QUICK)


def test_other_objectives_are_trained_with_their_loss():
    """Which half of an image is brighter per pixel, and its mean."""
    images = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    maps = (images[:, 0] > 0.5).long()
    maps[:, 0] = IGNORED
    per_pixel = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    recipe = Recipe(epochs=20, batch_size=16, lr=0.5, shift=1, flip=True)
    train(per_pixel, Split(images, maps), recipe, objective="segmentation")
    assert score(per_pixel, Split(images, maps), objective="segmentation")["pixel_accuracy"] > 0.9
    values = images.mean(dim=(1, 2, 3))[:, None]
    mean = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    train(
        mean,
        Split(images, values),
        Recipe(epochs=20, batch_size=16, lr=0.05, flip=True),
        objective="regression",
    )
    assert score(mean, Split(images, values), objective="regression")["neg_mse"] > -0.01
    with pytest.raises(ConfigError, match="did you mean 'regression'"):
        train(mean, Split(images, values), recipe, objective="regresion")


def test_device_and_precision_are_checked():
    with pytest.raises(ConfigError, match="precision tf32 is for CUDA, but the device is cpu"):
        Recipe(precision="tf32", device="cpu")
    with pytest.raises(ConfigError, match=r"- \[pretrain\]: precision tf32 is for CUDA"):
        parse_config({"pretrain": {"precision": "tf32", "device": "cpu"}})
    with pytest.raises(ConfigError, match="device is"):
        Recipe(device="gpu")


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        *(
            pytest.param(
                "cuda",
                name,
                marks=pytest.mark.gpu,
            )
            for name in ("float32", "tf32", "bf16")
        ),
    ],
)
def test_it_learns_in_every_precision(device, precision):
    model, split = network(), stripes()
    types = set()
    model.conv.register_forward_hook(lambda _module, _given, output: types.add(output.dtype))
    recipe = Recipe(epochs=6, batch_size=16, lr=0.1, shift=1, device=device, precision=precision)
    train(model, split, recipe, validation=stripes(seed=2))
    assert types == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert not next(model.parameters()).is_cuda  # it is back where it was
    assert {value.dtype for value in model.state_dict().values()} <= {torch.float32, torch.int64}
    if device == "cuda":
        assert split.to("cuda") is split.to("cuda:0")
    assert score(model, stripes(seed=1))["top1"] > 0.95


def test_a_label_without_an_output_is_found_before_the_batch_that_holds_it():
    images, labels = torch.rand(64, 1, 6, 6), torch.zeros(64, dtype=torch.int64)
    order = torch.randperm(64, generator=torch_stream(0, "train-batches"))
    labels[order[-1]] = 3  # in the last batch
    seen = []
    model = network()
    model.register_forward_hook(lambda module, *_: seen.append(module is model))
    with pytest.raises(DataError, match="label 3 has no output: the model has 3 classes"):
        train(model, Split(images, labels), Recipe(epochs=1, batch_size=8))
    assert seen.count(True) == 1


@pytest.mark.parametrize(
    ("model", "recipe", "error", "words"),
    [
        (lambda: Net(classes=2), {}, DataError, "label 2 has no output: the model has 2 classes"),
        (
            lambda: nn.Conv2d(1, 3, 3),
            {},
            ModelError,
            r"logits \(batch, classes\) for 64 images, found \(64, 3, 4, 4\)",
        ),
        (
            lambda: Net().requires_grad_(requires_grad=False),
            {},
            ModelError,
            "Net has no parameter to train",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
            {"lr": 1e30, "batch_size": 16},
            ModelError,
            "loss is .* lower lr",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(model, recipe, error, words):
    with pytest.raises(error, match=words):
        train(model(), stripes(), Recipe(**{"epochs": 2, **recipe}), seed=0, stream="pretrain")


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"warmup_epochs": -0.1},
        {"label_smoothing": 1.0},
        {"shift": -1},
        {"threads": 0},
        {"epochs": -1, "shift": -2},
    ],
)
def test_a_recipe_out_of_range_names_every_wrong_value(values):
    with pytest.raises(ConfigError) as caught:
        Recipe(**values)
    for name, value in values.items():
        assert re.search(rf"\b{name} is [^;]*, found {re.escape(str(value))}", str(caught.value))


def test_finetune_trains_a_copy_and_scores_both_on_the_test_images_only():
    data = Data(
        name="stripes", train=stripes(), validation=stripes(30, seed=1), test=stripes(60, seed=2)
    )
    model = network()
    model.train()
    kept = copy.deepcopy(model)
    result = finetune(model, data, QUICK, seed=0)
    assert isinstance(result, FineTuned)
    assert torch.equal(weights(model), weights(kept))
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in result.model.modules())
    assert not {id(t) for t in model.parameters()} & {id(t) for t in result.model.parameters()}
    for scores, scored in ((result.before, kept), (result.after, result.model)):
        found = scored.eval()(data.test.images).argmax(dim=1)
        assert scores["top1"] == pytest.approx(float((found == data.test.labels).double().mean()))
    assert result.after["neg_loss"] > result.before["neg_loss"]
    by_hand = copy.deepcopy(kept)
    train(by_hand, data.train, QUICK, seed=0, stream="finetune")
    assert torch.equal(weights(by_hand), weights(result.model))
    again = finetune(model, data, QUICK, seed=0)
    assert torch.equal(weights(again.model), weights(result.model))
    assert again.after == result.after
    assert not torch.equal(
        weights(finetune(model, data, QUICK, seed=1).model), weights(result.model)
    )


@pytest.mark.parametrize("size", [97, 5000])
def test_a_batch_that_is_larger_than_the_data_is_all_of_them(size):
    """The same bits as with a batch of so many images, whatever was asked for."""
    trained = {}
    for asked in (96, size):
        model = network()
        ctx = (
            pytest.warns(UserWarning, match="they are one batch")
            if asked > 96
            else contextlib.nullcontext()
        )
        with ctx:
            trained[asked] = (
                train(model, stripes(), Recipe(epochs=2, batch_size=asked, lr=0.1)),
                model.state_dict(),
            )
    assert trained[96][0].losses == trained[size][0].losses
    assert all(torch.equal(value, trained[size][1][name]) for name, value in trained[96][1].items())


@pytest.mark.parametrize(
    ("images", "workers", "batch"), [(100, 1, 64), (64, 1, 64), (63, 1, 63), (63, 4, 60), (3, 4, 4)]
)
def test_a_batch_is_shared_equally_when_it_is_made_smaller(images, workers, batch):
    assert fitted(Recipe(batch_size=64), images, workers) == Recipe(batch_size=batch)
