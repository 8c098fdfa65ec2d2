"""Bookkeeping while rules run: numbered channel positions, and what is found out about them.

Every channel that an operation creates gets a number, its position. A tensor carries the positions along its channel
axis (`Layout`); an operation passes them on, repeats, concatenates or ties them. Every axis of a parameter that runs
over channels is registered with its positions, so that slicing and costs need nothing but these arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from abcsearch.errors import AbcSearchError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import nn


# Why nothing follows channels in a tensor that slicing cannot reach.
LOOSE = "a tensor that is neither a parameter nor a buffer"


class NoRuleError(AbcSearchError):
    """A rule does not cover this use of its operation; what the operation touches is fixed, with this reason."""


@dataclass(frozen=True)
class Layout:
    """Where a tensor's channels are.

    Attributes:
        axis: the axis that runs over channels, counted from the front.
        positions: (size of that axis,) int64, the position of every entry.
    """

    axis: int
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Count:
    """A number that follows channels: constant + the sum of factor * (channels kept among positions).

    Attributes:
        constant: what does not depend on channels.
        terms: (factor, positions), any number of them.
    """

    constant: Fraction
    terms: tuple[tuple[Fraction, NDArray[np.int64]], ...] = ()

    @classmethod
    def of(cls, positions: NDArray[np.int64]) -> Count:
        """Returns the number of channels kept among positions."""
        return cls(Fraction(0), ((Fraction(1), positions),))

    @property
    def full(self) -> Fraction:
        """The number in the unpruned network."""
        return self.constant + sum(factor * len(positions) for factor, positions in self.terms)

    def __add__(self, other: Count) -> Count:
        return Count(self.constant + other.constant, (*self.terms, *other.terms))

    def __mul__(self, factor: Fraction) -> Count:
        return Count(self.constant * factor, tuple((own * factor, positions) for own, positions in self.terms))


@dataclass(frozen=True, kw_only=True)
class Operand:
    """An argument that comes from another operation.

    Attributes:
        value: the shape of a tensor, the value of a number or tuple of numbers; None for anything else.
        layout: where a tensor's channels are; None if no channel that can be removed is in it: nothing of the tensor
            changes then.
        why: why the layout is None, for messages.
        parameter: the canonical name, where it is a parameter or buffer that forward uses directly.
        is_tensor: whether it is a tensor.
        counts: of a number or tuple of numbers: how each follows channels, None where it does not.
        parts: the tensors of an operation that returns several.
    """

    value: Any
    layout: Layout | None = None
    why: str = ""
    parameter: str | None = None
    is_tensor: bool = True
    counts: tuple[Count | None, ...] = ()
    parts: tuple[Operand, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is a number, or a tuple of numbers, that does not follow channels."""
        return not self.is_tensor and not self.parts and not any(self.counts)

    @property
    def counted(self) -> bool:
        """Whether it is a number, or a tuple of numbers, that follows channels."""
        return not self.is_tensor and any(count is not None and count.terms for count in self.counts)

    @property
    def touched(self) -> list[NDArray[np.int64]]:
        """The positions of all channels that it depends on."""
        own = [] if self.layout is None else [self.layout.positions]
        counted = [positions for count in self.counts if count is not None for _, positions in count.terms]
        return [*own, *counted, *(positions for part in self.parts for positions in part.touched)]


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation of the forward pass, as rules see it.

    Attributes:
        name: what messages call it, e.g. "Conv2d stages.0.conv1" or "add (add_3)".
        target: the function, the name of the tensor method, or the class of the module: the key of its rule.
        path: the path of the module, "" for functions and methods.
        scope: the path of the innermost module in whose forward it happens (`path`, for a module).
        module: the module, or None.
        args: positional arguments; operands where they come from other operations, plain values otherwise.
        kwargs: keyword arguments, likewise.
        value: what it returned on the example input (see `Operand.value`); a tuple of shapes for several tensors.
    """

    name: str
    target: Any
    path: str
    scope: str
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any

    @property
    def is_tensor(self) -> bool:
        """Whether the result is a tensor."""
        return isinstance(self.value, torch.Size)

    def argument(self, index: int, keyword: str, default: Any = None) -> Any:  # noqa: ANN401 - arguments are anything
        """Returns an argument by position or keyword."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(keyword, default)

    @property
    def operands(self) -> list[Operand]:
        """All operands, also those inside lists, tuples, slices and dicts."""
        found: list[Operand] = []
        stack: list[Any] = [*self.args, *self.kwargs.values()]
        while stack:
            item = stack.pop(0)
            if isinstance(item, Operand):
                found.append(item)
            elif isinstance(item, slice):
                stack = [item.start, item.stop, item.step, *stack]
            elif isinstance(item, tuple | list | dict):
                stack = [*(item.values() if isinstance(item, dict) else item), *stack]
        return found

    def tensor(self, index: int = 0, keyword: str = "input") -> Operand:
        """Returns an argument that must be a tensor.

        Raises:
            NoRuleError: if it is not.
        """
        operand = self.argument(index, keyword)
        if not isinstance(operand, Operand) or not operand.is_tensor:
            msg = f"argument {index} is not a tensor"
            raise NoRuleError(msg)
        return operand

    def plain(self, index: int, keyword: str, default: Any = None) -> Any:  # noqa: ANN401 - arguments are anything
        """Returns an argument that must not follow channels, operands replaced by their values.

        Raises:
            NoRuleError: if it is a tensor or depends on the number of channels.
        """
        return _plain(self.argument(index, keyword, default))


