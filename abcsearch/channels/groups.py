"""Coupled channel positions -> groups: which channels must be removed together, and which must stay."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from abcsearch.channels.cost import CostModel
from abcsearch.channels.flow import Classes, Flow
from abcsearch.channels.propagate import propagate, tensor_names
from abcsearch.channels.trace import trace_operations
from abcsearch.errors import CandidateError, TraceError, UnsupportedOpError, unknown_name
from abcsearch.space import Dimension, SearchSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from abcsearch.channels.flow import Call
    from abcsearch.channels.trace import OperationGraph

LEVELS = ("filter", "stage")
_FINEST = 10**6  # keep ratios are fractions with denominators up to this


class UnsupportedOpWarning(UserWarning):
    """Operations without a rule were met; the channels that they touch are fixed."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One axis of a parameter or buffer on which a group's channels lie.

    Attributes:
        parameter: qualified name, e.g. "stages.0.conv1.weight".
        axis: the axis.
        entries: (n,) int64, the entries of that axis that belong to the group.
        channels: (n,) int64, the channel of the group that each entry belongs to.
    """

    parameter: str
    axis: int
    entries: NDArray[np.int64] = field(repr=False)
    channels: NDArray[np.int64] = field(repr=False)


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
    """

    name: str
    channels: int
    kind: Literal["filter", "stage"]
    fixed: str | None
    members: tuple[Member, ...] = field(repr=False)


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

    def apply(self, model: nn.Module, kept: Sequence[NDArray[np.bool_]]) -> None:
        """Sets the attribute of a sliced network; `kept` says per prunable group which channels are left."""
        module = model.get_submodule(self.path)
        value = self.constant + sum(int(kept[group][channels].sum()) for group, channels in self.counted)
        if self.index is not None:
            items = list(getattr(module, self.name))
            items[self.index] = value
            value = tuple(items)
        setattr(module, self.name, value)


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """All channel groups of one network, and what follows from them.

    Attributes:
        groups: the groups in network order, fixed ones included.
        sizes: shape of every parameter and buffer by qualified name.
        trainable: the names in `sizes` that are parameters.
        calls: every use of a weight in a convolution or linear layer.
        settings: numbers among modules' attributes that slicing must set.
        unsupported: operations without a rule, with the reason each.
    """

    groups: tuple[ChannelGroup, ...]
    sizes: dict[str, tuple[int, ...]] = field(repr=False)
    trainable: frozenset[str] = field(repr=False)
    calls: tuple[Call, ...] = field(repr=False)
    settings: tuple[SizeAttribute, ...] = field(repr=False)
    unsupported: tuple[str, ...] = field(repr=False)

    @cached_property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that are not fixed: one candidate value each, in this order."""
        return tuple(group for group in self.groups if group.fixed is None)

    @cached_property
    def costs(self) -> CostModel:
        """Closed-form costs of candidates."""
        return CostModel(
            channels=[group.channels for group in self.prunable],
            axes=[
                (m.parameter, m.axis, index, len(m.entries) // group.channels)
                for index, group in enumerate(self.prunable)
                for m in group.members
            ],
            sizes=self.sizes,
            trainable=self.trainable,
            calls=self.calls,
        )

    def space(
        self,
        alpha: float = 0.9,
        step: float = 0.1,
        levels: Sequence[str] = LEVELS,
        divisor: int = 1,
    ) -> SearchSpace:
        """Returns the space of kept channels per group: max(1, floor(c * h * step)) for h * step = step ... alpha.

        Every prunable group is a dimension, so that candidates of all spaces of one network have the same length; a
        group of a level that is left out has its full width as the only choice.

        Args:
            alpha: largest keep ratio, in (0, 1].
            step: distance of keep ratios, in [0.000001, alpha].
            levels: which kinds of groups to search: "filter", "stage".
            divisor: widths are rounded down to multiples of it (and are at least the smaller of it and the width).

        Raises:
            CandidateError: if alpha, step, levels or divisor are out of range.
            TraceError: if no group of these levels can be pruned; the message names every fixed group, every
                operation without a rule, and the reasons.
        """
        check_space(alpha, step, levels, divisor)
        self._require_prunable(levels)
        # The simplest fraction near a float is the number that was meant: 0.1 is 1/10 and 1 / 3 is 1/3, exactly.
        largest, smallest = (Fraction(ratio).limit_denominator(_FINEST) for ratio in (alpha, step))
        ratios = [h * smallest for h in range(1, int(largest / smallest) + 1)]
        dimensions: list[Dimension] = []
        for group in self.prunable:
            c = group.channels
            widths = {max(int(c * ratio) // divisor * divisor, min(c, divisor)) for ratio in ratios}
            choices = sorted(widths) if group.kind in levels else [c]
            dimensions.append(Dimension(group.name, "width", tuple(choices), c))
        return SearchSpace(tuple(dimensions))

    def _require_prunable(self, levels: Sequence[str]) -> None:
        """Raises TraceError if no group of the levels can be pruned."""
        if any(group.kind in levels for group in self.prunable):
            return
        groups = [f"{g.name} ({g.kind}, {g.channels} channels): {g.fixed or 'not searched'}" for g in self.groups]
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
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != size:
                where = f"{name} has shape {size} there and {found} here"
                msg = f"the graph was traced on another network: {where}; trace again"
                raise TraceError(msg)
        return tensors

    def widths(self, candidate: Sequence[int]) -> tuple[int, ...]:
        """Returns the kept channels of every prunable group after checking them.

        Raises:
            CandidateError: if the length is wrong, or a width is not in 1 ... channels.
        """
        if len(candidate) != len(self.prunable):
            expected, found = len(self.prunable), tuple(candidate)
            msg = f"a candidate of this network has {expected} values, found {len(found)}: {found}"
            raise CandidateError(msg)
        for group, width in zip(self.prunable, candidate, strict=True):
            if not 1 <= width <= group.channels or width != int(width):
                msg = f"group {group.name!r} keeps {width} channels; allowed are 1 to {group.channels}"
                raise CandidateError(msg)
        return tuple(int(width) for width in candidate)


def check_space(alpha: float, step: float, levels: Sequence[str], divisor: int) -> None:
    """Raises CandidateError for settings of a space that are out of range."""
    if not 0 < alpha <= 1:
        msg = f"alpha is the largest keep ratio, in (0, 1], found {alpha}"
        raise CandidateError(msg)
    if not 1 / _FINEST <= step <= alpha:
        msg = f"step is the distance of keep ratios, in [{1 / _FINEST:f}, alpha = {alpha}], found {step}"
        raise CandidateError(msg)
    if not levels or isinstance(levels, str):
        msg = f"levels is a list with at least one of {LEVELS}, found {levels!r}"
        raise CandidateError(msg)
    for level in levels:
        if level not in LEVELS:
            raise CandidateError(unknown_name("level", str(level), LEVELS))
    if divisor < 1 or int(divisor) != divisor:
        msg = f"divisor is a whole number, at least 1, found {divisor}"
        raise CandidateError(msg)


def trace_channels(
    model: nn.Module,
    example_input: torch.Tensor | tuple[torch.Tensor, ...],
    *,
    fixed: Sequence[str] = (),
    unknown: Literal["fix", "raise"] = "fix",
) -> ChannelGraph:
    """Finds out which channels of a network must be removed together, and which can be removed at all.

    Args:
        model: any module that torch.fx can trace; it is not changed.
        example_input: one batch as forward takes it (batch 1 is enough), or a tuple of positional arguments.
        fixed: paths of modules whose output channels must all stay.
        unknown: "fix" keeps all channels that an operation without a rule touches and says so in one warning;
            "raise" refuses.

    Raises:
        TraceError: if the model cannot be traced or run, or `fixed` names no module with channels.
        UnsupportedOpError: with `unknown="raise"`, naming every operation without a rule.
    """
    if unknown not in ("fix", "raise"):
        raise TraceError(unknown_name("value of unknown", str(unknown), ("fix", "raise")))
    operations = trace_operations(model, example_input)
    names = tensor_names(operations)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    batch = next((len(x) for x in inputs if isinstance(x, torch.Tensor) and x.ndim), 1)
    flow = Flow(canonical=names[0], sizes=names[1], batch=max(batch, 1))
    propagate(flow, operations)
    calls = tuple(flow.calls)
    _couple_training(flow, operations, model, example_input)
    _fix_modules(flow, fixed)
    classes = flow.classes()
    unsupported = flow.unsupported(classes)
    if unsupported and unknown == "raise":
        msg = "operations without a rule for channels: " + "; ".join(unsupported)
        raise UnsupportedOpError(msg)
    if unsupported:
        text = "channels touched by operations without a rule stay as they are: " + "; ".join(unsupported)
        warnings.warn(text, UnsupportedOpWarning, stacklevel=2)
    parameters = {flow.canonical[id(p)] for p in operations.modules[""].parameters()}
    groups, channel = _groups(flow, classes)
    return ChannelGraph(
        groups=groups,
        settings=_settings(flow, classes, groups, channel),
        sizes=flow.sizes,
        trainable=frozenset(parameters),
        calls=calls,
        unsupported=unsupported,
    )


def _couple_training(
    flow: Flow, operations: OperationGraph, model: nn.Module, example_input: torch.Tensor | tuple[torch.Tensor, ...]
) -> None:
    """Adds what forward does in training mode only (auxiliary classifiers), so that the sliced network trains.

    The layers that appear there keep their channels: no cost of inference depends on them.
    """
    try:
        training = trace_operations(model, example_input, training=True)
    except TraceError:
        return  # the sliced network is as it was asked for; whether it trains, training will tell
    if [node.format_node() for node in training.nodes] == [node.format_node() for node in operations.nodes]:
        return
    flow.canonical.update(tensor_names(training)[0])
    known, start = set(flow.axes), flow.count
    propagate(flow, training)
    for key, positions in flow.axes.items():
        if key not in known and key[1] == 0:
            flow.fix(positions[positions >= start], "used in training only")


def _fix_modules(flow: Flow, fixed: Sequence[str]) -> None:
    """Fixes the output channels of the named modules and everything inside them."""
    for path in fixed:
        found = [p for (name, axis), p in flow.axes.items() if axis == 0 and name.startswith(path + ".")]
        if not found:
            paths = {name.rpartition(".")[0] for name, axis in flow.axes if axis == 0}
            raise TraceError(unknown_name("module in fixed", path, paths))
        for positions in found:
            flow.fix(positions, "fixed by the caller")


def _groups(flow: Flow, classes: Classes) -> tuple[tuple[ChannelGroup, ...], NDArray[np.int64]]:
    """Collects classes that lie on the same parameter axes, equally often, into groups in network order.

    Returns also (classes, 2) int64: the group of every class and its channel there, -1 for none.
    """
    touched: list[list[tuple[int, int]]] = [[] for _ in range(classes.total)]
    for index, positions in enumerate(flow.axes.values()):
        present, counts = np.unique(classes.label[positions], return_counts=True)
        for label, count in zip(present.tolist(), counts.tolist(), strict=True):
            touched[label].append((index, count))
    grouped: dict[tuple[Any, ...], list[int]] = {}
    # Positions ascend in execution order, so labels are met in the order of the first module that computes them.
    produced = [label for _, start, count in flow.producers for label in classes.label[start : start + count].tolist()]
    for label in dict.fromkeys(produced):
        key = (tuple(touched[label]), classes.reasons.get(label), bool(classes.residual[label]))
        grouped.setdefault(key, []).append(label)
    keys = list(flow.axes)
    found: list[ChannelGroup] = []
    place = np.full((classes.total, 2), -1, dtype=np.int64)
    for (axes, reason, residual), labels in grouped.items():
        place[labels, 0], place[labels, 1] = len(found), np.arange(len(labels))
        channel_of = np.full(classes.total, -1, dtype=np.int64)
        channel_of[labels] = np.arange(len(labels))
        members = tuple(_member(keys[index], channel_of[classes.label[flow.axes[keys[index]]]]) for index, _ in axes)
        found.append(
            ChannelGroup(
                name=_unique(_group_name(flow, classes, labels), {group.name for group in found}),
                channels=len(labels),
                kind="stage" if residual else "filter",
                fixed=reason or ("it has only one channel" if len(labels) == 1 else None),
                members=members,
            )
        )
    return tuple(found), place


def _settings(
    flow: Flow, classes: Classes, groups: tuple[ChannelGroup, ...], place: NDArray[np.int64]
) -> tuple[SizeAttribute, ...]:
    """Returns the attributes that count channels which can be removed."""
    prunable = {index: n for n, index in enumerate(i for i, group in enumerate(groups) if group.fixed is None)}
    found: list[SizeAttribute] = []
    for setting in flow.settings:
        own, channels = place[classes.label[setting.positions]].T
        counted = tuple((prunable[g], channels[own == g]) for g in np.unique(own).tolist() if g in prunable)
        constant = len(own) - sum(len(part) for _, part in counted)
        found.append(
            SizeAttribute(
                path=setting.path, name=setting.attribute, index=setting.index, constant=constant, counted=counted
            )
        )
    return tuple(setting for setting in found if setting.counted)


def _member(key: tuple[str, int], channels: NDArray[np.int64]) -> Member:
    """Returns the part of a parameter axis that belongs to a group; `channels` is -1 where it does not."""
    entries = np.flatnonzero(channels >= 0)
    return Member(parameter=key[0], axis=key[1], entries=entries, channels=channels[entries])


def _unique(name: str, taken: set[str]) -> str:
    """Returns a name with ticks behind it until no other group has it (one weight used in two ways)."""
    while name in taken:
        name += "'"
    return name


def _group_name(flow: Flow, classes: Classes, labels: list[int]) -> str:
    """Returns the first module that computes the channels, with their range if it computes others too."""
    wanted = set(labels)
    for path, start, count in flow.producers:
        own = [i for i, label in enumerate(classes.label[start : start + count].tolist()) if label in wanted]
        if own:
            return path if len(own) == count else f"{path}[{own[0]}:{own[-1] + 1}]"
    raise TraceError(f"no module computes channels {labels}")
