"""Recipes: their ranges, and the ones that have a name."""

import math
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from abcsearch.config import parse_config, parse_recipe
from abcsearch.errors import ConfigError, ModelError
from abcsearch.training.loop import train
from abcsearch.training.optimization import rate_share
from abcsearch.training.recipe import PRESETS, Recipe
from tests.training.toys import network, stripes

ROOT = Path(__file__).parents[2]
PLAIN = {
    "n_trials": 1,
    "model": "small_resnet",
    "data": "digits",
    "pretrain": {},
    "budget": {"macs": 0.5},
}


@pytest.mark.parametrize(
    "values",
    [
        {"gamma": 0.0},
        {"gamma": 1.5},
        {"clip_norm": -1.0},
        {"ema": 1.0},
        {"mixup": -0.1},
        {"mixup": 1e-300},
        {"cutmix": 1e300},
        {"cutmix": math.nan},
        {"randaugment": 31},
        {"distillation": 1.1},
        {"temperature": 0.0},
        {"temperature": 1e30},
        {"weight_decay": 1e300},
        {"lr": 1e300},
        {"lr": -1.0},
        {"temperature": math.inf},
        {"milestones": (0.5, 0.5)},
        {"milestones": (0.0, 0.5)},
        {"milestones": (0.5, 1.0)},
        {"milestones": ("a",)},
        {"milestones": 0.5},
        {"ema": 2.0, "clip_norm": -1.0, "milestones": (2.0,), "epochs": 0},
    ],
)
def test_every_number_out_of_its_range_is_named(values):
    with pytest.raises(ConfigError) as caught:
        Recipe(**values)
    for name, value in values.items():
        assert re.search(
            rf"\b{name} (is|are) [^;]*, found {re.escape(repr(value))}", str(caught.value)
        )


def test_the_range_is_in_the_message():
    with pytest.raises(
        ConfigError, match=r"^training recipe: lr is above 0 and at most 1e\+30, found -1.0$"
    ):
        Recipe(lr=-1.0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", (1e-300, 1e30)),
        ("weight_decay", (100,)),
        ("temperature", (0.01, 1000)),
        ("mixup", (1e-3, 1e3)),
        ("cutmix", (1e-3, 1e3)),
        ("clip_norm", (1e-300, 1e300)),
        ("warmup_epochs", (1e300,)),
        ("gamma", (1e-300,)),
        ("ema", (1 - 1e-16,)),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_ends_of_the_ranges_train_or_say_that_the_loss_is_not_finite(name, values, optimizer):
    taught = {"distillation": 0.5} if name == "temperature" else {}
    for value in values:
        recipe = Recipe(
            epochs=2, batch_size=16, optimizer=optimizer, **{"lr": 1e-3, name: value, **taught}
        )
        teacher = network(seed=5) if taught else None
        try:
            assert len(train(network(), stripes(), recipe, teacher=teacher).losses) == 2
        except ModelError:
            assert name == "lr"


def test_words_and_numbers_that_are_wrong_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Recipe(optimizer="adam", schedule="steps", keep="worst", epochs=0)
    for words in (
        "'adam'; did you mean 'adamw'",
        "did you mean 'step'",
        "unknown keep 'worst'",
        "epochs is at least 1, found 0",
    ):
        assert words in str(caught.value)


def test_a_recipe_of_before_has_its_old_meaning():
    old = {
        "epochs": 3,
        "batch_size": 64,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup_epochs": 1.0,
    }
    old |= {
        "label_smoothing": 0.0,
        "shift": 0,
        "flip": False,
        "threads": 1,
        "device": "auto",
        "precision": "float32",
    }
    recipe = Recipe(**old)
    assert {key: value for key, value in asdict(recipe).items() if key in old} == old
    off = ("clip_norm", "ema", "mixup", "cutmix", "randaugment", "distillation")
    assert (recipe.optimizer, recipe.schedule, recipe.nesterov, recipe.keep) == (
        "sgd",
        "cosine",
        True,
        "last",
    )
    assert not any(getattr(recipe, name) for name in off)
    assert Recipe(milestones=[0.2, 0.4]) == Recipe(milestones=(0.2, 0.4))
    assert hash(Recipe(milestones=[0.2, 0.4])) == hash(Recipe(milestones=(0.2, 0.4)))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_a_source_and_are_what_a_config_names(name):
    preset = PRESETS[name]
    assert preset.source
    assert preset.note
    config = parse_config(
        {**PLAIN, "finetune": {"preset": name}, "pretrain": {"preset": name, "epochs": 2}}
    )
    assert config.finetune == preset.recipe
    assert config.pretrain == replace(preset.recipe, epochs=2)
    assert parse_recipe(["epochs=3", f"preset={name}"], Recipe(flip=True)) == replace(
        preset.recipe, epochs=3
    )


@pytest.mark.parametrize(
    ("name", "batch_size", "rates"),
    [
        ("cifar", 128, {0: 0.01, 49.99: 0.01, 50: 0.001, 99.99: 0.001, 100: 0.0001, 149.9: 0.0001}),
        ("imagenet", 256, {0: 0.1, 29.99: 0.1, 30: 0.01, 59.99: 0.01, 60: 0.001, 89.9: 0.001}),
    ],
)
def test_published_presets_have_the_published_learning_rates(name, batch_size, rates):
    recipe = PRESETS[name].recipe
    found = [recipe.lr * rate_share(epoch, recipe) for epoch in rates]
    assert found == pytest.approx(list(rates.values()))
    assert (recipe.momentum, recipe.nesterov, recipe.batch_size) == (0.9, False, batch_size)


def test_the_preset_of_digits_is_that_of_the_experiment():
    table = tomllib.loads((ROOT / "experiments/digits/config.toml").read_text())["finetune"]
    assert PRESETS["digits"].recipe == Recipe(**table)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"preset": "cifr"}, "[finetune]: unknown preset 'cifr'; did you mean 'cifar'"),
        ({"preset": 3}, "unknown preset '3'"),
        ({"preset": ["cifar"]}, "unknown preset"),
        ({"presets": "cifar"}, "unknown setting in [finetune]: 'presets'; did you mean 'preset'"),
        ({"preset": "cifr", "epoch": 3}, "did you mean 'epochs'"),
        ({"preset": "cifar", "milestones": ["x"]}, "finetune.milestones = ['x']"),
    ],
)
def test_mistakes_beside_a_preset_are_named(table, words):
    with pytest.raises(ConfigError) as caught:
        parse_config({**PLAIN, "finetune": table})
    assert words in str(caught.value)
