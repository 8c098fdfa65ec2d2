"""What can be pruned in a network: its groups and blocks as a table, its costs, a drawing of its widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from abcsearch.channels.groups import summarised
from abcsearch.errors import TraceError, plural
from abcsearch.example import Example
from abcsearch.transforms.ranked import plain_graph

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from abcsearch.channels.graph import ChannelGraph
    from abcsearch.runs.settings import SpaceOptions

_COLORS = {"filter": "tab:blue", "stage": "tab:orange", "fixed": "tab:gray"}
_NAMED = 60  # groups up to which the drawing names each


@dataclass(frozen=True, kw_only=True)
class InspectedGroup:
    """One group or block.

    Attributes:
        name: of the group or block.
        level: "filter", "stage", "block" or "rank".
        channels: how many it has (1 for a block; of a rank, the full one).
        choices: values that a search may give it; empty if it is fixed.
        macs: share of the network's macs that goes if it alone is cut to one channel, or rank 1 (a block: dropped);
            None if fixed.
        params: likewise.
        fixed: why it stays, or None.
        renormalises: whether norms over channels are computed over those of them that are left.
    """

    name: str
    level: str
    channels: int
    choices: tuple[int, ...]
    macs: float | None
    params: float | None
    fixed: str | None
    renormalises: bool = False

    def cells(self) -> list[str]:
        """Returns the table's cells: name, level, channels, choices, share of macs, of params, why fixed."""
        shares = ["" if share is None else f"{share:.1%}" for share in (self.macs, self.params)]
        if self.level == "block":
            return [
                self.name,
                self.level,
                "",
                "keep, drop" if self.choices else "",
                *shares,
                self.fixed or "",
            ]
        spread = (
            f"{self.choices[0]} ... {self.choices[-1]} ({len(self.choices)})"
            if len(self.choices) > 2
            else ""
        )
        choices = spread or ", ".join(map(str, self.choices))
        level = f"{self.level}, renormalises" if self.renormalises else self.level
        channels = str(self.channels) if self.channels else ""
        return [self.name, level, channels, choices, *shares, self.fixed or ""]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What can be pruned in a network.

    Attributes:
        groups: all groups in network order, fixed ones included; then the blocks.
        shape: of one input, without the batch.
        costs: macs, flops, params and peak_activation (bytes) of the whole network.
        prunable: share of macs and of params that goes if every group is cut to one channel and every block dropped.
        structures: in the space.
        criteria: those that every group chooses from; () where there is one.
        of_widths: structures that differ in more than a criterion.
        unsupported: operations without a rule, with the reason; one line for all that are alike.
    """

    groups: tuple[InspectedGroup, ...]
    shape: tuple[int, ...]
    costs: dict[str, int]
    prunable: dict[str, float]
    structures: int
    unsupported: tuple[str, ...]
    criteria: tuple[str, ...] = ()
    of_widths: int = 0

    HEAD = ("group", "level", "channels", "choices", "macs", "params", "fixed because")

    @property
    def totals(self) -> tuple[str, ...]:
        """Lines of text: costs, what is prunable, size of the space."""
        blocks = sum(group.level == "block" for group in self.groups)
        ranks = [group for group in self.groups if group.level == "rank"]
        channels = len(self.groups) - blocks - len(ranks)
        free = sum(g.fixed is None and g.level not in ("block", "rank") for g in self.groups)
        shape, costs = "x".join(map(str, self.shape)), self.costs
        names = ", ".join(self.criteria)
        grown = (
            f": {counted(self.of_widths)}, and a criterion per group of {names}"
            if self.criteria
            else ""
        )
        return (
            f"{costs['macs']:,} macs, {costs['params']:,} params, "
            f"peak activation {costs['peak_activation'] / 1024:,.0f} KiB for one {shape} input",
            f"{free} of {plural(channels, 'group')} prunable, {plural(blocks, 'block')} can be "
            f"dropped; prunable share: {self.prunable['macs']:.1%} of macs, {self.prunable['params']:.1%} of params",
            *self._of_ranks(),
            f"{counted(self.structures)} in the space{grown}",
        )

    def _of_ranks(self) -> tuple[str, ...]:
        """Returns a line on layers that may be products, where ranks are searched."""
        ranks = [group for group in self.groups if group.level == "rank"]
        if not ranks:
            return ()
        able = sum(group.fixed is None for group in ranks)
        return (f"{able} of {plural(len(ranks), 'layer')} may be products of two smaller ones",)

    def draw(self, path: Path) -> None:
        """Draws the widths along the network as a PNG file.

        Raises:
            OSError: if the file cannot be written.
        """
        from matplotlib.figure import Figure

        groups = [group for group in self.groups if group.level not in ("block", "rank")]
        kinds = ["fixed" if group.fixed else group.level for group in groups]
        figure = Figure(
            figsize=(max(6.0, min(16.0, 2 + 0.22 * len(groups))), 4.5), layout="constrained"
        )
        axes = figure.add_subplot()
        axes.bar(
            range(len(groups)),
            [g.channels for g in groups],
            color=[_COLORS[kind] for kind in kinds],
            width=0.8,
        )
        for kind, color in _COLORS.items():
            if kind in kinds:
                axes.bar([0], [0], color=color, label=kind)
        axes.legend(title="level")
        axes.set_ylabel("channels")
        axes.set_xlim(-0.6, len(groups) - 0.4)
        if len(groups) <= _NAMED:
            axes.set_xticks(range(len(groups)), [g.name for g in groups], rotation=90, fontsize=7)
        else:
            axes.set_xlabel("groups in network order")
        axes.set_title("\n".join(self.totals[:1]), fontsize=9)
        figure.savefig(path, dpi=150, format="png")


def inspect_model(
    model: nn.Module,
    example_input: torch.Tensor | Example,
    options: SpaceOptions,
    criteria: Sequence[str] = (),
) -> Inspection:
    """Returns what can be pruned in a network; nothing to prune is no error here.

    Args:
        model: the network; not changed.
        example_input: one batch, or the arguments of forward.
        options: the space that would be searched.
        criteria: those that would be searched; one, or none, is no choice.

    Raises:
        TraceError: if the network cannot be traced.
    """
    model, graph = plain_graph(model, example_input, options)
    try:
        choices, size = (
            {d.name: d.choices for d in options.of(graph).dimensions},
            options.of(graph).size,
        )
        several = options.of(graph, criteria).size
    except TraceError:  # nothing at these levels: said in the table, group by group
        choices, size, several = {}, 1, 1
    blocks = [block.name for block in graph.blocks]
    ranks = {rank.name: rank for rank in graph.ranks}
    names = [group.name for group in graph.prunable] + blocks + list(ranks)
    saved = {
        kind: dict(zip(names, _saved(graph, kind), strict=True)) for kind in ("macs", "params")
    }
    searched = set(options.levels)
    groups = [
        InspectedGroup(
            name=group.name,
            level=group.kind,
            channels=group.channels,
            choices=choices.get(group.name, ()) if group.kind in searched else (group.channels,),
            macs=saved["macs"].get(group.name),
            params=saved["params"].get(group.name),
            fixed=group.fixed,
            renormalises=group.renormalises,
        )
        for group in graph.groups
    ]
    groups += [
        InspectedGroup(
            name=name,
            level="block",
            channels=1,
            choices=choices.get(name, ()),
            macs=saved["macs"][name],
            params=saved["params"][name],
            fixed=None if "block" in searched else "level not searched",
        )
        for name in blocks
    ]
    groups += [
        InspectedGroup(
            name=name,
            level="rank",
            channels=rank.full,
            choices=choices.get(name, ()),
            macs=saved["macs"][name],
            params=saved["params"][name],
            fixed=None,
        )
        for name, rank in ranks.items()
    ]
    groups += [
        InspectedGroup(
            name=f"rank of {path}",
            level="rank",
            channels=0,
            choices=(),
            macs=None,
            params=None,
            fixed=reason,
        )
        for path, reason in graph.unranked.items()
    ]
    full = [*(group.channels for group in graph.prunable), *(1 for _ in blocks)]
    least = [*(1 for _ in graph.prunable), *(0 for _ in blocks)]
    costs = {
        kind: getattr(graph.costs, kind)([full, least])
        for kind in ("macs", "flops", "params", "peak_activation")
    }
    return Inspection(
        groups=tuple(groups),
        shape=tuple(Example.of(example_input).tensors[0].shape[1:]),
        costs={kind: int(of_full) for kind, (of_full, _) in costs.items()},
        prunable={
            kind: 1 - int(costs[kind][1]) / max(1, int(costs[kind][0]))
            for kind in ("macs", "params")
        },
        structures=several,
        criteria=tuple(criteria) if len(criteria) > 1 else (),
        of_widths=size,
        unsupported=tuple(summarised(graph.unsupported)),
    )


def _saved(graph: ChannelGraph, kind: str) -> NDArray[np.float64]:
    """Returns, per prunable group, block and rank, the share of a cost that goes if it alone is cut to the least."""
    full = [*(group.channels for group in graph.prunable), *(1 for _ in graph.blocks)]
    least = [*(1 for _ in graph.prunable), *(0 for _ in graph.blocks), *(1 for _ in graph.ranks)]
    full = np.array([*full, *(rank.full for rank in graph.ranks)], dtype=np.int64)
    cut = np.tile(full, (len(full), 1))
    np.fill_diagonal(cut, least)
    costs = getattr(graph.costs, kind)(np.concatenate([full[None], cut]))
    return 1 - costs[1:] / max(int(costs[0]), 1)


def counted(size: int) -> str:
    """Returns how many structures there are: "81 structures" below 10^9, else the power of ten."""
    return plural(size, "structure") if size < 10**9 else f"10^{len(str(size)) - 1} structures"
