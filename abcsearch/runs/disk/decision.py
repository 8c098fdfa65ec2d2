"""Which trial has won once the best few were scored in full, as the journal keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.errors import plural
from abcsearch.evaluation.racing import ERROR, IMAGES
from abcsearch.runs.disk.lines import trial_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.trial import Trial

_COUNTED = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What full scores have decided.

    Attributes:
        winner: the trial of the highest full score, with that score.
        among: numbers of the trials that were scored in full, best first.
        alike: of these, those that cannot be told apart from the winner, itself included.
    """

    winner: Trial
    among: tuple[int, ...]
    alike: tuple[int, ...]

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
        return cls(winner=winner, among=tuple(event["among"]), alike=tuple(event["alike"]))

    def to_plain(self) -> dict[str, Any]:
        """Returns the decision as plain JSON values."""
        return {**self.winner.to_plain(), "among": list(self.among), "alike": list(self.alike)}

    @property
    def words(self) -> str:
        """How sure it is, in words."""
        count, alike = len(self.among), len(self.alike)
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
