"""Evaluators by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions
from abcsearch.evaluation.cascade import Cascade, CascadeOptions
from abcsearch.evaluation.short_training import ShortTraining, ShortTrainingOptions
from abcsearch.evaluation.sliced import SlicedEvaluator
from abcsearch.importing import import_callable

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
        options: the class of its options record.
        description: one line.
        source: paper.
    """

    make: Callable[..., Evaluator]
    options: type
    description: str
    source: str


_GIVEN = ("source", "data")  # what an evaluator of your own is called with, in this order

EVALUATORS: dict[str, EvaluatorEntry] = {
    "adaptive_bn": EvaluatorEntry(
        make=AdaptiveBN,
        options=AdaptiveBNOptions,
        description="accuracy after re-estimating batch-norm statistics; no training",
        source="Li et al., EagleEye, ECCV 2020",
    ),
    "short_training": EvaluatorEntry(
        make=ShortTraining,
        options=ShortTrainingOptions,
        description="accuracy after a few epochs or steps of training from the inherited weights",
        source="Lin et al., ABCPruner, IJCAI 2020",
    ),
    "cascade": EvaluatorEntry(
        make=Cascade,
        options=CascadeOptions,
        description="adaptive_bn for all candidates, short_training for the best fraction",
        source="Li et al., EagleEye, ECCV 2020",
    ),
}


def check_evaluator_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown name, an import path that leads nowhere, or unknown or missing options."""
    if ":" in name:
        made = import_callable("evaluator", name, ConfigError)
        if not _derived(made):
            _check_call(name, made, options)
            return
        record = made.Options
    elif name not in EVALUATORS:
        hint = "; your own is named by import path, package.module:callable"
        raise ConfigError(unknown_name("evaluator", name, EVALUATORS) + hint)
    else:
        record = EVALUATORS[name].options
    known = [f.name for f in fields(record)]
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
    (candidate, seed) -> Evaluation. A class that is derived from `SlicedEvaluator` is called as callable(source, data,
    record), with the options in its record `Options`.

    Raises:
        ConfigError: if the name or an option is unknown (with the nearest valid one), an option is out of range, or
            what your own returns cannot be called.
    """
    check_evaluator_options(name, options)
    if ":" not in name:
        entry = EVALUATORS[name]
        return entry.make(source, data, entry.options(**options))
    make = import_callable("evaluator", name, ConfigError)
    made: Any = make(source, data, make.Options(**options)) if _derived(make) else make(source, data, **options)
    if not callable(made):
        msg = f"evaluator {name!r} returned {type(made).__name__}, expected a function (candidate, seed) -> Evaluation"
        raise ConfigError(msg)
    return cast("Evaluator", made)


def _derived(made: Callable[..., Any]) -> TypeGuard[type[SlicedEvaluator]]:
    """Returns whether an evaluator of the user's own is a class derived from `SlicedEvaluator`."""
    return isinstance(made, type) and issubclass(made, SlicedEvaluator)


def _check_call(name: str, made: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the user's own can be called as `make_evaluator` calls it."""
    signature = inspect.signature(made)
    try:
        signature.bind(*_GIVEN, **options)
    except TypeError as error:
        msg = f"evaluator {name!r} is called with ({', '.join(_GIVEN)}, **options): {error}"
        if [*signature.parameters][:4] == ["model", "graph", "ranking", "data"]:
            msg += "; what were model, graph and ranking are now source.model, source.graph and source.ranking"
        raise ConfigError(msg) from error
