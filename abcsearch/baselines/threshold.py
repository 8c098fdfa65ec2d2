"""One order of all channels of all layers, cut at the budget: what pruning without a search does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from abcsearch.channels.threshold import largest_within, threshold_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.budget import Constraint
    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.channels.source import Source
    from abcsearch.space import Candidate, SearchSpace


class Ranked(Protocol):
    """What is cut: of a task, these."""

    @property
    def source(self) -> Source:
        """Where networks come from, with the ranking of their channels."""
        ...

    @property
    def graph(self) -> ChannelGraph:
        """Its channel groups."""
        ...

    @property
    def space(self) -> SearchSpace:
        """The structures."""
        ...

    @property
    def constraint(self) -> Constraint:
        """The budget bound to the space."""
        ...


def global_threshold(task: Ranked) -> Candidate:
    """Returns the largest structure inside the budget that one threshold on the scores of all channels leaves.

    Scores are those of the run's ranking, of several the first, over the mean of their group: a score is a sum over all
    that a group holds, right within it, but one of a stage of nine layers is not to be compared with one of a single
    layer. No layer gets narrower than the narrowest of the space, and structures for smaller budgets are inside those
    for larger ones. Where none of them meets the budget, as where it needs blocks to be dropped, it is the one that
    misses it least.

    Source: Network Slimming (Liu et al., ICCV 2017), NISP (Yu et al., CVPR 2018), CURL (Luo and Wu, CVPR 2020) and
    Torch-Pruning cut all layers at one threshold; they differ in the scores.

    Differences from the papers:
        - The mean, where others take the Euclidean norm (Molchanov et al., ICLR 2017) or the scores as they are. The
          norm grows with the width, so wide layers are cut first, down to their floor. Decided by top1 in per cent
          under AdaptiveBN, not fine-tuned, on scikit-learn's digits, with the default space, means of three seeds:

            criterion l1           50 % of the MACs                      30 %
                             mean  norm  as is  uniform     mean  norm  as is  uniform
            small_resnet     84.4  19.4   74.9     87.7     64.6  13.7   35.7     53.5
            VGG, 6 layers    96.8  58.3   67.5     97.9     91.8  53.9   35.2     92.1
            mobilenet_v2     54.3  47.2   56.7     62.6     24.1  13.3   14.9     28.7

          With "taylor" and "bn_gamma" likewise; over all three criteria it is 66.9, 42.5, 49.9 and 69.8.
        - A floor: published thresholds can take all channels of a layer.
    """
    return _cut(task, [_over_mean(scores) for scores in task.source.ranking.scores])


def global_threshold_per_mac(task: Ranked) -> Candidate:
    """Returns what `global_threshold` does if a channel's score is also divided by the MACs that it costs.

    These are the MACs that the full network would save without one channel of the group. In the measurement of
    `global_threshold`, over networks and budgets, it has 47 % with "taylor", whose scores are a loss to be expected
    (without the MACs 62), and 23 with "l1" and "bn_gamma" (69 and 70), whose sizes have nothing to do with MACs.
    """
    costs, full = task.graph.costs, np.array(task.space.full)
    thinner = full - np.eye(len(task.source.ranking.scores), len(full), dtype=np.int64)
    saved = costs.macs([full])[0] - costs.macs(np.maximum(thinner, np.minimum(full, 1)))
    pairs = zip(task.source.ranking.scores, saved.tolist(), strict=True)
    return _cut(task, [_over_mean(scores) / max(macs, 1) for scores, macs in pairs])


def _cut(task: Ranked, scores: Sequence[NDArray[np.float64]]) -> Candidate:
    """Returns the largest structure inside the budget on the path of a threshold on scores."""
    return largest_within(threshold_path(scores, task.space), task.constraint)


def _over_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns scores of a group whose mean size is 1; those of a group in which all are 0 stay so."""
    mean = float(np.abs(scores).mean())
    return scores / mean if mean else scores
