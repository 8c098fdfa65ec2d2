"""One sentence that a manager understands, and what its numbers are worth."""

import dataclasses

import numpy as np
import pytest

from abcsearch.reporting.headline import doubts, headline
from abcsearch.results.forward import ForwardTime
from abcsearch.results.intervals import difference, packed_draws
from abcsearch.results.report import Report
from abcsearch.results.rows import Row

FIELDS = {own.name for own in dataclasses.fields(ForwardTime)}


def time(median, *, batch=64, device="CPU", spread=0.01):
    own = {"device": device, "batch": batch, "median_ms": median, "low_ms": median * (1 - spread)}
    own |= {"high_ms": median * (1 + spread), "threads": 1, "passes": 30}
    return ForwardTime(**{name: value for name, value in own.items() if name in FIELDS})


def row(name, macs, median, after=None, fitness=0.9):
    return Row(
        network=name,
        macs=macs,
        flops=2 * macs,
        params=macs,
        size_mb=1.0,
        latency_ms=median,
        times=(time(median / 10, batch=1), time(median)),
        fitness=fitness,
        before=None,
        after=after,
        tests={},
    )


def report(*rows, images=1000, differences=(), metric="top1"):
    return Report(
        title="",
        rows=rows,
        widths=(),
        notes=(),
        against="macs",
        front=(),
        metric=metric,
        images=images,
        differences=differences,
    )


def test_the_sentence_of_the_issue():
    full, winner = row("full", 100, 10.0, 0.723), row("abc", 50, 7.14, 0.728)
    own = difference("top1", ("abc", 0.728, {}), ("full", 0.723, {}), 1600)
    said = headline(report(full, winner, images=1600, differences=(own,)))
    half = f"\u00b1{100 * own.half:.1f}"
    assert said == (
        "Half the MACs, 28.6 % less time at batch 64, accuracy 72.80 % against 72.30 % "
        f"({half}, within noise on 1,600 test images)."
    )


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("psnr", "PSNR 30.50 dB against 30.00 dB (\u00b1{} dB, {}on 50 test images)."),
        ("ssim", "SSIM 30.5000 against 30.0000 (\u00b1{}, {}on 50 test images)."),
        ("neg_mse", "neg_mse 30.5000 against 30.0000 (\u00b1{}, {}on 50 test images)."),
    ],
)
@pytest.mark.parametrize(("spread", "noise"), [(0.1, ""), (5.0, "within noise ")])
def test_a_difference_of_any_metric_is_no_gain_within_noise(metric, words, spread, noise):
    rows = row("full", 100, 10.0, 30.0), row("abc", 50, 5.0, 30.5)
    stream = np.random.default_rng(0)
    each = [value + spread * stream.normal(size=1000) for value in (30.5, 30.0)]
    left = [{"resampled": {metric: packed_draws(own, 50)}} for own in each]
    own = difference(metric, ("abc", 30.5, left[0]), ("full", 30.0, left[1]), 50)
    shown = report(*rows, images=50, differences=(own,), metric=metric)
    half = f"{own.half:.2f}" if metric == "psnr" else f"{own.half:.4f}"
    assert words.format(half, noise) in headline(shown)
    assert bool(doubts(shown)) == bool(noise)
    if noise:
        assert "drawn 1,000 times with replacement" in doubts(shown)[0]


def test_what_a_difference_is_worth_may_not_be_known():
    rows = row("full", 100, 10.0, 30.0), row("abc", 50, 5.0, 30.5)
    said = headline(report(*rows, metric="psnr"))
    assert said.endswith("PSNR 30.50 dB against 30.00 dB (how sure that is, is not known).")


@pytest.mark.parametrize(
    ("macs", "words"),
    [
        (50, "Half the MACs"),
        (33, "A third of the MACs"),
        (25, "A quarter of the MACs"),
        (70, "70 % of the MACs"),
        (12, "12 % of"),
    ],
)
def test_shares_have_words(macs, words):
    assert headline(report(row("full", 100, 10.0), row("abc", macs, 5.0))).startswith(words)


@pytest.mark.parametrize(
    ("median", "words"),
    [
        (5.0, "50.0 % less time"),
        (15.0, "50.0 % more time"),
        (10.05, "no difference in time at batch 64 that can be told from chance"),
    ],
)
def test_time_is_said_as_it_was_measured(median, words):
    assert words in headline(report(row("full", 100, 10.0), row("abc", 50, median)))


def test_without_fine_tuning_it_says_so():
    said = headline(report(row("full", 100, 10.0, None, 0.95), row("abc", 50, 5.0, None, 0.93)))
    assert said.endswith("fitness 0.9300 against 0.9500, not fine-tuned yet.")
    assert "None" not in headline(
        report(row("full", 100, 10.0, None, None), row("abc", 50, 5.0, None, None))
    )


def test_a_doubt_names_whom_the_winner_cannot_be_told_apart_from_and_nobody_else():
    rows = row("full", 100, 10.0, 0.95), row("uniform", 50, 5.0, 0.80), row("abc", 50, 5.0, 0.94)
    own = tuple(
        difference("top1", ("abc", 0.94, {}), (r.network, r.after, {}), 1000) for r in rows[:2]
    )
    (said,) = doubts(report(*rows, differences=own))
    assert "abc cannot be told apart from full (\u22121.00 points" in said
    assert "uniform" not in said
    assert doubts(report(*rows)) == []
    assert doubts(report(*rows, differences=own[1:])) == []
