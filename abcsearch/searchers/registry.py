"""Searchers by name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from abcsearch.errors import SearcherError, unknown_name
from abcsearch.searchers.bee_colony import BeeColony, BeeColonyOptions
from abcsearch.searchers.random_search import RandomSearch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from abcsearch.budget import Constraint
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class SearcherEntry:
    """One registered searcher.

    Attributes:
        make: the class, called with (space, constraint, seed=, initial=) and, if there are options, options=.
        options: the class of its options record, or None.
        description: one line.
        source: paper.
    """

    make: Callable[..., Searcher]
    options: type | None
    description: str
    source: str


SEARCHERS: dict[str, SearcherEntry] = {
    "bee_colony": SearcherEntry(
        make=BeeColony,
        options=BeeColonyOptions,
        description="artificial bee colony: sources improved by employed bees, onlookers and scouts",
        source="Karaboga 2005; Lin et al., ABCPruner, IJCAI 2020",
    ),
    "random": SearcherEntry(
        make=RandomSearch,
        options=None,
        description="uniform draws repaired into the budget: the baseline",
        source="Li et al., EagleEye, ECCV 2020",
    ),
}


def make_searcher(
    name: str,
    space: SearchSpace,
    constraint: Constraint | None = None,
    *,
    seed: int = 0,
    initial: Iterable[Sequence[int]] = (),
    **options: Any,  # noqa: ANN401 - each searcher has its own record of options
) -> Searcher:
    """Returns a new searcher by name.

    Args:
        name: a key of `SEARCHERS`, e.g. "bee_colony".
        space: the structures.
        constraint: the budget bound to the space (`Budget.bind`); None allows everything.
        seed: the run's seed.
        initial: warm starts.
        **options: fields of the searcher's options record.

    Raises:
        SearcherError: if the name or an option is unknown (with the nearest valid one), or an option is out of range.
    """
    if name not in SEARCHERS:
        raise SearcherError(unknown_name("searcher", name, SEARCHERS))
    entry = SEARCHERS[name]
    known = [f.name for f in fields(entry.options)] if entry.options is not None else []
    for option in options:
        if option not in known:
            raise SearcherError(unknown_name(f"option of searcher {name!r}:", option, known))
    record = {"options": entry.options(**options)} if entry.options is not None else {}
    return entry.make(space, constraint, seed=seed, initial=initial, **record)
