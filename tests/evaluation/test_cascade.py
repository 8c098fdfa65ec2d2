"""Cascade: which trials are trained, and that nothing else decides it."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.budget import Budget
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.source import Sliced
from abcsearch.errors import ConfigError
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.evaluation.cascade import Cascade, CascadeOptions
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.evaluation.short_training import ShortTraining, ShortTrainingOptions
from abcsearch.evaluation.staged import FIRST, Staged, Verdict, cheap, trained
from abcsearch.execution.options import ExecutionOptions
from abcsearch.rng import derived_seed
from abcsearch.runs.entry import search
from abcsearch.trial import Evaluation, Trial

TINY = {"adaptive_bn": {"batch_size": 32}, "short_training": {"epochs": 1, "batch_size": 32}}


class Counting:
    """A fitness by table that notes what it was asked."""

    def __init__(self, offset=0.0, fails=()):
        self.offset, self.fails, self.asked = offset, fails, []

    def __call__(self, candidate, seed):
        self.asked.append((candidate, seed))
        if candidate in self.fails:
            raise ZeroDivisionError
        fitness = float(np.random.default_rng(abs(hash(candidate))).random())
        return Evaluation(fitness=fitness + self.offset)


def cascade(first, second, fraction):
    made = object.__new__(Cascade)
    made.first, made.second, made.fraction = first, second, fraction
    return made


def stages(trials):
    return [trial.evaluation.metrics.get("stage") for trial in trials]


@settings(max_examples=60, deadline=None)
@given(
    fraction=st.floats(0.01, 1.0),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    seed=st.integers(0, 10**6),
)
def test_never_more_than_the_fraction_and_always_the_best_of_the_batch(fraction, sizes, seed):
    draws, made = np.random.default_rng(seed), cascade(None, None, fraction)
    trials = []
    for size in sizes:
        numbers = range(len(trials), len(trials) + size)
        batch = {n: cheap(Evaluation(fitness=float(draws.integers(20)))) for n in numbers}
        failed = {
            n: Evaluation(fitness=None, failure="no") for n in numbers if draws.random() < 0.1
        }
        batch |= failed
        earlier = [Verdict.of(trial.evaluation) for trial in trials]
        best = made.promoted(earlier, batch)
        assert best == made.promoted(earlier, dict(reversed(batch.items())))
        assert not set(best) & set(failed)
        scores = [batch[n].metrics[FIRST] for n in best]
        left = [e.metrics[FIRST] for n, e in batch.items() if n not in best and n not in failed]
        assert scores == sorted(scores, reverse=True)
        assert all(score >= max(left, default=-math.inf) for score in scores)
        trials += [
            Trial(n, (n,), trained(batch[n], Evaluation(fitness=1.0)) if n in best else batch[n])
            for n in numbers
        ]
        assert stages(trials).count(2) <= math.ceil(fraction * len(trials) - 1e-9)
    if fraction == 1:
        assert all(stage in (2, None) for stage in stages(trials))


def run(model, data, folder, evaluator, **options):
    given = {"budget": Budget(macs=0.5), "n_trials": 30, "searcher": "random"} | options
    return search(model, data, run_dir=folder, evaluator=evaluator, **given)


def test_a_run_trains_the_best_of_every_batch_with_the_seed_of_the_trial(
    tiny_model, tiny_data, tmp_path
):
    first, second = Counting(), Counting(offset=10)
    result = run(
        tiny_model, tiny_data, tmp_path / "run", cascade(first, second, 0.2), searcher="bee_colony"
    )
    two = [t for t in result.trials if t.evaluation.metrics["stage"] == 2]
    assert len(first.asked) == 30
    assert 3 <= len(two) == len(second.asked) <= 6
    assert all(t.fitness == t.evaluation.metrics[FIRST] + 10 for t in two)
    assert all(t.fitness == t.evaluation.metrics[FIRST] for t in result.trials if t not in two)
    assert sorted(second.asked) == sorted(
        (t.candidate, derived_seed(0, "evaluation", t.number)) for t in two
    )
    assert result.best in two


WAYS = [
    {},
    {"searcher": "bee_colony"},
    {"execution": ExecutionOptions(window=6)},
    {"searcher": "evolution", "execution": ExecutionOptions(window=4)},
    {"searcher": "bee_colony", "execution": ExecutionOptions(schedule="asynchronous")},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_threads_and_interruptions_change_nothing(tiny_model, tiny_data, tmp_path, way):
    def outcome(trials):
        return [(t.number, t.candidate, replace(t.evaluation, seconds=0)) for t in trials]

    def counted(lines, words):
        return sum(words in line.replace(b" ", b"") for line in lines)

    whole = run(
        tiny_model, tiny_data, tmp_path / "whole", cascade(Counting(), Counting(10), 0.3), **way
    )
    assert 1 <= stages(whole.trials).count(2) <= 9
    if way.get("execution", ExecutionOptions()).schedule == "rounds":
        with ThreadPoolExecutor(4) as pool:
            given = cascade(Counting(), Counting(10), 0.3)
            threads = run(tiny_model, tiny_data, tmp_path / "pool", given, executor=pool, **way)
        assert outcome(threads.trials) == outcome(whole.trials)
    # Cut the journal anywhere: what is left is evaluated again, to the same end.
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    decided = (
        next(place for place, line in enumerate(lines) if b'"event": "first", "number": 9,' in line)
        + 1
    )
    for kept in (1, 7, 16, 29, decided, len(lines) - 2):
        (tmp_path / "whole" / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        first, second = Counting(), Counting(10)
        again = run(tiny_model, tiny_data, tmp_path / "whole", cascade(first, second, 0.3), **way)
        assert outcome(again.trials) == outcome(whole.trials)
        assert len(first.asked) == 30 - counted(lines[:kept], b'"event":"first"')
        assert len(second.asked) == stages(whole.trials).count(2) - counted(
            lines[:kept], b'"stage":2'
        )


class Thresholded:
    """A staged evaluator of one's own, that is no cascade: promotes all trials above a fitness."""

    def __init__(self, first, second, threshold):
        self.first, self.second, self.threshold = first, second, threshold

    def __call__(self, candidate, seed):
        return trained(cheap(self.first(candidate, seed)), self.second(candidate, seed))

    def promoted(self, earlier, batch):
        return [
            number
            for number, found in batch.items()
            if found.metrics.get(FIRST, 0) > self.threshold
        ]


