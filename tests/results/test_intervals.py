"""Intervals of accuracies and their differences: against their formulas' own sources, and against draws."""

import functools
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
    difference_text,
    ends_of,
    packed,
    packed_draws,
    paired,
    unpacked,
    unpacked_draws,
    unpaired,
    wilson,
)
from abcsearch.training.resampling import draws_of, mean_of


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
    one = difference(
        "top1", ("a", 0.78, {"hits": packed(better)}), ("b", 0.75, {"hits": packed(right)}), 400
    )
    other = difference(
        "top1", ("a", 0.78, {"hits": None}), ("b", 0.75, {"hits": packed(right)}), 400
    )
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
    assert not difference(
        "top1", ("a", 0.5, {"hits": plain}), ("b", 0.25, {"hits": plain}), 8
    ).paired


def test_answers_of_other_images_or_another_score_are_not_compared():
    right = packed(np.arange(8) < 4)
    assert difference("top1", ("a", 0.5, {"hits": right}), ("b", 0.5, {"hits": right}), 8).paired
    assert not difference(
        "top1", ("a", 0.5, {"hits": right}), ("b", 0.5, {"hits": right}), 9
    ).paired
    assert not difference(
        "top1", ("a", 0.75, {"hits": right}), ("b", 0.5, {"hits": right}), 8
    ).paired


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


@functools.cache
def all_draws(images):
    """The draws of so many images: the same for all values, and slow to draw anew."""
    return list(draws_of(images))


def drawn(values):
    """What fine-tuning keeps of a metric that is a mean of images."""
    draws = [mean_of(values, counts) for counts in all_draws(len(values))]
    return {"resampled": {"psnr": packed_draws(np.concatenate(draws), len(values))}}


def test_intervals_by_draws_hold_the_truth_as_often_as_they_say():
    stream = np.random.default_rng(1)
    images, trials, kept, apart = 80, 300, [0, 0], 0
    for _ in range(trials):
        common = stream.gamma(2.0, 2.0, images)  # how hard images are: the same for both networks
        first, second = (common + stream.normal(0, 0.5, images) + up for up in (0.3, 0.0))
        value, other = float(first.mean()), float(second.mean())
        mine, its = drawn(first), drawn(second)
        low, high = ends_of("psnr", value, images, mine["resampled"])
        kept[0] += low <= 4.3 <= high
        one = difference("psnr", ("a", value, mine), ("b", other, its), images)
        assert one.paired
        kept[1] += one.low <= 0.3 <= one.high
        apart += one.told_apart
    assert all(0.9 < count / trials < 0.98 for count in kept)
    assert apart / trials > 0.9  # alone, their intervals of about 0.6 to each side would not tell


def test_metrics_without_draws_have_no_interval_and_no_difference():
    values = np.arange(40.0)
    sound = drawn(values)
    assert ends_of("psnr", 19.5, 40, sound["resampled"]) is not None
    for metric, value, images, plain in (
        ("ssim", 19.5, 40, sound["resampled"]),
        ("psnr", None, 40, sound["resampled"]),
        ("psnr", math.nan, 40, sound["resampled"]),
        ("psnr", 19.5, 41, sound["resampled"]),  # of other images
        ("psnr", 19.5, 40, None),
        ("psnr", 4.5, 9, drawn(values[:9])["resampled"]),  # too few to tell
    ):
        assert ends_of(metric, value, images, plain) is None
    named = ("a", 19.5, sound), ("b", 19.5, {})
    assert difference("psnr", *named, 40) is None
    assert difference("psnr", *reversed(named), 40) is None
    assert difference("psnr", named[0], named[0], 40).half == 0


@pytest.mark.parametrize("plain", [None, 7, "ab", [40], [40, "%"], [40, "AAA="], [40, ""], [40, 3]])
def test_what_is_no_record_of_draws_is_none(plain):
    assert unpacked_draws(plain, 40) is None
    assert unpacked_draws(json.loads(json.dumps(plain)), 40) is None


def test_draws_go_through_json_and_those_that_are_no_numbers_are_left_alone():
    draws = np.random.default_rng(0).normal(size=1000)
    there = unpacked_draws(json.loads(json.dumps(packed_draws(draws, 40))), 40)
    assert there == pytest.approx(draws, abs=1e-6)
    draws[3] = np.nan
    assert unpacked_draws(packed_draws(draws, 40), 40) is None


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("top1", "\u22121.00 points, \u22123.00 to +1.00"),
        ("mAP", "\u22121.00 points, \u22123.00 to +1.00"),
        ("psnr", "\u22120.01 dB, \u22120.03 dB to +0.01 dB"),
        ("ssim", "\u22120.0100, \u22120.0300 to +0.0100"),
    ],
)
def test_differences_are_said_in_the_unit_of_the_metric(metric, text):
    own = Difference(first="a", second="b", change=-0.01, low=-0.03, high=0.01, paired=True)
    assert difference_text(metric, own) == text
