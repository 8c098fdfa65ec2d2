"""When each evaluation ran, and side by side with which others."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abcsearch.reporting.history import SearchHistory

State = Literal["succeeded", "failed"]
_GAP = 30.0  # seconds without any evaluation; longer ones are cut out
_CUT = 0.01  # of the time that is shown: how wide a cut is drawn
_OUTLINE = 0.4
_OUTLINED = 0.006  # of the axis, about 5 pixels: shorter bars have no outline


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One evaluation.

    Attributes:
        search: its search.
        trial: its number.
        lane: which of those that ran side by side, from 0.
        start: seconds since the first evaluation began, long gaps cut out.
        end: likewise.
        state: how it ended.
        lost: how many workers were lost while they evaluated it, before this.
    """

    search: str
    trial: int
    lane: int
    start: float
    end: float
    state: State
    lost: int = 0


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Failed trials of one reason.

    Attributes:
        reason: as the first of them has it.
        trials: "searcher number" of each.
    """

    reason: str
    trials: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When evaluations ran. Lanes are not workers, which a journal does not name: a lane is what ran side by side.

    Attributes:
        bars: by start.
        lanes: how many ran side by side at most.
        cuts: (place on the axis, seconds that are cut out there) of gaps without any evaluation.
        seconds: length of the axis.
        busy: seconds of all evaluations together.
        untimed: trials whose time is not in the journal.
        failures: by reason, the most frequent first.
    """

    bars: tuple[Bar, ...] = field(repr=False)
    lanes: int
    cuts: tuple[tuple[float, float], ...]
    seconds: float
    busy: float
    untimed: int
    failures: tuple[Failures, ...]


def outline(bar: Bar, seconds: float) -> float:
    """Returns how wide the white outline of a bar is, in points: 0 where it would hide a short one.

    Args:
        bar: of a timeline.
        seconds: length of its axis.
    """
    return _OUTLINE if bar.end - bar.start >= _OUTLINED * seconds else 0.0


def run_timeline(searches: Sequence[SearchHistory]) -> Timeline:
    """Returns when the evaluations of a run took place.

    A trial ended when its line was written, and began its own seconds before. What a search took over from
    the map, or a baseline from the search, without evaluating it again is left out.
    """
    spans: list[tuple[float, float, Bar]] = []
    evaluated: set[tuple[int, ...]] = set()
    untimed = 0
    for search in searches:
        for trial in search.trials:
            if search is not searches[0] and trial.candidate in evaluated:
                continue
            end, evaluation = search.finished.get(trial.number), trial.evaluation
            if end is None:
                untimed += 1
                continue
            state: State = "succeeded" if evaluation.failure is None else "failed"
            lost = search.lost.get(trial.number, 0)
            bar = Bar(
                search=search.name,
                trial=trial.number,
                lane=0,
                start=0,
                end=0,
                state=state,
                lost=lost,
            )
            spans.append((end - max(evaluation.seconds, 0.0), end, bar))
        evaluated |= {trial.candidate for trial in search.trials}
    spans.sort(key=lambda span: span[:2])
    cuts, shifts, length = _compressed([span[:2] for span in spans])
    bars, lanes = _laned(spans, shifts)
    return Timeline(
        bars=bars,
        lanes=lanes,
        cuts=cuts,
        seconds=length,
        busy=sum(end - start for start, end, _ in spans),
        untimed=untimed,
        failures=_failures(searches),
    )


def _compressed(
    spans: Sequence[tuple[float, float]],
) -> tuple[tuple[tuple[float, float], ...], list[float], float]:
    """Returns the cuts, what to take off the times of each span, and the length of the axis; spans by start."""
    if not spans:
        return (), [], 0.0
    gaps: list[tuple[int, float]] = []  # index of the first span after a gap, seconds
    latest = spans[0][1]
    for index, (start, end) in enumerate(spans):
        if start - latest > _GAP:
            gaps.append((index, start - latest))
        latest = max(latest, end)
    length = latest - spans[0][0] - sum(seconds for _, seconds in gaps)
    width = _CUT * length
    shift, shifts, cuts = spans[0][0], list[float](), list[tuple[float, float]]()
    after = dict(gaps)
    for index, (start, _) in enumerate(spans):
        if index in after:
            shift += after[index] - width
            cuts.append((start - shift - width / 2, after[index]))
        shifts.append(shift)
    return tuple(cuts), shifts, length + width * len(gaps)


def _laned(
    spans: Sequence[tuple[float, float, Bar]], shifts: Sequence[float]
) -> tuple[tuple[Bar, ...], int]:
    """Returns the bars, each in the first lane that is free, and how many lanes that takes.

    A line is written a moment after the evaluation has ended: bars may overlap by so much and still share a lane.
    """
    bars: list[Bar] = []
    free: list[float] = []  # when each lane is free again
    for (start, end, bar), shift in zip(spans, shifts, strict=True):
        begin, finish = start - shift, end - shift
        slack = min(0.1, 0.2 * (finish - begin)) + 1e-6
        lane = next((lane for lane, since in enumerate(free) if since <= begin + slack), len(free))
        if lane == len(free):
            free.append(begin)
        bars.append(replace(bar, lane=lane, start=max(begin, min(free[lane], finish)), end=finish))
        free[lane] = finish
    return tuple(bars), len(free)


def _failures(searches: Sequence[SearchHistory]) -> tuple[Failures, ...]:
    """Returns failed trials by reason; reasons that differ in numbers only count as one."""
    failures: dict[str, tuple[str, list[str]]] = {}
    for search in searches:
        for trial in search.trials:
            reason = trial.evaluation.failure
            if reason is not None:
                key = re.sub(r"\d+(\.\d+)?", "#", reason)
                failures.setdefault(key, (reason, []))[1].append(f"{search.name} {trial.number}")
    ranked = sorted(failures.values(), key=lambda entry: -len(entry[1]))
    return tuple(Failures(reason=reason, trials=tuple(trials)) for reason, trials in ranked)
