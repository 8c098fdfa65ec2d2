"""Distillation against numpy, and what it is refused for."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, ModelError
from abcsearch.training.distillation import distillation_loss
from abcsearch.training.finetuning import finetune
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.training.toys import Net, linear, network, points, stripes, weights


def softened(logits, temperature):
    shares = np.exp(logits / temperature)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_formula(temperature):
    ours, theirs = (np.random.default_rng(seed).normal(size=(7, 5)) * 3 for seed in (0, 1))
    p, q = softened(theirs, temperature), softened(ours, temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    found = distillation_loss(torch.tensor(ours), torch.tensor(theirs), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    same = torch.tensor(theirs)
    assert float(distillation_loss(same + 3, same, temperature)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_steps_follow_both_losses_by_their_weights(weight):
    split, teacher, model = points(), linear(seed=1), linear()
    own, x = (
        model[1].weight.detach().double().numpy().copy(),
        split.images.flatten(1).double().numpy(),
    )
    theirs = x @ teacher[1].weight.detach().double().numpy().T
    options = {
        "momentum": 0.0,
        "weight_decay": 0.0,
        "warmup_epochs": 0.0,
        "schedule": "step",
        "gamma": 1.0,
    }
    recipe = Recipe(epochs=4, batch_size=4, lr=0.2, distillation=weight, temperature=2.0, **options)
    for _ in range(4):
        logits = x @ own.T
        labels = softened(logits, 1) - np.eye(2)[split.labels.numpy()]
        teacher_part = 2.0 * (softened(logits, 2) - softened(theirs, 2))  # T^2 / T
        own -= 0.2 * ((1 - weight) * labels + weight * teacher_part).T @ x / 4
    train(model, split, recipe, teacher=teacher)
    np.testing.assert_allclose(model[1].weight.detach().numpy(), own, rtol=1e-4, atol=1e-6)


def test_the_teacher_is_in_evaluation_mode_and_left_as_it_was():
    teacher, seen = network(seed=1), []
    teacher.train()
    teacher.bn.eval()
    teacher.register_forward_hook(
        lambda module, *_: seen.append((module.training, torch.is_grad_enabled()))
    )
    before, modes = copy.deepcopy(teacher.state_dict()), [m.training for m in teacher.modules()]
    train(network(), stripes(), Recipe(epochs=2, batch_size=32, distillation=0.5), teacher=teacher)
    assert seen == [(False, False)] * 6
    assert [m.training for m in teacher.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_becomes_like_its_teacher():
    data = Data(
        name="stripes", train=stripes(), validation=stripes(30, seed=1), test=stripes(60, seed=2)
    )
    teacher = network(seed=1)
    train(teacher, data.train, Recipe(epochs=6, batch_size=16, lr=0.1))
    teacher.eval()
    kept = weights(teacher)
    shuffled = Split(data.train.images, (data.train.labels + 1) % 3)  # labels that say the opposite
    recipe = Recipe(epochs=10, batch_size=16, lr=0.1, distillation=1.0)
    wrong = Data(name="wrong", train=shuffled, validation=data.validation, test=data.test)
    found = finetune(network(), wrong, recipe, teacher=teacher)
    assert found.after["top1"] > 0.9
    assert torch.equal(weights(teacher), kept)


@pytest.mark.parametrize(
    ("recipe", "teacher", "objective", "error", "words"),
    [
        (
            Recipe(distillation=0.5),
            None,
            "classification",
            ConfigError,
            "distillation = 0.5 with no teacher",
        ),
        (Recipe(), Net(), "classification", ConfigError, "distillation = 0 with a teacher"),
        (
            Recipe(distillation=0.5),
            Net(),
            "regression",
            ConfigError,
            "of a classification, found the objective 'regr",
        ),
        (
            Recipe(distillation=0.5),
            Net(classes=4),
            "classification",
            ModelError,
            r"\(64, 4\) of the teacher and \(64,",
        ),
        (
            Recipe(keep="best"),
            None,
            "classification",
            ConfigError,
            'keep = "best" needs validation images',
        ),
        (Recipe(distillation=0.5), nn.Identity(), "classification", ModelError, "of the teacher"),
    ],
)
def test_what_does_not_fit_together_is_refused(recipe, teacher, objective, error, words):
    split = stripes()
    if objective == "regression":
        split = Split(split.images, torch.rand(96, 3))
    model = network()
    before = weights(model)
    with pytest.raises(error, match=words):
        train(model, split, recipe, teacher=teacher, objective=objective)
    if error is ConfigError:
        assert torch.equal(weights(model), before)
