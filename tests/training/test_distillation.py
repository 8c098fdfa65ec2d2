"""Distillation against numpy, and what it is refused for."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, ModelError
from abcsearch.models.fcn import SmallFCN
from abcsearch.models.resnet import SmallResNet
from abcsearch.training.distillation import distillation_loss, of_images, of_labels, of_values
from abcsearch.training.finetuning import finetune
from abcsearch.training.loop import train
from abcsearch.training.objectives import OBJECTIVES, Objective
from abcsearch.training.recipe import Recipe
from abcsearch.training.teaching import Watch, attention_distance, stage_ends
from tests.training.toys import Net, linear, network, points, stripes, weights

MINE = Objective(loss=nn.functional.cross_entropy, metrics={"top": lambda o, _: o[:, 0]})


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

    def look(module, *_):
        if module is teacher:  # and not a copy
            seen.append((module.training, torch.is_grad_enabled()))

    teacher.register_forward_hook(look)
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
            "detection",
            ConfigError,
            "the objective 'detection' has no divergence .* set distillation to 0$",
        ),
        (
            Recipe(distill_features=0.5),
            Net(),
            "detection",
            ConfigError,
            "set distill_features to 0$",
        ),
        (
            Recipe(distillation=0.5),
            Net(),
            "tests.training.test_distillation:MINE",
            ConfigError,
            r"or give yours one: Objective\(divergence=",
        ),
        (
            Recipe(distill_features=0.5),
            None,
            "classification",
            ConfigError,
            "distill_features = 0.5 with no teacher",
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
    model = network()
    before = weights(model)
    with pytest.raises(error, match=words):
        train(model, split, recipe, teacher=teacher, objective=objective)
    if error is ConfigError:
        assert torch.equal(weights(model), before)


def test_pixels_labels_values_and_images_have_a_divergence_each():
    draws = np.random.default_rng(0)
    ours, theirs = draws.normal(size=(2, 3, 4, 5, 2)) * 3
    p, q = (
        softened(np.moveaxis(theirs, 1, -1).reshape(-1, 4), 2),
        softened(np.moveaxis(ours, 1, -1).reshape(-1, 4), 2),
    )
    pixels = 4 * (p * np.log(p / q)).sum(axis=1).mean()
    sigmoid = lambda x: 1 / (1 + np.exp(-x / 2))  # noqa: E731
    a, b = sigmoid(theirs), sigmoid(ours)
    labels = 4 * (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))).mean()
    known = {
        distillation_loss: pixels,
        of_labels: labels,
        of_values: ((ours - theirs) ** 2).mean(),
        of_images: np.abs(ours - theirs).mean(),
    }
    one, other = torch.tensor(ours), torch.tensor(theirs)
    for divergence, expected in known.items():
        assert float(divergence(one, other, 2.0)) == pytest.approx(expected, rel=1e-5)
        assert float(divergence(other, other, 2.0)) == pytest.approx(0, abs=1e-6)


def test_every_objective_but_detection_has_a_divergence_that_is_least_where_both_agree():
    for name in OBJECTIVES:
        divergence = OBJECTIVES.find(name).divergence
        assert (divergence is None) == (name == "detection"), name
        if divergence is not None:
            wanted = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
            answer = (wanted * 1.5).requires_grad_()
            divergence(answer, wanted, 4.0).backward()
            assert bool(divergence(answer, wanted, 4.0) >= divergence(wanted, wanted, 4.0))


@pytest.mark.parametrize("objective", ["regression", "multilabel", "segmentation"])
def test_a_student_of_any_objective_becomes_like_its_teacher(objective):
    """Its labels say nothing, its teacher all: weights of 1 on the divergence."""
    torch.manual_seed(0)
    images = stripes().images
    if objective == "segmentation":
        kind, labels = lambda: SmallFCN(in_channels=1, classes=3), torch.randint(3, (96, 6, 6))
    else:
        kind, labels = network, torch.rand(96, 3).round()
    teacher, student = kind().eval(), kind()
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(0.5)
    goal = OBJECTIVES.find(objective)

    def apart():
        with torch.no_grad():
            given, wanted = (goal.output(m, m.eval()(images)) for m in (student, teacher))
        return float(goal.divergence(given, wanted, 1.0))

    before = apart()
    recipe = Recipe(epochs=4, batch_size=16, lr=0.05, distillation=1.0, temperature=1.0)
    train(student, Split(images, labels), recipe, teacher=teacher, objective=objective)
    assert apart() < 0.9 * before


def residual(widths=(6, 8)):
    torch.manual_seed(0)
    return SmallResNet(in_channels=1, classes=3, widths=widths, depths=(1, 2))


def test_the_ends_of_stages_are_the_last_maps_of_each_size():
    x = torch.randn(2, 1, 8, 8)
    assert stage_ends(residual().eval(), residual(), x) == ["stages.0", "stages"]
    pooled = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()
    assert stage_ends(pooled, pooled, x) == ["1", "3"]
    assert stage_ends(pooled, pooled[:1], x) == ["0"]
    with pytest.raises(ModelError, match="Sequential has none of more than one position; set it"):
        stage_ends(linear().eval(), linear(), torch.randn(2, 1, 1, 3))


def test_the_distance_of_attention_is_the_formula_whatever_the_channels():
    ours, theirs = (
        torch.randn(3, c, 4, 5, generator=torch.Generator().manual_seed(c)) for c in (2, 6)
    )
    unit = [(q := (x**2).sum(1).flatten(1)) / q.norm(dim=1, keepdim=True) for x in (ours, theirs)]
    expected = ((unit[0] - unit[1]) ** 2).sum(1).mean()
    torch.testing.assert_close(attention_distance(ours, theirs), expected)
    assert attention_distance(ours, 3 * ours) < 1e-6
    with pytest.raises(ModelError, match=r"\(3, 2, 4, 5\) of the network and \(3, 6, 4, 4\)"):
        attention_distance(ours, theirs[..., :4])


def test_a_narrower_student_learns_where_its_teacher_looks():
    """By features alone, whose weight is large: they come nearer; hooks are gone afterwards."""
    teacher, student, split = residual((6, 8)).eval(), residual((3, 4)), stripes()
    train(teacher, split, Recipe(epochs=2, batch_size=16, lr=0.05))

    def apart():
        with torch.no_grad(), Watch(student.eval(), ["stages.1"]) as one:
            student(split.images)
        with torch.no_grad(), Watch(teacher.eval(), ["stages.1"]) as other:
            teacher(split.images)
        return float(attention_distance(one.seen["stages.1"], other.seen["stages.1"]))

    before, same = apart(), copy.deepcopy(student)
    recipe = Recipe(epochs=4, batch_size=16, lr=0.05)
    train(student, split, dataclasses.replace(recipe, distill_features=10.0), teacher=teacher)
    with_features = apart()
    student = same
    train(student, split, recipe)
    assert with_features < min(before, apart())
    assert not any(m._forward_hooks for net in (teacher, student) for m in net.modules())


def test_stopped_and_continued_it_ends_with_the_same_bits(tmp_path):
    """Outputs and features of a teacher: nothing of them has to be remembered."""
    recipe = Recipe(epochs=3, batch_size=16, lr=0.1, distillation=0.5, distill_features=2.0)
    teacher, split, file = residual().eval(), stripes(48), tmp_path / "a.checkpoint"

    def stop(done, total, loss):
        del total, loss
        if done == 1:
            raise KeyboardInterrupt

    whole, stopped = residual((3, 4)), residual((3, 4))
    train(whole, split, recipe, teacher=teacher)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, split, recipe, teacher=teacher, checkpoint=file, on_epoch=stop)
    again = residual((3, 4))
    train(again, split, recipe, teacher=teacher, checkpoint=file)
    assert torch.equal(weights(again), weights(whole))
    assert not torch.equal(weights(stopped), weights(whole))
