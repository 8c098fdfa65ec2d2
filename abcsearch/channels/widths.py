"""Which widths of a group make the layers that it lies on as wide as a multiple of a number."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from abcsearch.records import setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from fractions import Fraction

    from abcsearch.channels.group import ChannelGroup
    from abcsearch.channels.uses import Call


FINEST = 10**6  # keep ratios are fractions with denominators up to this
LEVELS = ("filter", "stage", "block")


@dataclass(frozen=True, kw_only=True)
class WidthOptions:
    """Which widths there are to choose from, not checked yet.

    Attributes:
        alpha: largest keep ratio.
        step: distance of keep ratios.
        levels: "filter" (inside blocks), "stage" (residual streams), "block" (whole residual blocks).
        divisor: layers have multiples of it as channels, where that is possible.
        lowest: smallest keep ratio; None: one step.
    """

    alpha: float = setting(0.9, above=0, at_most=1, meaning="the largest keep ratio")
    step: float = setting(
        0.1, at_least=1 / FINEST, at_most="alpha", meaning="the distance of keep ratios"
    )
    levels: tuple[Literal["filter", "stage", "block"], ...] = setting(
        ("filter", "stage"), each=LEVELS
    )
    divisor: int = setting(1, at_least=1)
    lowest: float | None = setting(
        None, at_least=1 / FINEST, at_most="alpha", meaning="the smallest keep ratio"
    )


def widths_of(
    groups: Sequence[ChannelGroup],
    index: int,
    calls: Sequence[Call],
    sizes: Mapping[str, tuple[int, ...]],
    ratios: Iterable[Fraction],
    divisor: int,
) -> list[int]:
    """Returns the widths of a prunable group at some keep ratios: the largest that fit, ascending.

    A width fits where every layer that makes the channels has a multiple of the divisor, channels that stay and several
    per channel of the group (conv_groups) included; then every layer that reads them, as far as that is possible too.
    Where no width fits a layer, that layer does not count; where none fits any, the group keeps all channels.

    Args:
        groups: the prunable ones of a network.
        index: of one of them.
        calls: uses of weights.
        sizes: of parameters and buffers, by name.
        ratios: keep ratios.
        divisor: at least 1.
    """
    group = groups[index]
    fitting = [*range(1, group.channels + 1)]
    shared = {(m.parameter, m.axis) for i, g in enumerate(groups) if i != index for m in g.members}
    met = divisor == 1
    # A weight holds the inputs of one of its conv_groups.
    read = {call.weight: call.in_channels for call in calls if isinstance(call.weight, str)}
    inputs = {name: read[name] // sizes[name][1] for name in read if len(sizes[name]) > 1}
    # What makes channels first; an axis that holds channels of other groups as well follows from these.
    for member in sorted(group.members, key=lambda m: m.reads):
        if divisor > 1 and (member.parameter, member.axis) not in shared:
            times = len(member.entries) // group.channels
            stay = sizes[member.parameter][member.axis] - len(member.entries)
            lanes = inputs.get(member.parameter, 1) if member.reads and member.axis == 1 else 1
            left = [width for width in fitting if lanes * (stay + times * width) % divisor == 0]
            met, fitting = met or bool(left), left or fitting
    if not met:
        return [group.channels]
    return sorted(
        {
            fitting[max(0, bisect_right(fitting, int(group.channels * ratio)) - 1)]
            for ratio in ratios
        }
    )
