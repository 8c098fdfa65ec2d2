"""Who does the work of one search: searcher, evaluator, executor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abcsearch.baselines.structures import initial_structures
from abcsearch.errors import SearcherError
from abcsearch.evaluation.registry import make_evaluator
from abcsearch.execution.serial import SerialExecutor
from abcsearch.runs.settings import SearchSettings
from abcsearch.runs.task import Task
from abcsearch.searchers.base import Searcher
from abcsearch.searchers.registry import make_searcher

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from abcsearch.budget import Constraint
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.space import SearchSpace

    SearcherFactory = Callable[["SearchSpace", "Constraint"], Searcher]


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Who does the work of one search.

    Attributes:
        searcher: new.
        evaluator: candidate and seed -> evaluation.
        executor: where evaluations run.
    """

    searcher: Searcher
    evaluator: Evaluator
    executor: Executor = field(default_factory=SerialExecutor)

    @classmethod
    def of(
        cls,
        task: Task,
        settings: SearchSettings,
        *,
        searcher: SearcherFactory | Searcher | None = None,
        evaluator: Evaluator | None = None,
    ) -> Roles:
        """Returns the caller's own parts, and for those left out the ones that the settings name.

        Raises:
            SearcherError, ConfigError: if a name or option is unknown, or the caller's searcher is of another space or
                has been used.
        """
        named = settings.evaluator
        return cls(
            searcher=_searcher(task, settings, searcher),
            evaluator=evaluator
            or make_evaluator(named.name, task.source, task.data, **named.options),
        )


def _searcher(
    task: Task, settings: SearchSettings, given: SearcherFactory | Searcher | None
) -> Searcher:
    """Returns the searcher that the caller brought, or makes the one that the settings name."""
    if given is None:
        return named_searcher(task, settings)
    searcher = given if isinstance(given, Searcher) else given(task.space, task.constraint)
    if not isinstance(searcher, Searcher):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"a function of (space, constraint) returns a new Searcher, found {searcher!r}"
        raise SearcherError(msg)
    if searcher.space != task.space or searcher.state_dict()["known"].size:
        msg = "the searcher must be new and made for this network's space: pass a function of (space, constraint)"
        raise SearcherError(msg)
    return searcher


def named_searcher(task: Task, settings: SearchSettings) -> Searcher:
    """Returns a new searcher as the settings name it."""
    searcher = settings.searcher
    options = dict(searcher.options)
    options["initial"] = [*task.starts, *initial_structures(options.get("initial", ()), task)]
    return make_searcher(searcher.name, task.space, task.constraint, seed=settings.seed, **options)
