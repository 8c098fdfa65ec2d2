"""Few values for the weights of a layer, found by k-means, and kept so while these values are trained."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abcsearch.errors import ModelError
from abcsearch.transforms.base import Applied, Bound, Transform, weighted
from abcsearch.transforms.options import CodebookOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.data.splits import Data

    Floats = NDArray[np.float64]

_ROUNDS = 300  # of Lloyd's algorithm at most


def k_means(values: Floats, count: int) -> Floats:
    """Returns so many centres at most, each the mean of the numbers that are nearest to it, rising.

    Of numbers on a line, the nearest centre is found by sorting once and searching, so that a round takes a time that
    does not grow with the numbers; scikit-learn's KMeans, which works in any dimension, finds the same centres.

    Args:
        values: (n,), in any order.
        count: how many centres there are at most, at least 1; those that no number is nearest to are left out.

    Source: Han et al., Deep Compression (ICLR 2016): Lloyd's algorithm from centres that divide the range evenly, which
    leaves some for the few large weights.
    """
    distinct = np.unique(values)
    if len(distinct) <= count:
        return distinct
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], count)
    ends = np.zeros(count + 1, dtype=np.int64)
    for _ in range(_ROUNDS):
        now = np.concatenate(
            [[0], np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), [len(ordered)]]
        )
        if np.array_equal(now, ends):
            break
        ends, counts = now, np.diff(now)
        centres = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), centres)
    return centres[np.diff(ends) > 0]


def codebook(
    model: nn.Module, bits: int = 8, *, linear_bits: int = 5, fixed: Sequence[str] = ()
) -> nn.Module:
    """Returns a copy of a network whose weights have few values in each convolution and linear layer.

    The network stays dense: it computes as before. Written in the format "compressed", it takes fewer bytes. Weights
    that are 0 stay so, and 0 is one of the values of their layer.

    Args:
        model: the network, trained; not changed.
        bits: a convolution has 2^bits values at most, from 1 to 16 bits.
        linear_bits: the same of linear layers.
        fixed: paths of layers that stay as they are.

    Raises:
        ModelError: if bits are out of range, a path leads to no such layer, or a weight is not finite.

    Source: Han et al., Deep Compression (ICLR 2016).
    """
    if not (1 <= bits <= 16 and 1 <= linear_bits <= 16):
        msg = f"bits of a codebook are from 1 to 16, found {bits!r} and {linear_bits!r}"
        raise ModelError(msg)
    network = copy.deepcopy(model)
    for layer in weighted(network, fixed).values():
        most = 2 ** (linear_bits if isinstance(layer, torch.nn.Linear) else bits)
        with torch.no_grad():
            layer.weight.copy_(_shared(layer.weight.detach(), most))
    return network


def _shared(weight: torch.Tensor, most: int) -> torch.Tensor:
    """Returns a weight with so many values at most; zeros stay."""
    flat = weight.cpu().double().flatten().numpy()
    there = flat != 0
    zeros = int(not there.all())
    centres = k_means(flat[there], max(most - zeros, 1)) if there.any() else flat[:0]
    near = np.searchsorted((centres[1:] + centres[:-1]) / 2, flat[there])
    made = np.zeros_like(flat)
    made[there] = centres[near] if len(centres) else 0.0
    return torch.from_numpy(made).reshape(weight.shape).to(weight)


class Codebook(Transform):
    """Few values for the weights of a layer, which are trained on, if the options say so; see `codebook`."""

    Options = CodebookOptions
    makes = "shared"
    format = "compressed"

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuses paths that lead to no layer."""
        del data
        weighted(model, self.options.fixed)

    def apply(self, model: nn.Module, data: Data, seed: int) -> Applied:
        """Returns the network with shared weights."""
        del data, seed
        options = self.options
        made = codebook(model, options.bits, linear_bits=options.linear_bits, fixed=options.fixed)
        layers = {
            path: {
                "kind": "codebook",
                "values": len(layer.weight.detach().unique()),
                "of": layer.weight.numel(),
            }
            for path, layer in weighted(made, options.fixed).items()
        }
        return Applied(model=made, facts={"layers": layers})

    def lesson(self, model: nn.Module, objective: str, teacher: nn.Module | None) -> Shared:
        """Returns a lesson in which equal weights stay equal."""
        return Shared(
            model, list(weighted(model, self.options.fixed)), objective=objective, teacher=teacher
        )


class Shared(Bound):
    """A network learns the labels; weights of a bound layer that are equal when it begins stay so, and zeros zero."""

    def __init__(self, model: nn.Module, paths: Sequence[str], **options: Any) -> None:  # noqa: ANN401 - as of `Bound`
        """Remembers which weights are equal."""
        super().__init__(model, paths, **options)
        self._codes: dict[str, torch.Tensor] = {}
        self._values: dict[str, torch.Tensor] = {}
        for path in self.paths:
            values, codes = self._weight(path).detach().cpu().unique(return_inverse=True)
            self._codes[path], self._values[path] = codes, values != 0

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Generator
    ) -> torch.Tensor:
        """Returns the loss of a batch; the gradient of each weight is then the mean over those that are equal."""
        loss = super().step(images, labels, draws)
        loss.backward()
        for path in self.paths:
            weight = self._weight(path)
            if weight.grad is not None:
                weight.grad.copy_(self._mean(path, weight.grad))
        return loss.detach()

    def settle(self) -> None:
        """Has equal weights be equal to the last bit: their mean, of which rounding may have moved some away."""
        with torch.no_grad():
            for path in self.paths:
                weight = self._weight(path)
                weight.copy_(self._mean(path, weight))

    def _weight(self, path: str) -> Any:  # noqa: ANN401 - a parameter
        return self.model.get_submodule(path).weight

    def _mean(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor like a weight in which entries of the same value have their mean, those of 0 zero."""
        codes, live = (
            self._codes[path].to(tensor.device).flatten(),
            self._values[path].to(tensor.device),
        )
        flat = tensor.double().flatten()
        counts = torch.zeros(len(live), dtype=flat.dtype, device=flat.device).index_add_(
            0, codes, torch.ones_like(flat)
        )
        means = torch.zeros_like(counts).index_add_(0, codes, flat) / counts
        means = torch.where(live, means, 0.0)
        return means[codes].reshape(tensor.shape).to(tensor.dtype)
