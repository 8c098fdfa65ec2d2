"""What the charts show, as numbers: checked against direct definitions."""

import itertools
import math
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.config import parse_config
from abcsearch.reporting.curves import SHOWN, Layer, best_trials, cost_cloud, fitness_curve, thinned
from abcsearch.reporting.history import SearchHistory
from abcsearch.reporting.repeating import config_toml
from abcsearch.reporting.sensitivity import layer_sensitivity, least_trials
from abcsearch.reporting.timeline import run_timeline
from abcsearch.reporting.words import change_text, cost_text, ms_text, short_names
from abcsearch.runs.settings import to_plain
from abcsearch.trial import Evaluation, Trial


def trial(number, fitness, candidate=(1,), seconds=1.0):
    failure = "no" if fitness is None else None
    return Trial(number, candidate, Evaluation(fitness, failure=failure, seconds=seconds))


def history(trials, finished=None, name="search", lost=None):
    return SearchHistory(name=name, trials=tuple(trials), finished=finished or {}, lost=lost or {})


@given(st.lists(st.none() | st.floats(-5, 5), max_size=30))
def test_the_best_so_far_is_the_highest_of_all_before(fitness):
    curve = fitness_curve(history(trial(n, value) for n, value in enumerate(fitness)))
    assert list(curve.fitness) == fitness
    for place, best in enumerate(curve.best):
        known = [value for value in fitness[: place + 1] if value is not None]
        assert best == max(known, default=None)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=25))
def test_the_front_is_what_nothing_else_beats(points):
    trials = [trial(n, fitness) for n, (_, fitness) in enumerate(points)]
    cloud = cost_cloud("macs", trials, [cost for cost, _ in points])
    front = {points[number] for number in cloud.front}
    beaten = {
        (cost, fitness)
        for cost, fitness in points
        if any(c <= cost and f >= fitness and (c, f) != (cost, fitness) for c, f in points)
    }
    assert front == set(points) - beaten
    costs = [points[number][0] for number in cloud.front]
    assert costs == sorted(set(costs))


def test_the_best_trials_are_5_percent_but_10_at_least_and_100_at_most():
    layers = [Layer(name="a", level="filter", full=8)]
    for count, expected in ((1, 1), (60, 10), (400, 20), (5000, 100)):
        trials = [trial(n, n % 977, (1 + n % 8,)) for n in range(count)]
        found = best_trials(trials, layers)
        assert len(found.numbers) == expected
        assert found.fitness[0] == max(t.fitness for t in trials)
        assert list(found.fitness) == sorted(found.fitness, reverse=True)
        assert found.widths[0] == (trials[found.numbers[0]].candidate[0] / 8,)
        assert found.median == (pytest.approx(np.median([t.candidate[0] for t in trials]) / 8),)


@given(st.integers(0, 20_000), st.sets(st.integers(0, 19_999), max_size=50))
def test_thinning_keeps_what_counts_and_few_others(count, always):
    kept = thinned(count, [place for place in always if place < count])
    assert len(kept) <= SHOWN + len(always)
    assert kept == sorted(set(kept))
    assert {place for place in always if place < count} <= set(kept)
    assert count <= SHOWN or {0, count - 1} <= set(kept)


LAYERS = [Layer(name=name, level="filter", full=16) for name in "abcd"]


def tried(count, weights, noise=0.0, fixed=None):
    draws = np.random.default_rng(0)
    widths = draws.integers(1, 17, size=(count, 4))
    widths[:, 3] = 5 if fixed else widths[:, 3]
    fitness = np.exp(widths @ np.array(weights) / 4 + noise * draws.normal(size=count))
    return [
        trial(n, float(f), tuple(w)) for n, (w, f) in enumerate(zip(widths, fitness, strict=True))
    ]


def test_sensitivity_finds_the_layers_that_matter_in_their_order():
    found = layer_sensitivity(tried(200, (2, 1, 0, -1)), LAYERS)
    effects = {effect.name: effect for effect in found.effects}
    assert effects["a"].effect > effects["b"].effect > effects["c"].effect > effects["d"].effect
    assert effects["c"].low < 0 < effects["c"].high
    assert effects["a"].low > 0 > effects["d"].high
    assert all(effect.low <= effect.effect <= effect.high for effect in found.effects)
    assert 0.8 < found.explained <= 1
    assert "200 succeeded trials" in found.method


def test_sensitivity_of_noise_says_that_it_predicts_nothing():
    assert layer_sensitivity(tried(100, (0, 0, 0, 0), noise=1), LAYERS).explained < 0.1


def test_sensitivity_depends_on_ranks_only():
    trials = tried(60, (1, 1, 0, 0))
    other = [trial(t.number, 7 + 3 * math.log(t.fitness), t.candidate) for t in trials]
    assert layer_sensitivity(trials, LAYERS) == layer_sensitivity(other, LAYERS)


