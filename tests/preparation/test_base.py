"""Preparations: ours and one's own keep their contract, and those that do not are refused by name."""

import dataclasses
import re

import pytest
import torch
from torch import nn

from abcsearch.budget import Budget
from abcsearch.errors import AbcSearchError, ConfigError, ModelError, PreparationError
from abcsearch.preparation.base import Trainer, besides, check_restored, run_preparation
from abcsearch.preparation.dmcp import Marking
from abcsearch.preparation.registry import PREPARATIONS, make_preparation
from abcsearch.runs.settings import SearchSettings
from abcsearch.runs.task import Task
from abcsearch.testing import PreparationContract
from tests.preparation import own

HERE = "tests.preparation.own"
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu"}


class TestSlimming(PreparationContract):
    def make(self):
        return make_preparation("slimming", strength=0.05, recipe=SHORT)


class TestPublished(PreparationContract):
    def make(self):
        return make_preparation(
            "slimming", strength=0.05, step="subgradient", start_gamma=0.5, recipe=SHORT
        )


class TestTwice(PreparationContract):
    def make(self):
        return make_preparation(f"{HERE}:Twice")


@pytest.fixture(scope="module")
def task():
    return TestTwice().task()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NotPrepared", "returns Sliced, expected abcsearch.Prepared"),
        ("Greedy", "has changed the network that it was lent"),
        ("LeavesTraining", "has changed the network that it was lent"),
        ("BrokenSource", "gives the same module twice"),
        ("NoSource", "is no source"),
        ("OtherGraph", "a source of another graph"),
        ("OutsideStart", "starts: dimension '0' is 1000000"),
        ("ShortStart", "starts: a candidate of this space has 2 values"),
        ("FloatStart", "starts: a structure is a tuple of whole numbers"),
        ("NoStarts", "found NoneType and dict"),
        ("OddFacts", "facts holds plain JSON values"),
        ("NamedTwice", "two trainings of a preparation are called 'prepare'"),
    ],
)
def test_who_does_not_keep_the_word_is_named(name, words):
    task = TestTwice().task()  # some change it
    with pytest.raises(AbcSearchError, match=words):
        run_preparation(make_preparation(f"{HERE}:{name}"), task, Trainer(task.data.train, 0))


@pytest.mark.parametrize(
    ("name", "options", "knob"),
    [
        ("variational", {"prior": 1e-25}, "raise prior = 1e-25, or lower strength = 1.0"),
        ("slimming", {"strength": 1e38, "step": "subgradient"}, "lower strength = 1e+38"),
        ("autopruner", {"weight": 1e60}, "lower weight = 1e+60 or gate_lr = 0.02"),
    ],
)
def test_where_a_penalty_is_why_a_loss_is_not_finite_it_is_named_as_well(task, name, options, knob):
    preparation = make_preparation(name, recipe={**SHORT, "clip_norm": 1.0}, **options)
    with pytest.raises(ModelError) as raised:
        run_preparation(preparation, task, Trainer(task.data.train, 0))
    ended = r"the training loss is (nan|inf) in epoch \d; lower lr = 0.05"
    ended += r"|logits of gates are not finite after a step of the training; lower lr"
    assert re.match(rf"preparation \w+: ({ended}), or {re.escape(knob)}$", str(raised.value))


@pytest.mark.parametrize("last", [False, True])
def test_chains_that_are_not_finite_are_named_before_they_are_used(task, monkeypatch, last):
    mark, steps = Marking._mark, []

    def spoiled(lesson, *images):
        mark(lesson, *images)
        steps.append(images)
        if lesson.progress > 0.7 or not last:
            lesson._chains.steps.grad.fill_(float("nan"))

    monkeypatch.setattr(Marking, "_mark", spoiled)
    recipe = {**SHORT, "epochs": 4}
    with pytest.raises(
        ModelError, match=r"DMCP: chains are not finite .*; lower lr, or lower weight = 1\.0"
    ):
        run_preparation(make_preparation("dmcp", recipe=recipe), task, Trainer(task.data.train, 0))
    assert (len(steps) > 1) == last


