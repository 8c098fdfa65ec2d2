"""Which trial has won once the best few were scored in full or measured, as the journal keeps it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.errors import plural
from abcsearch.evaluation.racing import ERROR, IMAGES
from abcsearch.runs.disk.lines import trial_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.trial import Trial

_COUNTED = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The forward time of a trial, measured in turns with the full network.

    Attributes:
        share: of the full network's time.
        full_ms: median forward time of the full network meanwhile, in milliseconds.
    """

    share: float
    full_ms: float

    @classmethod
    def of(cls, plain: Any) -> Timed:  # noqa: ANN401 - any JSON value
        """Returns the time that an event, or a decision, holds.

        Raises:
            ValueError: if it is none.
        """
        values: list[Any] = [
            plain.get(name) if isinstance(plain, dict) else None for name in ("share", "full_ms")
        ]
        if not all(isinstance(value, float) and 0 < value < math.inf for value in values):
            msg = f"share and full_ms of a measured time are numbers above 0, found {values!r:.80}"
            raise ValueError(msg)
        return cls(share=values[0], full_ms=values[1])


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What full scores, or measured forward times, have decided.

    Attributes:
        winner: the trial of the highest full score, with that score; of the best few that were measured, of those
            inside the budget.
        among: numbers of the trials that it was chosen from, best first.
        alike: of these, those that cannot be told apart from the winner, itself included.
        times: of all trials that were measured, by number; {} where none was.
        where: where they were measured, in words.
        scored: whether trials were scored in full, which had seen some images only.
    """

    winner: Trial
    among: tuple[int, ...]
    alike: tuple[int, ...]
    times: Mapping[int, Timed] = field(default_factory=dict[int, Timed])
    where: str = ""
    scored: bool = True

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Decision:
        """Returns the decision that an event holds.

        Raises:
            ValueError, AbcSearchError: if it is none.
        """
        lists = [event.get("among"), event.get("alike")]
        if not all(
            isinstance(numbers, list) and all(type(n) is int for n in numbers) for numbers in lists
        ):
            msg = "among and alike are lists of whole numbers"
            raise ValueError(msg)
        winner = trial_of({key: event.get(key) for key in ("number", "candidate", "evaluation")})
        times = event.get("times", {})
        if not isinstance(times, dict) or not all(number.isdecimal() for number in times):
            msg = "times are those of trials, by number"
            raise ValueError(msg)
        return cls(
            winner=winner,
            among=tuple(event["among"]),
            alike=tuple(event["alike"]),
            times={int(number): Timed.of(time) for number, time in times.items()},
            where=str(event.get("where", "")),
            scored=event.get("scored", True) is True,
        )

    def to_plain(self) -> dict[str, Any]:
        """Returns the decision as plain JSON values."""
        plain = {**self.winner.to_plain(), "among": list(self.among), "alike": list(self.alike)}
        if not self.times:
            return plain
        times = {str(number): asdict(time) for number, time in self.times.items()}
        return {**plain, "times": times, "where": self.where, "scored": self.scored}

    @property
    def words(self) -> str:
        """How sure it is, in words."""
        texts = [self._scored_words] if self.scored else []
        return "; ".join([*texts, *([self._timed_words] if self.times else [])])

    @property
    def _timed_words(self) -> str:
        """What was measured, in words."""
        measured = self.times[self.winner.number]
        outside = [
            f"{number} ({time.share:.3f})"
            for number, time in self.times.items()
            if number not in self.among
        ]
        count = len(self.times)
        best = "best trial" if count == 1 else f"best {plural(count, 'trial')}"
        text = f"the {best} measured in turns with the full network ({self.where}): "
        text += f"trial {self.winner.number} takes {measured.share:.3f} of its time, "
        text += f"{measured.share * measured.full_ms:.3g} ms of {measured.full_ms:.3g} ms"
        return text + (f"; outside of the budget: {', '.join(outside)}" if outside else "")

    @property
    def _scored_words(self) -> str:
        """How sure it is by full scores, in words."""
        count, alike = len(self.among), len(self.alike)
        if count == 1:
            several = any(number not in self.among for number in self.times)
            inside = " of those inside of the budget" if several else ""
            return f"trial {self.winner.number} is the only one{inside} that was scored in full"
        scored = f"the best {plural(count, 'trial')} scored in full"
        if alike <= 1 and ERROR not in self.winner.evaluation.metrics:
            return f"{scored}: trial {self.winner.number} is ahead; by how much chance would put one ahead is not known"
        if alike <= 1:
            return f"{scored}: trial {self.winner.number} wins by more than twice the standard error of the differences"
        if alike == count:
            best = _COUNTED[count] if count < len(_COUNTED) else str(count)
            return f"the best {best} cannot be told apart on these images (trials {_listed(self.among)})"
        others = _listed(self.alike[1:])
        return f"{scored}: {plural(alike - 1, 'other')} cannot be told apart from it on these images (trial {others})"


def _listed(numbers: tuple[int, ...]) -> str:
    """Returns numbers in words."""
    return ", ".join(map(str, numbers))


def scored(trials: Sequence[Trial], decision: Decision | None) -> str:
    """Returns how much of search-validation trials have seen, and how sure the winner is, in words, or ""."""
    every = [trial.evaluation.metrics for trial in trials]
    seen = [metrics[IMAGES] for metrics in every if IMAGES in metrics]
    stopped = sum(images < max(seen) for images in seen)
    lines: list[str] = []
    if stopped:
        share = sum(seen) / len(seen) / max(seen)
        lines.append(
            f"{stopped} of {plural(len(trials), 'trial')} stopped early, two standard errors below the best that was "
            f"known: their fitness is of the images that they saw, {share:.0%} of those of all trials"
        )
    if decision is not None:
        lines.append(decision.words[0].upper() + decision.words[1:])
    return " ".join(f"{line}." for line in lines)
