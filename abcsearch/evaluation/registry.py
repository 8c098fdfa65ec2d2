"""Evaluators by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.evaluation.options import AdaptiveBNOptions, CascadeOptions, ShortTrainingOptions
from abcsearch.registry import Home, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.ranking import Ranking
    from abcsearch.data.splits import Data
    from abcsearch.evaluation.base import Evaluator


@dataclass(frozen=True, kw_only=True)
class EvaluatorEntry:
    """One registered evaluator.

    Attributes:
        make: the class, called with (model, graph, ranking, data, options).
        options: the class of its options record; None of one that takes **options of its own.
        description: one line.
        source: paper.
    """

    make: Callable[..., Evaluator]
    options: type | None = None
    description: str = ""
    source: str = ""


_GIVEN = ("model", "graph", "ranking", "data")  # what an evaluator of your own is called with, in this order


def _accept(name: str, value: Any) -> EvaluatorEntry:  # noqa: ANN401 - whatever a name leads to
    if isinstance(value, EvaluatorEntry):
        return value
    if callable(value):
        return EvaluatorEntry(make=cast("Callable[..., Evaluator]", value))
    msg = f"evaluator {name!r} is a function of ({', '.join(_GIVEN)}, **options), found {value!r:.80}"
    raise ConfigError(msg)


_BUILT_IN: dict[str, EvaluatorEntry | Home] = {
    "adaptive_bn": EvaluatorEntry(
        make=Home(path="abcsearch.evaluation.adaptive_bn:AdaptiveBN"),
        options=AdaptiveBNOptions,
        description="accuracy after re-estimating batch-norm statistics; no training",
        source="Li et al., EagleEye, ECCV 2020",
    ),
    "short_training": EvaluatorEntry(
        make=Home(path="abcsearch.evaluation.short_training:ShortTraining"),
        options=ShortTrainingOptions,
        description="accuracy after a few epochs or steps of training from the inherited weights",
        source="Lin et al., ABCPruner, IJCAI 2020",
    ),
    "cascade": EvaluatorEntry(
        make=Home(path="abcsearch.evaluation.cascade:Cascade"),
        options=CascadeOptions,
        description="adaptive_bn for all candidates, short_training for the best fraction",
        source="Li et al., EagleEye, ECCV 2020",
    ),
}


# Name -> evaluator. `EVALUATORS["mine"] = function` makes one known by name; "package.module:function" needs no entry.
EVALUATORS: Registry[EvaluatorEntry] = Registry(
    "evaluator", f"{__name__}:EVALUATORS", _BUILT_IN, error=ConfigError, accept=_accept
)


def check_evaluator_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown name, an import path that leads nowhere, or unknown or missing options."""
    entry = EVALUATORS.find(name)
    if entry.options is None:
        try:
            inspect.signature(entry.make).bind(*_GIVEN, **options)
        except TypeError as error:
            msg = f"evaluator {name!r} is called with ({', '.join(_GIVEN)}, **options): {error}"
            raise ConfigError(msg) from error
        return
    known = [f.name for f in fields(entry.options)]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of evaluator {name!r}:", option, known))


def make_evaluator(
    name: str,
    model: nn.Module,
    graph: ChannelGraph,
    ranking: Ranking,
    data: Data,
    **options: Any,  # noqa: ANN401
) -> Evaluator:
    """Returns an evaluator by name, or your own by import path.

    Your own, "package.module:callable", is called as callable(model, graph, ranking, data, **options) and returns a
    function (candidate, seed) -> Evaluation.

    Raises:
        ConfigError: if the name or an option is unknown (with the nearest valid one), an option is out of range, or
            what your own returns cannot be called.
    """
    check_evaluator_options(name, options)
    entry = EVALUATORS.find(name)
    if entry.options is not None:
        return entry.make(model, graph, ranking, data, entry.options(**options))
    made: Any = entry.make(model, graph, ranking, data, **options)
    if not callable(made):
        msg = f"evaluator {name!r} returned {type(made).__name__}, expected a function (candidate, seed) -> Evaluation"
        raise ConfigError(msg)
    return cast("Evaluator", made)
