"""Which channels of a group to keep: scores per channel, higher is more worth keeping.

Computed once on the trained network and shared by every candidate: a candidate keeps the best k of each group, so
candidates nest and building one is a slice. With several criteria there is one ranking for each, and a candidate says
for every group which of them counts.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.channels.criteria import CRITERIA, Subject, l1
from abcsearch.channels.moments import LESS
from abcsearch.channels.named import names_of
from abcsearch.channels.orders import Ranking
from abcsearch.errors import AbcSearchError, RankingError, one_line
from abcsearch.shortages import machine_suffices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.criteria import Criterion
    from abcsearch.channels.graph import ChannelGraph


def rank_channels(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str
    | Criterion
    | Callable[..., Any]
    | Sequence[str | Criterion | Callable[..., Any]] = "reader_l2",
    *,
    data: Any = None,  # noqa: ANN401 - an iterable of batches, or tensors
    seed: int = 0,
) -> Ranking:
    """Scores every channel of every prunable group.

    Args:
        model: the trained network that `graph` was traced on; it is not changed.
        graph: its channel groups.
        criterion: a name in `abcsearch.channels.criteria.CRITERIA`: "l1", "taylor" ...; each says whether it looks at
            images, or at images and labels. Or your own, as it is or by import path, package.module:name: a
            `Criterion`, a function of the `Subject` that returns the scores of all groups, or one of (tensors by name,
            group) that returns those of a group. Where it does not apply to a group ("bn_gamma" without a batch norm,
            "reader_l2" where nothing reads the channels), "l1" stands in, with one warning. A list of them gives a
            ranking by the first, which has the `others`.
        data: training images for the criteria that look at them, all of which are used, once and in their order: an
            iterable of (images, labels) batches such as a DataLoader, or two tensors (images, labels). Labels may be
            left out where the criterion does not need them: batches are then images.
        seed: of the "random" criterion, and of what the data and the network draw from torch's global generators, whose
            state is the same afterwards.

    Raises:
        RankingError: if the criterion is unknown, or two of a list are the same, a score is not finite, or the
            criterion needs data and there are none, they do not fit the network, or labels that it looks at are missing
            or out of range.
        TraceError: if the graph was traced on a network with other parameters.
    """
    named = names_of(criterion)
    names = [named] if isinstance(named, str) else named
    tensors = {name: tensor.detach() for name, tensor in graph.tensors(model).items()}
    subject = Subject(model=model, graph=graph, tensors=tensors, data=data, seed=seed)
    rankings: list[Ranking] = []
    for name in names:
        rankings.append(_ranked(subject, name))  # noqa: PERF401 - its warnings count frames
    return replace(rankings[0], others=tuple(rankings[1:]))


def _ranked(subject: Subject, criterion: str) -> Ranking:
    """Returns the ranking by one criterion, as `rank_channels` says."""
    entry = CRITERIA.find(criterion)
    graph, tensors = subject.graph, subject.tensors
    if entry.needs and subject.data is None:
        msg = (
            f"criterion {criterion!r} looks at {entry.needs} and there are none: pass data=, a DataLoader of training "
            "images, or (images, labels)"
        )
        raise RankingError(msg)
    scores: list[NDArray[np.float64]] = []
    without: list[str] = []
    # The caller may be in such a block, where nothing can be differentiated
    doing = f"ranking channels by {criterion}"
    with torch.inference_mode(mode=False), machine_suffices(doing, LESS):
        every = (
            entry.scores(subject)
            if criterion in CRITERIA
            else _own_scores(criterion, entry, subject)
        )
    for group, values in zip(graph.prunable, every, strict=True):
        if values is None:
            without.append(group.name)
            values = l1(tensors, group)
        if values is not None and np.shape(values) != (group.channels,):
            msg = f"criterion {criterion!r} gives group {group.name!r} scores {np.shape(values)}, not {(group.channels,)}"
            raise RankingError(msg)
        if values is None or not np.isfinite(values).all():
            where = "the trained weights and the data" if entry.needs else "the trained weights"
            msg = f"criterion {criterion!r} finds no finite score in group {group.name!r}; check {where}"
            raise RankingError(msg)
        scores.append(np.asarray(values, dtype=np.float64))
    if len(without) == len(scores) > 0 and criterion not in CRITERIA:
        msg = f"criterion {criterion!r} gives no group any scores, it returns None everywhere; return one per channel"
        raise RankingError(msg)
    if without:
        warnings.warn(
            f"criterion {criterion!r} does not apply to {', '.join(without)}; l1 is used there",
            stacklevel=3,
        )
    return Ranking(criterion=criterion, scores=tuple(scores))


def _own_scores(
    criterion: str, entry: Criterion, subject: Subject
) -> list[NDArray[np.float64] | None]:
    """Returns the scores of a criterion of the user's own.

    Raises:
        RankingError: if it fails, or returns something else than real numbers.
    """
    try:
        return [None if scores is None else _real(scores) for scores in entry.scores(subject)]
    except AbcSearchError:
        raise
    except Exception as error:  # the user's code: anything can go wrong in it
        msg = f"criterion {criterion!r} failed: {type(error).__name__}: {one_line(str(error))}"
        raise RankingError(msg) from error


def _real(scores: Any) -> NDArray[np.float64]:  # noqa: ANN401 - whatever the user's own returns
    """Returns scores as numbers; raises TypeError if they are none."""
    values = np.asarray(scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores)
    if values.dtype.kind not in "biuf":
        msg = f"scores are real numbers, found {values.dtype}"
        raise TypeError(msg)
    return values.astype(np.float64)
