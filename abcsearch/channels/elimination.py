"""Backward elimination in a least-squares fit: which inputs go, one after the other, if those left are fitted anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

LEAST = 5e-324  # the least score of a channel that does anything


class Fit:
    """A least-squares fit of some outputs from channels, each of one or several inputs; some are taken out in turn.

    Of S = E[x x'] it needs the inverse. Inputs that never go need no rows here: they are fitted anew whatever goes, and
    what S^-1 says of the others holds for that.

    Source: the update of Hassibi and Stork, Optimal Brain Surgeon (NIPS 1992), equation 5, for several inputs at once.
    """

    def __init__(
        self, inverse: torch.Tensor, weight: torch.Tensor, block: int, scale: float = 1.0
    ) -> None:
        """Takes the fit of all channels.

        Args:
            inverse: (fits, channels * block, channels * block), the rows and columns of S^-1 of these channels, inputs
                of a channel side by side; of several fits that lose channels together.
            weight: (fits, channels * block, outputs), the solution of the fit of all.
            block: inputs of each channel.
            scale: by which losses are multiplied.
        """
        self._inverse, self._weight = inverse.clone(), weight.clone()
        self._block, self._scale = block, scale
        # The channels' blocks of rows, in their order
        self._left = list(range(weight.shape[1] // block))

    def losses(self) -> torch.Tensor:
        """Returns how much the summed squared error grows if a channel goes, (channels left,), not negative."""
        b = self._block
        weight = self._weight.unflatten(1, (-1, b))  # (fits, blocks, block, outputs)
        if b == 1:
            grown = weight.square().sum(dim=(2, 3)) / self._inverse.diagonal(dim1=1, dim2=2)
        else:
            inverse = self._inverse.unflatten(2, (-1, b)).unflatten(1, (-1, b))
            blocks = inverse.diagonal(dim1=1, dim2=3).movedim(-1, 1)
            grown = (weight * torch.linalg.solve(blocks, weight)).sum(dim=(2, 3))
        return self._scale * grown.sum(dim=0)[self._left].clamp(min=0)

    def remove(self, index: int) -> None:
        """Takes out one of the channels left, and fits the others anew."""
        at, b = self._left.pop(index), self._block
        rows = slice(at * b, (at + 1) * b)
        across = self._inverse[:, rows].clone()  # (fits, block, inputs)
        gain = torch.linalg.solve(across[:, :, rows], across).mT
        self._weight.baddbmm_(gain, self._weight[:, rows].clone(), alpha=-1)
        self._inverse.baddbmm_(gain, across, alpha=-1)
        # Rows that are gone stay as those of a channel that does nothing, until half of all are.
        self._weight[:, rows] = 0
        self._inverse[:, rows] = 0
        self._inverse[:, :, rows] = 0
        self._inverse[:, rows, rows] = torch.eye(b, dtype=across.dtype)
        if 2 * len(self._left) * b <= self._weight.shape[1]:
            stay = (torch.tensor(self._left)[:, None] * b + torch.arange(b)).flatten()
            self._weight, self._inverse = self._weight[:, stay], self._inverse[:, stay][:, :, stay]
            self._left = list(range(len(self._left)))


def eliminate(fits: Sequence[Fit], channels: int) -> NDArray[np.float64]:
    """Returns scores from taking out the channel, again and again, whose loss, summed over all fits, is least.

    Args:
        fits: of the same channels; they are used up.
        channels: how many.

    Returns:
        (channels,): how far the error has grown when the channel is gone, and all of lower score with it.
    """
    alive = list(range(channels))
    order: list[int] = []
    losses: list[float] = []
    while alive:
        loss = torch.stack([fit.losses() for fit in fits]).sum(dim=0)
        # Of equal ones the last goes first, as rankings have it.
        index = len(alive) - 1 - int(loss.flip(0).argmin())
        order.append(alive.pop(index))
        losses.append(float(loss[index]))
        for fit in fits if alive else ():
            fit.remove(index)
    return rising_scores(order, np.cumsum(losses))


def rising_scores(order: Sequence[int], values: ArrayLike) -> NDArray[np.float64]:
    """Returns scores that say in which order channels go, and are as near as can be to values that compare layers.

    Args:
        order: the channels, the first one to go first.
        values: of each, in that order, not negative. One that is not above those before it becomes the next larger
            number, but where all of them are zero: what does nothing at all is alike.

    Returns:
        (channels,); no two alike but for zeros.
    """
    rising = np.array(values, dtype=np.float64)
    for index in range(1, len(rising)):
        if rising[: index + 1].any():
            rising[index] = max(rising[index], np.nextafter(rising[index - 1], np.inf))
    scores = np.empty(len(rising))
    scores[np.asarray(order, dtype=np.int64)] = rising
    return scores


def regularised(second: torch.Tensor, ridge: float) -> torch.Tensor:
    """Returns second moments plus a share of the mean of their diagonal, (..., n, n); of zeros, the unit matrix."""
    mean = second.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    return second + torch.where(mean > 0, ridge * mean, 1.0) * torch.eye(
        second.shape[-1], dtype=second.dtype
    )


def inverted(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the inverse of positive definite matrices, symmetric to the last bit: (..., inputs, inputs)."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return (inverse + inverse.mT) / 2
