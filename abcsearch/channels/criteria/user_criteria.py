"""Criteria of the user's own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.channels.criteria.base import Criterion, Subject
from abcsearch.channels.criteria.weights import WeightCriterion
from abcsearch.errors import RankingError, option_problems

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FunctionCriterion(Criterion):
    """Scores that a function of the user's own finds, which sees everything; data are what the caller has given.

    Attributes:
        whole: takes the `Subject`; returns per prunable group (channels,) scores, or None where it has none.
    """

    whole: Callable[[Subject], Any]

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Returns what the function finds."""
        returned: Any = self.whole(subject)
        wanted = len(subject.graph.prunable)
        if not isinstance(returned, list | tuple) or len(returned) != wanted:
            msg = (
                f"a criterion that is a function of the subject returns a list with the scores of each of the {wanted} "
                f"prunable groups, found {returned!r:.80}"
            )
            raise RankingError(msg)
        return list(returned)


def as_criterion(name: str, value: Any) -> Criterion:  # noqa: ANN401 - whatever a name leads to
    """Returns the criterion for what a name leads to.

    Args:
        name: for messages.
        value: a criterion; a class of them; or a function of the `Subject`, or of (tensors, group).

    Raises:
        RankingError: if it is nothing of these.
    """
    if (
        isinstance(value, type)
        and issubclass(value, Criterion)
        and not (inspect.isabstract(value) or option_problems(value, ()))
    ):
        value = value()
    if isinstance(value, Criterion):
        return value
    function: Any = value
    takes = _arguments(function)
    if takes == 1:
        return FunctionCriterion(function)
    if takes == 2:
        return WeightCriterion(function)
    msg = (
        f"criterion {name!r} is a Criterion, a function of the subject that returns the scores of all groups, or one "
        f"of (tensors, group), found {value!r:.80}"
    )
    raise RankingError(msg)


def _arguments(value: object) -> int:
    """Returns how many arguments a function needs by position; 0 of what is none."""
    if not callable(value) or isinstance(value, type):
        return 0
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # some builtins have none
        return 0
    return sum(p.kind in by_position and p.default is p.empty for p in parameters)
