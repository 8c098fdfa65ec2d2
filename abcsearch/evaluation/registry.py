"""Evaluators by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from abcsearch.errors import AbcSearchError, ConfigError, unknown_name
from abcsearch.evaluation.options import AdaptiveBNOptions, CascadeOptions, ShortTrainingOptions
from abcsearch.records import is_record
from abcsearch.registry import Home, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from abcsearch.channels.source import Source
    from abcsearch.data.splits import Data
    from abcsearch.evaluation.base import Evaluator


@dataclass(frozen=True, kw_only=True)
class EvaluatorEntry:
    """One registered evaluator.

    Attributes:
        make: the class, called with (source, data, options).
        options: the class of its options record; None of one that takes **options of its own.
        description: one line.
        source: paper.
    """

    make: Callable[..., Evaluator]
    options: type | None = None
    description: str = ""
    source: str = ""


_GIVEN = ("source", "data")  # what an evaluator of your own is called with, in this order


def _accept(name: str, value: Any) -> EvaluatorEntry:  # noqa: ANN401 - whatever a name leads to
    if isinstance(value, EvaluatorEntry):
        return value
    if callable(value):
        # Of a class such as those derived from SlicedEvaluator
        options = getattr(value, "Options", None)
        if options is not None and not is_record(options):
            msg = f"evaluator {name!r}: Options is a frozen dataclass, or left out, found {options!r:.80}"
            raise ConfigError(msg)
        return EvaluatorEntry(make=cast("Callable[..., Evaluator]", value), options=options)
    msg = (
        f"evaluator {name!r} is a function of ({', '.join(_GIVEN)}, **options), found {value!r:.80}"
    )
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
        _check_call(name, entry.make, options)
        return
    known = [f.name for f in fields(entry.options)]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of evaluator {name!r}:", option, known))


def make_evaluator(
    name: str,
    source: Source,
    data: Data,
    **options: Any,  # noqa: ANN401
) -> Evaluator:
    """Returns an evaluator by name, or your own by import path.

    Your own, "package.module:callable", is called as callable(source, data, **options) and returns a function
    (candidate, seed) -> Evaluation. A class with a record `Options`, such as those derived from
    `SlicedEvaluator`, is called as callable(source, data, record).

    Raises:
        ConfigError: if the name or an option is unknown (with the nearest valid one), an option is out of range, or
            what your own returns cannot be called.
    """
    check_evaluator_options(name, options)
    entry = EVALUATORS.find(name)
    try:
        if entry.options is not None:
            return entry.make(source, data, entry.options(**options))
        made: Any = entry.make(source, data, **options)
    except AbcSearchError:
        raise
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"evaluator {name!r} cannot be made: {type(error).__name__}: {error}"
        raise ConfigError(msg) from error
    if not callable(made):
        msg = f"evaluator {name!r} returned {type(made).__name__}, expected a function (candidate, seed) -> Evaluation"
        raise ConfigError(msg)
    return cast("Evaluator", made)


def _check_call(name: str, made: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the user's own can be called as `make_evaluator` calls it."""
    try:
        signature = inspect.signature(made)
    except ValueError as error:  # some builtins have none
        msg = (
            f"evaluator {name!r} is a function of ({', '.join(_GIVEN)}, **options), found {made!r}"
        )
        raise ConfigError(msg) from error
    try:
        signature.bind(*_GIVEN, **options)
    except TypeError as error:
        msg = f"evaluator {name!r} is called with ({', '.join(_GIVEN)}, **options): {error}"
        if [*signature.parameters][:4] == ["model", "graph", "ranking", "data"]:
            msg += "; what were model, graph and ranking are now source.model, source.graph and source.ranking"
        raise ConfigError(msg) from error
