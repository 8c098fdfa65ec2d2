"""Scoring in stages: who is stopped when, what a trial says of it, and what is refused."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from abcsearch.budget import Budget
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, DataError
from abcsearch.evaluation import racing
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.cascade import Cascade, CascadeOptions
from abcsearch.evaluation.options import BEFORE, SCORINGS, ScoringOptions
from abcsearch.evaluation.racing import BAR, ERROR, IMAGES
from abcsearch.evaluation.staged import FIRST, STAGE
from abcsearch.execution.options import ExecutionOptions
from abcsearch.models.resnet import SmallResNet
from abcsearch.rng import torch_seeded
from abcsearch.runs.entry import search
from abcsearch.runs.settings import Part, SearchSettings, from_plain, to_plain
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from abcsearch.training.scoring import predict
from tests.problems import outcome


@pytest.fixture(scope="module")
def data():
    """Two classes of noise with a bright half, hard to tell apart; 200 images of search-validation."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    images = torch.randn(400, 1, 6, 6, generator=draws)
    images[labels == 1, :, :3] += 1
    return Data.from_tensors(
        (images[:360], labels[:360]), (images[360:], labels[360:]), validation=200
    )


@pytest.fixture(scope="module")
def model(data):
    """A network that knows a little."""
    with torch_seeded(0, "init"):
        model = SmallResNet(in_channels=1, classes=2, widths=(6, 8), depths=(1, 1))
    train(model, data.train, Recipe(epochs=6, batch_size=32, lr=0.1))
    return model.eval()


@pytest.fixture(scope="module")
def source(model, data):
    graph = trace_channels(model, data.example)
    return Sliced(model, graph, rank_channels(model, graph))


def made(source, data, **options):
    return AdaptiveBN(
        source,
        data,
        AdaptiveBNOptions(**{"batch_size": 32, "scoring": "racing", "stage_images": 20, **options}),
    )


def some(source):
    return source.graph.space().uniform(0.5)


@pytest.mark.parametrize("metric", ["top1", "neg_loss", "neg_kl"])
def test_all_stages_together_are_all_images(source, data, metric):
    stages = made(source, data, metric=metric)
    found = stages.race(some(source), 0, -math.inf)
    full = made(source, data, metric=metric, scoring="full").race(some(source), 0, -math.inf)
    assert found.metrics == pytest.approx(full.metrics, rel=1e-5)  # groups of the same images, too
    assert found.metrics[IMAGES] == 200
    assert BAR not in found.metrics
    means = racing.without_groups(found)[1]
    assert len(means) == racing.GROUPS
    assert sum(means) / len(means) == pytest.approx(found.fitness)
    called = stages(some(source), 0)
    assert called.fitness == found.fitness
    assert called.metrics.items() <= found.metrics.items()


@pytest.mark.parametrize("metric", ["top1", "neg_loss"])
def test_a_candidate_is_stopped_after_the_first_stage_that_shows_that_it_has_lost(
    source, data, metric
):
    stages = made(source, data, metric=metric)
    shown = data.validation.part(stages._order)
    outputs = predict(stages.build(some(source)), shown)
    values = stages._objective.metrics[metric](outputs, shown.labels).double()
    seen = set()
    for above in (-0.05, 0.0, 0.03, 0.06, 0.1, 0.14, 0.18, 0.22, 0.3, 0.9):
        bar = float(values.mean()) + above
        found = stages.race(some(source), 0, bar)
        lost = [
            last
            for last in racing.ends(200, 20)
            if float(values[:last].mean()) + 2 * racing.standard_error(values[:last]) < bar
        ]
        images = lost[0] if lost else 200
        assert found.metrics[IMAGES] == images
        assert found.fitness == pytest.approx(float(values[:images].mean()), rel=1e-5)
        assert found.metrics[ERROR] == pytest.approx(
            racing.standard_error(values[:images]), rel=1e-4
        )
        assert found.metrics[BAR] == bar
        assert stages.complete(found) == (images == 200)
        seen.add(images)
    assert len(seen) > 2


