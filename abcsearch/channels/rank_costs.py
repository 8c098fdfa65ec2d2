"""Layers that may be products of two smaller ones, and what candidates cost then: the cheaper of layer and product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from abcsearch.channels.cost import CostModel
from abcsearch.channels.uses import Call
from abcsearch.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from fractions import Fraction

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class LayerRank:
    """A layer that may become a product of two smaller ones.

    Attributes:
        path: of the module.
        method: how it is split, see `low_rank`.
        weight: the name of its weight.
        full: rank at which the product is the layer.
        highest: the highest rank that has fewer MACs than the layer, all channels kept; at least 1.
        shapes: of the two weights at full rank; the first has the rank on axis 0, the second on axis 1.
        times: how often each element of the two is used per image.
        between: bytes of what the first makes, per image and rank.
    """

    path: str
    method: str
    weight: str
    full: int
    highest: int
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    times: tuple[float, float]
    between: float

    @property
    def name(self) -> str:
        """What its dimension is called."""
        return f"rank of {self.path}"

    def choices(self, ratios: Iterable[Fraction]) -> tuple[int, ...]:
        """Returns the ranks at keep ratios of the highest that saves something, and the full one, ascending."""
        return tuple(sorted({*(max(1, int(self.highest * ratio)) for ratio in ratios), self.full}))


class RankedCosts(CostModel):
    """Costs of candidates that say ranks as well: widths, blocks, then one rank per layer that may be a product.

    A layer is a product where that has fewer MACs, and whole elsewhere: so are its MACs, FLOPs and parameters counted.
    A candidate that says no ranks has none.
    """

    def __init__(
        self,
        *,
        ranks: Sequence[LayerRank],
        channels: Sequence[int],
        axes: Iterable[tuple[str, int, int, int]],
        **known: Any,  # noqa: ANN401 - as of `CostModel`
    ) -> None:
        """Builds the polynomials of whole layers, and those of the two that each may become."""
        axes = tuple(axes)
        super().__init__(channels=channels, axes=axes, **known)
        self._ranks = tuple(ranks)
        self._widths = len(channels)
        names = [(f"{rank.path}.0.weight", f"{rank.path}.1.weight") for rank in ranks]
        of_rank: list[tuple[str, int, int, int]] = []
        for index, (rank, (first, second)) in enumerate(zip(ranks, names, strict=True)):
            dimension = self._widths + index
            of_rank += [(first, 0, dimension, 1), (second, 1, dimension, 1)]
            # The first reads what the layer reads, the second makes what it makes
            of_rank += [
                (first if axis else second, axis, group, times)
                for name, axis, group, times in axes
                if name == rank.weight
            ]
        sizes = {
            name: shape
            for rank, pair in zip(ranks, names, strict=True)
            for name, shape in zip(pair, rank.shapes, strict=True)
        }
        calls = [
            Call(weight=name, bias=None, times=times, outputs=0)
            for rank, pair in zip(ranks, names, strict=True)
            for name, times in zip(pair, rank.times, strict=True)
        ]
        self._split = CostModel(
            channels=[*channels, *(rank.full for rank in ranks)],
            axes=of_rank,
            sizes=sizes,
            trainable=sizes,
            calls=calls,
            blocks=known.get("blocks", ()),
        )
        # Columns of the whole weights, and (n_ranks, 2) of the factors
        self._whole = np.array([self._names.index(rank.weight) for rank in ranks])
        self._pairs = np.array(
            [[self._split._names.index(name) for name in pair] for pair in names]
        )

    def factored(self, candidates: ArrayLike) -> NDArray[np.bool_]:
        """Returns which layers are products: (n, n_dims) candidates to (n, n_ranks)."""
        whole, split = self._both(candidates, self._macs, self._split._macs)
        return split < whole

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.macs`, of candidates with ranks."""
        more = self._more(candidates, self._macs, self._split._macs)
        return super().macs(candidates) + more

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.flops`, of candidates with ranks."""
        return super().flops(candidates) + self._more(candidates, self._flops, self._split._flops)

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.params`, of candidates with ranks."""
        return super().params(candidates) + self._more(
            candidates, self._params, self._split._params
        )

    def peak_activation(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.peak_activation`, of candidates with ranks: between two layers there is a result more."""
        rows, ranks = self._check(candidates), self._said(candidates)
        if self._activations is None:
            return super().peak_activation(candidates)
        split = self.factored(candidates)
        between = {
            rank.path: np.where(split[:, index], rank.between * ranks[:, index], 0.0)
            for index, rank in enumerate(self._ranks)
        }
        kept = self._with_blocks(rows)[:, self._widths :]
        return self._activations.peak(rows[:, : self._widths], kept, between)

    def layer_macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.layer_macs`; a layer that is a product has the MACs of both of its layers."""
        macs, layers = super().layer_macs(candidates), list(self.layers)
        columns = [layers.index(rank.weight) for rank in self._ranks]
        whole, split = self._both(candidates, self._macs, self._split._macs)
        macs[:, columns] = np.rint(np.minimum(whole, split)).astype(np.int64)
        return macs

    def expected(self, *_: Any, **__: Any) -> NoReturn:  # noqa: ANN401 - as of `CostModel`
        """Refuses: the cheaper of two is no polynomial of widths.

        Raises:
            CandidateError: always.
        """
        msg = "expected costs are of widths and blocks; with ranks = true in [space] they are not known"
        raise CandidateError(msg)

    def _more(
        self, candidates: ArrayLike, whole: NDArray[np.float64], split: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Returns how much products cost more than the layers that they stand for, of all layers, (n,)."""
        costs = self._both(candidates, whole, split)
        more = np.where(self.factored(candidates), costs[1] - costs[0], 0.0)
        return np.rint(more.sum(axis=1)).astype(np.int64)

    def _both(
        self, candidates: ArrayLike, whole: NDArray[np.float64], split: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the cost of layers as they are and as products, (n, n_ranks) each.

        Args:
            candidates: (n, n_dims).
            whole: what an element of each parameter costs.
            split: likewise of the factors.
        """
        rows, ranks = self._with_blocks(self._check(candidates)), self._said(candidates)
        inner = np.concatenate([rows[:, : self._widths], ranks, rows[:, self._widths :]], axis=1)
        elements, _ = self._elements(rows, self._whole)
        factors, _ = self._split._elements(inner, self._pairs.ravel())
        of_factors = (factors * split[self._pairs.ravel()]).reshape(len(rows), -1, 2)
        return elements * whole[self._whole], of_factors.sum(axis=2)

    def _with_blocks(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns rows of widths and blocks; those that say nothing of blocks keep all."""
        missing = self._widths + self._blocks - rows.shape[1]
        return np.concatenate([rows, np.ones((len(rows), missing), dtype=np.int64)], axis=1)

    def _said(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the ranks of candidates, (n, n_ranks); full ones where they say none.

        Raises:
            CandidateError: if one is out of range.
        """
        full = np.array([rank.full for rank in self._ranks])
        rows, shape = np.asarray(candidates), self._widths + self._blocks
        if rows.shape[1] <= shape:
            return np.tile(full, (len(rows), 1))
        ranks = rows[:, shape : shape + len(full)].astype(np.int64)
        bad = np.argwhere((ranks < 1) | (ranks > full))
        if len(bad):
            row, column = bad[0]
            name, most = self._ranks[column].name, full[column]
            msg = f"{name} of candidate {row} is {ranks[row, column]}; allowed are 1 to {most}"
            raise CandidateError(msg)
        return ranks

    def _check(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns widths and blocks of candidates, after checking shape and range."""
        try:
            rows = np.asarray(candidates)
        except ValueError:
            return super()._check(candidates)
        shape = self._widths + self._blocks
        with_ranks = shape + len(self._ranks)
        if rows.ndim == 2 and rows.shape[1] in (with_ranks, with_ranks + self._widths):
            return super()._check(rows[:, :shape])
        if rows.ndim == 2 and rows.shape[1] > shape:
            msg = f"candidates of this network have {with_ranks} values with their ranks, found {rows.shape[1]}"
            raise CandidateError(msg)
        return super()._check(rows)
