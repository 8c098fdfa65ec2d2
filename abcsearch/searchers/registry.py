"""Searchers by name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from abcsearch.errors import SearcherError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from abcsearch.budget import Constraint
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class SearcherEntry:
    """One registered searcher.

    Attributes:
        home: where its class is, "module:Class"; it is imported when it is first used.
        description: one line.
        source: paper.
    """

    home: str
    description: str
    source: str

    @property
    def searcher(self) -> type[Searcher]:
        """The class."""
        module, _, name = self.home.partition(":")
        return getattr(importlib.import_module(module), name)

    @property
    def options(self) -> type:
        """The class of its options record."""
        return self.searcher.Options


SEARCHERS: dict[str, SearcherEntry] = {
    "bee_colony": SearcherEntry(
        home="abcsearch.searchers.bee_colony:BeeColony",
        description="artificial bee colony: sources improved by employed bees, onlookers and scouts",
        source="Karaboga 2005; Lin et al., ABCPruner, IJCAI 2020",
    ),
    "bee_colony_official": SearcherEntry(
        home="abcsearch.searchers.bee_colony_official:BeeColonyOfficial",
        description="artificial bee colony with the defects of ABCPruner's published code, for comparison only",
        source="Lin et al., ABCPruner, IJCAI 2020, published code",
    ),
    "evolution": SearcherEntry(
        home="abcsearch.searchers.evolution:Evolution",
        description="mutations and crossovers of the best structures found so far",
        source="Liu et al., MetaPruning, ICCV 2019",
    ),
    "given": SearcherEntry(
        home="abcsearch.searchers.given:Given",
        description="the structures of initial and of a preparation, in their order, and no others",
        source="ours",
    ),
    "greedy": SearcherEntry(
        home="abcsearch.searchers.greedy:Greedy",
        description="slimming from the largest structure by the least harmful steps, then local search",
        source="Yu and Huang, AutoSlim, 2019",
    ),
    "nsga2": SearcherEntry(
        home="abcsearch.searchers.nsga2:NSGA2",
        description="a whole front of fitness against a cost in one run",
        source="Deb et al., NSGA-II, IEEE TEC 2002",
    ),
    "ddpg": SearcherEntry(
        home="abcsearch.searchers.ddpg:DDPG",
        description="AMC's agent: sets layer after layer, learns from the reward at the end",
        source="Lillicrap et al. 2015; He et al., AMC, ECCV 2018",
    ),
    "optuna": SearcherEntry(
        home="abcsearch.searchers.optuna_search:OptunaSearch",
        description="Optuna's samplers: TPE, Gaussian process, CMA-ES, NSGA-II, quasi-random, random",
        source="Akiba et al., Optuna, KDD 2019",
    ),
    "random": SearcherEntry(
        home="abcsearch.searchers.random_search:RandomSearch",
        description="uniform draws repaired into the budget: the baseline",
        source="Li et al., EagleEye, ECCV 2020",
    ),
    "regularized_evolution": SearcherEntry(
        home="abcsearch.searchers.regularized_evolution:RegularizedEvolution",
        description="tournaments choose parents, one mutation per child, the oldest dies",
        source="Real et al., AAAI 2019",
    ),
    "response_surface": SearcherEntry(
        home="abcsearch.searchers.response_surface:ResponseSurface",
        description="Bayesian quadratic surfaces over log widths, maximised inside the budget",
        source="ours; surfaces: Box and Wilson 1951",
    ),
}


def make_searcher(
    name: str,
    space: SearchSpace,
    constraint: Constraint | None = None,
    *,
    seed: int = 0,
    initial: Iterable[Sequence[int] | float] = (),
    **options: Any,  # noqa: ANN401 - each searcher has its own record of options
) -> Searcher:
    """Returns a new searcher by name.

    Args:
        name: a key of `SEARCHERS`, e.g. "bee_colony".
        space: the structures.
        constraint: the budget bound to the space (`Budget.bind`); None allows everything.
        seed: the run's seed.
        initial: warm starts: structures, or keep ratios that stand for uniform widths.
        **options: fields of the searcher's options record.

    Raises:
        SearcherError: if the name or an option is unknown (with the nearest valid one), or an option is out of range.
    """
    if not isinstance(name, str) or name not in SEARCHERS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SearcherError(unknown_name("searcher", name, SEARCHERS))
    made = SEARCHERS[name].searcher
    known = [f.name for f in fields(made.Options)]
    for option in options:
        if option not in known:
            raise SearcherError(unknown_name(f"option of searcher {name!r}:", option, [*known, "initial"]))
    return made(space, constraint, seed=seed, initial=initial, options=made.Options(**options))
