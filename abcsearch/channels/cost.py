"""Costs of many structures at once, in closed form.

Every parameter's number of elements is a product of axis lengths, and every axis length is a sum of kept channels, so
macs, flops and params are exact polynomials of the candidate; the size of every activation is a sum as well. Nothing is
sliced to count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.errors import CandidateError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from numpy.typing import ArrayLike, NDArray

    from abcsearch.channels.activation import Activations
    from abcsearch.channels.expectation import Distribution
    from abcsearch.channels.uses import Call

_ROWS = 4096  # candidates per block, so that memory stays small for any number of candidates


class CostModel:
    """macs, flops, params and peak activation memory of candidates of one network.

    Counts are per image (batch 1). Arithmetic is float64 on integers, exact below 2**53.
    """

    def __init__(  # noqa: PLR0913 - all that costs follow from
        self,
        *,
        channels: Sequence[int],
        axes: Iterable[tuple[str, int, int, int]],
        sizes: Mapping[str, tuple[int, ...]],
        trainable: Iterable[str],
        calls: Iterable[Call],
        blocks: Sequence[str] = (),
        activations: Activations | None = None,
    ) -> None:
        """Builds the polynomials.

        Args:
            channels: full width of every dimension.
            axes: (parameter, axis, dimension, multiplicity): how often each channel of a dimension lies on an axis.
            sizes: full shape of every parameter and buffer.
            trainable: the names in `sizes` that count as parameters.
            calls: every use of a weight.
            blocks: paths of the residual blocks that can be dropped.
            activations: which results of operations are alive when.
        """
        self._activations = activations
        self._blocks = len(blocks)
        self._channels = np.array(channels, dtype=np.int64)
        calls = tuple(calls)
        used = {
            name for call in calls for name in (call.weight, call.bias) if isinstance(name, str)
        }
        parameters = frozenset(trainable)
        names = sorted(parameters | used)
        row = {name: index for index, name in enumerate(names)}
        n_axes = max((len(sizes[name]) for name in names), default=0)
        # factors[a][p] are the coefficients (constant, dimension 0, 1 ...) of axis a's length in parameter p.
        factors = np.zeros((n_axes, len(names), 1 + len(self._channels)))
        factors[:, :, 0] = 1
        for name, index in row.items():
            factors[: len(sizes[name]), index, 0] = sizes[name]
        varies = np.zeros(n_axes, dtype=bool)
        for name, axis, dimension, multiplicity in axes:
            if name in row:
                factors[axis, row[name], 1 + dimension] = multiplicity
                factors[axis, row[name], 0] -= multiplicity * self._channels[dimension]
                varies[axis] = True
        self._names = names
        self._constant = factors[~varies, :, 0].prod(axis=0)
        self._block_of = np.array([_block(name, blocks) for name in names], dtype=np.int64)
        self._factors = factors[varies]
        self._axes = factors
        self._params = np.array([float(name in parameters) for name in names])
        self._macs, self._flops = np.zeros(len(names)), np.zeros(len(names))
        # What a weight that is computed in forward costs, which never changes: per block, and outside of all (last).
        self._fixed_macs, self._fixed_flops = np.zeros((2, 1 + len(blocks)))
        for call in calls:
            self._count(call, row, _block(call.scope, blocks))

    def _count(self, call: Call, row: Mapping[str, int], block: int) -> None:
        """Adds a use of a weight to what its parameter costs per entry, or to what its block costs in any case."""
        if isinstance(call.weight, int):
            self._fixed_macs[block] += call.times * call.weight
            self._fixed_flops[block] += 2 * call.times * call.weight
        else:
            self._macs[row[call.weight]] += call.times
            self._flops[row[call.weight]] += 2 * call.times
        if isinstance(call.bias, int):
            self._fixed_flops[block] += call.outputs * call.bias
        elif call.bias is not None:
            self._flops[row[call.bias]] += call.outputs

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns multiply-accumulates of convolutions, linear layers and other products with a weight, no bias.

        Args:
            candidates: (n, n_dims) integers, kept channels per prunable group; then, or not at all, 1 or 0 per block;
                then, or not at all, the number of a criterion per prunable group, on which no cost depends.

        Returns:
            (n,) int64.

        Raises:
            CandidateError: if the shape is wrong or a width is outside 1 ... channels.
        """
        return self._weighted(candidates, self._macs, self._fixed_macs)

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the survey's count, 2*H*W*C_in/groups*K*K*C_out (+ H*W*C_out with a bias); shapes as `macs`."""
        return self._weighted(candidates, self._flops, self._fixed_flops)

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the number of parameters; shapes as `macs`."""
        return self._weighted(candidates, self._params, np.zeros(1 + self._blocks))

    def peak_activation(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the most memory that activations take at any operation of a forward pass.

        Counted are the input, the output, and every result from the operation that makes it to the last that reads it;
        views and in-place results share memory. Weights, and what an operation needs inside, are not.

        Args:
            candidates: as in `macs`.

        Returns:
            (n,) int64, bytes per image in the precision that was traced.

        Raises:
            CandidateError: as `macs`.
        """
        rows, widths = self._check(candidates), len(self._channels)
        if self._activations is None:
            return np.zeros(len(rows), dtype=np.int64)
        kept = (
            rows[:, widths:]
            if rows.shape[1] > widths
            else np.ones((len(rows), self._blocks), dtype=np.int64)
        )
        return self._activations.peak(rows[:, :widths], kept)

    def _weighted(
        self, candidates: ArrayLike, weights: NDArray[np.float64], fixed: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Returns sum over parameters of weight * elements, and what never changes, of (n, n_dims) candidates: (n,)."""
        rows = self._check(candidates)
        used = np.flatnonzero(weights)
        total = np.empty(len(rows), dtype=np.int64)
        for start in range(0, len(rows), _ROWS):
            elements, kept = self._elements(rows[start : start + _ROWS], used)
            total[start : start + _ROWS] = np.rint(elements @ weights[used] + kept @ fixed).astype(
                np.int64
            )
        return total

    def _elements(
        self, rows: NDArray[np.int64], used: NDArray[np.intp]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns how many elements the used parameters have, (n, n_used), and what is kept of blocks, (n, 1 + blocks).

        The last column of blocks is for what is in none: never dropped.
        """
        widths, block, constant = len(self._channels), self._block_of[used], self._constant[used]
        terms = np.concatenate([np.ones((len(rows), 1)), rows[:, :widths]], axis=1)
        kept = np.concatenate(
            [rows[:, widths:], np.ones((len(rows), 1 + widths + self._blocks - rows.shape[1]))], 1
        )
        elements = (
            kept[:, block] * constant
            if self._blocks
            else np.broadcast_to(constant, (len(rows), len(block)))
        )
        for factor in self._factors[:, used]:
            elements = elements * (terms @ factor.T)
        return elements, kept

    def expected(self, distributions: Sequence[Distribution], cost: str = "macs") -> torch.Tensor:
        """Returns the expected cost of structures that are not decided yet: exact, and differentiable.

        Dimensions are independent of each other. Where one group stands on both ends of a layer, the moments of its
        width are used, E[w^2] and not E[w]^2. With whole numbers for widths it is what `macs` returns.

        Source: FLOPs as in DMCP (Guo et al., CVPR 2020, section 3.3), where they are products of expected widths.

        Args:
            distributions: one per prunable group; then, or not at all, one per block, whose width is 1 or 0. Each is

                - a number, or a floating-point tensor (): a width that is certain, which need not be whole, or the
                  probability of keeping a block;
                - a floating-point tensor (channels,): for every channel the probability, in [0, 1], that it is kept,
                  independent of the others. Soft gates that are no probabilities have a width that is certain, their
                  sum;
                - a pair (widths, probabilities), both (n,), floating-point probabilities that add up to 1.

                All tensors are on one device.
            cost: "macs", "flops" or "params".

        Returns:
            () float64, the expectation of what the method of that name counts.

        Raises:
            CandidateError: if the number of distributions is wrong, one is none of these, or there is no such cost.
        """
        import torch  # here, since what a config can name is listed without it

        from abcsearch.channels.expectation import cumulants, expected_products

        weights = {
            "macs": (self._macs, self._fixed_macs),
            "flops": (self._flops, self._fixed_flops),
            "params": (self._params, np.zeros(1 + self._blocks)),
        }
        if cost not in weights:
            raise CandidateError(unknown_name("cost", cost, weights))
        widths = len(self._channels)
        if len(distributions) not in (widths, widths + self._blocks):
            both = f", or {widths + self._blocks} with its blocks" if self._blocks else ""
            msg = f"distributions are one per prunable group, {widths}{both}, found {len(distributions)}"
            raise CandidateError(msg)
        sizes = [*self._channels.tolist(), *[1] * self._blocks]
        most = max(1, len(self._factors))
        orders = [
            cumulants(f"dimension {index}", channels, distribution, most)
            for index, (channels, distribution) in enumerate(
                zip(sizes, distributions, strict=False)
            )
        ]
        device = next(
            (row.device for row in orders if row.device.type != "cpu"), torch.device("cpu")
        )
        empty = torch.zeros(most, 0, dtype=torch.float64, device=device)
        rows = torch.stack([row.to(device) for row in orders], dim=1) if orders else empty
        weight, fixed = weights[cost]
        used = np.flatnonzero(weight)
        elements = expected_products(self._factors[:, used], self._constant[used], rows[:, :widths])
        # Blocks without a word on them, and no block
        missing = rows.new_ones(1 + widths + self._blocks - len(orders))
        kept = torch.cat([rows[0, widths:], missing])
        every = elements * kept[torch.from_numpy(self._block_of[used]).to(device)]
        return every @ torch.from_numpy(weight[used]).to(device) + kept @ torch.from_numpy(
            fixed
        ).to(device)

    @property
    def channels(self) -> tuple[int, ...]:
        """The full width of every prunable group."""
        return tuple(self._channels.tolist())

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the weights that multiply something: one per layer."""
        return tuple(self._names[index] for index in np.flatnonzero(self._macs))

    def layer_macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the multiply-accumulates of every layer, (n, len(layers)) int64; 0 in a block that is dropped.

        Args:
            candidates: as in `macs`.

        Raises:
            CandidateError: as `macs`.
        """
        used = np.flatnonzero(self._macs)
        elements, _ = self._elements(self._check(candidates), used)
        return np.rint(elements * self._macs[used]).astype(np.int64)

    def layer_axes(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns how long the axes of every layer's weight are, (n, len(layers), axes) float64; 0 in a dropped block.

        Axes are as torch has them: outputs, inputs of one of the conv_groups, kernel; 1 where a weight has fewer.

        Args:
            candidates: as in `macs`.

        Raises:
            CandidateError: as `macs`.
        """
        rows, widths = self._check(candidates), len(self._channels)
        used = np.flatnonzero(self._macs)
        terms = np.concatenate([np.ones((len(rows), 1)), rows[:, :widths]], axis=1)
        lengths = np.stack([terms @ factor.T for factor in self._axes[:, used]], axis=2)
        kept = np.ones((len(rows), 1 + self._blocks))
        kept[:, : rows.shape[1] - widths] = rows[:, widths:]
        return lengths * kept[:, self._block_of[used], None]

    def _check(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the candidates as an (n, n_dims) array, without criteria, after checking shape and range."""
        try:
            rows = np.asarray(candidates)
        except ValueError as error:  # rows of different lengths
            msg = f"candidates are rows of equally many numbers: {error}"
            raise CandidateError(msg) from error
        widths = len(self._channels)
        if rows.ndim == 2 and rows.shape[1] == 2 * widths + self._blocks:
            rows = rows[:, : widths + self._blocks]
        if rows.ndim != 2 or rows.shape[1] not in (widths, widths + self._blocks):
            both = f", or (n, {widths + self._blocks}) with its blocks" if self._blocks else ""
            msg = f"candidates have shape (n, {widths}){both}, found {rows.shape}"
            raise CandidateError(msg)
        if rows.dtype.kind not in "iuf":
            msg = f"candidates are whole numbers, found {rows.dtype}"
            raise CandidateError(msg)
        if not np.issubdtype(rows.dtype, np.integer) and not np.array_equal(rows, np.rint(rows)):
            msg = "candidates are whole numbers of channels, found fractions"
            raise CandidateError(msg)
        least = np.array([1] * widths + [0] * self._blocks)[: rows.shape[1]]
        most = np.append(self._channels, [1] * self._blocks)[: rows.shape[1]]
        bad = np.argwhere((rows < least) | (rows > most))
        if len(bad):
            row, column = bad[0]
            allowed = f"{least[column]} to {most[column]}"
            msg = f"dimension {column} of candidate {row} is {rows[row, column]}; allowed are {allowed}"
            raise CandidateError(msg)
        return rows.astype(np.int64)


def _block(name: str, blocks: Sequence[str]) -> int:
    """Returns the index of the block that a parameter or module is in, -1 for none."""
    return next(
        (index for index, path in enumerate(blocks) if f"{name}.".startswith(f"{path}.")), -1
    )
