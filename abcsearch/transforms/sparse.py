"""Unstructured sparsity: the smallest weights of a network become 0, and stay so while it is trained."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from abcsearch.errors import ModelError
from abcsearch.transforms.base import Applied, Bound, Transform, weighted
from abcsearch.transforms.options import SparsifyOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from abcsearch.data.splits import Data


def sparsify(
    model: nn.Module, sparsity: float = 0.8, *, scope: str = "layer", fixed: Sequence[str] = ()
) -> nn.Module:
    """Returns a copy of a network in which the smallest weights of convolutions and linear layers are 0.

    The network stays dense: it computes as many products as before. Written in the format "compressed", it takes fewer
    bytes. Weights that are 0 already count among those that become so. Of equal weights, the first ones do.

    Args:
        model: the network, trained; not changed.
        sparsity: share of the weights that become 0, in (0, 1), rounded down to whole weights.
        scope: "layer", this share of every layer; "global", of all layers together, some of which then lose more.
        fixed: paths of layers that stay as they are.

    Raises:
        ModelError: if an argument is out of range, a path leads to no such layer, a weight is not finite, or a layer
            would have no weight left.

    Source: Han et al., Learning both weights and connections for efficient neural networks (NIPS 2015).
    """
    if not 0 < sparsity < 1 or scope not in ("layer", "global"):
        msg = f"sparsity is a share in (0, 1) and scope 'layer' or 'global', found {sparsity!r} and {scope!r}"
        raise ModelError(msg)
    network = copy.deepcopy(model)
    layers = weighted(network, fixed)
    sizes = {path: layer.weight.detach().abs().flatten() for path, layer in layers.items()}
    pools = [list(sizes)] if scope == "global" else [[path] for path in sizes]
    for pool in pools:
        every = torch.cat([sizes[path].double() for path in pool]) if pool else torch.empty(0)
        gone = torch.zeros(len(every), dtype=torch.bool)
        gone[every.argsort(stable=True)[: int(sparsity * len(every))]] = True
        for path, mask in zip(pool, gone.split([len(sizes[path]) for path in pool]), strict=True):
            weight = layers[path].weight
            if mask.all():
                msg = f"sparsity {sparsity:g} over all layers leaves none of the weights of {path}: lower it, put the "
                msg += "layer into fixed, or set scope to 'layer'"
                raise ModelError(msg)
            with torch.no_grad():
                weight.masked_fill_(mask.reshape(weight.shape).to(weight.device), 0.0)
    return network


class Sparsify(Transform):
    """The smallest weights become 0, and the others are trained on, if the options say so; see `sparsify`."""

    Options = SparsifyOptions
    makes = "sparse"
    format = "compressed"

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuses paths that lead to no layer."""
        del data
        weighted(model, self.options.fixed)

    def apply(self, model: nn.Module, data: Data, seed: int) -> Applied:
        """Returns the sparse network."""
        del data, seed
        options = self.options
        made = sparsify(model, options.sparsity, scope=options.scope, fixed=options.fixed)
        layers = {
            path: {
                "kind": "sparse",
                "zeros": int((layer.weight == 0).sum()),
                "of": layer.weight.numel(),
            }
            for path, layer in weighted(made, options.fixed).items()
        }
        return Applied(model=made, facts={"layers": layers})

    def calibration(self) -> int:
        """Returns on how many images statistics are taken anew."""
        return self.options.images

    def lesson(self, model: nn.Module, objective: str, teacher: nn.Module | None) -> Masked:
        """Returns a lesson in which zeros stay."""
        return Masked(
            model, list(weighted(model, self.options.fixed)), objective=objective, teacher=teacher
        )


class Masked(Bound):
    """A network learns the labels; weights of its bound layers that are 0 when it begins stay 0."""

    def __init__(self, model: nn.Module, paths: Sequence[str], **options: Any) -> None:  # noqa: ANN401 - as of `Bound`
        """Remembers where the zeros are."""
        super().__init__(model, paths, **options)
        layers = weighted(model)
        self._zeros = {path: layers[path].weight == 0 for path in self.paths}

    def settle(self) -> None:
        """Sets these weights to 0."""
        with torch.no_grad():
            for path, zeros in self._zeros.items():
                weight: Any = self.model.get_submodule(path).weight
                weight.masked_fill_(zeros.to(weight.device), 0.0)
