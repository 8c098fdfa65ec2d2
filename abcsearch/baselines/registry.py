"""Baselines by name, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from abcsearch.errors import ConfigError
from abcsearch.registry import OBJECT, Home, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from abcsearch.channels.source import Source
    from abcsearch.space import Candidate
    from abcsearch.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One registered baseline: a structure, where its network comes from, and how that is fine-tuned.

    With neither structure nor searcher, the structure is the winner's, in another network or fine-tuned otherwise.

    Attributes:
        structure: (task) -> the structure.
        searcher: the name of the searcher that finds it, with as many trials as the run's own.
        networks: (task) -> the `Source` that its network comes from, asked with the run's seed, the same at every call;
            None: what the candidates of the run come from.
        recipe: (recipe, task, structure) -> the recipe that it is fine-tuned by, where that one is asked for; None: by
            that one.
        description: one line.
        source: paper.
    """

    structure: Callable[[Any], Candidate] | None = None
    searcher: str = ""
    networks: Callable[[Any], Source] | None = None
    recipe: Callable[[Recipe, Any, Candidate], Recipe] | None = None
    description: str = ""
    source: str = ""


def _uniform(task: Any) -> Candidate:  # noqa: ANN401 - a task, of the room that runs are in
    return task.uniform(nearest=True)  # the report says so where that is outside


def _accept(name: str, value: Any) -> Baseline:  # noqa: ANN401 - whatever a name leads to
    """Returns the baseline for what a name leads to: one, or a function of the task."""
    if isinstance(value, Baseline):
        ways = (value.structure is not None) + bool(value.searcher)
        if ways > 1 or not (ways or value.networks or value.recipe):
            msg = f"baseline {name!r} has a structure, or a searcher that finds it, or, with neither, the winner's "
            msg += f"structure in networks of its own, or with a recipe of its own; found {value!r:.200}"
            raise ConfigError(msg)
        if ":" in name and value.searcher:
            msg = f"baseline {name!r} is a search: give it a name, BASELINES['mine'] = Baseline(searcher=...)"
            raise ConfigError(msg)
        return value
    if callable(value) and not isinstance(value, type):
        return Baseline(structure=cast("Callable[[Any], Candidate]", value))
    msg = f"baseline {name!r} is a function (task) -> structure, or a Baseline, found {value!r:.80}"
    raise ConfigError(msg)


_THRESHOLD, _CONTROLS = "abcsearch.baselines.threshold", "abcsearch.baselines.controls"
_BUILT_IN = {
    "uniform": Baseline(
        structure=_uniform, description="all layers keep the same ratio, the largest in the budget"
    ),
    "global_threshold": Baseline(
        structure=Home(path=f"{_THRESHOLD}:global_threshold"),
        description="all channels in one order, by their scores over the mean of their group, cut at the budget",
        source="Liu et al., ICCV 2017; Luo and Wu, CURL, CVPR 2020",
    ),
    "global_threshold_per_mac": Baseline(
        structure=Home(path=f"{_THRESHOLD}:global_threshold_per_mac"),
        description="the same with scores per MAC that a channel costs",
        source="ours",
    ),
    "pfa_widths": Baseline(
        structure=Home(path="abcsearch.baselines.energy:pfa_widths"),
        description="all layers keep the same share of the energy of their responses",
        source="Suau et al., PFA, 2018",
    ),
    "random": Baseline(
        searcher="random", description="the best of a random search of as many trials"
    ),
    "scratch_e": Baseline(
        networks=Home(path=f"{_CONTROLS}:scratch"),
        recipe=Home(path=f"{_CONTROLS}:as_long"),
        description="the winner's structure with new weights, trained for as many epochs as the base network",
        source="Liu et al., ICLR 2019",
    ),
    "scratch_b": Baseline(
        networks=Home(path=f"{_CONTROLS}:scratch"),
        recipe=Home(path=f"{_CONTROLS}:as_many_macs"),
        description="the same for as many MACs, at most twice the epochs",
        source="Liu et al., ICLR 2019",
    ),
    "rewound": Baseline(
        networks=Home(path=f"{_CONTROLS}:rewound"),
        recipe=Home(path=f"{_CONTROLS}:as_long"),
        description="the winner's channels with the weights that the base network began with, trained as that was",
        source="Frankle and Carbin, ICLR 2019",
    ),
    "one_shot": Baseline(
        structure=Home(path=f"{_CONTROLS}:one_shot"),
        networks=Home(path=f"{_CONTROLS}:as_brought"),
        recipe=Home(path=f"{_CONTROLS}:as_many_epochs"),
        description="what one threshold leaves of the network before its preparation, fine-tuned for as many epochs",
        source="control of iterative pruning",
    ),
    "random_channels": Baseline(
        networks=Home(path=f"{_CONTROLS}:random_channels"),
        description="the winner's widths with random channels of the trained network",
        source="Mittal et al., WACV 2018",
    ),
}

# Name -> baseline. `BASELINES["mine"] = function` makes one known by name; "package.module:function" needs no entry.
BASELINES: Registry[Baseline] = Registry(
    "baseline",
    f"{__name__}:BASELINES",
    _BUILT_IN,
    error=ConfigError,
    accept=_accept,
    callables=False,
)


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError unless every one of some names stands for a baseline, and is there once."""
    for name in names:
        BASELINES.find(name)
        if names.count(name) > 1:
            msg = f"baselines = {list(names)!r}: {name!r} is there {names.count(name)} times, once is enough"
            raise ConfigError(msg)


def searched(names: Iterable[str]) -> list[str]:
    """Returns those of some baselines that a search finds; nothing is imported, since what has a path is none."""
    entries = {name: BASELINES[name] for name in names if name in BASELINES}
    return [
        name for name, entry in entries.items() if isinstance(entry, Baseline) and entry.searcher
    ]


def following(names: Iterable[str]) -> list[str]:
    """Returns those of some baselines that have the winner's structure; nothing is imported, as for `searched`."""
    entries = {name: BASELINES[name] for name in names if name in BASELINES}
    made = {name: entry for name, entry in entries.items() if isinstance(entry, Baseline)}
    return [name for name, entry in made.items() if entry.structure is None and not entry.searcher]


def short(name: str, taken: Iterable[str] = ()) -> str:
    """Returns what files and tables call a network that a part of a run stands for.

    Args:
        name: of the part, as settings have it.
        taken: the names of others.

    Returns:
        The name, or the last word of an import path; all of it where that word is taken.
    """
    last = name.rpartition(":")[2]
    if ":" not in name or name.endswith(OBJECT):
        return name
    return name.replace(":", ".") if last in ("full", *BASELINES, *taken) else last
