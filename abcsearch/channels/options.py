"""What a config says of the space and of forward time, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abcsearch.channels.widths import WidthOptions
from abcsearch.errors import CandidateError, ModelError, plural, unknown_name
from abcsearch.records import check, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        bake: whether weights that the network computes anew at every use (weight norm, spectral norm, pruning masks) are
            plain ones in the copy that is searched; otherwise such layers stay as they are.
        ranks: whether layers may also become products of two smaller ones, whose ranks are searched with the widths.
        hardware: whether only widths are offered that are fast where [latency] says that the network will run, as
            measured when the run begins: at every keep ratio the largest of them.
    """

    fixed: tuple[str, ...] = ()
    renormalise: bool = True
    bake: bool = True
    ranks: bool = False
    hardware: bool = False

    def __post_init__(self) -> None:
        """Turns lists (TOML, JSON) into tuples, and checks the ranges."""
        check(self, "space", CandidateError)
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "fixed", tuple(self.fixed))

    @classmethod
    def recorded(cls, **plain: Any) -> SpaceOptions:  # noqa: ANN401 - plain values
        """Returns the options that a run has recorded; one that does not say has been made before norms could go."""
        return cls(**{"renormalise": False, "bake": False, **plain})

    def plain(self, model: nn.Module) -> nn.Module:
        """Returns the network that is searched: itself, or a copy in which all weights are plain, see `baked`."""
        # Here, since what a config says is read without torch
        from abcsearch.channels.baking import baked

        return baked(model) if self.bake else model

    def traced(
        self, model: nn.Module, example: torch.Tensor | tuple[Any, ...] | Example
    ) -> ChannelGraph:
        """Returns the channel groups of a network under these options, see `trace_channels`."""
        # Here, since what a config says is read without torch
        from abcsearch.channels.groups import trace_channels

        return trace_channels(model, example, fixed=self.fixed, renormalise=self.renormalise)

    def of(
        self,
        graph: ChannelGraph,
        criteria: Sequence[str] = (),
        fast: Mapping[str, Sequence[int]] | None = None,
    ) -> SearchSpace:
        """Returns the space of a graph, see `ChannelGraph.space`.

        Args:
            graph: of the network.
            criteria: that are searched.
            fast: the widths that are offered, by group; None, or a group that is not there: those at the keep ratios.
        """
        return graph.space(
            self.alpha, self.step, self.levels, self.divisor, self.lowest, criteria, fast
        )


RUNTIMES = ("torch", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """How forward time is measured for a budget of latency.

    Attributes:
        runtime: what runs the network: "torch", "onnxruntime" (on the CPU), or "package.module:function", a function of
            your own of (module, batch, threads) that returns a function which runs one pass, or the seconds of one.
        batch: images per pass.
        threads: threads of the runtime (CPU).
        repeats: turns in which networks are timed; the median counts.
        finalists: so many of the best trials are measured in turns with the full network before one of them wins, and
            none that is outside of the budget does; 0: none is measured.
        check: whether every candidate is measured itself when it is evaluated, and fails if it is outside the budget;
            otherwise the model of layers alone decides.

    Raises:
        ModelError: if a number is not whole or below its least, or there is no such runtime.
    """

    runtime: str = setting("torch")
    batch: int = setting(1, at_least=1, unit="images")
    threads: int = setting(1, at_least=1)
    repeats: int = setting(20, at_least=1)
    finalists: int = setting(5, at_least=0)
    check: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "latency", ModelError)
        if self.runtime not in RUNTIMES and ":" not in self.runtime:
            msg = f"latency: {unknown_name('runtime', self.runtime, RUNTIMES)}"
            raise ModelError(f"{msg}; or name a function of your own: package.module:function")

    @classmethod
    def recorded(cls, **plain: Any) -> LatencyOptions:  # noqa: ANN401 - plain values
        """Returns the options that a run has recorded; one that does not say has had no finalists measured."""
        return cls(**{"finalists": 0, **plain})

    @property
    def where(self) -> str:
        """Where forward time is measured, in words."""
        images = plural(self.batch, "image")
        return f"{self.runtime}, {plural(self.threads, 'thread')}, batches of {images}"
