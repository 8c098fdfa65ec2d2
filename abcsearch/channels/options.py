"""What a config says of the space and of forward time, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.channels.widths import WidthOptions
from abcsearch.errors import CandidateError, ModelError
from abcsearch.records import check, setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.example import Example
    from abcsearch.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class SpaceOptions(WidthOptions):
    """Which widths are searched; see `ChannelGraph.space` for ranges.

    Attributes:
        alpha: largest keep ratio.
        step: distance of keep ratios.
        levels: "filter" (inside blocks), "stage" (residual streams), "block" (whole residual blocks).
        divisor: layers have multiples of it as channels, where that is possible.
        lowest: smallest keep ratio; None: one step.
        fixed: paths of modules whose output channels all stay.
        renormalise: whether norms over channels (layer norm ...) are computed over the channels that are left;
            otherwise they fix their channels.
        ranks: whether layers may also become products of two smaller ones, whose ranks are searched with the widths.
    """

    fixed: tuple[str, ...] = ()
    renormalise: bool = True
    ranks: bool = False

    def __post_init__(self) -> None:
        """Turns lists (TOML, JSON) into tuples, and checks the ranges."""
        check(self, "space", CandidateError)
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "fixed", tuple(self.fixed))

    @classmethod
    def recorded(cls, **plain: Any) -> SpaceOptions:  # noqa: ANN401 - plain values
        """Returns the options that a run has recorded; one that does not say has been made before norms could go."""
        return cls(**{"renormalise": False, **plain})

    def traced(
        self, model: nn.Module, example: torch.Tensor | tuple[Any, ...] | Example
    ) -> ChannelGraph:
        """Returns the channel groups of a network under these options, see `trace_channels`."""
        # Here, since what a config says is read without torch
        from abcsearch.channels.groups import trace_channels

        return trace_channels(model, example, fixed=self.fixed, renormalise=self.renormalise)

    def of(self, graph: ChannelGraph, criteria: Sequence[str] = ()) -> SearchSpace:
        """Returns the space of a graph, see `ChannelGraph.space`."""
        return graph.space(self.alpha, self.step, self.levels, self.divisor, self.lowest, criteria)


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """How forward time is measured for a budget of latency.

    Attributes:
        batch: images per pass.
        threads: torch threads (CPU).
        repeats: timed passes; their median counts.
        check: whether every candidate is measured itself when it is evaluated, and fails if it is outside the budget;
            otherwise the model of layers alone decides.

    Raises:
        ModelError: if a number is not whole or below 1.
    """

    batch: int = setting(1, at_least=1, unit="images")
    threads: int = setting(1, at_least=1)
    repeats: int = setting(20, at_least=1)
    check: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "latency", ModelError)