@pytest.mark.parametrize("scoring", SCORINGS)
def test_in_full_means_all_of_search_validation(source, data, scoring):
    few = made(source, data, validation_images=60, scoring=scoring)
    trial = few.race(some(source), 0, -math.inf)
    assert trial.metrics[IMAGES] == 60
    assert not few.complete(trial)
    assert not racing.without_groups(trial)[1]
    found = few.in_full(some(source), 0)
    assert few.complete(found)
    every = made(source, data, scoring="full").race(some(source), 0, -math.inf)
    assert found.metrics == pytest.approx(every.metrics, rel=1e-5)


class Touchy(nn.Module):
    """Returns NaN for images with a very bright corner."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        found = self.linear(torch.relu(self.bn(self.conv(x))).mean(dim=(2, 3)))
        return found / (x[:, :, 0, 0] < 50).float() * (x[:, :, 0, 0] < 50).float()


def test_nan_in_a_later_stage_is_a_failure_of_those_that_get_there(data):
    network = Touchy()
    graph = trace_channels(network, data.example)
    source = Sliced(network, graph, rank_channels(network, graph))
    order = made(source, data)._order
    images = data.validation.images.clone()
    images[order[50], :, 0, 0] = 100  # seen in the third stage: after 20 and 40 images
    spoiled = Data(
        name="spoiled",
        train=data.train,
        validation=replace(data.validation, images=images),
        test=data.test,
        seed=0,
    )
    stages = made(source, spoiled, calibration_images=0, repair="none")
    early = stages.race(some(source), 0, 5.0)
    assert early.failure is None
    assert early.metrics[IMAGES] == 20
    for found in (
        stages.race(some(source), 0, -1.0),
        stages.in_full(some(source), 0),
        stages(some(source), 0),
    ):
        assert found.fitness is None
        assert "neg_loss is nan" in found.failure


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            1,
            "stage_images is from the number of classes to that of images, found 1 for the 2 classes of tensors",
        ),
        (61, 'found 61 for the 60 images scored; leave it out, or set scoring = "full"'),
    ],
)
def test_a_first_stage_of_too_few_or_too_many_images_is_refused(source, data, images, words):
    with pytest.raises(DataError, match=words):
        made(source, data, stage_images=images, validation_images=60)
    # Where there is none
    made(source, data, stage_images=images, validation_images=60, scoring="full")


def test_without_a_number_the_first_stage_is_large_enough_and_small_sets_have_one_stage(
    source, data
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(stage) for stage in made(source, data, stage_images=None)._stages] == [128, 72]
        assert [
            len(stage)
            for stage in made(source, data, stage_images=None, validation_images=50)._stages
        ] == [50]
    labels = data.validation.labels.clone()
    labels[0] = 299
    many = replace(data, validation=replace(data.validation, labels=labels), train=data.train)
    wide = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 4), nn.Flatten(), nn.Linear(4, 300)
    )
    graph = trace_channels(wide, data.example)
    stages = made(Sliced(wide, graph, rank_channels(wide, graph)), many, stage_images=None)._stages
    assert [len(stage) for stage in stages] == [200]


def test_a_race_is_run_once_more_with_half_the_batch(source, data, monkeypatch):
    stages = made(source, data)
    plain = stages.race(some(source), 0, 0.9)
    prepare = stages.prepare

    def short(network, seed, batch_divisor):
        if batch_divisor == 1:
            raise torch.OutOfMemoryError
        prepare(network, seed, batch_divisor)

    monkeypatch.setattr(stages, "prepare", short)
    again = stages.race(some(source), 0, 0.9)
    assert again.metrics.pop("halved_batch") == 1
    assert again.metrics.keys() == plain.metrics.keys()
    assert again.metrics[IMAGES] == plain.metrics[IMAGES]


class Penal(AdaptiveBN):
    """Makes more of a fitness than a mean over images."""

    def __call__(self, candidate, seed):
        found = super().__call__(candidate, seed)
        return replace(found, fitness=found.fitness - sum(candidate) / 100)


def searched(model, data, path, evaluator, **execution):
    return search(
        model,
        data,
        budget=Budget(macs=0.3),
        n_trials=16,
        run_dir=path,
        searcher={"name": "bee_colony", "n_sources": 3, "guide": 0},
        evaluator=evaluator,
        execution=ExecutionOptions(**execution),
    )


def test_an_evaluator_that_is_called_in_its_own_way_is_called_in_it(model, source, data, tmp_path):
    mine = Penal(source, data, AdaptiveBNOptions(batch_size=32))
    assert not mine.races
    assert not mine.finalists
    for trial in searched(model, data, tmp_path / "run", mine).trials:
        assert (
            trial.evaluation.fitness
            == trial.evaluation.metrics["top1"] - sum(trial.candidate) / 100
        )
        assert IMAGES not in trial.evaluation.metrics


def test_the_first_stage_of_a_cascade_races_and_what_is_trained_is_scored_in_full(
    model, source, data, tmp_path
):
    options = CascadeOptions(
        fraction=0.15,
        scoring="racing",
        metric="neg_loss",
        adaptive_bn={"batch_size": 32, "stage_images": 10},
        short_training={"batch_size": 32, "epochs": 1},
    )
    found = searched(model, data, tmp_path / "run", Cascade(source, data, options))
    metrics = [trial.evaluation.metrics for trial in found.trials]
    assert {m[IMAGES] for m in metrics if m[STAGE] == 2} == {200}
    stopped = [m for m in metrics if m[STAGE] == 1 and m[IMAGES] < 200]
    assert stopped
    assert all(m[FIRST] + 2 * m[ERROR] < m[BAR] for m in stopped)
    assert found.decision.winner.evaluation.metrics[STAGE] == 2
    assert len(found.decision.among) == 5
    with ThreadPoolExecutor(3) as pool:
        again = search(
            model,
            data,
            budget=Budget(macs=0.3),
            n_trials=16,
            run_dir=tmp_path / "again",
            searcher={"name": "bee_colony", "n_sources": 3, "guide": 0},
            evaluator=Cascade(source, data, options),
            executor=pool,
        )
    assert outcome(again.trials) == outcome(found.trials)
    assert again.decision.among == found.decision.among


def test_a_run_says_how_it_is_scored_and_one_that_does_not_was_scored_in_full():
    for name in ("adaptive_bn", "short_training", "cascade"):
        settings = SearchSettings(budget=Budget(macs=0.5), n_trials=1, evaluator=Part(name=name))
        plain = to_plain(settings)
        assert all(
            plain["evaluator"]["options"][key] == getattr(ScoringOptions, key) for key in BEFORE
        )
        for key in BEFORE:
            del plain["evaluator"]["options"][key]
        assert from_plain(SearchSettings, plain).evaluator.options == BEFORE
    own = SearchSettings(budget=Budget(macs=0.5), n_trials=1, evaluator=Part(name="mine:own"))
    assert not own.evaluator.options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scoring": "racin"}, "unknown scoring 'racin'; did you mean 'racing'"),
        ({"stage_images": 0}, "stage_images is at least 1, found 0"),
        ({"finalists": -1}, "finalists is at least 0, found -1"),
        ({"finalists": 2.5}, "finalists is a whole number, found 2.5"),
    ],
)
def test_options_that_are_none_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        ScoringOptions(**options)


def test_a_failure_in_a_race_is_told_as_in_any_evaluation(source, data, monkeypatch):
    stages = made(source, data)

    def broken(*_):
        raise ValueError("no")

    monkeypatch.setattr(stages, "prepare", broken)
    assert evaluate(stages, some(source), 0, None, 0.5).failure == "ValueError: no"
