"""What a report says in one sentence, and what its differences are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.errors import plural
from abcsearch.results.intervals import SHARES, difference_text
from abcsearch.training.named import change_text, metric_text

if TYPE_CHECKING:
    from abcsearch.results.forward import ForwardTime
    from abcsearch.results.report import Report

_SHARES = ((1 / 2, "half the"), (1 / 3, "a third of the"), (1 / 4, "a quarter of the"))
_NAMES = {
    "top1": "accuracy",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "miou": "mean IoU",
    "macro_ap": "mean average precision",
}


def headline(report: Report) -> str:
    """Returns what was found in one sentence: how small, how fast, how accurate, against the full network."""
    full, winner = report.rows[0], report.rows[-1]
    phrases = [
        f"{_share(winner.macs / full.macs)} MACs",
        _time(full.times, winner.times),
        _accuracy(report),
    ]
    text = ", ".join(phrase for phrase in phrases if phrase)
    return f"{text[:1].upper()}{text[1:]}."


def _share(share: float) -> str:
    """Returns a share in words where it has one."""
    return next(
        (words for value, words in _SHARES if abs(share - value) < 0.01),
        f"{100 * share:.3g} % of the",
    )


def _time(before: tuple[ForwardTime, ...], after: tuple[ForwardTime, ...]) -> str:
    """Returns what became of the forward time of the largest batch, on a GPU where there is one."""
    if not before:
        return ""
    pairs = list(zip(before, after, strict=True))
    old, new = max(pairs, key=lambda pair: (pair[0].device != "CPU", pair[0].batch))
    where = f"at batch {old.batch}" + ("" if old.device == "CPU" else f" on {old.device}")
    if not new.apart(old):
        return f"no difference in time {where} that can be told from chance"
    change = 100 * (new.median_ms - old.median_ms) / old.median_ms
    return f"{abs(change):.1f} % {'less' if change < 0 else 'more'} time {where}"


def _accuracy(report: Report) -> str:
    """Returns how accurate the winner is beside the full network, in the end or, without fine-tuning, by fitness."""
    full, winner, metric = report.rows[0], report.rows[-1], report.metric
    if winner.after is None or full.after is None:
        known = winner.fitness is not None and full.fitness is not None
        return (
            f"fitness {winner.fitness:.4f} against {full.fitness:.4f}, not fine-tuned yet"
            if known
            else ""
        )
    text = f"{_NAMES.get(metric, metric)} {metric_text(metric, winner.after)} against {metric_text(metric, full.after)}"
    against = next(
        (difference for difference in report.differences if difference.second == full.network), None
    )
    if against is None:
        return f"{text} (how sure that is, is not known)"
    half = change_text(metric, against.half, signed=False).removesuffix(" points")
    doubt = "" if against.told_apart else "within noise "
    return f"{text} (\u00b1{half}, {doubt}on {plural(report.images, 'test image')})"


def doubts(report: Report) -> list[str]:
    """Returns which differences of the winner are within noise, as a warning; [] where all can be told apart."""
    near = [difference for difference in report.differences if not difference.told_apart]
    if not near:
        return []
    names = ", ".join(
        f"{difference.second} ({difference_text(report.metric, difference)})" for difference in near
    )
    how = (
        "each by itself"
        if not all(difference.paired for difference in near)
        else "the same images, compared one by one"
        if report.metric in SHARES
        else "the same images, drawn 1,000 times with replacement"
    )
    return [
        f"Within noise: on {plural(report.images, 'test image')} {report.rows[-1].network} cannot be told apart from "
        f"{names}; 95 % intervals, {how}. More test images, or more seeds, would tell."
    ]
