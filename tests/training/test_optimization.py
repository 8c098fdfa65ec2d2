"""Learning rates, optimisers, clipping and the moving average, against what is written out by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.rng import torch_seeded, torch_stream
from abcsearch.training.loop import train
from abcsearch.training.optimization import Average, make_optimizer, rate_share
from abcsearch.training.recipe import Recipe
from tests.training.toys import Net, linear, network, points, stripes, weights

# Every batch of `points` is all of them
ALL = {"epochs": 5, "batch_size": 4, "lr": 0.3, "warmup_epochs": 0.0}


def gradient(weight, split, smoothing=0.0):
    """Of the mean cross-entropy of a linear model, in numpy."""
    x, onehot = split.images.flatten(1).double().numpy(), np.eye(2)[split.labels.numpy()]
    logits = x @ weight.T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (shares - (1 - smoothing) * onehot - smoothing / 2).T @ x / len(x)


def trained(recipe, split=None):
    """Weights of a linear model before and after, float64."""
    model = linear()
    before = model[1].weight.detach().double().numpy().copy()
    train(model, points() if split is None else split, recipe)
    return before, model[1].weight.detach().double().numpy()


def test_the_loop_is_bit_for_bit_a_plain_one():
    """What recipes of before mean, in the operations of before."""
    split, recipe = (
        stripes(),
        Recipe(epochs=3, batch_size=16, lr=0.1, shift=1, flip=True, label_smoothing=0.1),
    )
    model, plain = network(), network().to(memory_format=torch.channels_last)
    plain.train()
    trained = list(plain.parameters())
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    draws = torch_stream(7, "pretrain-batches")
    with torch_seeded(7, "pretrain-forward"):
        for epoch in range(3):
            for step, (images, labels) in enumerate(split.shuffled(16, draws, shift=1, flip=True)):
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * rate_share(epoch + step / 6, recipe)
                loss = nn.functional.cross_entropy(plain(images), labels, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    train(model, split, recipe, seed=7, stream="pretrain")
    assert torch.equal(weights(model), weights(plain))


@pytest.mark.parametrize("milestones", [(), (0.5,), (1 / 3, 2 / 3), (0.1, 0.2, 0.9)])
@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_a_step_schedule_falls_at_its_milestones(milestones, gamma):
    recipe = Recipe(
        epochs=150, warmup_epochs=3, schedule="step", milestones=milestones, gamma=gamma
    )
    for epoch in np.arange(3, 150, 0.25):
        passed = sum(round(share * 150) <= epoch for share in milestones)
        assert rate_share(epoch, recipe) == pytest.approx(gamma**passed)
    rising = [rate_share(epoch, recipe) for epoch in np.linspace(0, 3, 7)]
    np.testing.assert_allclose(np.diff(rising[:-1]), rising[1] - rising[0])
    assert 0 < rising[0] < rising[5] < rising[6] == 1


def test_steps_reach_the_optimiser():
    recipe = Recipe(
        **{
            **ALL,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "schedule": "step",
            "milestones": (0.4, 0.8),
        }
    )
    weight, found = trained(recipe)
    for rate in (0.3, 0.3, 0.03, 0.03, 0.003):
        weight -= rate * gradient(weight, points())
    np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-6)


def test_momentum_without_nesterov():
    weight, found = trained(
        Recipe(**ALL, nesterov=False, momentum=0.8, weight_decay=0.02, schedule="step", gamma=1.0)
    )
    velocity = np.zeros_like(weight)
    for _ in range(5):
        velocity = 0.8 * velocity + gradient(weight, points()) + 0.02 * weight
        weight -= 0.3 * velocity
    np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-6)


def test_adamw_written_out():
    weight, found = trained(
        Recipe(**ALL, optimizer="adamw", momentum=0.8, weight_decay=0.1, schedule="step", gamma=1.0)
    )
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for t in range(1, 6):
        own = gradient(weight, points())
        weight *= 1 - 0.3 * 0.1
        first, second = 0.8 * first + 0.2 * own, 0.999 * second + 0.001 * own**2
        weight -= 0.3 * (first / (1 - 0.8**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(found, weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_for_weights_not_for_norms_and_biases(optimizer):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(2, 2)
    )
    made = make_optimizer(model, Recipe(optimizer=optimizer, weight_decay=0.3))
    decays = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    found = {name: decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {name: 0.3 if name in ("0.weight", "4.weight") else 0.0 for name in found}
    assert len(found) == 8


def test_long_gradients_are_scaled_and_short_ones_left():
    plain = {**ALL, "momentum": 0.0, "weight_decay": 0.0, "schedule": "step", "gamma": 1.0}
    before, _ = trained(Recipe(**plain))
    longest = max(np.linalg.norm(gradient(before, points())), 1e-3)
    weight, found = trained(Recipe(**plain, clip_norm=float(longest / 3)))
    for _ in range(5):
        own = gradient(weight, points())
        weight -= 0.3 * own * min(1, longest / 3 / np.linalg.norm(own))
    np.testing.assert_allclose(found, weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        trained(Recipe(**plain, clip_norm=1e6))[1], trained(Recipe(**plain))[1]
    )


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_the_average_is_its_closed_form(decay):
    """The weights 1, 2, 3 ... are averaged with weights that are products of decays."""
    model = nn.BatchNorm1d(1)
    for tensor in model.state_dict().values():
        tensor.fill_(0)
    average = Average(model, decay)
    for step in range(1, 8):
        for tensor in model.state_dict().values():
            tensor.fill_(step)
        average.update()
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(1, 8)]
    expected = sum(t * (1 - decays[t - 1]) * np.prod(decays[t:]) for t in range(1, 8))
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert float(average.tensors[name]) == pytest.approx(expected), name
    assert int(average.tensors["num_batches_tracked"]) == 7
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 7


def test_the_average_of_all_steps_is_what_training_leaves_and_scores():
    split, recipe = stripes(), Recipe(epochs=2, batch_size=16, lr=0.1)
    seen, model, plain = [], network(), network()
    step = torch.optim.SGD.step

    def record(optimizer):
        step(optimizer)
        seen.append(plain.linear.weight.detach().double().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", record)
        first = plain.linear.weight.detach().double().clone()
        train(plain, split, recipe)
    expected = first
    for t, weight in enumerate(seen, 1):
        decay = min(0.6, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * weight
    train(model, split, Recipe(epochs=2, batch_size=16, lr=0.1, ema=0.6))
    torch.testing.assert_close(model.linear.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model.linear.weight, plain.linear.weight)


def test_frozen_parameters_stay_as_they_are():
    model = network(Net)
    model.conv.requires_grad_(requires_grad=False)
    kept = copy.deepcopy(model.conv.state_dict())
    train(
        model, stripes(), Recipe(epochs=1, batch_size=16, ema=0.9, optimizer="adamw", clip_norm=1.0)
    )
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.conv.state_dict().items())