@pytest.mark.parametrize(
    "way", [{}, {"execution": ExecutionOptions(schedule="asynchronous")}], ids=str
)
def test_stages_of_ones_own_are_run_as_those_of_a_cascade(tiny_model, tiny_data, tmp_path, way):
    first, second = Counting(), Counting(10)
    assert isinstance(Thresholded(first, second, 0.7), Staged)
    assert not isinstance(first, Staged)
    result = run(tiny_model, tiny_data, tmp_path / "run", Thresholded(first, second, 0.7), **way)
    good = {t.number for t in result.trials if t.evaluation.metrics[FIRST] > 0.7}
    assert {t.number for t in result.trials if t.evaluation.metrics["stage"] == 2} == good
    assert 0 < len(good) == len(second.asked) < len(first.asked) == 30


def test_failures_of_both_stages_are_failed_trials(tiny_model, tiny_data, tmp_path):
    good = run(
        tiny_model, tiny_data, tmp_path / "good", cascade(Counting(), Counting(10), 0.5)
    ).trials
    bad = good[3].candidate
    worse = max((t for t in good if t.candidate != bad), key=lambda t: t.fitness).candidate
    evaluator = cascade(Counting(fails=[bad]), Counting(10, fails=[worse]), 0.5)
    found = {
        t.candidate: t.evaluation
        for t in run(tiny_model, tiny_data, tmp_path / "bad", evaluator).trials
    }
    assert found[bad].failure == found[worse].failure == "ZeroDivisionError"
    assert "stage" not in found[bad].metrics
    assert found[worse].metrics["stage"] == 2


def test_its_stages_are_adaptive_bn_and_short_training(tiny_model, tiny_data):
    graph = trace_channels(tiny_model, tiny_data.example)
    ranking = rank_channels(tiny_model, graph)
    parts = (Sliced(tiny_model, graph, ranking), tiny_data)
    candidate = graph.space().uniform(0.5)
    found = make_evaluator("cascade", *parts, metric="neg_loss", **TINY)(candidate, 7)
    first = AdaptiveBN(*parts, AdaptiveBNOptions(metric="neg_loss", batch_size=32))(candidate, 7)
    second = ShortTraining(
        *parts, ShortTrainingOptions(metric="neg_loss", epochs=1, batch_size=32)
    )(candidate, 7)
    assert found.metrics[FIRST] == first.fitness
    assert found.fitness == second.fitness != first.fitness


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"fraction": 0},
            r"fraction is the share of trials that are trained, above 0 and at most 1, found 0",
        ),
        ({"fraction": 1.5}, "found 1.5"),
        (
            {"adaptive_bn": {"batchsize": 3}},
            "option of cascade.adaptive_bn: 'batchsize'; did you mean 'batch_size'",
        ),
        (
            {"short_training": {"metric": "top1"}},
            "unknown option of cascade.short_training: 'metric'",
        ),
        ({"short_training": {"epochs": 0}}, "epochs is at least 1, found 0"),
        (
            {"short_training": {"epochs": "two"}},
            "cascade.short_training: evaluator: epochs is a whole number, found 'two'",
        ),
        (
            {"fraction": "x", "adaptive_bn": 3},
            "fraction is a number, found 'x'; adaptive_bn is a table of options, found 3",
        ),
        ({"short_training": {"batch_size": 0}}, "batch_size is at least 1, found 0"),
        ({"short_training": {"steps": 2.5}}, "steps is a whole number, found 2.5"),
        ({"short_training": {"flip": "foo"}}, "flip is true or false, found 'foo'"),
        (
            {"adaptive_bn": {"batch_size": "x", "threads": True}},
            "threads is a whole number, found True; batch_size is a whole number, found 'x'",
        ),
        ({"metric": "top2"}, "unknown metric 'top2'"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        CascadeOptions(**options)
