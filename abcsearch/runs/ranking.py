"""The ranking of a run: its criterion on images of the training split only."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from abcsearch.channels.latency import torch_threads
from abcsearch.channels.orders import Ranking
from abcsearch.channels.pooling import FewSamplesWarning
from abcsearch.channels.ranking import rank_channels
from abcsearch.rng import torch_stream
from abcsearch.steps import doing

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.data.splits import Data
    from abcsearch.runs.settings import SearchSettings

RANKING_IMAGES = 256  # for criteria that look at data
DRAFT_IMAGES = 8  # enough to see whether such a criterion works at all


def rank_for_run(
    model: nn.Module,
    graph: ChannelGraph,
    data: Data,
    settings: SearchSettings,
    *,
    draft: bool = False,
) -> Ranking:
    """Ranks a network's channels by the criterion of a run.

    Criteria that look at data get unaugmented training images (never search-validation or test), drawn by the run's
    seed, and labels. One thread, so that the ranking, and with it every fitness, is the same on any machine's cores.

    Args:
        model: the network; not changed.
        graph: its channel groups.
        data: its data.
        settings: criterion and seed.
        draft: on a few images, to find mistakes before the network has been trained.

    Raises:
        RankingError, TraceError: see `rank_channels`.
    """
    if not draft:
        doing(f"ranking channels by {', '.join(settings.criteria)}")
    order = torch.randperm(len(data.train), generator=torch_stream(settings.seed, "ranking images"))
    images = data.train.part(order[: DRAFT_IMAGES if draft else RANKING_IMAGES]).loaded()
    with torch_threads(1), warnings.catch_warnings():
        if draft:
            warnings.simplefilter("ignore", FewSamplesWarning)
        return rank_channels(
            model,
            graph,
            settings.criterion,
            data=(images.images, images.labels),
            seed=settings.seed,
        )
