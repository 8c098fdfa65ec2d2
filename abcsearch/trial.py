"""What an evaluation found, and which structure it belongs to: frozen records."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from abcsearch.errors import AbcSearchError, SearcherError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.space import Candidate


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a candidate found.

    Attributes:
        fitness: higher is better, always; None exactly when `failure` is set.
        metrics: other measured numbers by name, e.g. {"top1": 0.93, "neg_loss": -0.24}.
        macs: multiply-accumulates of the structure; 0 until known (a run fills it in from its cost model).
        params: number of parameters of the structure; 0 until known.
        seconds: wall-clock time of the evaluation; recorded, never decides.
        failure: why there is no fitness, or None.
        diagnostics: what was found of single dimensions of the structure, by their names, for searchers that look at
            it; no score. What it is, the evaluator says (`ScoringOptions.utilisation`).

    Raises:
        AbcSearchError: if fitness and failure are both set or both missing, or if the fitness is not finite.
        SearcherError: if the fitness is true or false: a mistake in an evaluator, not in a candidate.
    """

    fitness: float | None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    macs: int = 0
    params: int = 0
    seconds: float = 0.0
    failure: str | None = None
    diagnostics: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """Checks that either fitness or failure is set."""
        if (self.fitness is None) == (self.failure is None):
            msg = f"an evaluation has either a fitness or a failure, found {self.fitness} and {self.failure!r}"
            raise AbcSearchError(msg)
        if self.fitness is None:
            return
        if is_truth(self.fitness):
            msg = f"a fitness is a number, found {self.fitness!r}; where it counts one thing only, return 1.0 or 0.0"
            raise SearcherError(msg)
        try:
            finite = math.isfinite(self.fitness)
        except (TypeError, ValueError, OverflowError) as error:
            msg = f"a fitness is one number, found {self.fitness!r}"
            raise AbcSearchError(msg) from error
        if not finite:
            msg = f"a fitness must be finite, found {self.fitness}; report it as a failure"
            raise AbcSearchError(msg)
        # Of any type, such as numpy's: a state is plain
        object.__setattr__(self, "fitness", float(self.fitness))

    def to_plain(self) -> dict[str, Any]:
        """Returns the evaluation as plain JSON values; metrics that are not finite are the texts nan, inf and -inf.

        Likewise diagnostics, which are left out where there are none.
        """
        plain: dict[str, Any] = {**vars(self), "metrics": _plain(self.metrics)}
        del plain["diagnostics"]
        return {**plain, "diagnostics": _plain(self.diagnostics)} if self.diagnostics else plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Evaluation:
        """Returns the evaluation that `to_plain` described."""
        values = dict(plain)
        for name in ("metrics", "diagnostics"):
            values[name] = {key: float(value) for key, value in plain.get(name, {}).items()}
        return cls(**values)


def _plain(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Returns numbers by name; those that are not finite as texts, which JSON has no numbers for."""
    return {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}


def is_truth(value: object) -> bool:
    """Returns whether a value is true or false, as Python, numpy or torch has it, which all would take for a number."""
    return (
        isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"
    )


@dataclass(frozen=True)
class Trial:
    """One evaluated structure of a run.

    Attributes:
        number: position in the order of asking, from 0.
        candidate: the structure.
        evaluation: what was found.

    Raises:
        AbcSearchError: if the candidate is not made of whole numbers.
    """

    number: int
    candidate: Candidate
    evaluation: Evaluation

    def __post_init__(self) -> None:
        """Makes the candidate a tuple of ints, of whatever type it was: a state is plain."""
        try:
            object.__setattr__(
                self, "candidate", tuple(operator.index(value) for value in self.candidate)
            )
        except TypeError as error:
            msg = f"the candidate of a trial is a tuple of whole numbers, found {self.candidate!r}"
            raise AbcSearchError(msg) from error

    @property
    def fitness(self) -> float:
        """The fitness, or minus infinity for a failed trial, so that failed trials never win."""
        return -math.inf if self.evaluation.fitness is None else self.evaluation.fitness

    def to_plain(self) -> dict[str, Any]:
        """Returns the trial as plain JSON values; `Trial.from_plain` is the inverse."""
        return {
            "number": self.number,
            "candidate": list(self.candidate),
            "evaluation": self.evaluation.to_plain(),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Trial:
        """Returns the trial that `to_plain` described."""
        return cls(
            plain["number"], tuple(plain["candidate"]), Evaluation.from_plain(plain["evaluation"])
        )


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial of the highest fitness, the earliest of equals; None if none succeeded."""
    succeeded = [trial for trial in trials if trial.evaluation.failure is None]
    return min(succeeded, key=lambda trial: (-trial.fitness, trial.number), default=None)
