"""Criteria that look at which channels say the same as others, and which say something of the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from abcsearch.channels.criteria.base import Criterion, Needs, Subject, words
from abcsearch.channels.criteria.reading import FEW, RIDGE, ReadingCriterion
from abcsearch.channels.elimination import (
    LEAST,
    Fit,
    eliminate,
    inverted,
    regularised,
    rising_scores,
)
from abcsearch.channels.pooling import (
    by_channel,
    pooled_moments,
    response_covariances,
    units_by_group,
    warn_of_few,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.criteria.reading import Read
    from abcsearch.channels.pooling import Pooled

SHRINKAGE = 0.1  # times the mean variance, in fits to a few hundred images


@dataclass(frozen=True)
class Pfa(Criterion):
    """Principal filter analysis: again and again the channel goes that is most correlated with one that is left.

    Of two that are, the one goes that is more correlated with all others too, and of two alike in that the weaker one.
    Correlations are those of the largest responses to each image, in absolute value. The score is how far from one the
    largest correlation is when the channel goes; channels without variance go first.

    Source: Suau et al., Principal Filter Analysis for Guided Network Compression (2018), section 3; how wide layers
    should be by it, `pfa_widths` says.

    Differences from the paper:
        - Responses are looked at where the next layers read them; of coupled layers the covariances are added, see
          `response_covariances`.
        - The order of all channels, so that widths nest.
    """

    needs: ClassVar[Needs] = "images"

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Runs the network once over the data."""
        every = response_covariances(subject.model, subject.graph, subject.data, seed=subject.seed)
        return [None if covariance is None else self.of(covariance) for covariance in every]

    @staticmethod
    def of(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns (channels,) scores for the (channels, channels) covariance of a group."""
        variance = covariance.diagonal()
        alive = [int(c) for c in np.flatnonzero(variance > 0)]
        order = [int(c) for c in np.flatnonzero(variance <= 0)[::-1]]
        values = [0.0] * len(order)
        deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
        correlation = np.abs(covariance / deviation / deviation[:, None])
        np.fill_diagonal(correlation, 0.0)
        while alive:
            left = correlation[np.ix_(alive, alive)]
            highest, sums = left.max(axis=1), left.sum(axis=1)
            near = np.flatnonzero(highest >= highest.max() - 1e-9)
            near = near[sums[near] >= sums[near].max() - 1e-9]
            index = int(near[::-1][variance[alive][near[::-1]].argmin()])
            values.append(max(1.0 - float(highest.max()), LEAST))
            order.append(alive.pop(index))
        return rising_scores(order, values)


@dataclass(frozen=True)
class Subspace(ReadingCriterion):
    """Clusters of channels that lie in one subspace: of each the strongest channel is kept.

    Every channel's feature maps are expressed by those of all others, with a ridge; how strongly two need each other in
    that is their affinity. Clusters are merged in turn, those with the highest mean affinity first, and the weaker one
    of their two strongest channels goes. The score is by how much the affinity is below the highest. Channels without
    variance go first.

    Source: Wang et al., Exploring Linear Relationship in Feature Map Subspace for ConvNets Compression (2018).

    Differences from the paper:
        - Clusters are merged (average linkage), so that those of all widths nest; the paper cuts the graph of
          affinities into as many clusters as a layer shall have channels.
        - Channels are compared at equal strength, at some positions of each map, where the next layers read them; maps
          in several layers that read a group are put side by side.
    """

    def check(self, reads: Sequence[Read]) -> None:
        """Warns of layers that have more channels than there are samples of them."""
        few = {
            read.moments.reader.path: (read.samples, read.moments.reader.units) for read in reads
        }
        warn_of_few(few, "samples", FEW)

    def of_group(self, reads: Sequence[tuple[Read, torch.Tensor]]) -> NDArray[np.float64]:
        """Returns the scores for the channels' second moments in all readers, (channels,)."""
        return self.of(
            torch.stack([by_channel(read.by_unit, units) for read, units in reads])
            .sum(dim=0)
            .numpy()
        )

    @staticmethod
    def of(gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns (channels,) scores for the (channels, channels) second moments of a group."""
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform

        strength = gram.diagonal()
        alive = np.flatnonzero(strength > 0)
        order = [int(c) for c in np.flatnonzero(strength <= 0)[::-1]]
        values = [0.0] * len(order)
        scale = np.sqrt(strength[alive])
        unit = torch.from_numpy(gram[np.ix_(alive, alive)] / scale / scale[:, None])
        inverse = inverted(regularised(unit, RIDGE)).numpy()
        coefficients = np.abs(inverse / inverse.diagonal())  # column j expresses channel j
        np.fill_diagonal(coefficients, 0.0)
        distance = np.subtract(
            (affinity := coefficients + coefficients.T).max(initial=0.0), affinity
        )
        np.fill_diagonal(distance, 0.0)
        # Of every cluster, in the order in which they come about
        strongest = [int(c) for c in alive]
        for first, second, height, _ in (
            linkage(squareform(distance), "average") if len(alive) > 1 else ()
        ):
            pair = sorted(
                (strongest[int(first)], strongest[int(second)]), key=lambda c: (strength[c], -c)
            )
            order.append(pair[0])
            values.append(max(float(height), LEAST))
            strongest.append(pair[1])
        last = strongest[-1:]
        return rising_scores([*order, *last], [*values, *[max([LEAST, *values])] * len(last)])


@dataclass(frozen=True)
class Discriminant(Criterion):
    """Discriminant information: what responses to images say of the labels, fitted by ridge regression.

    Backward: the channel goes without which the labels are explained least worse by those that are left. The score is
    how much of the variance of the labels is no longer explained when it is gone.

    Source: Hou and Kung, Efficient Image Super Resolution via Channel Discriminative Deep Neural Network Pruning
    (ICASSP 2020).

    Differences from the paper:
        - Responses are the mean over each map, where the next layers read them, and the readers of a group add up.
        - Channels go one after the other, and what is left is fitted anew each time.
    """

    needs: ClassVar[Needs] = "images and labels"

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Runs the network once over the data."""
        s = subject
        seen = pooled_moments(s.model, s.graph, s.data, seed=s.seed, pool="mean", targets=True)
        self._check(seen)
        inverses = {
            path: inverted(regularised(pooled.covariance, SHRINKAGE))
            for path, pooled in seen.items()
        }
        scores: list[NDArray[np.float64] | None] = []
        every = units_by_group(s.graph, (pooled.reader for pooled in seen.values()))
        for group, units in zip(s.graph.prunable, every, strict=True):
            fits = [
                self._fit(seen[path], inverses[path], which)
                for path, which in units.items()
                if seen[path].spread > 0
            ]
            if fits:
                scores.append(eliminate(fits, group.channels))
            else:
                scores.append(np.zeros(group.channels) if units else None)
        return scores

    @staticmethod
    def _check(seen: dict[str, Pooled]) -> None:
        """Warns of layers that have more channels than there are images."""
        few = {path: (pooled.images, pooled.reader.units) for path, pooled in seen.items()}
        warn_of_few(few, "images", FEW)

    @staticmethod
    def _fit(pooled: Pooled, inverse: torch.Tensor, units: torch.Tensor) -> Fit:
        """Returns the fit of the targets from a group's channels and what else the reader reads."""
        rows = units.flatten()
        weight = (inverse @ pooled.cross)[:, rows]
        return Fit(inverse[:, rows][:, :, rows], weight, units.shape[1], 1 / pooled.spread)


PFA = Pfa(**words("pfa"))
SUBSPACE = Subspace(**words("subspace"))
DISCRIMINANT = Discriminant(**words("discriminant"))
