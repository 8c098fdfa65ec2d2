"""Criteria that look at what the layers which read channels make of them; all from second moments."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from abcsearch.channels.criteria.base import Criterion, Needs, Subject, words
from abcsearch.channels.elimination import Fit, eliminate, inverted, regularised
from abcsearch.channels.moments import reader_moments
from abcsearch.channels.pooling import CONSTANT, units_by_group, warn_of_few

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.moments import Moments, Reader

RIDGE = 1e-6  # times the mean of the diagonal
FEW = "they fit in more than one way, and a small ridge that is added decides between these; more images order better"
WHOLE = 2304  # inputs of a layer, 3 x 3 x 256, above which its entries are looked at apart


@dataclass(frozen=True, eq=False)
class Read:
    """What a reader reads, and makes of it.

    Attributes:
        moments: of its inputs.
        weight: (conv_groups, outputs, units, entries) float64.
    """

    moments: Moments = field(repr=False)
    weight: torch.Tensor = field(repr=False)

    @cached_property
    def second(self) -> torch.Tensor:
        """Second moments of the inputs, (conv_groups, inputs, inputs): centred where something takes up a constant.

        What is constant then, or zero, has rows and columns of zeros.
        """
        gram = self.moments.gram
        second = self.moments.covariance if self.moments.reader.centred else gram
        varies = second.diagonal(dim1=1, dim2=2) > CONSTANT * gram.diagonal(dim1=1, dim2=2)
        return second * varies[:, :, None] * varies[:, None, :]

    @property
    def samples(self) -> int:
        """How many samples of a unit there are."""
        return self.moments.rows * (
            self.moments.reader.entries if self.moments.reader.form == "patches" else 1
        )

    @cached_property
    def by_unit(self) -> torch.Tensor:
        """The same of units, (conv_groups, units, units): every entry of theirs is one sample."""
        return per_unit(self.second, self.moments.reader)

    @cached_property
    def power(self) -> float:
        """E||W x||^2 of all that it computes, without what is constant where that is taken up behind it."""
        weight = self.rows(whole=True)
        return float((weight * (self.second @ weight)).sum())

    def rows(self, *, whole: bool) -> torch.Tensor:
        """Returns the weight as (conv_groups, inputs, outputs): of whole patches, or of units and more outputs."""
        weight = self.weight.movedim(1, 3)  # (conv_groups, units, entries, outputs)
        return (
            weight.flatten(1, 2)
            if whole and self.moments.reader.form == "patches"
            else weight.flatten(2)
        )

    @property
    def block(self) -> int:
        """Inputs of a unit in a fit: 1 where its entries are looked at apart."""
        reader = self.moments.reader
        whole = reader.form == "patches" and reader.units * reader.entries <= WHOLE
        return reader.entries if whole else 1

    @cached_property
    def fitted(self) -> torch.Tensor:
        """The second moments that fits are made of, (conv_groups, units * block, units * block)."""
        return self.second if self.block == self.moments.reader.entries else self.by_unit

    @cached_property
    def inverse(self) -> torch.Tensor:
        """Of `fitted`."""
        return inverted(regularised(self.fitted, RIDGE))

    def fit(self, units: torch.Tensor) -> Fit:
        """Returns the fit of what it computes from some channels, (channels, units of each)."""
        rows = (units[:, :, None] * self.block + torch.arange(self.block)).flatten()
        weight = self.rows(whole=self.block > 1)
        # What does not vary has no effect, whatever its weight is.
        weight = weight * (self.fitted.diagonal(dim1=1, dim2=2) > 0)[:, :, None]
        power = float((weight * (self.fitted @ weight)).sum())
        inverse = self.inverse[:, rows][:, :, rows]
        return Fit(inverse, weight[:, rows], self.block * units.shape[1], 1 / power)

    @cached_property
    def products(self) -> torch.Tensor:
        """(units, units): E of the products of what two units contribute to an output, summed over all outputs."""
        reader = self.moments.reader
        weight = self.rows(whole=True)
        products = self.second * (weight @ weight.mT)
        if products.shape[1] > reader.units:
            products = products.reshape(
                -1, reader.units, reader.entries, reader.units, reader.entries
            ).sum(dim=(2, 4))
        return products.sum(dim=0)

    def contributions(self, units: torch.Tensor) -> torch.Tensor:
        """Returns (channels, channels), `products` of channels as a share of `power`."""
        channels, each = units.shape
        rows = units.flatten()
        products = self.products[rows][:, rows].reshape(channels, each, channels, each)
        return products.sum(dim=(1, 3)) / self.power


def per_unit(matrix: torch.Tensor, reader: Reader) -> torch.Tensor:
    """Returns second moments of units, (conv_groups, units, units), from those of inputs in either form."""
    if matrix.shape[1] == reader.units:
        return matrix
    blocks = matrix.reshape(-1, reader.units, reader.entries, reader.units, reader.entries)
    return blocks.diagonal(dim1=2, dim2=4).mean(dim=-1)


@dataclass(frozen=True)
class ReadingCriterion(Criterion):
    """Scores from second moments of what the layers that read channels get, and their weights.

    Readers of a group count alike, each by what share of E||W x||^2 it loses. Units of other groups that one of them
    reads too stay as they are. A group that no convolution or linear module reads has no scores, and one of whose
    readers none computes anything but constants has scores of zero.
    """

    needs: ClassVar[Needs] = "images"

    def scores(self, subject: Subject) -> list[NDArray[np.float64] | None]:
        """Runs the network once over the data."""
        moments = reader_moments(subject.model, subject.graph, subject.data, seed=subject.seed)
        reads = {
            path: self._read(seen, subject.tensors[seen.reader.weight])
            for path, seen in moments.items()
        }
        self.check(list(reads.values()))
        every = units_by_group(subject.graph, (seen.reader for seen in moments.values()))
        scores: list[NDArray[np.float64] | None] = []
        for group, units in zip(subject.graph.prunable, every, strict=True):
            alive = [(reads[path], which) for path, which in units.items() if reads[path].power > 0]
            if alive:
                scores.append(self.of_group(alive))
            else:
                scores.append(np.zeros(group.channels) if units else None)
        return scores

    @staticmethod
    def _read(moments: Moments, weight: torch.Tensor) -> Read:
        """Returns a reader with its weight, in one layout: that decides the order of summation."""
        split = moments.reader.split(weight.cpu().double().contiguous())
        return Read(moments, split.contiguous())

    def check(self, reads: Sequence[Read]) -> None:
        """Warns of too few samples for the order to mean much; by default, of nothing."""

    @abstractmethod
    def of_group(self, reads: Sequence[tuple[Read, torch.Tensor]]) -> NDArray[np.float64]:
        """Returns (channels,) scores of a group.

        Args:
            reads: the readers, and which of the units of each are the channels: (channels, units of each).
        """


@dataclass(frozen=True)
class RefitCriterion(ReadingCriterion):
    """Backward elimination with refit: whose removal costs least if every reader's whole weight is fitted anew, goes.

    The loss of a channel is how much the least squared error of the readers' outputs grows, as a share of what they
    are; nothing that other channels can make up for counts. The score is the loss of all that have gone when the
    channel has: a share of one per reader.

    Of a reader of more than `WHOLE` inputs the kernel's positions are looked at apart, as more samples of the same
    channels. `RIDGE` times the mean of the diagonal is added to the second moments.

    Source: the algebra is that of Hassibi and Stork, Optimal Brain Surgeon (NIPS 1992), for channels instead of
    weights and the outputs of the next layers instead of the loss.
    """

    def check(self, reads: Sequence[Read]) -> None:
        """Warns of layers that read more than there are samples of."""
        few = {
            read.moments.reader.path: (
                read.moments.rows if read.block > 1 else read.samples,
                read.moments.reader.units * read.block,
            )
            for read in reads
        }
        warn_of_few(few, "samples", FEW)

    def of_group(self, reads: Sequence[tuple[Read, torch.Tensor]]) -> NDArray[np.float64]:
        """Returns the growth of the error when each channel goes, (channels,)."""
        return eliminate([read.fit(units) for read, units in reads], len(reads[0][1]))


REFIT = RefitCriterion(**words("refit"))