@pytest.mark.parametrize("name", sorted(PREPARATIONS))
def test_every_penalty_and_learning_rate_of_its_options_is_named_where_a_loss_is_not_finite(name):
    preparation = make_preparation(name)
    for option in dataclasses.fields(preparation.options):
        knob = option.name in {"strength", "weight", "prior"} or option.name.endswith("_lr")
        assert (f"{{{option.name}}}" in preparation.milder) == knob
    assert besides(preparation).startswith(", or ") == bool(preparation.milder)


def test_a_source_that_a_continued_run_would_not_get_is_refused(task):
    preparation = own.Forgetful()
    made = run_preparation(preparation, task, Trainer(task.data.train, 0))
    states = {name: dict(module.state_dict()) for name, module in made.source.modules.items()}
    with pytest.raises(
        PreparationError, match="another network than the source that prepare returned"
    ):
        check_restored(preparation, task, made.source, states)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("slimmming", {}, "unknown preparation 'slimmming'; did you mean 'slimming'"),
        ("nowhere.at:All", {}, "cannot be imported"),
        (f"{HERE}:Missing", {}, "cannot be imported"),
        (f"{HERE}:Lacking", {}, r"lacks prepare\(task, trainer\)"),
        (f"{HERE}:NOT_A_CLASS", {}, "is not a class or function"),
        ("collections:OrderedDict", {}, "is a class derived from abcsearch.Preparation"),
        (
            f"{HERE}:Twice",
            {"epoch": 1},
            "option of preparation '.*Twice': 'epoch'; did you mean 'epochs'",
        ),
        (f"{HERE}:Twice", {"epochs": 0}, "epochs is at least 1, found 0"),
        (f"{HERE}:Same", {"epochs": 1}, "option of preparation"),
    ],
)
def test_names_and_options_that_do_not_do(name, options, words):
    with pytest.raises((ConfigError, PreparationError), match=words):
        make_preparation(name, **options)


def test_options_of_another_are_refused():
    with pytest.raises(PreparationError, match="options of Same are NoOptions, found TwiceOptions"):
        own.Same(own.TwiceOptions())


def test_without_batch_norms_slimming_is_refused_before_anything_is_trained(tiny_data):
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)]
    task = Task.of(
        nn.Sequential(*layers), tiny_data, SearchSettings(budget=Budget(macs=0.5), n_trials=1)
    )
    with pytest.raises(
        PreparationError,
        match="slimming penalises the scales of batch norms, and Sequential has none",
    ):
        make_preparation("slimming").check(task)


@pytest.mark.parametrize(
    "recipe", [{"keep": "best", "batch_size": 16}, {"distillation": 0.5, "batch_size": 16}]
)
def test_recipes_that_do_not_suit_are_refused_before_anything_is_trained(task, recipe):
    with pytest.raises(ConfigError):
        make_preparation("slimming", recipe=recipe).check(task)


def test_halves_are_all_images_once_the_same_for_a_seed(task):
    images = task.data.train
    first, second = Trainer(images, 5).halves(0.25)
    again = Trainer(images, 5).halves(0.25)
    assert (len(first), len(second)) == (
        len(images) - round(len(images) / 4),
        round(len(images) / 4),
    )
    assert torch.equal(first.images, again[0].images)
    rows = torch.cat([first.images, second.images]).flatten(1)
    assert sorted(map(tuple, rows.tolist())) == sorted(
        map(tuple, images.images.flatten(1).tolist())
    )
    assert not torch.equal(second.images, Trainer(images, 6).halves(0.25)[1].images)


def test_what_is_full_stays_what_was_brought(task):
    made = run_preparation(make_preparation(f"{HERE}:Twice"), task, Trainer(task.data.train, 0))
    source = made.source.beside(task.base)
    assert source.full is task.base
    assert source.model is made.source.model
    assert made.source.full is made.source.model
    assert source.to("cpu") is source


def test_every_preparation_has_a_paper_and_says_what_differs():
    for entry in PREPARATIONS.values():
        assert entry.source
        assert entry.description
        assert "Differences from the paper:" in entry.preparation.__doc__
