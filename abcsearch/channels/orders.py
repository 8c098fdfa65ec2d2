"""Which channels are best: their order in every group, by one criterion or several."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.errors import RankingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The order of channels in every prunable group.

    Attributes:
        criterion: the name of the criterion.
        scores: per prunable group, (channels,) float64, higher is more worth keeping.
        others: by the other criteria that candidates choose from, which number them from 1; this one is 0.
    """

    criterion: str
    scores: tuple[NDArray[np.float64], ...] = field(repr=False)
    others: tuple[Ranking, ...] = ()

    @property
    def criteria(self) -> tuple[str, ...]:
        """The names of all criteria, in the order of their numbers."""
        return self.criterion, *(other.criterion for other in self.others)

    @cached_property
    def orders(self) -> tuple[NDArray[np.int64], ...]:
        """Per prunable group (channels,) int64, from best to worst; equal scores in ascending order of the channel."""
        return tuple(np.argsort(-scores, kind="stable") for scores in self.scores)

    def kept(self, group: int, width: int, criterion: int = 0) -> NDArray[np.int64]:
        """Returns the `width` best channels of a prunable group by one of the criteria, in ascending order."""
        return np.sort((self, *self.others)[criterion].orders[group][:width])

    def chosen(self, criteria: Sequence[int]) -> Ranking:
        """Returns the ranking in which every group has the scores, and the order, by a criterion of its own.

        Args:
            criteria: the number of a criterion per prunable group; () for the first everywhere.

        Raises:
            RankingError: if there is no criterion of a number.
        """
        if not any(criteria):
            return self
        every = (self, *self.others)
        wrong = [number for number in criteria if number not in range(len(every))]
        if wrong:
            msg = f"a candidate asks for criterion number {wrong[0]}, and the ranking is by {', '.join(self.criteria)}, "
            raise RankingError(msg + "numbered from 0; rank by all criteria that the space has")
        rankings = [every[number] for number in criteria]
        name = ", ".join(dict.fromkeys(ranking.criterion for ranking in rankings))
        mixed = Ranking(
            criterion=name,
            scores=tuple(ranking.scores[group] for group, ranking in enumerate(rankings)),
        )
        # Sorted once for all
        vars(mixed)["orders"] = tuple(
            ranking.orders[group] for group, ranking in enumerate(rankings)
        )
        return mixed

    def check(self, graph: ChannelGraph) -> None:
        """Raises unless there is one score for every channel of every prunable group.

        Raises:
            RankingError: if the ranking was computed for another graph.
        """
        counts, expected = (
            [len(score) for score in self.scores],
            [group.channels for group in graph.prunable],
        )
        if counts != expected:
            msg = f"the ranking is for groups of {counts} channels, but the graph has groups of {expected}; rank again"
            raise RankingError(msg)
        for other in self.others:
            other.check(graph)
