"""Searchers by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

from abcsearch.errors import AbcSearchError, SearcherError, unknown_name
from abcsearch.registry import Home, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from abcsearch.budget import Constraint
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class SearcherEntry:
    """One registered searcher.

    Attributes:
        home: where its class is, "module:Class", imported when it is first used; or the class itself, or a function
            called with `(space, constraint, seed=, initial=, **options)` that returns a new searcher.
        description: one line.
        source: paper.
        former: options that runs of earlier versions lack, with the values that these had the effect of. The first of
            them is always recorded, and so tells earlier runs from later ones.
        diagnosed: whether it learns from the diagnostics of evaluations, which they have where they are asked for.
    """

    home: str | Callable[..., Searcher]
    description: str = ""
    source: str = ""
    former: Mapping[str, Any] = field(default_factory=dict[str, Any])
    diagnosed: bool = False

    @property
    def searcher(self) -> Any:  # noqa: ANN401 - type[Searcher], or a function
        """The class, or the function."""
        return Home(path=self.home).value if isinstance(self.home, str) else self.home

    @property
    def options(self) -> Any:  # noqa: ANN401 - a class, or None
        """The class of its options record; None of a function, which has its own."""
        return getattr(self.searcher, "Options", None)


def _accept(name: str, value: Any) -> SearcherEntry:  # noqa: ANN401 - whatever a name leads to
    """Returns the entry for what a name leads to: an entry, a subclass of `Searcher`, or a function."""
    from abcsearch.searchers.base import Searcher

    if isinstance(value, SearcherEntry):
        return value
    good = callable(value)
    if inspect.isclass(value):
        good = issubclass(value, Searcher) and not inspect.isabstract(value)
    if good:
        return SearcherEntry(home=cast("Callable[..., Searcher]", value))
    msg = (
        f"searcher {name!r} is a subclass of Searcher with _propose and _learn, or a function of (space, constraint, "
        f"seed, initial, options), found {value!r:.80}"
    )
    raise SearcherError(msg)


_BUILT_IN: dict[str, SearcherEntry | Home] = {
    "bee_colony": SearcherEntry(
        home="abcsearch.searchers.bee_colony:BeeColony",
        description="artificial bee colony: employed bees, onlookers and scouts, guided by the best sources",
        source="Karaboga 2005; Lin et al., ABCPruner, IJCAI 2020; guide: Zhu and Kwong 2010; rate, scale: Akay and "
        "Karaboga 2012",
        former={"guide": 0.0, "rate": 0.0, "scale": 1.0, "decay": 0.0},
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
        description="the structures that it is given, in their order, each once, and no others",
        source="ours",
    ),
    "greedy": SearcherEntry(
        home="abcsearch.searchers.greedy:Greedy",
        description="slimming from the largest structure by the least harmful steps, then local search",
        source="Yu and Huang, AutoSlim, 2019",
    ),
    "network_adjustment": SearcherEntry(
        home="abcsearch.searchers.network_adjustment:NetworkAdjustment",
        description="moves channels from layers that make least of their MACs to those that make most of them",
        source="Chen et al., Network Adjustment, CVPR 2020",
        diagnosed=True,
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
    "sensitivity": SearcherEntry(
        home="abcsearch.searchers.sensitivity:Sensitivity",
        description="a map of what each layer alone loses, made once for all budgets; one threshold of harm for each",
        source="NVIDIA ModelOpt, FastNAS (documentation); refinement: ours",
    ),
}


# Name -> searcher. `SEARCHERS["mine"] = MySearcher` makes one known by name; an import path needs no entry.
SEARCHERS: Registry[SearcherEntry] = Registry(
    "searcher", f"{__name__}:SEARCHERS", _BUILT_IN, error=SearcherError, accept=_accept
)


def nothing_left(name: str, count: int) -> str:
    """Returns why a search has ended before its time, in words.

    Args:
        name: of the searcher, which proposes nothing more.
        count: structures that have been evaluated.
    """
    if name == "given":
        return f"all structures that the searcher was given are evaluated: {count}"
    if name in SEARCHERS.homes:
        return f"all structures inside the budget are evaluated: {count}"
    return f"searcher {name!r} proposes nothing more; structures evaluated: {count}"


def check_searcher_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises SearcherError for an unknown name, an import path that leads nowhere, or unknown or missing options.

    Args:
        name: of the searcher.
        options: its own, without warm starts.
    """
    entry = SEARCHERS.find(name)
    if entry.options is None:
        try:
            inspect.signature(entry.searcher).bind(None, None, seed=0, initial=(), **options)
        except (TypeError, ValueError) as error:  # some builtins have no signature
            msg = f"searcher {name!r} is called with (space, constraint, seed=, initial=, **options): {error}"
            raise SearcherError(msg) from error
        return
    known = [f.name for f in fields(entry.options)]
    for option in options:
        if option not in known:
            raise SearcherError(
                unknown_name(f"option of searcher {name!r}:", option, [*known, "initial"])
            )


def is_diagnosed(name: str) -> bool:
    """Returns whether a searcher learns from the diagnostics of evaluations (see `SearcherEntry.diagnosed`)."""
    entry = SEARCHERS.get(name)
    return isinstance(entry, SearcherEntry) and entry.diagnosed


def with_former(name: str, options: Mapping[str, Any], *, former: bool) -> dict[str, Any]:
    """Returns options of a searcher that say whether it behaves as in earlier versions (see `SearcherEntry.former`).

    Args:
        name: of the searcher.
        options: its own; where they say it already, they are returned as they are.
        former: whether options that do not say it are those of an earlier version.
    """
    entry = SEARCHERS.get(name)
    if not isinstance(entry, SearcherEntry) or not entry.former:
        return dict(options)
    mark = next(iter(entry.former))
    if mark in options:
        return dict(options)
    return (
        {**entry.former, **options} if former else {**options, mark: getattr(entry.options, mark)}
    )


def make_searcher(
    name: str | Callable[..., Searcher],
    space: SearchSpace,
    constraint: Constraint | None = None,
    *,
    seed: int = 0,
    initial: Iterable[Sequence[int] | float] = (),
    **options: Any,  # noqa: ANN401 - each searcher has its own record of options
) -> Searcher:
    """Returns a new searcher by name, by import path, or of a class or function.

    Args:
        name: a key of `SEARCHERS`, e.g. "bee_colony"; or your own: a subclass of `Searcher`, or a function called with
            `(space, constraint, seed=, initial=, **options)` that returns a new searcher; or "package.module:callable"
            that leads to one of these.
        space: the structures.
        constraint: the budget bound to the space (`Budget.bind`); None allows everything.
        seed: the run's seed.
        initial: warm starts: structures, or keep ratios that stand for uniform widths.
        **options: fields of the searcher's options record, or the function's own.

    Raises:
        SearcherError: if the name or an option is unknown (with the nearest valid one), an option is out of range, or a
            function returns something else than a searcher.
    """
    name = SEARCHERS.name_of(name)
    check_searcher_options(name, options)
    entry = SEARCHERS.find(name)
    made = entry.searcher
    if entry.options is not None:
        return made(space, constraint, seed=seed, initial=initial, options=made.Options(**options))
    try:
        searcher = made(space, constraint, seed=seed, initial=initial, **options)
    except AbcSearchError:
        raise
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"searcher {name!r} cannot be made: {type(error).__name__}: {error}"
        raise SearcherError(msg) from error
    from abcsearch.searchers.base import Searcher

    if not isinstance(searcher, Searcher):
        msg = f"searcher {name!r} returned {type(searcher).__name__}, expected a new Searcher"
        raise SearcherError(msg)
    return searcher
