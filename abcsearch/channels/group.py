"""Records of channel analysis: what is removed together, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Member:
    """One axis of a parameter or buffer on which a group's channels lie.

    Attributes:
        parameter: qualified name, e.g. "stages.0.conv1.weight".
        axis: the axis.
        entries: (n,) int64, the entries of that axis that belong to the group.
        channels: (n,) int64, the channel of the group that each entry belongs to.
        reads: whether the channels are only read there, as by the next convolution; otherwise they are made or scaled.
        sums: whether an operation reads the channels there and sums over them; so it is wherever `reads` holds, and
            where one of two operations with a tied weight does and the other makes channels.
    """

    parameter: str
    axis: int
    entries: NDArray[np.int64] = field(repr=False)
    channels: NDArray[np.int64] = field(repr=False)
    reads: bool
    sums: bool


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that are ranked and counted together; each is present, or absent, in every member at once.

    Attributes:
        name: the module that computes the channels (the first one in execution order); where only some of its
            channels belong to the group, followed by their range.
        channels: the number of channels.
        kind: "filter" inside a block, "stage" for the residual stream (channels tied by an addition).
        fixed: why the channels cannot be removed, or None.
        members: every parameter axis that the channels lie on.
        renormalises: whether a norm over channels (layer norm ...) is computed over those of them that are left, which
            then get other values than in the full network.
    """

    name: str
    channels: int
    kind: Literal["filter", "stage"]
    fixed: str | None
    members: tuple[Member, ...] = field(repr=False)
    renormalises: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelNorm:
    """A computation over channels together: in a sliced network, over those that are left.

    Attributes:
        kind: what it computes, one of `renormalising.KINDS`.
        scope: the path of the module in whose forward.
        call: how many of the kind come before it there, in one forward pass.
        axis: of its input, that runs over channels.
        channels: (entries,) int64, the channel of every entry, counted over all prunable groups; -1 for one that stays.
    """

    kind: str
    scope: str
    call: int
    axis: int
    channels: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class SizeAttribute:
    """A number among a module's attributes that follows channels.

    Attributes:
        path: of the module.
        name: of the attribute.
        index: which entry, where the attribute is a tuple; None where it is a number.
        constant: how many channels it counts that cannot be removed.
        counted: (prunable group, channels of it, as often as they count).
    """

    path: str
    name: str
    index: int | None
    constant: int
    counted: tuple[tuple[int, NDArray[np.int64]], ...] = field(repr=False)

    def apply(self, module: nn.Module, kept: NDArray[np.bool_], starts: Sequence[int]) -> None:
        """Sets the attribute of the module in a sliced network.

        Args:
            module: the module there.
            kept: which channels are left, counted over all prunable groups.
            starts: the number of the first channel of each prunable group.
        """
        value = self.constant + sum(
            int(kept[channels + starts[group]].sum()) for group, channels in self.counted
        )
        if self.index is not None:
            items = list(getattr(module, self.name))
            items[self.index] = value
            value = tuple(items)
        setattr(module, self.name, value)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A module that adds something to its input; without it, the input goes on as it is.

    Attributes:
        name: path of the module.
        source: index of the operation whose result enters the block, in execution order.
        result: index of the operation whose result leaves it.
    """

    name: str
    source: int
    result: int
