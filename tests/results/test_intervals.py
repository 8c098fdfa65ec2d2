"""Intervals of accuracies and their differences: against their formulas' own sources, and against draws."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from abcsearch.results.intervals import (
    Difference,
    difference,
    packed,
    paired,
    unpacked,
    unpaired,
    wilson,
)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_scipys(case):
    right, images = case
    expected = binomtest(right, images).proportion_ci(method="wilson")
    low, high = wilson(right / images, images)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-8)
    assert 0 <= low <= right / images <= high <= 1
    assert high > low  # also where all answers are right


def test_newcombes_own_example():
    """Table II of the paper, method 10, 9 of 10 against 3 of 10."""
    assert unpaired(0.9, 0.3, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_the_interval_of_a_pair_holds_its_difference_and_turns_round_with_it(answers):
    first, second = np.array(answers, dtype=bool).T
    low, high = paired(first, second)
    change = first.mean() - second.mean()
    assert -1 <= low <= change <= high <= 1
    assert low < high
    assert paired(second, first) == pytest.approx((-high, -low))


def test_intervals_hold_the_truth_as_often_as_they_say():
    draws = np.random.default_rng(0)
    images, trials, kept = 300, 1500, {"wilson": 0, "unpaired": 0, "paired": 0}
    common = draws.random((trials, images))
    first = common < 0.80  # both right, or one of them alone: answers to the same images are alike
    second = np.where(
        draws.random((trials, images)) < 0.9, common < 0.77, draws.random((trials, images)) < 0.77
    )
    truth = 0.80 - 0.77
    for one, other in zip(first, second, strict=True):
        low, high = wilson(one.mean(), images)
        kept["wilson"] += low <= 0.80 <= high
        for name, (low, high) in (
            ("paired", paired(one, other)),
            ("unpaired", unpaired(one.mean(), other.mean(), images)),
        ):
            kept[name] += low <= truth <= high
    assert 0.93 < kept["wilson"] / trials < 0.97
    assert 0.93 < kept["paired"] / trials < 0.975
    # Too wide: it does not know that the images are the same
    assert kept["unpaired"] / trials > 0.99


def test_answers_that_are_alike_tell_more_apart():
    right = np.arange(400) < 300
    better = np.arange(400) < 312
    one = difference(("a", 0.78, packed(better)), ("b", 0.75, packed(right)), 400)
    other = difference(("a", 0.78, None), ("b", 0.75, packed(right)), 400)
    assert (one.paired, other.paired) == (True, False)
    assert one.told_apart
    assert not other.told_apart
    assert one.change == other.change == pytest.approx(0.03)
    assert one.half < other.half


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_answers_go_through_json(hits):
    answers = np.array(hits, dtype=bool)
    assert (unpacked(json.loads(json.dumps(packed(answers)))) == answers).all()


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        [3],
        "ab",
        [3, "zz"],
        [3, "ff", 1],
        ["3", "ff"],
        [9, "ff"],
        [0, ""],
        [3, "ffff"],
        [-1, "ff"],
        7,
    ],
)
def test_what_is_no_record_of_answers_is_none(plain):
    assert unpacked(plain) is None
    assert not difference(("a", 0.5, plain), ("b", 0.25, plain), 8).paired


def test_answers_of_other_images_or_another_score_are_not_compared():
    right = packed(np.arange(8) < 4)
    assert difference(("a", 0.5, right), ("b", 0.5, right), 8).paired
    assert not difference(("a", 0.5, right), ("b", 0.5, right), 9).paired
    assert not difference(("a", 0.75, right), ("b", 0.5, right), 8).paired


def test_a_difference_is_told_apart_only_beside_zero():
    for low, high, told in (
        (-0.01, 0.02, False),
        (0.001, 0.02, True),
        (-0.02, -0.001, True),
        (0.0, 0.02, False),
    ):
        own = Difference(first="a", second="b", change=0.0, low=low, high=high, paired=False)
        assert own.told_apart == told
    assert math.isclose(
        Difference(first="a", second="b", change=0.1, low=0.0, high=0.3, paired=True).half, 0.2
    )
