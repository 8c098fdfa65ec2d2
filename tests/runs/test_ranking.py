"""The ranking of a run: on training images only, by the seed, on the trained weights, the same when continued."""

import dataclasses

import numpy as np
import pytest
import torch

from abcsearch import Budget, Data, search
from abcsearch.channels.criteria import CRITERIA, ActivationCriterion, Criterion, apoz
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.pooling import FewSamplesWarning
from abcsearch.config import parse_config, read_config
from abcsearch.errors import ConfigError, RankingError
from abcsearch.results.open_run import open_run
from abcsearch.runs import ranking
from abcsearch.runs.config_run import run_config
from abcsearch.runs.ranking import rank_for_run
from abcsearch.runs.resuming import resume
from abcsearch.runs.settings import SearchSettings

SETTINGS = SearchSettings(budget=Budget(macs=0.5), n_trials=1, criterion="watching")


class Watching(Criterion):
    """Keeps what it is given; every channel is worth the same."""

    needs = "images and labels"

    def scores(self, subject):
        self.seen.append(subject)
        return [np.zeros(group.channels) for group in subject.graph.prunable]


@pytest.fixture
def watching(monkeypatch):
    entry = Watching()
    object.__setattr__(entry, "seen", [])
    monkeypatch.setitem(CRITERIA, "watching", entry)
    return entry.seen


def labelled(split):
    """The images of a split as hashable values, with their labels."""
    pairs = zip(split.images, split.labels, strict=True)
    return {image.numpy().tobytes(): int(label) for image, label in pairs}


def test_only_training_images_are_looked_at(tiny_model, tiny_data, watching, monkeypatch):
    monkeypatch.setattr(ranking, "RANKING_IMAGES", 16)
    graph = trace_channels(tiny_model, tiny_data.example)
    for seed in (0, 0, 1):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        rank_for_run(tiny_model, graph, tiny_data, settings)
    train, others = (
        labelled(tiny_data.train),
        {**labelled(tiny_data.validation), **labelled(tiny_data.test)},
    )
    for subject in watching:
        images, labels = subject.data
        assert len(images) == len({image.numpy().tobytes() for image in images}) == 16
        for image, label in zip(images, labels, strict=True):
            assert train[image.numpy().tobytes()] == label
            assert image.numpy().tobytes() not in others
    first, again, other = (subject.data[0] for subject in watching)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [subject.seed for subject in watching] == [0, 0, 1]


def test_there_may_be_fewer_images(tiny_model, tiny_data, watching):
    rank_for_run(tiny_model, trace_channels(tiny_model, tiny_data.example), tiny_data, SETTINGS)
    assert len(watching[0].data[0]) == len(tiny_data.train) < ranking.RANKING_IMAGES


@pytest.mark.parametrize("criterion", ["pfa", "discriminant"])
def test_only_a_draft_does_not_tell_of_few_images(tiny_model, tiny_data, monkeypatch, criterion):
    monkeypatch.setattr(ranking, "RANKING_IMAGES", 2)
    monkeypatch.setattr(ranking, "DRAFT_IMAGES", 2)
    settings = dataclasses.replace(SETTINGS, criterion=criterion)
    graph = trace_channels(tiny_model, tiny_data.example)
    rank_for_run(tiny_model, graph, tiny_data, settings, draft=True)
    with pytest.warns(FewSamplesWarning, match="2 images are fewer than"):
        rank_for_run(tiny_model, graph, tiny_data, settings)


def test_one_thread_whatever_the_machine_has(tiny_model, tiny_data, monkeypatch):
    threads = []

    def noted(maps):
        threads.append(torch.get_num_threads())
        return apoz(maps)

    monkeypatch.setitem(CRITERIA, "watching", ActivationCriterion(noted))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rank_for_run(tiny_model, trace_channels(tiny_model, tiny_data.example), tiny_data, SETTINGS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}


def test_a_run_drafts_before_training_and_ranks_the_trained_network(
    tiny_config, tmp_path, monkeypatch
):
    seen = []

    class Weighing(Watching):
        def scores(self, subject):
            seen.append((len(subject.data[0]), subject.model.conv.weight.detach().clone()))
            return [np.arange(group.channels) for group in subject.graph.prunable]

    monkeypatch.setitem(CRITERIA, "weighing", Weighing())
    result = run_config(
        read_config(tiny_config, ["criterion=weighing", "n_trials=2"]), tmp_path / "run"
    )
    (few, before), (many, after) = seen
    assert (few, many) == (ranking.DRAFT_IMAGES, 256)
    assert not torch.equal(before, after)
    assert torch.equal(after, result.task.source.model.conv.weight)
    assert result.task.source.ranking.orders[0][0] == result.task.graph.prunable[0].channels - 1


@pytest.mark.filterwarnings("ignore:criterion '.*gamma' does not apply")
@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_a_run_by_every_criterion_is_the_same_when_continued(tiny_config, tmp_path, criterion):
    config = read_config(tiny_config, [f"criterion={criterion}", "n_trials=2", "baselines=[]"])
    whole = run_config(config, tmp_path / "run")
    again = resume(tmp_path / "run", n_trials=3)
    assert [t.candidate for t in whole.trials] == [t.candidate for t in again.trials[:2]]
    for before, after in zip(
        whole.task.source.ranking.scores, again.task.source.ranking.scores, strict=True
    ):
        assert before.tolist() == after.tolist()
    assert open_run(tmp_path / "run").result.task.source.ranking.criterion == criterion


def test_criteria_give_different_structures_of_the_same_width(tiny_model, tiny_data, tmp_path):
    orders = {}
    for name in ("l1", "taylor", "random"):
        found = search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.5),
            n_trials=1,
            run_dir=tmp_path / name,
            criterion=name,
        )
        orders[name] = found.task.source.ranking.orders[0].tolist()
    assert len({tuple(order) for order in orders.values()}) == 3


def test_labels_without_an_output_stop_the_run_at_its_start(tiny_model, tiny_data, tmp_path):
    images, labels = tiny_data.train.images, tiny_data.train.labels
    data = Data.from_tensors((images, labels + 1), (images, labels + 1))
    with pytest.raises(
        RankingError, match="label 2 has no output: the model has 2 classes, counted from 0"
    ):
        search(
            tiny_model,
            data,
            budget=Budget(macs=0.5),
            n_trials=1,
            run_dir=tmp_path / "run",
            criterion="taylor",
        )
    assert not (tmp_path / "run").exists()


def test_configs_know_every_criterion_and_ones_own(monkeypatch):
    plain = {
        "n_trials": 1,
        "model": {"name": "small_resnet"},
        "data": "digits",
        "pretrain": {"epochs": 1},
        "budget": {"macs": 0.5},
    }
    for name in CRITERIA:
        assert parse_config({**plain, "criterion": name}).criterion == name
    with pytest.raises(ConfigError, match="unknown criterion 'hrnk'; did you mean 'hrank'"):
        parse_config({**plain, "criterion": "hrnk"})
    monkeypatch.setitem(CRITERIA, "own", ActivationCriterion(apoz))
    assert parse_config({**plain, "criterion": "own"}).criterion == "own"
