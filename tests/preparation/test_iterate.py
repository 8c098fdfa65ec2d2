"""Rounds of pruning and training: nested, geometric, each goes on where the one before ended."""

import itertools

import numpy as np
import pytest
import torch

from abcsearch.baselines.threshold import global_threshold
from abcsearch.budget import Budget
from abcsearch.channels.slicing import slice_model
from abcsearch.config import read_config, read_run
from abcsearch.errors import ConfigError, PreparationError, SearcherError
from abcsearch.evaluation.adaptive_bn import AdaptiveBN
from abcsearch.preparation.base import Trainer, run_preparation
from abcsearch.preparation.registry import make_preparation
from abcsearch.results.finetuning import finetune_run
from abcsearch.results.open_run import open_run
from abcsearch.results.report import make_report
from abcsearch.runs.config_run import run_config
from abcsearch.runs.settings import Part, SearchSettings, SpaceOptions
from abcsearch.runs.task import Task
from abcsearch.runs.timing import preparation_time
from abcsearch.testing import PreparationContract
from abcsearch.training.lesson import Supervised
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.conftest import TINY_CONFIG

SHORT = {"epochs": 1, "batch_size": 45, "lr": 0.02, "device": "cpu"}
EVALUATOR = Part(name="adaptive_bn", options={"calibration_images": 64, "batch_size": 64})


class Watched(Trainer):
    """Keeps what it has trained."""

    def __init__(self, images, seed):
        super().__init__(images, seed)
        self.trained = []

    def _train(self, lesson, recipe, name, images):
        self.trained.append(lesson)
        return super()._train(lesson, recipe, name, images)


def task_of(model, data, macs=0.3, **settings):
    settings = {"n_trials": 1, "evaluator": EVALUATOR, "budget": Budget(macs=macs), **settings}
    return Task.of(model, data, SearchSettings(**settings))


def made_by(task, **options):
    trainer = Watched(task.data.train, 3)
    preparation = make_preparation("iterate", **{"recipe": SHORT, **options})
    preparation.check(task)
    return run_preparation(preparation, task, trainer), [lesson.model for lesson in trainer.trained]


@pytest.fixture
def searching():
    return {
        "searcher": {"name": "evolution", "population": 5, "mutations": 3, "crossovers": 2},
        "trials": 12,
    }


class TestSearching(PreparationContract):
    def make(self):
        return make_preparation(
            "iterate", rounds=2, searcher="random", trials=4, recipe={**SHORT, "epochs": 2}
        )

    def task(self):
        evaluator = Part(name="adaptive_bn", options={"calibration_images": 60, "batch_size": 30})
        return task_of(self.model(), self.data(), 0.5, evaluator=evaluator, seed=self.seed)


@pytest.mark.parametrize("search", [False, True])
def test_structures_are_inside_each_other_and_budgets_fall_geometrically(
    tiny_model, tiny_data, searching, search
):
    task = task_of(tiny_model, tiny_data, space=SpaceOptions(step=0.05))
    made, trained = made_by(task, rounds=3, **(searching if search else {}))
    (full,) = task.graph.costs.macs([task.space.full])
    shares = made.facts["macs of the full network's, by round"]
    assert all(share <= 0.3 ** (number / 3) for number, share in enumerate(shares, 1))
    assert all(share > 0.3 ** ((number + 1) / 3) for number, share in enumerate(shares[:-1], 1))
    assert shares[-1] == int(task.graph.costs.macs(made.starts)[0]) / full
    sizes = [
        [tensor.shape for tensor in network.parameters()] for network in (tiny_model, *trained)
    ]
    for before, after in itertools.pairwise(sizes):
        assert all(
            own <= other
            for b, a in zip(before, after, strict=True)
            for own, other in zip(a, b, strict=True)
        )
    assert made.facts["epochs"] == len(trained) == 3


