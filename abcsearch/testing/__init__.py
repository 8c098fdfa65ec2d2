"""Contract tests, usable by strangers: subclass one, say how to make yours, and let pytest collect the class.

class TestMySearcher(SearcherContract):
    def make(self, space, constraint, seed):
        return MySearcher(space, constraint, seed=seed)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abcsearch.testing.evaluators import EvaluatorContract as EvaluatorContract
    from abcsearch.testing.executors import ExecutorContract as ExecutorContract
    from abcsearch.testing.lessons import LessonContract as LessonContract
    from abcsearch.testing.preparations import PreparationContract as PreparationContract
    from abcsearch.testing.searchers import SearcherContract as SearcherContract
    from abcsearch.testing.toys import ToyCosts as ToyCosts
    from abcsearch.testing.toys import toy_fitness as toy_fitness
    from abcsearch.testing.toys import toy_space as toy_space

_HOME = {
    "EvaluatorContract": "abcsearch.testing.evaluators",
    "ExecutorContract": "abcsearch.testing.executors",
    "LessonContract": "abcsearch.testing.lessons",
    "PreparationContract": "abcsearch.testing.preparations",
    "SearcherContract": "abcsearch.testing.searchers",
    "ToyCosts": "abcsearch.testing.toys",
    "toy_fitness": "abcsearch.testing.toys",
    "toy_space": "abcsearch.testing.toys",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of the names
    """Imports a name from its module: those for searchers need no torch."""
    if name not in _HOME:
        msg = f"module 'abcsearch.testing' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOME[name]), name)
