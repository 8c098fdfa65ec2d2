"""The way back of slicing: what was learned by a slice is written into the network that it was cut out of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from abcsearch.channels.sharing import share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.orders import Ranking


def put_back(
    model: nn.Module,
    graph: ChannelGraph,
    candidate: Sequence[int],
    ranking: Ranking,
    sliced: nn.Module,
) -> None:
    """Writes parameters and buffers of a slice to where they came from; all other numbers stay as they are.

    Slicing the model again with the same candidate and ranking gives the slice as it is now.

    Args:
        model: that the slice was cut out of; changed in place.
        graph: its channel groups.
        candidate: of the slice.
        ranking: by which it was cut.
        sliced: what `slice_model(model, graph, candidate, ranking)` returned, trained since.

    Raises:
        CandidateError, RankingError, TraceError: as `share`.
    """
    whole = dict([*model.named_parameters(), *model.named_buffers()])
    left = dict([*sliced.named_parameters(), *sliced.named_buffers()])
    # What slicing leaves of the numbers of all entries says where each one came from; float64 holds them exactly.
    numbered = {
        name: torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        for name, tensor in whole.items()
    }
    _, entries = share(model, graph, candidate, ranking, numbered)
    with torch.no_grad():
        for name, entry in entries.items():
            flat = whole[name].flatten().clone()
            flat[entry.flatten().long().to(flat.device)] = left[name].to(flat).flatten()
            whole[name].copy_(flat.reshape(whole[name].shape))