def test_its_structure_is_the_last_trained_slice_and_nothing_reads_the_rest(tiny_model, tiny_data):
    """Bit for bit; and the network of full size computes the same, so later rounds score what they will get."""
    task = task_of(tiny_model, tiny_data)
    made, trained = made_by(task, rounds=2)
    sliced = made.source.network(made.starts[0]).state_dict()
    assert all(
        torch.equal(sliced[name], tensor) for name, tensor in trained[-1].state_dict().items()
    )
    images = tiny_data.validation.images
    with torch.no_grad():
        assert torch.allclose(made.source.model(images), trained[-1].eval()(images), atol=1e-6)


def test_one_round_is_threshold_cut_and_training(tiny_model, tiny_data):
    """By hand: the baseline's structure, sliced, trained by the same recipe and stream."""
    task = task_of(tiny_model, tiny_data)
    made, _ = made_by(
        task, rounds=1, epochs=3, recipe={"batch_size": 45, "lr": 0.02, "device": "cpu"}
    )
    structure = global_threshold(task)
    assert list(made.starts) == [structure]
    network = slice_model(tiny_model, task.graph, structure, task.source.ranking)
    recipe = Recipe(epochs=3, batch_size=45, lr=0.02, device="cpu")
    train(Supervised(network), tiny_data.train, recipe, seed=3, stream="prepare round-1")
    again = made.source.network(structure).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


def test_channels_are_ranked_by_when_they_went(tiny_model, tiny_data):
    task = task_of(tiny_model, tiny_data)
    made, trained = made_by(task, rounds=3)
    names = [
        next(m.parameter for m in group.members if not m.reads) for group in task.graph.prunable
    ]
    for scores, name in zip(made.source.ranking.scores, names, strict=True):
        widths = [len(dict(network.named_parameters())[name]) for network in trained]
        ascending = np.sort(scores)
        gone = [len(scores) - width for width in widths]
        levels = [ascending[slice(*ends)] for ends in itertools.pairwise([0, *gone])]
        assert all(len(set(level)) <= 1 for level in levels)
        assert list(itertools.chain(*levels)) == sorted(itertools.chain(*levels))


def test_a_map_is_made_besides_the_trials(tiny_model, tiny_data):
    """That of sensitivity has more structures than the round has trials."""
    task = task_of(tiny_model, tiny_data)
    made, _ = made_by(task, rounds=1, searcher="sensitivity", trials=2)
    assert task.constraint.allows(made.starts[0])


def test_a_searched_round_is_no_worse_than_its_threshold_by_the_runs_fitness(
    tiny_model, tiny_data, searching
):
    task = task_of(tiny_model, tiny_data)
    fitness = task.evaluator(task.source)
    (by_threshold,), (searched,) = (
        made_by(task, rounds=1, **own)[0].starts for own in ({}, searching)
    )
    assert fitness(searched, 0).fitness >= fitness(by_threshold, 0).fitness
    assert task.constraint.allows(searched)


def test_what_cannot_be_iterated_is_refused_before_anything_is_trained(tiny_model, tiny_data):
    def check(task, **options):
        make_preparation("iterate", **options).check(task)

    with pytest.raises(PreparationError, match="criteria cannot be chosen from"):
        check(task_of(tiny_model, tiny_data, criterion=("l1", "l2")))
    blocks = SpaceOptions(levels=("filter", "stage", "block"), lowest=0.9, alpha=1.0)
    with pytest.raises(
        PreparationError,
        match="keeps all blocks, and the narrowest layers are still above the budget",
    ):
        check(task_of(tiny_model, tiny_data, 0.5, space=blocks))
    with pytest.raises(ConfigError, match="evaluator"):
        check(
            task_of(tiny_model, tiny_data, evaluator=Part(name="lambda (an object)")),
            searcher="random",
        )
    with pytest.raises(SearcherError, match="evolutoin"):
        check(task_of(tiny_model, tiny_data), searcher="evolutoin")
    for options, message in [
        ({"rounds": 0}, "rounds is from 1"),
        ({"epochs": 0}, "epochs is at least 1"),
        (
            {"epochs": 2, "recipe": {"epochs": 3}},
            "a round has epochs = 2 and recipe.epochs = 3: set one",
        ),
        ({"searcher": {"population": 3}}, 'searcher is "threshold", a name, or a table with one'),
    ]:
        with pytest.raises(ConfigError, match=message):
            make_preparation("iterate", **options)


