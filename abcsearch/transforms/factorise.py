"""Low rank as a link of a chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from abcsearch.transforms.base import Applied, Transform
from abcsearch.transforms.low_rank import Ranks, check_ranks, low_rank
from abcsearch.transforms.options import FactoriseOptions

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.data.splits import Data

_BATCH = 64  # images per pass


class Factorise(Transform):
    """Layers as products of smaller ones, where that saves something; see `low_rank`."""

    Options = FactoriseOptions
    makes = "factorised"

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuses ranks of layers that are not there, or cannot be split."""
        check_ranks(model, data.example, method=self.options.method, ranks=self._ranks())

    def apply(self, model: nn.Module, data: Data, seed: int) -> Applied:
        """Returns the network with factorised layers."""
        options, images = self.options, None
        if options.data:
            seen = data.train.part(_spread(len(data.train), options.images))
            images = [batch for batch, _ in seen.batches(_BATCH)]
        made = low_rank(
            model, data.example, method=options.method, ranks=self._ranks(), data=images, seed=seed
        )
        layers = {
            factors.path: {
                "kind": factors.method,
                "ranks": list(factors.ranks),
                "of": list(factors.full),
                "energy": round(factors.energy, 6),
                "macs": round(factors.macs, 6),
            }
            for factors in made.factors
        }
        notes = [
            f"rank {' and '.join(map(str, factors.ranks))} of {factors.path} is above break-even: it costs "
            f"{factors.macs:.0%} of the layer's MACs"
            for factors in made.factors
            if factors.macs > 1 + 1e-9
        ]
        if not layers:
            reasons = "; ".join(sorted(set(made.left.values()))[:3])
            notes.append(f"no layer was split: {reasons}")
        return Applied(
            model=made.model, facts={"layers": layers, "left": dict(made.left)}, notes=tuple(notes)
        )

    def calibration(self) -> int:
        """Returns on how many images statistics are taken anew."""
        return self.options.images

    def _ranks(self) -> Ranks:
        """Returns the ranks as `low_rank` takes them: a table's pairs are lists in TOML."""
        ranks: Any = self.options.ranks
        if not isinstance(ranks, Mapping):
            return ranks
        return {
            path: tuple(rank) if isinstance(rank, list) else rank for path, rank in ranks.items()
        }


def _spread(count: int, most: int) -> Any:  # noqa: ANN401 - a tensor
    """Returns places of so many images, evenly spread over all."""
    import torch

    return torch.linspace(0, count - 1, min(most, count)).round().long()
