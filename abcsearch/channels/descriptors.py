"""What searchers that learn across layers are told of each one, from what the graph knows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from abcsearch.channels.group import Block, ChannelGroup
    from abcsearch.channels.uses import Call


def layer_descriptors(
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    calls: Sequence[Call],
    sizes: Mapping[str, tuple[int, ...]],
) -> tuple[tuple[float, ...], ...]:
    """Returns one row of `LAYER_DESCRIPTORS` per prunable group, then one per block, all at full width.

    Args:
        groups: the prunable ones.
        blocks: the residual blocks.
        calls: uses of weights.
        sizes: of parameters and buffers, by name.
    """
    made = [_of_group(group, calls, sizes) for group in groups]
    return (*made, *(_of_block(block, calls, sizes) for block in blocks))


def layer_row(
    weight: str, calls: Sequence[Call], sizes: Mapping[str, tuple[int, ...]]
) -> tuple[float, ...]:
    """Returns the row of `LAYER_DESCRIPTORS` of one layer, by the name of its weight, at full width."""
    uses = [call for call in calls if call.weight == weight]
    return _row(uses[0], sizes, sizes[weight][0], sum(_macs(call, sizes) for call in uses))


def _of_group(
    group: ChannelGroup, calls: Sequence[Call], sizes: Mapping[str, tuple[int, ...]]
) -> tuple[float, ...]:
    """Returns the row of a group: its first layer, and the MACs of all that make its channels."""
    makers = [
        (call, len(member.entries) / sizes[member.parameter][member.axis])
        for member in group.members
        if not member.reads
        for call in calls
        if call.weight == member.parameter
    ]
    macs = sum(_macs(call, sizes) * share for call, share in makers)
    return _row(makers[0][0] if makers else None, sizes, group.channels, macs)


def _of_block(
    block: Block, calls: Sequence[Call], sizes: Mapping[str, tuple[int, ...]]
) -> tuple[float, ...]:
    """Returns the row of a block, which leaves as many channels as enter it: its first layer, and all its MACs."""
    inside = [call for call in calls if f"{call.scope}.".startswith(f"{block.name}.")]
    first = inside[0] if inside else None
    return _row(
        first, sizes, first.in_channels if first else 0, sum(_macs(call, sizes) for call in inside)
    )


def _row(
    first: Call | None, sizes: Mapping[str, tuple[int, ...]], out_channels: int, macs: float
) -> tuple[float, ...]:
    """Returns the numbers of a layer; zeros for one that is not known."""
    if first is None:
        return (0.0, float(out_channels), 0.0, 0.0, 0.0, 0.0, float(macs))
    kernel = sizes[first.weight][2:3] if isinstance(first.weight, str) else ()
    numbers = (
        first.in_channels,
        out_channels,
        first.height,
        first.width,
        first.stride,
        *(kernel or (1,)),
        macs,
    )
    return tuple(float(number) for number in numbers)


def _macs(call: Call, sizes: Mapping[str, tuple[int, ...]]) -> float:
    """Returns the multiply-accumulates of one use of a weight, per image."""
    return call.times * (
        call.weight if isinstance(call.weight, int) else math.prod(sizes[call.weight])
    )
