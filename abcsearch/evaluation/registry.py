"""Evaluators by name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.evaluation.adaptive_bn import AdaptiveBN, AdaptiveBNOptions

if TYPE_CHECKING:
    from collections.abc import Callable

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
        options: the class of its options record.
        description: one line.
        source: paper.
    """

    make: Callable[..., Evaluator]
    options: type
    description: str
    source: str


EVALUATORS: dict[str, EvaluatorEntry] = {
    "adaptive_bn": EvaluatorEntry(
        make=AdaptiveBN,
        options=AdaptiveBNOptions,
        description="accuracy after re-estimating batch-norm statistics; no training",
        source="Li et al., EagleEye, ECCV 2020",
    ),
}


def make_evaluator(
    name: str,
    model: nn.Module,
    graph: ChannelGraph,
    ranking: Ranking,
    data: Data,
    **options: Any,  # noqa: ANN401
) -> Evaluator:
    """Returns an evaluator by name.

    Raises:
        ConfigError: if the name or an option is unknown (with the nearest valid one), or an option is out of range.
    """
    if name not in EVALUATORS:
        raise ConfigError(unknown_name("evaluator", name, EVALUATORS))
    entry = EVALUATORS[name]
    known = [f.name for f in fields(entry.options)]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of evaluator {name!r}:", option, known))
    return entry.make(model, graph, ranking, data, entry.options(**options))
