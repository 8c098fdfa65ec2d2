"""Costs with forward time: what budgets of latency are bound to, and the times of runs of earlier versions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from abcsearch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from abcsearch.channels.cost import CostModel


@dataclass(frozen=True, kw_only=True)
class TimedCosts:
    """Costs of a network in closed form, and its expected forward time.

    Attributes:
        costs: closed-form costs.
    """

    costs: CostModel

    @abstractmethod
    def latency_ms(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns the expected forward time in milliseconds: (n, n_dims) candidates to (n,) float64."""

    @abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """Returns what was measured as plain JSON values."""

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.macs`."""
        return self.costs.macs(candidates)

    def flops(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.flops`."""
        return self.costs.flops(candidates)

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.params`."""
        return self.costs.params(candidates)

    def peak_activation(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """As `CostModel.peak_activation`."""
        return self.costs.peak_activation(candidates)


@dataclass(frozen=True, kw_only=True)
class LayerTimes(TimedCosts):
    """What runs of earlier versions have measured: the time of every layer at ten amounts of work.

    A layer takes as long as it did when it had as much work (multiply-accumulates); in between, time is interpolated.
    All that is not a layer is one more entry, by the work of the whole network. New runs measure a `LatencyModel`.

    Attributes:
        tables: (work, milliseconds) of the rest and of every layer of `costs.layers`, both ascending.
    """

    tables: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]

    def latency_ms(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns the expected forward time in milliseconds: (n, n_dims) candidates to (n,) float64."""
        work = np.concatenate(
            [self.costs.macs(candidates)[:, None], self.costs.layer_macs(candidates)], axis=1
        )
        return np.sum(
            [
                np.interp(amounts, *table)
                for amounts, table in zip(work.T, self.tables, strict=True)
            ],
            axis=0,
        )

    def to_plain(self) -> dict[str, Any]:
        """Returns the measured times as plain JSON values; `from_plain` is the inverse."""
        names = ["(rest)", *self.costs.layers]
        return {
            name: [list(work), list(times)]
            for name, (work, times) in zip(names, self.tables, strict=True)
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], costs: CostModel) -> LayerTimes:
        """Returns the times that `to_plain` described, for the same network.

        Raises:
            ModelError: if the times are of a network with other layers.
        """
        names = ["(rest)", *costs.layers]
        if set(plain) != set(names):
            other = ", ".join(sorted(set(plain) ^ set(names))[:3])
            msg = f"the measured times are of another network; it differs in {other}"
            raise ModelError(msg)
        return cls(
            costs=costs,
            tables=tuple((tuple(plain[name][0]), tuple(plain[name][1])) for name in names),
        )
