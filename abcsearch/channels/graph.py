"""What is known of a network's channels: groups, residual blocks, and the spaces and costs that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

from abcsearch.channels.cost import CostModel
from abcsearch.channels.descriptors import layer_descriptors, layer_row
from abcsearch.channels.group import ChannelGroup, ChannelNorm, SizeAttribute
from abcsearch.channels.rank_costs import RankedCosts
from abcsearch.channels.widths import FINEST, WidthOptions, widths_of
from abcsearch.errors import CandidateError, TraceError, plural
from abcsearch.records import check
from abcsearch.space import Dimension, SearchSpace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from abcsearch.channels.activation import Activations
    from abcsearch.channels.group import Block
    from abcsearch.channels.rank_costs import LayerRank
    from abcsearch.channels.uses import Call


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """All channel groups of one network, and what follows from them.

    Attributes:
        groups: the groups in network order, fixed ones included.
        blocks: residual blocks that can be dropped whole, in network order.
        sizes: shape of every parameter and buffer by qualified name.
        trainable: the names in `sizes` that are parameters.
        calls: every use of a weight in a convolution or linear layer.
        settings: numbers among modules' attributes that slicing must set.
        activations: which results of operations are alive when, and how large they are.
        unsupported: operations without a rule, with the reason each.
        kinds: the class of every module by path.
        norms: what is computed over channels together, for those of prunable groups.
        bare: the names of parameters that forward takes out of a module and computes with itself.
        ranks: the layers that may become products of two smaller ones, see `with_ranks`.
        unranked: by the path of every other layer, why it stays whole; only where ranks were asked for.
    """

    groups: tuple[ChannelGroup, ...]
    blocks: tuple[Block, ...]
    sizes: dict[str, tuple[int, ...]] = field(repr=False)
    trainable: frozenset[str] = field(repr=False)
    calls: tuple[Call, ...] = field(repr=False)
    settings: tuple[SizeAttribute, ...] = field(repr=False)
    activations: Activations = field(repr=False)
    unsupported: tuple[str, ...] = field(repr=False)
    kinds: dict[str, type[nn.Module]] = field(repr=False)
    norms: tuple[ChannelNorm, ...] = field(default=(), repr=False)
    bare: frozenset[str] = field(default=frozenset(), repr=False)
    ranks: tuple[LayerRank, ...] = field(default=(), repr=False)
    unranked: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @cached_property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that are not fixed: one candidate value each, in this order."""
        return tuple(group for group in self.groups if group.fixed is None)

    @cached_property
    def costs(self) -> CostModel:
        """Closed-form costs of candidates."""
        known: dict[str, Any] = {
            "channels": [group.channels for group in self.prunable],
            "axes": [
                (m.parameter, m.axis, index, len(m.entries) // group.channels)
                for index, group in enumerate(self.prunable)
                for m in group.members
            ],
            "sizes": self.sizes,
            "trainable": self.trainable,
            "calls": self.calls,
            "blocks": [block.name for block in self.blocks],
            "activations": self.activations,
        }
        return RankedCosts(ranks=self.ranks, **known) if self.ranks else CostModel(**known)

    def space(  # noqa: PLR0913 - all that says which widths there are
        self,
        alpha: float = 0.9,
        step: float = 0.1,
        levels: Sequence[str] = ("filter", "stage"),
        divisor: int = 1,
        lowest: float | None = None,
        criteria: Sequence[str] = (),
        fast: Mapping[str, Sequence[int]] | None = None,
    ) -> SearchSpace:
        """Returns the space of kept channels per group: max(1, floor(c * ratio)) for every keep ratio.

        Keep ratios are lowest, lowest + step ... alpha.

        Every prunable group is a dimension; one of a level that is left out has its full width as the only choice. At
        level "block", one dimension per residual block follows, 1 keeps it and 0 drops it. The descriptors of the space
        are those of `LAYER_DESCRIPTORS`.

        With several criteria there are dimensions for all blocks, kept or not searched, and then one per prunable group
        that says by which criterion its channels are chosen; where all of them stay in any case, the first is the only
        choice. With `ranks` there are dimensions for all blocks, too, and then, before criteria, one per layer that may
        become a product: its ranks are those keep ratios of the highest that saves something, and the full one, at
        which it stays whole.

        Args:
            alpha: largest keep ratio, in (0, 1].
            step: distance of keep ratios, in [0.000001, alpha].
            levels: what to search: "filter", "stage", "block", any of them.
            divisor: layers have multiples of it as channels, where that is possible (`widths_of`): widths are rounded
                down, to the smallest that fits at least.
            lowest: smallest keep ratio, in (0, alpha]; None: one step.
            criteria: names of those that are searched, in the order of a ranking's; one, or none, is no choice.
            fast: the widths that are offered instead, by group (`fast_widths`).

        Raises:
            CandidateError: if alpha, step, levels, divisor or lowest are out of range.
            TraceError: if nothing at these levels can be pruned; the message names every fixed group, every operation
                without a rule, and the reasons.
        """
        asked: dict[str, Any] = {
            "alpha": alpha,
            "step": step,
            "levels": levels,
            "divisor": divisor,
            "lowest": lowest,
        }
        check(WidthOptions(**asked), "space", CandidateError)
        self._require_prunable(levels)
        # The simplest fraction near a float is the number that was meant: 0.1 is 1/10 and 1 / 3 is 1/3, exactly.
        given = (alpha, step, step if lowest is None else lowest)
        last, apart, first = (Fraction(ratio).limit_denominator(FINEST) for ratio in given)
        ratios = [first + h * apart for h in range(int((last - first) / apart) + 1)]
        dimensions: list[Dimension] = []
        for index, group in enumerate(self.prunable):
            c = group.channels
            choices = [c]
            if group.kind in levels:
                usual = widths_of(self.prunable, index, self.calls, self.sizes, ratios, divisor)
                choices = (fast or {}).get(group.name, usual)
            dimensions.append(Dimension(group.name, "width", tuple(choices), c))
        chosen = (
            [criterion_of(width, criteria) for width in dimensions] if len(criteria) > 1 else []
        )
        if "block" in levels or chosen or self.ranks:
            switches = (0, 1) if "block" in levels else (1,)
            dimensions += [Dimension(block.name, "block", switches, 1) for block in self.blocks]
        described = layer_descriptors(self.prunable, self.blocks, self.calls, self.sizes)[
            : len(dimensions)
        ]
        split = [
            Dimension(rank.name, "rank", rank.choices(ratios), rank.full) for rank in self.ranks
        ]
        rows = [layer_row(rank.weight, self.calls, self.sizes) for rank in self.ranks]
        return SearchSpace(
            (*dimensions, *split, *chosen), (*described, *rows, *described[: len(chosen)])
        )

    def _require_prunable(self, levels: Sequence[str]) -> None:
        """Raises TraceError if nothing can be pruned at the levels."""
        if any(group.kind in levels for group in self.prunable) or (
            "block" in levels and self.blocks
        ):
            return
        groups = [
            f"{g.name} ({g.kind}, {plural(g.channels, 'channel')}): {g.fixed or 'not searched'}"
            for g in self.groups
        ]
        reasons = [*groups, *self.unsupported] or ["no convolution or linear layer found"]
        msg = f"nothing can be pruned at level {' and '.join(levels)}: {'; '.join(reasons)}"
        raise TraceError(msg)

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Returns a model's parameters and buffers by qualified name, tied ones once.

        Raises:
            TraceError: if the graph was traced on a network with others.
        """
        tensors: dict[str, torch.Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
        for name, size in self.sizes.items():
            shape = tuple(tensors[name].shape) if name in tensors else None
            if shape != size:
                where = f"{name} has shape {size} there and {shape} here"
                msg = f"the graph was traced on another network: {where}; trace again"
                raise TraceError(msg)
        return tensors

    def structure(self, candidate: Sequence[int]) -> tuple[tuple[int, ...], tuple[Block, ...]]:
        """Returns the kept channels of every prunable group, and the blocks that are dropped, after checking them.

        Args:
            candidate: one value per prunable group, then (or not at all) one per block, then (or not at all) one per
                layer of `ranks`, then (or not at all) the number of a criterion per prunable group.

        Raises:
            CandidateError: if the length is wrong, a width is not in 1 ... channels, a rank not in 1 ... the full one,
                or a block's value not 0 or 1.
        """
        if not all(isinstance(value, Real) for value in candidate):
            msg = f"a candidate is a sequence of whole numbers, found {candidate!r:.80}"
            raise CandidateError(msg)
        criteria, ranks = self.criteria(candidate), self._ranks_in(candidate)
        candidate = candidate[: len(candidate) - len(criteria) - len(ranks)]
        widths, blocks = candidate[: len(self.prunable)], candidate[len(self.prunable) :]
        if len(widths) < len(self.prunable) or len(blocks) not in (0, len(self.blocks)):
            both = (
                f" (or {len(self.prunable) + len(self.blocks)} with its blocks)"
                if self.blocks
                else ""
            )
            given = tuple(candidate)
            values = plural(len(self.prunable), "value")
            msg = f"a candidate of this network has {values}{both}, found {len(given)}: {given}"
            raise CandidateError(msg)
        for group, width in zip(self.prunable, widths, strict=True):
            if not 1 <= width <= group.channels or width != int(width):
                msg = f"group {group.name!r} keeps {plural(width, 'channel')}; allowed are 1 to {group.channels}"
                raise CandidateError(msg)
        for block, value in zip(self.blocks, blocks, strict=False):
            if value not in (0, 1):
                msg = f"block {block.name!r} has value {value}; 1 keeps it, 0 drops it"
                raise CandidateError(msg)
        dropped = tuple(
            block for block, value in zip(self.blocks, blocks, strict=False) if not value
        )
        return tuple(int(width) for width in widths), dropped

    def criteria(self, candidate: Sequence[int]) -> tuple[int, ...]:
        """Returns the number of the criterion of every prunable group; () where a candidate does not say.

        Raises:
            CandidateError: if one is no number from 0.
        """
        shape = len(self.prunable) + len(self.blocks) + len(self.ranks)
        said = candidate[shape:] if len(candidate) == shape + len(self.prunable) else ()
        for group, number in zip(self.prunable, said, strict=False):
            if number < 0 or number != int(number):
                msg = f"group {group.name!r} has criterion {number}; criteria are numbered 0, 1, 2 ..."
                raise CandidateError(msg)
        return tuple(int(number) for number in said)

    def _ranks_in(self, candidate: Sequence[int]) -> tuple[int, ...]:
        """Returns the rank of every layer that may become a product; () where a candidate does not say.

        Raises:
            CandidateError: if one is out of range.
        """
        shape, count = len(self.prunable) + len(self.blocks), len(self.ranks)
        said = candidate[shape : shape + count]
        if len(candidate) not in (shape + count, shape + count + len(self.prunable)):
            said = ()
        for layer, rank in zip(self.ranks, said, strict=False):
            if not 1 <= rank <= layer.full or rank != int(rank):
                msg = f"{layer.name} is {rank}; allowed are 1 to {layer.full}"
                raise CandidateError(msg)
        return tuple(int(rank) for rank in said)

    def factored(self, candidate: Sequence[int]) -> dict[str, int]:
        """Returns by path the rank of every layer that is a product in a candidate: where that has fewer MACs.

        Raises:
            CandidateError: as `structure`.
        """
        self.structure(candidate)
        ranks = self._ranks_in(candidate)
        if not ranks or not isinstance(self.costs, RankedCosts):
            return {}
        (split,) = self.costs.factored([candidate])
        pairs = zip(self.ranks, ranks, split.tolist(), strict=True)
        return {layer.path: rank for layer, rank, saves in pairs if saves}

    def settled(self, candidate: Sequence[int]) -> tuple[int, ...]:
        """Returns the candidate with the full rank of every layer that stays whole: what is to be shown of it."""
        if not self._ranks_in(candidate):
            return tuple(candidate)
        split, at = self.factored(candidate), len(self.prunable) + len(self.blocks)
        ranks = [split.get(layer.path, layer.full) for layer in self.ranks]
        return (*candidate[:at], *ranks, *candidate[at + len(ranks) :])


def criterion_of(width: Dimension, criteria: Sequence[str]) -> Dimension:
    """Returns the dimension that says by which of some criteria the channels of a width are chosen."""
    labels = tuple(criteria if width.choices != (width.full,) else criteria[:1])
    return Dimension(
        f"criterion of {width.name}",
        "criterion",
        tuple(range(len(labels))),
        of=width.name,
        labels=labels,
    )
