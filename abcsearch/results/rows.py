"""The rows of a report's table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abcsearch.results.forward import ForwardTime

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of the report.

    Attributes:
        network: its name.
        macs: multiply-accumulates, batch 1.
        flops: the count of the surveys, see `CostModel.flops`, batch 1.
        params: number of parameters.
        size_mb: all parameters and buffers as they are stored, in 10^6 bytes.
        latency_ms: median forward time on the CPU of the largest batch, for the whole batch.
        times: forward times by device and batch.
        fitness: on search-validation.
        before: the metric on the test split (of classifiers top1, in [0, 1]) before fine-tuning, or None without.
        after: the same after it; None also if it was fine-tuned with another recipe than the winner.
        tests: all such metrics by name, each with "before" and "after"; empty if it has not been fine-tuned.
        otherwise: in what the recipe that was asked for differs from the winner's, whereupon what is after cannot be
            compared.
        intervals: 95 % intervals of metrics after fine-tuning, as far as they are known.
        own: in what its baseline's own recipe differs from what was asked for.
    """

    network: str
    macs: int
    flops: int
    params: int
    size_mb: float
    latency_ms: float
    times: tuple[ForwardTime, ...]
    fitness: float | None
    before: float | None
    after: float | None
    tests: Mapping[str, Mapping[str, float]]
    otherwise: tuple[str, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, "tuple[float, float]"]
    )
    own: tuple[str, ...] = ()
