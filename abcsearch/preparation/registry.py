"""Preparations by name."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from abcsearch.errors import AbcSearchError, ConfigError, PreparationError, unknown_name
from abcsearch.preparation.drawn_options import LFPCOptions, TASOptions
from abcsearch.preparation.options import (
    AutoPrunerOptions,
    DMCPOptions,
    GroupLassoOptions,
    IterateOptions,
    PruningNetOptions,
    SlimmableOptions,
    SlimmingOptions,
    SoftPruningOptions,
    TaylorIterativeOptions,
    VariationalOptions,
)
from abcsearch.records import is_record
from abcsearch.registry import Home, Registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from abcsearch.preparation.base import Preparation


@dataclass(frozen=True, kw_only=True)
class PreparationEntry:
    """One registered preparation.

    Attributes:
        make: the class, called with its options.
        options: the class of its options record.
        description: one line.
        source: paper.
    """

    make: type[Preparation] | Home
    options: type
    description: str = ""
    source: str = ""

    @property
    def preparation(self) -> type[Preparation]:
        """The class, imported."""
        return self.make.value if isinstance(self.make, Home) else self.make


def _accept(name: str, value: Any) -> PreparationEntry:  # noqa: ANN401 - whatever a name leads to
    """Returns the entry for what a name leads to: an entry, or a whole subclass of `Preparation`."""
    if isinstance(value, PreparationEntry):
        return value
    from abcsearch.preparation.base import Preparation

    if not isinstance(value, type) or not issubclass(value, Preparation):
        msg = f"preparation {name!r} is a class derived from abcsearch.Preparation, found {value!r:.80}"
        raise PreparationError(msg)
    if inspect.isabstract(value):
        lacking = ", ".join(sorted(cast("Any", value).__abstractmethods__))
        msg = f"preparation {name!r} lacks {lacking}(task, trainer); define it as abcsearch.Preparation says"
        raise PreparationError(msg)
    if not is_record(value.Options):
        msg = f"preparation {name!r}: Options is a frozen dataclass, or left out, found {value.Options!r:.80}"
        raise PreparationError(msg)
    return PreparationEntry(make=value, options=value.Options)


_BUILT_IN: dict[str, PreparationEntry | Home] = {
    "slimming": PreparationEntry(
        make=Home(path="abcsearch.preparation.slimming:Slimming"),
        options=SlimmingOptions,
        description="training with a penalty on batch-norm scales, which pushes those of dispensable channels to 0",
        source="Liu et al., Network Slimming, ICCV 2017",
    ),
    "slimmable": PreparationEntry(
        make=Home(path="abcsearch.preparation.slimmable:Slimmable"),
        options=SlimmableOptions,
        description="training of all structures at once: full network, smallest and random slices in every step",
        source="Yu and Huang, Universally Slimmable Networks, ICCV 2019; AutoSlim, 2019",
    ),
    "group_lasso": PreparationEntry(
        make=Home(path="abcsearch.preparation.group_lasso:GroupLasso"),
        options=GroupLassoOptions,
        description="training with a penalty on all weights of a channel or block together: what can go becomes 0",
        source="Wen et al., Structured Sparsity Learning, NeurIPS 2016",
    ),
    "soft_pruning": PreparationEntry(
        make=Home(path="abcsearch.preparation.soft_pruning:SoftPruning"),
        options=SoftPruningOptions,
        description="training that silences the worst channels after every epoch, and lets them come back in the next",
        source="He et al., Soft Filter Pruning, IJCAI 2018",
    ),
    "variational": PreparationEntry(
        make=Home(path="abcsearch.preparation.variational:Variational"),
        options=VariationalOptions,
        description="training with random batch-norm scales, whose prior draws those of dispensable channels to 0",
        source="Zhao et al., Variational Convolutional Neural Network Pruning, CVPR 2019",
    ),
    "autopruner": PreparationEntry(
        make=Home(path="abcsearch.preparation.autopruner:AutoPruner"),
        options=AutoPrunerOptions,
        description="training of a gate per channel beside the weights; gates end as 0 or 1, at the budget",
        source="Luo and Wu, AutoPruner, Pattern Recognition 2020",
    ),
    "dmcp": PreparationEntry(
        make=Home(path="abcsearch.preparation.dmcp:DMCP"),
        options=DMCPOptions,
        description="training of all structures at once, and of chains that say how probable each width is",
        source="Guo et al., DMCP, CVPR 2020",
    ),
    "tas": PreparationEntry(
        make=Home(path="abcsearch.preparation.tas:TAS"),
        options=TASOptions,
        description="training through widths and blocks that are drawn for every pass, and of how probable each is",
        source="Dong and Yang, TAS, NeurIPS 2019",
    ),
    "lfpc": PreparationEntry(
        make=Home(path="abcsearch.preparation.lfpc:LFPC"),
        options=LFPCOptions,
        description="training through channels that criteria drawn per layer keep, and of how probable each one is",
        source="He et al., Learning Filter Pruning Criteria, CVPR 2020",
    ),
    "pruning_net": PreparationEntry(
        make=Home(path="abcsearch.preparation.pruning_net:PruningNet"),
        options=PruningNetOptions,
        description="training of a generator that makes the weights of any structure from its keep ratios",
        source="Liu et al., MetaPruning, ICCV 2019",
    ),
    "taylor_iterative": PreparationEntry(
        make=Home(path="abcsearch.preparation.taylor_iterative:TaylorIterative"),
        options=TaylorIterativeOptions,
        description="training that loses its least important channels on the way, some at a time, until the budget",
        source="Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019",
    ),
    "iterate": PreparationEntry(
        make=Home(path="abcsearch.preparation.iterate:Iterate"),
        options=IterateOptions,
        description="rounds of pruning and training: score, choose a structure, cut, train, down to the budget",
        source="the standard loop; Han et al., NeurIPS 2015; Molchanov et al., ICLR 2017",
    ),
}

# Name -> preparation. `PREPARATIONS["mine"] = MyPreparation` makes one known by name; an import path needs no entry.
PREPARATIONS: Registry[PreparationEntry] = Registry(
    "preparation", f"{__name__}:PREPARATIONS", _BUILT_IN, error=ConfigError, accept=_accept
)


def check_preparation_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError, or PreparationError, with what is wrong with a preparation's name or options."""
    make_preparation(name, **options)


def make_preparation(name: str, **options: Any) -> Preparation:  # noqa: ANN401 - each has its own record of options
    """Returns a preparation by name, or your own by import path; it has not prepared anything.

    Raises:
        ConfigError: if the name or an option is unknown (with the nearest valid one), missing, or out of range.
        PreparationError: if an import path leads to something else than a subclass of `Preparation`.
    """
    kind = PREPARATIONS.find(name).preparation
    known = {f.name: f for f in fields(kind.Options)}
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of preparation {name!r}:", option, known))
    for option, entry in known.items():
        if option not in options and entry.default is MISSING and entry.default_factory is MISSING:
            msg = f"option {option!r} of preparation {name!r} is missing"
            raise ConfigError(msg)
    try:
        return kind(kind.Options(**options))
    except AbcSearchError:
        raise
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"preparation {name!r} cannot be made: {type(error).__name__}: {error}"
        raise PreparationError(msg) from error