def test_a_round_whose_structures_all_fail_ends_the_preparation_with_the_reason(
    tiny_model, tiny_data, monkeypatch
):
    def fail(self, network, seed, batch_divisor):
        raise ValueError("no numbers")

    monkeypatch.setattr("abcsearch.evaluation.adaptive_bn.AdaptiveBN.prepare", fail)
    with pytest.raises(
        PreparationError, match=r"no structure of round 1 could be scored: .*no numbers"
    ):
        made_by(task_of(tiny_model, tiny_data), searcher="random", trials=3)


def test_a_dry_run_scores_few_structures_and_counts_all(tiny_model, tiny_data, monkeypatch):
    scored, real = [], AdaptiveBN.prepare

    def counted(self, network, seed, batch_divisor):
        scored.append(seed)
        return real(self, network, seed, batch_divisor)

    monkeypatch.setattr(AdaptiveBN, "prepare", counted)
    task = task_of(tiny_model, tiny_data)
    options = {"searcher": "random", "recipe": SHORT, "rounds": 2}
    few, many = (
        preparation_time(
            task, task.settings, make_preparation("iterate", trials=trials, **options), patience=0
        )
        for trials in (3, 60)
    )
    assert len(scored) == 2 * 2 * 3
    evaluator = task.evaluator(task.source)
    least = min(evaluator(task.space.uniform(0.1), seed).seconds for seed in range(5))
    assert many.seconds > few.seconds + 60 * least / 2


# -- the words of a config, and the control


def config_text(table):
    return (
        TINY_CONFIG.replace("n_trials = 24", "n_trials = 2").replace(
            '["uniform", "random"]', '["one_shot"]'
        )
        + table
    )


def test_iterate_is_a_table_of_its_own(tmp_path):
    (tmp_path / "run.toml").write_text(config_text("iterate = {rounds = 2, epochs = 1}\n"))
    assert read_config(tmp_path / "run.toml").prepare == Part(
        name="iterate", options={"rounds": 2, "epochs": 1}
    )
    changed = read_run(tmp_path / "run.toml", ["iterate.rounds=4"])
    assert changed.prepare.options["rounds"] == 4
    with pytest.raises(ConfigError, match="found both"):
        read_run(tmp_path / "run.toml", ["prepare=slimming"])
    with pytest.raises(ConfigError, match=r"\[iterate\] is a table"):
        read_run(tmp_path / "run.toml", ["iterate=3"])
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        read_run(tmp_path / "run.toml", ["iterate.round=3"])


def test_the_control_has_one_threshold_and_as_many_epochs(tmp_path):
    recipe = "recipe = {batch_size = 256, lr = 0.02}"
    (tmp_path / "run.toml").write_text(
        config_text(f"iterate = {{rounds = 2, epochs = 2, {recipe}}}\n")
    )
    run_config(read_config(tmp_path / "run.toml"), tmp_path / "run")
    run = open_run(tmp_path / "run")
    control = run.named("one_shot")
    assert run.recipe(control, run.config.finetune).epochs == 2 * 2 + run.config.finetune.epochs
    task = run.result.task
    unprepared = Task.of(task.base, task.data, run.config)
    assert control.candidate == global_threshold(unprepared)
    theirs = run.source(control).network(control.candidate).state_dict()
    ours = unprepared.source.network(control.candidate).state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    finetune_run(run)
    facts = dict(make_report(run).prepared)
    told = facts["epochs since the base network, preparation and fine-tuning"]
    assert "one_shot 5" in told
    assert "bee_colony 5" in told


def test_a_run_without_preparation_has_no_such_control(tmp_path):
    (tmp_path / "run.toml").write_text(config_text(""))
    with pytest.raises(
        ConfigError,
        match="'one_shot' is what a preparation is compared with, and this run has none",
    ):
        run_config(read_config(tmp_path / "run.toml"), tmp_path / "run")