def test_sensitivity_is_left_out_with_too_few_trials_and_without_variation():
    few = layer_sensitivity(tried(least_trials(4) - 1, (1, 1, 1, 1)), LAYERS)
    assert few.effects == ()
    assert "too few for 4 layers" in few.reason
    assert layer_sensitivity([], LAYERS).reason == "no layer was varied"
    same = [trial(n, 1.0, t.candidate) for n, t in enumerate(tried(60, (1, 1, 1, 1)))]
    assert layer_sensitivity(same, LAYERS).reason == "all trials have the same fitness"
    partly = layer_sensitivity(tried(60, (1, 1, 1, 1), fixed=True), LAYERS)
    assert partly.constant == ("d",)
    assert [effect.name for effect in partly.effects] == ["a", "b", "c"]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=40))
def test_lanes_never_overlap_and_are_as_few_as_possible(spans):
    trials = [trial(n, 1.0, (n + 1,), seconds=float(length)) for n, (_, length) in enumerate(spans)]
    found = run_timeline(
        [history(trials, {n: float(start + length) for n, (start, length) in enumerate(spans)})]
    )
    for lane in range(found.lanes):
        own = sorted((bar.start, bar.end) for bar in found.bars if bar.lane == lane)
        assert all(before[1] <= after[0] + 1e-9 for before, after in itertools.pairwise(own))
    instants = [start + 0.5 for start, _ in spans]
    deepest = max(sum(start < at < start + length for start, length in spans) for at in instants)
    assert found.lanes <= deepest
    assert found.busy == sum(length for _, length in spans)


def test_long_gaps_are_cut_out_and_said():
    trials = [trial(0, 1.0, (1,)), trial(1, None, (2,)), trial(2, 1.0, (3,))]
    found = run_timeline([history(trials, {0: 1.0, 1: 2.0, 2: 1003.0}, lost={1: 2})])
    ((place, seconds),) = found.cuts
    assert seconds == pytest.approx(1000)
    assert 2 < place < found.bars[2].start
    assert found.seconds == pytest.approx(3.03)
    assert [bar.state for bar in found.bars] == ["succeeded", "failed", "succeeded"]
    assert [bar.lost for bar in found.bars] == [0, 2, 0]


def test_what_a_baseline_took_over_is_no_evaluation_and_old_journals_have_no_time():
    own = history([trial(0, 1.0, (1,))], {0: 1.0})
    random = history(
        [trial(0, 1.0, (1,)), trial(1, 1.0, (2,)), trial(2, 1.0, (3,))], {0: 1.1, 1: 2.0}, "random"
    )
    found = run_timeline([own, random])
    assert [(bar.search, bar.trial) for bar in found.bars] == [("search", 0), ("random", 1)]
    assert found.untimed == 1


def test_failures_are_grouped_by_reason_whatever_numbers_are_in_it():
    reasons = ["out of memory: 3 MB", "NaN", "out of memory: 12.5 MB"]
    trials = [
        Trial(n, (n + 1,), Evaluation(None, failure=reason)) for n, reason in enumerate(reasons)
    ]
    memory, nan = run_timeline([history(trials)]).failures
    assert (memory.reason, memory.trials) == (reasons[0], ("search 0", "search 2"))
    assert nan.trials == ("search 1",)


plain_values = st.recursive(
    st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda key: key != "name"), plain_values, max_size=4
    )
)
def test_settings_written_as_toml_are_read_back_the_same(options):
    settings = {
        "n_trials": 3,
        "searcher": {"name": 'a "b"\n', "options": options},
        "pretrain": None,
    }
    read = tomllib.loads(config_toml(settings))
    assert read == {"n_trials": 3, "searcher": {**options, "name": 'a "b"\n'}}


def test_the_config_of_a_report_is_the_very_run(tiny_config):
    config = parse_config(tomllib.loads(tiny_config.read_text()))
    assert parse_config(tomllib.loads(config_toml(to_plain(config)))) == config


def test_numbers_in_words():
    assert [cost_text("macs", c) for c in (950, 175_000, 1_648_256, 4.09e9)] == [
        "950",
        "175 k",
        "1.65 M",
        "4.09 G",
    ]
    assert change_text(200, 79.4) == "\u221260.3 %"
    assert (change_text(100, 100), change_text(0, 5), change_text(10, 11)) == ("0 %", "", "+10.0 %")
    long = [f"features.denseblock{n}.denselayer1.layers.conv1.weight" for n in range(3)]
    assert len(set(short_names(long))) == 3


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0.62, "0.620"),
        (91.5, "91.5"),
        (99.96, "100"),
        (145.2, "145"),
        (999.6, "1,000"),
        (1234, "1,234"),
    ],
)
def test_durations_have_three_digits_and_no_lonely_point(milliseconds, text):
    assert ms_text(milliseconds) == text
