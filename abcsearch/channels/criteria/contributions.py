"""Criteria that look at what each channel contributes to what the next layers compute."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from abcsearch.channels.criteria.base import words
from abcsearch.channels.criteria.reading import ReadingCriterion
from abcsearch.channels.elimination import LEAST, rising_scores
from abcsearch.channels.pooling import warn_of_few

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.criteria.reading import Read

NOTHING = 1e-10  # an error that is this much of the whole is rounding


@dataclass(frozen=True)
class ContributionCriterion(ReadingCriterion):
    """Scores from the Gram matrix of channels' contributions to the outputs of the layers that read them.

    The contribution of channel c to an output is its share of the sum that a layer computes there: the inner product
    of the layer's weights of c and what the kernel sees of c. The Gram matrix of them, over all outputs and positions,
    follows from second moments of patches and the weights.
    """

    def check(self, reads: Sequence[Read]) -> None:
        """Warns of layers that read more than there are samples of."""
        few = {
            read.moments.reader.path: (read.moments.rows, read.moments.reader.inputs)
            for read in reads
        }
        warn_of_few(
            few, "samples", "the order of channels is partly chance; more images order better"
        )

    def of_group(self, reads: Sequence[tuple[Read, torch.Tensor]]) -> NDArray[np.float64]:
        """Returns the scores for the Gram matrix of all readers, (channels,); arguments as of the base class."""
        products = (
            torch.stack([read.contributions(units) for read, units in reads]).sum(dim=0).numpy()
        )
        order, values = self.removal((products + products.T) / 2)
        return rising_scores(order, values)

    @abstractmethod
    def removal(self, gram: NDArray[np.float64]) -> tuple[list[int], list[float]]:
        """Returns the channels in the order in which they go, and a value of each, for (channels, channels)."""


@dataclass(frozen=True)
class ThiNet(ContributionCriterion):
    """ThiNet: the set of removed channels grows by the one with which it contributes least to the next layer.

    The score is the mean square of what is lost when the channel and all before it are gone, as a share of what the
    layer computes.

    Source: Luo et al., ThiNet (ICCV 2017), algorithm 1.

    Differences from the paper:
        - Of coupled layers all readers count, each by its share; the paper leaves the residual stream alone.
        - Where a bias or a batch norm takes up a constant, contributions are looked at without their means.
        - More positions of fewer images, and all outputs there; the order is for every width.
        - What stays is scaled to make up for what is gone by `repair = "scalar"`; by default it is fitted anew.
    """

    def removal(self, gram: NDArray[np.float64]) -> tuple[list[int], list[float]]:
        """Returns the greedy order, and the error at every step, for (channels, channels)."""
        strength = gram.diagonal()
        # Of each channel and the sum of what is removed; of that sum alone
        together, error = (np.zeros(len(gram)), 0.0)
        alive = np.ones(len(gram), dtype=bool)
        order: list[int] = []
        errors: list[float] = []
        for _ in range(len(gram)):
            grown = np.where(alive, error + 2 * together + strength, np.inf)
            gone = int(len(gram) - 1 - grown[::-1].argmin())
            error = float(grown[gone])
            together += gram[:, gone]
            alive[gone] = False
            order.append(gone)
            errors.append(error)
        return order, errors


@dataclass(frozen=True)
class ThiNetTpami(ContributionCriterion):
    """ThiNet as in the journal: the set of kept channels grows by the one that best explains what is left.

    After each channel, one factor for every kept channel is fitted anew. The score is the error before the channel is
    kept, as a share of what the layers compute. Once there is none, the strongest come first.

    Source: Luo et al., ThiNet: Pruning CNN Filters for a Thinner Net (TPAMI 2019), section 3.

    Differences from the paper:
        - Those of `ThiNet`.
        - What a layer computes from other groups' channels stays as it is, and only the rest is explained.
    """

    def removal(self, gram: NDArray[np.float64]) -> tuple[list[int], list[float]]:
        """Returns the greedy order from its end, and the error before each channel is kept, for (channels, channels)."""
        strength, target = gram.diagonal(), gram.sum(axis=1)
        whole = max(float(target.sum()), 0.0)
        kept: list[int] = []
        errors: list[float] = []
        left, error = target, whole  # products of each channel and the residual; its square
        alive = strength > 0
        while alive.any() and error > NOTHING * max(whole, float(strength.max())):
            explained = np.where(alive, left**2 / np.where(alive, strength, 1.0), -1.0)
            best = int(explained.argmax())
            kept.append(best)
            errors.append(error)
            alive[best] = False
            factors = (
                np.linalg.pinv(gram[np.ix_(kept, kept)], rcond=1e-12, hermitian=True) @ target[kept]
            )
            left = target - gram[:, kept] @ factors
            error = whole - float(target[kept] @ factors)
        rest = [int(c) for c in np.argsort(-strength, kind="stable") if c not in kept]
        values = [LEAST * (strength[c] > 0) for c in reversed(rest)] + [
            max(e, 0.0) for e in reversed(errors)
        ]
        return [*reversed(rest), *reversed(kept)], values


@dataclass(frozen=True)
class Lasso(ContributionCriterion):
    """Channel pruning by LASSO: channels in the order in which they enter a fit whose penalty falls.

    One factor per channel is fitted to what the layers compute, with a penalty on their absolute values. The score is
    the penalty at which the channel first gets a factor, as a share of the one that lets none in. Those that get none
    are ordered by the mean square of their contributions, below all others.

    Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017), section 3.1; the path is
    that of Efron et al., Least Angle Regression (2004).

    Differences from the paper:
        - Those of `ThiNet`, but that neither finds factors to keep.
        - The order of the whole path, so that widths nest, and no bisection of the penalty for each of them. A channel
          that enters and leaves again counts from where it first entered.
        - The weights of the trained network at once for all layers; the paper goes layer by layer, with the inputs of
          the layers that are pruned already.
    """

    def removal(self, gram: NDArray[np.float64]) -> tuple[list[int], list[float]]:
        """Returns the order of the path from its end, and the penalties, for (channels, channels)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import lars_path_gram  # a second to import

        strength, count = gram.diagonal(), len(gram)
        with warnings.catch_warnings():
            # Of channels that depend on each other it says that it leaves some out, and that is what it is for.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            penalties, _, factors = lars_path_gram(
                Xy=gram.sum(axis=1), Gram=gram, n_samples=1, method="lasso", max_iter=8 * count
            )
        # (channels, steps); step k has the factors at which penalty k is reached
        enters = factors != 0
        first = np.where(enters.any(axis=1), enters.argmax(axis=1) - 1, len(penalties))
        values = np.append(penalties / max(float(penalties[0]), np.finfo(float).tiny), 0.0)
        order = sorted(range(count), key=lambda c: (-first[c], strength[c], -c))
        return order, [float(max(values[first[c]], LEAST * (strength[c] > 0))) for c in order]


THINET = ThiNet(**words("thinet"))
THINET_TPAMI = ThiNetTpami(**words("thinet_tpami"))
LASSO = Lasso(**words("lasso"))
