"""A source of slices whose ranking is saved with its weights, for what fixes, or learns, which channels stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from abcsearch.channels.orders import Ranking
from abcsearch.channels.source import Sliced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.graph import ChannelGraph

_NAMES = "names"


class Fixed(Sliced):
    """Cuts candidates out of a network by a ranking that does not follow from its weights."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, ranking: Ranking) -> None:
        """Takes a network, its channels, and which of them are best."""
        super().__init__(model, graph, ranking)
        self._scores = _Scores(ranking)

    @classmethod
    def restored(
        cls, model: nn.Module, graph: ChannelGraph, scores: Mapping[str, torch.Tensor]
    ) -> Fixed:
        """Returns the source that was saved.

        Args:
            model: the network.
            graph: its channel groups.
            scores: the state of the module "ranking".
        """
        return cls(model, graph, ranking_of(scores))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The network, and the scores of its channels in a module that only holds them."""
        return {"network": self.model, "ranking": self._scores}


class _Scores(nn.Module):
    """The scores of a ranking as buffers: `scores_K_G` (channels,) float64 by criterion K of group G."""

    def __init__(self, ranking: Ranking) -> None:
        super().__init__()
        text = "\n".join(ranking.criteria).encode()
        self.register_buffer(_NAMES, torch.tensor(list(text), dtype=torch.uint8))
        for number, single in enumerate((ranking, *ranking.others)):
            for group, scores in enumerate(single.scores):
                self.register_buffer(
                    f"scores_{number}_{group}", torch.tensor(scores, dtype=torch.float64)
                )


def ranking_of(state: Mapping[str, torch.Tensor]) -> Ranking:
    """Returns the ranking whose scores were saved, from the state of the module "ranking"."""
    names = bytes(state[_NAMES].tolist()).decode().split("\n")
    groups = (len(state) - 1) // len(names)
    every = [
        Ranking(
            criterion=name,
            scores=tuple(state[f"scores_{number}_{group}"].numpy() for group in range(groups)),
        )
        for number, name in enumerate(names)
    ]
    return Ranking(criterion=names[0], scores=every[0].scores, others=tuple(every[1:]))


def ranked_by(name: str, scores: Sequence[NDArray[np.float64]]) -> Ranking:
    """Returns the ranking of channels by numbers that somebody has.

    Args:
        name: what they are.
        scores: per prunable group, (channels,): higher is more worth keeping.
    """
    return Ranking(
        criterion=name, scores=tuple(np.asarray(score, dtype=np.float64) for score in scores)
    )
