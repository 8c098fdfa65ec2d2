"""What searches begin with, by the names of baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abcsearch.baselines.checks import checked_structure
from abcsearch.baselines.registry import BASELINES
from abcsearch.errors import ConfigError
from abcsearch.searchers.warm_starts import listed_starts, start_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from abcsearch.space import Candidate


def initial_problems(initial: object) -> list[str]:
    """Returns what is wrong with warm starts of a config, whatever the network, a line for each of them.

    Raises:
        SearcherError: if they are no list.
    """
    starts = listed_starts(initial)
    named = [(index, start) for index, start in enumerate(starts) if isinstance(start, str)]
    problems = start_problems([1.0 if isinstance(start, str) else start for start in starts])
    for index, name in named:
        try:
            _structure_of(name)
        except ConfigError as error:
            problems.append(f"searcher.initial[{index}] = {name!r}: {error}")
    return problems


def initial_structures(initial: object, task: Any) -> Iterator[Any]:  # noqa: ANN401 - a task
    """Yields warm starts as searchers take them: for the name of a baseline, the structure of the space next to its.

    Args:
        initial: structures, keep ratios, and names.
        task: of the run.

    Raises:
        SearcherError: if they are no list.
        ConfigError: if a name stands for no baseline that has a structure, or it gives none of this network.
    """
    for start in listed_starts(initial):
        if not isinstance(start, str):
            yield start
            continue
        yield task.space.nearest(checked_structure(start, _structure_of(start), task))


def _structure_of(name: str) -> Callable[[Any], Candidate]:
    """Returns the function of a baseline that gives its structure; raises ConfigError if there is none."""
    structure = BASELINES.find(name).structure
    if structure is None:
        msg = f"baseline {name!r} is a search, or the winner: name one that has a structure, such as 'global_threshold'"
        raise ConfigError(msg)
    return structure