def _plain(item: Any) -> Any:  # noqa: ANN401 - arguments are anything
    """Returns an argument with its operands replaced by their values; raises NoRuleError if one follows channels."""
    if isinstance(item, Operand):
        if not item.is_plain:
            msg = "another argument depends on channels"
            raise NoRuleError(msg)
        return item.value
    if isinstance(item, tuple | list):
        return type(item)(_plain(part) for part in item)
    return item


@dataclass(frozen=True)
class Call:
    """One use of a weight in a convolution or linear layer: macs = times * (elements of the weight).

    Attributes:
        weight: canonical name, or the number of elements where the weight is computed in forward.
        bias: likewise, or None.
        times: how often each element is used per image.
        outputs: how often each element of the bias is used per image.
        scope: the path of the module in whose forward it happens.
    """

    weight: str | int
    bias: str | int | None
    times: int
    outputs: int
    scope: str = ""


@dataclass(frozen=True)
class Setting:
    """A number among a module's attributes that must follow channels.

    Attributes:
        path: of the module.
        attribute: its name.
        index: which entry of the attribute, where that is a tuple; None where it is a number.
        positions: the attribute is the number of channels kept among them.
    """

    path: str
    attribute: str
    index: int | None
    positions: NDArray[np.int64]


@dataclass(kw_only=True)
class Flow:
    """All positions of one network and what the rules have said about them.

    Attributes:
        canonical: canonical name of every parameter and buffer, by the id of the tensor (tied tensors share one).
        sizes: shape of every parameter and buffer, by canonical name.
        batch: number of images in the example input.
        producers: (module path, first position, count) of every creation of positions, in execution order.
        axes: positions by (canonical name, axis).
        calls: every use of a weight.
        problems: operations without a rule, with the reason: the positions that each touches; None for one that uses
            parameters.
        settings: attributes of modules that slicing must set.
        claimed: the parameters and buffers of which the rule that is running has registered an axis.
        count: number of positions.
    """

    canonical: dict[int, str]
    sizes: dict[str, tuple[int, ...]]
    batch: int = 1
    producers: list[tuple[str, int, int]] = field(default_factory=list)
    axes: dict[tuple[str, int], NDArray[np.int64]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    problems: dict[str, NDArray[np.int64] | None] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    claimed: set[str] = field(default_factory=set)
    count: int = 0
    _ties: list[tuple[NDArray[np.int64], NDArray[np.int64], bool]] = field(default_factory=list)
    _reasons: list[tuple[NDArray[np.int64], str]] = field(default_factory=list)
    _frozen: dict[str, str] = field(default_factory=dict)
    _equations: list[tuple[Count, NDArray[np.int64] | None, str]] = field(default_factory=list)

    def fresh(self, count: int, producer: str = "") -> NDArray[np.int64]:
        """Returns `count` new positions; `producer` is the path of the module that computes them."""
        positions = np.arange(self.count, self.count + count, dtype=np.int64)
        self.count += count
        if producer:
            self.producers.append((producer, int(positions[0]), count))
        return positions

    def tie(self, a: NDArray[np.int64], b: NDArray[np.int64], *, residual: bool = False) -> None:
        """Says that a[i] and b[i] can only be removed together.

        Args:
            a: positions.
            b: as many positions.
            residual: the tie is an addition of two paths, which makes the group one of the residual stream.
        """
        self._ties.append((a, b, residual))

    def fix(self, positions: NDArray[np.int64], reason: str) -> None:
        """Says that these positions cannot be removed, and why; the first reason given is the one shown."""
        self._reasons.append((positions, reason))

    def freeze(self, parameter: str, reason: str) -> None:
        """Says that no axis of this parameter may change, and why."""
        self._frozen.setdefault(parameter, reason)

    def follows(self, size: Count, positions: NDArray[np.int64], op: Op) -> None:
        """Says that a number in forward must stay the number of channels kept among positions.

        Where it would not, because it is written as a constant or counts other channels, the channels stay.

        Args:
            size: the number.
            positions: what it must count.
            op: the operation that uses the number.
        """
        self._equations.append((size, positions, f"{op.name}: a size there would not follow the channels"))

    def whole(self, size: Count, op: Op) -> None:
        """Says that a number in forward must stay whole, because forward rounds it; otherwise the channels stay."""
        self._equations.append((size, None, f"{op.name}: rounding there would not follow the channels"))

    def setting(self, path: str, attribute: str, positions: NDArray[np.int64], index: int | None = None) -> None:
        """Says that a module's attribute is the number of channels among positions; slicing sets it.

        Args:
            path: of the module.
            attribute: a number, or a tuple of which `index` says which entry.
            positions: the channels that it counts.
            index: into the tuple.

        A second use of the module ties both.
        """
        for known in self.settings:
            if (known.path, known.attribute, known.index) == (path, attribute, index):
                self.tie(known.positions, positions)
                return
        self.settings.append(Setting(path, attribute, index, positions))

    def problem(self, text: str, touched: Iterable[NDArray[np.int64]], *, parameters: bool) -> None:
        """Says that no rule covers an operation.

        Args:
            text: its name and the reason.
            touched: positions of the channels in its arguments.
            parameters: whether it uses parameters.
        """
        known = self.problems.get(text, np.zeros(0, np.int64))
        self.problems[text] = None if parameters or known is None else np.concatenate([known, *touched])

    def unsupported(self, classes: Classes) -> tuple[str, ...]:
        """Returns the problems that touch channels which a module computes, or parameters."""
        computed = np.zeros(classes.total, dtype=bool)
        for _, start, count in self.producers:
            computed[classes.label[start : start + count]] = True
        return tuple(
            text for text, touched in self.problems.items() if touched is None or computed[classes.label[touched]].any()
        )

    def parameter(self, tensor: Any, axis: int, positions: NDArray[np.int64]) -> None:  # noqa: ANN401 - Tensor or name
        """Registers that an axis of a parameter or buffer runs over these positions; a second use ties both.

        Args:
            tensor: the tensor of the traced copy, its canonical name, or None (nothing happens: an absent bias).
            axis: the axis.
            positions: as many positions as the axis is long.

        Raises:
            NoRuleError: if the axis has another length, or the tensor is neither a parameter nor a buffer.
        """
        if tensor is None:
            return
        name = tensor if isinstance(tensor, str) else self.canonical.get(id(tensor))
        if name is None:
            msg = "it computes with a tensor that is neither a parameter nor a buffer"
            raise NoRuleError(msg)
        if self.sizes[name][axis] != len(positions):
            msg = f"axis {axis} of {name} has {self.sizes[name][axis]} entries for {len(positions)} channels"
            raise NoRuleError(msg)
        self.claimed.add(name)
        known = self.axes.setdefault((name, axis), positions)
        if known is not positions:
            self.tie(known, positions)

    def classes(self) -> Classes:
        """Returns the positions that can only be removed together, and what is known of each class."""
        for name, reason in self._frozen.items():
            for (parameter, _), positions in self.axes.items():
                if parameter == name:
                    self.fix(positions, reason)
                    self.problem(reason, [positions], parameters=False)
        pairs = [(a, b) for a, b, _ in self._ties] or [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
        links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(self.count, self.count))
        total, label = connected_components(links, directed=False)
        label = label.astype(np.int64)
        residual = np.zeros(total, dtype=bool)
        for a, b, is_residual in self._ties:
            if is_residual:
                residual[label[a[a != b]]] = True
        reasons: dict[int, str] = {}
        for positions, reason in self._reasons:
            for index in np.unique(label[positions]).tolist():
                reasons.setdefault(index, reason)
        for size, positions, text in self._equations:
            wrong = self._unequal(size, positions, label) - reasons.keys()
            if wrong:
                reasons.update(dict.fromkeys(wrong, text))
                self.problem(text, [np.flatnonzero(np.isin(label, sorted(wrong)))], parameters=False)
        return Classes(total=total, label=label, residual=residual, reasons=reasons)

    def _unequal(self, size: Count, positions: NDArray[np.int64] | None, label: NDArray[np.int64]) -> set[int]:
        """Returns the classes that a number counts more or less often than they are among the positions.

        Without positions, those of which one channel does not count as a whole number.
        """
        weights: dict[int, Fraction] = {}
        other = [] if positions is None else [(Fraction(-1), positions)]
        for factor, own in [*size.terms, *other]:
            for index, times in zip(*np.unique(label[own], return_counts=True), strict=True):
                weights[int(index)] = weights.get(int(index), Fraction(0)) + factor * int(times)
        return {index for index, weight in weights.items() if (weight % 1 if positions is None else weight)}


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Positions that can only be removed together.

    Attributes:
        total: the number of classes.
        label: (n_positions,) int64, the class of every position.
        residual: (total,) bool, whether an addition of two paths ties the class.
        reasons: why a class cannot be removed, by class.
    """

    total: int
    label: NDArray[np.int64]
    residual: NDArray[np.bool_]
    reasons: dict[int, str]
