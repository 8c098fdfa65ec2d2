"""Network Slimming: exact on a problem with a known answer, and refused where there is nothing to penalise."""

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.data.split import Split
from abcsearch.errors import ConfigError
from abcsearch.preparation.registry import make_preparation
from abcsearch.preparation.slimming import SparseScales, gamma_scores, penalised
from abcsearch.testing import LessonContract
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.training.toys import network

INPUTS, LIVE = 6, {0: 2.0, 3: -0.8}
STRENGTH = 0.3


class Scaled(nn.Module):
    """Each input normalised and scaled by its gamma, and the sum of that: least squares in the gammas."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(INPUTS, eps=1e-8)

    def forward(self, x):
        return self.norm(x.flatten(1)).sum(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def regression():
    """Orthogonal inputs of mean 0 and variance 1, two of which the target is made of; one batch is all of them."""
    rows = torch.cat(
        [torch.ones(32, 1), torch.randn(32, INPUTS, generator=torch.Generator().manual_seed(0))],
        dim=1,
    )
    orthogonal, _ = torch.linalg.qr(rows.double())
    inputs = (orthogonal[:, 1:] * 32**0.5).float()
    target = sum(slope * inputs[:, index] for index, slope in LIVE.items())
    return Split(inputs.reshape(32, 1, 1, INPUTS), target[:, None])


def gammas_after(split, step, momentum):
    model = Scaled()
    recipe = Recipe(
        epochs=400,
        batch_size=32,
        lr=0.02,
        momentum=momentum,
        nesterov=False,
        weight_decay=0,
        device="cpu",
    )
    masks = {"norm.weight": torch.ones(INPUTS, dtype=torch.bool)}
    train(
        SparseScales(model, masks, strength=STRENGTH, step=step, objective="regression"),
        split,
        recipe,
    )
    return model.norm.weight.detach().double().numpy()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_proximal_step_is_the_soft_threshold(regression, momentum):
    """Of mean (y - sum gamma x)^2 + strength * |gamma|: live ones lose strength / 2, dead ones are 0 exactly."""
    found = gammas_after(regression, "proximal", momentum)
    slopes = np.array([LIVE.get(index, 0.0) for index in range(INPUTS)])
    expected = np.sign(slopes) * np.maximum(np.abs(slopes) - STRENGTH / 2, 0)
    dead = slopes == 0
    assert found[dead].tolist() == [0.0] * dead.sum()
    assert found[~dead] == pytest.approx(expected[~dead], abs=2e-3)


def test_the_published_step_keeps_the_live_ones_and_does_not_reach_0(regression):
    proximal, published = (
        gammas_after(regression, step, 0.9) for step in ("proximal", "subgradient")
    )
    live = list(LIVE)
    assert published[live] == pytest.approx(proximal[live], abs=5e-3)
    assert (np.delete(published, live) != 0).all()


class TestLesson(LessonContract):
    def make(self, **options):
        model = network(seed=0)
        return SparseScales(
            model, {"bn.weight": torch.arange(6) > 1}, **{"strength": 0.1, **options}
        )

    def others(self):
        return [self.make(strength=0.2), self.make(step="subgradient")]


def test_entries_that_are_not_penalised_learn_as_ever():
    """Beside a penalty that kills the others at once."""
    model = network(seed=0)
    lesson = SparseScales(model, {"bn.weight": torch.arange(6) > 1}, strength=1e6)
    images = LessonContract().images()
    train(lesson, images, Recipe(epochs=1, batch_size=16, lr=0.05, device="cpu"))
    assert (model.bn.weight != 0).tolist() == [True, True, False, False, False, False]


def test_what_is_penalised_and_how_it_counts(tiny_model):
    """Of a stream all norms, each entry once; scores are means, so that long streams are not favoured."""
    graph = trace_channels(tiny_model, torch.zeros(1, 1, 6, 6))
    masks = penalised(graph, tiny_model)
    norms = {
        f"{name}.weight"
        for name, module in tiny_model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert set(masks) <= norms
    with torch.no_grad():
        for name in norms:
            tiny_model.get_parameter(name).fill_(-0.5)
    assert all((own == 0.5).all() for own in gamma_scores(graph, tiny_model))
    tiny_model.get_parameter(next(iter(masks))).requires_grad = False
    assert set(penalised(graph, tiny_model)) == set(masks) - {next(iter(masks))}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0.0}, r"slimming: strength.*above 0.*0\.0"),
        ({"strength": float("nan")}, "slimming: strength.*above 0"),
        ({"strength": "1"}, "strength"),
        ({"start_gamma": -1.0}, "slimming: start_gamma.*above 0"),
        ({"step": "proxmal"}, "did you mean 'proximal'"),
        (
            {"strenght": 1.0},
            "option of preparation 'slimming': 'strenght'; did you mean 'strength'",
        ),
        ({"recipe": 3}, "recipe is a table"),
        ({"recipe": {"epoch": 3}}, "setting of slimming.recipe: 'epoch'; did you mean 'epochs'"),
        ({"recipe": {"epochs": 0}}, "epochs.*0"),
        ({"recipe": {"preset": "cifer"}}, "did you mean 'cifar'"),
        ({"recipe": {"ema": 0.9}}, "ema = 0.9 averages gammas"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        make_preparation("slimming", **options)


def test_presets_are_changed_by_the_other_keys():
    options = make_preparation("slimming", recipe={"preset": "cifar", "epochs": 3}).options
    assert (options.training.epochs, options.training.batch_size) == (3, 128)
