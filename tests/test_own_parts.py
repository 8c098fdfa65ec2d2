"""Parts of one's own that are of another shape, fail, or name what ours name: each is told."""

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from abcsearch import Preparation, Searcher, search
from abcsearch.baselines.registry import BASELINES, Baseline
from abcsearch.budget import Budget
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.errors import AbcSearchError, CandidateError, ConfigError, RunError, SearcherError
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.preparation.base import Prepared
from abcsearch.preparation.registry import make_preparation
from abcsearch.runs.settings import Part
from abcsearch.searchers.registry import make_searcher
from abcsearch.space import Dimension, SearchSpace
from abcsearch.training.recipe import find_preset

SPACE = SearchSpace((Dimension("a", "width", (1, 2)),))


@pytest.fixture
def mine(monkeypatch):
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


def failing(*_arguments, **_options):
    raise ValueError("in code of mine")


def options_of(record):
    class Own:
        Options = record

    return Own


MAKERS = {
    "evaluator": lambda name: make_evaluator(name, None, None),
    "searcher": lambda name: make_searcher(name, SPACE),
    "preset": find_preset,
    "preparation": make_preparation,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("path", ["builtins:max", "mine:failing", "mine:table", "mine:wrong"])
def test_what_an_import_path_leads_to_is_told_where_it_does_not_do(mine, kind, path):
    mine.failing, mine.table, mine.wrong = failing, options_of(dict), options_of(failing)
    with pytest.raises(AbcSearchError, match=rf"{kind} '{path}'"):
        MAKERS[kind](path)


def test_a_preparation_whose_options_are_none_is_refused(mine):
    mine.Own = type("Own", (Preparation,), {"Options": dict, "prepare": failing})
    with pytest.raises(AbcSearchError, match="Options is a frozen dataclass"):
        make_preparation("mine:Own")


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (failing, "ValueError: in code of mine"),
        (lambda tensors, group: np.full(group.channels, "a"), "scores are real numbers, found <U1"),
        (
            lambda tensors, group: np.ones(group.channels) * 1j,
            "scores are real numbers, found complex128",
        ),
        (
            lambda tensors, group: np.array([None] * group.channels),
            "scores are real numbers, found object",
        ),
    ],
)
def test_a_criterion_that_fails_or_returns_no_numbers_is_named(mine, tiny_model, scores, words):
    graph = trace_channels(tiny_model, torch.zeros(1, 1, 6, 6))
    mine.scores = scores if scores is not failing else lambda tensors, group: failing()
    with pytest.raises(AbcSearchError, match=f"criterion 'mine:scores' failed: .*{words}"):
        rank_channels(tiny_model, graph, "mine:scores")
    mine.scores = lambda tensors, group: torch.ones(group.channels, requires_grad=True)
    assert len(rank_channels(tiny_model, graph, "mine:scores").scores) == len(graph.prunable)


def test_a_baseline_by_import_path_is_a_structure(mine):
    mine.searched, mine.empty = Baseline(searcher="evolution"), Baseline()
    for name, words in (
        ("searched", "give it a name"),
        ("empty", "has a structure, or a searcher"),
    ):
        with pytest.raises(ConfigError, match=words):
            BASELINES.find(f"mine:{name}")


def test_what_another_evaluator_calls_a_device_decides_its_trials():
    own = Part(name="mine:measured", options={"device": "phone"})
    assert (own.devices, own.on("cpu"), own.on(None)) == ((), own, own)
    ours = Part(name="adaptive_bn", options={"device": "cuda"})
    assert (ours.devices, ours.on(None).options) == (("cuda",), {})


class Kept(Preparation):
    """Prepares nothing; what it is asked for is in its options."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        strength: float = 1.0

    def prepare(self, task, trainer):
        del trainer
        return Prepared(source=task.source)


def test_options_of_a_preparation_that_is_passed_decide_the_run(tiny_model, tiny_data, tmp_path):
    given = {
        "budget": Budget(macs=0.5),
        "n_trials": 2,
        "run_dir": tmp_path / "run",
        "searcher": "random",
    }
    evaluator = {"name": "adaptive_bn", "batch_size": 32}
    search(
        tiny_model,
        tiny_data,
        prepare=Kept(Kept.Options(strength=2.0)),
        evaluator=evaluator,
        **given,
    )
    search(
        tiny_model,
        tiny_data,
        prepare=Kept(Kept.Options(strength=2.0)),
        evaluator=evaluator,
        **given,
    )
    with pytest.raises(RunError, match=r"strength.*3\.0"):
        search(
            tiny_model,
            tiny_data,
            prepare=Kept(Kept.Options(strength=3.0)),
            evaluator=evaluator,
            **given,
        )


class Silent(Searcher):
    """A searcher that does what a test says."""

    name = "silent"
    does = staticmethod(failing)

    def _propose(self):
        return self.does(self)

    def _learn(self, batch):
        del batch


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (lambda searcher: None, "TypeError"),
        (lambda searcher: [(1, 2)], "searcher Silent failed|a structure has 4 values|values"),
        (failing, "ValueError: in code of mine"),
    ],
)
def test_a_searcher_that_fails_is_named(tiny_model, tiny_data, tmp_path, monkeypatch, does, words):
    monkeypatch.setattr(Silent, "does", staticmethod(does))
    with pytest.raises(AbcSearchError, match=words) as failed:
        search(
            tiny_model,
            tiny_data,
            searcher=Silent,
            evaluator=lambda candidate, seed: None,
            budget=Budget(macs=0.5),
            n_trials=2,
            run_dir=tmp_path / "run",
        )
    assert isinstance(failed.value, SearcherError | CandidateError)


def test_a_criterion_without_any_scores_is_no_criterion(mine, tiny_model):
    mine.forgotten = lambda tensors, group: None
    with pytest.raises(AbcSearchError, match="returns None everywhere"):
        rank_channels(
            tiny_model, trace_channels(tiny_model, torch.zeros(1, 1, 6, 6)), "mine:forgotten"
        )
