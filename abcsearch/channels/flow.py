"""Bookkeeping while rules run: numbered channel positions, and what is found out about them.

Every channel that an operation creates gets a number, its position. A tensor carries the positions along its channel
axis (`operands.Layout`); an operation passes them on, repeats, concatenates or ties them. Every axis of a parameter
that runs over channels is registered with its positions, so that slicing and costs need nothing but these arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from abcsearch.channels.norms import Norms
from abcsearch.channels.operands import Count, NoRuleError, Op, View
from abcsearch.channels.uses import Call, Setting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


@dataclass(kw_only=True)
class Flow:
    """All positions of one network and what the rules have said about them.

    Attributes:
        canonical: canonical name of every parameter and buffer, by the id of the tensor (tied tensors share one).
        sizes: shape of every parameter and buffer, by canonical name.
        batch: number of images in the example input.
        shared: whether the operation at hand gets nothing of the input: it happens once, however many images there are.
        producers: (module path, first position, count) of every creation of positions, in execution order.
        axes: positions by (canonical name, axis).
        makes: those of `axes` along which an operation makes or scales channels; along the others they are only read.
        sums: those of `axes` along which an operation reads channels and sums over them; tied weights may do both.
        calls: every use of a weight.
        problems: operations without a rule, with the reason: the positions that each touches; None for one that uses
            parameters.
        settings: attributes of modules that slicing must set.
        norms: norms over channels.
        heads: whether reshapes that may go by heads or by the channels of each go by heads.
        attends: whether forward multiplies two tensors with channels, as attention does within heads.
        claimed: the axes of parameters and buffers that the rule which is running has registered.
        count: number of positions.
    """

    canonical: dict[int, str]
    sizes: dict[str, tuple[int, ...]]
    batch: int = 1
    shared: bool = False
    producers: list[tuple[str, int, int]] = field(default_factory=list)
    axes: dict[tuple[str, int], NDArray[np.int64]] = field(default_factory=dict)
    makes: set[tuple[str, int]] = field(default_factory=set)
    sums: set[tuple[str, int]] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    problems: dict[str, NDArray[np.int64] | None] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    norms: Norms = field(default_factory=Norms)
    heads: bool = False
    attends: bool = False
    claimed: set[tuple[str, int]] = field(default_factory=set)
    count: int = 0
    _ties: list[tuple[NDArray[np.int64], NDArray[np.int64], bool]] = field(default_factory=list)
    _reasons: list[tuple[NDArray[np.int64], str]] = field(default_factory=list)
    _frozen: dict[str, str] = field(default_factory=dict)
    _held: dict[tuple[str, int], str] = field(default_factory=dict)
    _unset: dict[str, str] = field(default_factory=dict)
    _settings_before: int = 0
    _equations: list[tuple[Count, NDArray[np.int64] | None, str]] = field(default_factory=list)
    _written: dict[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict)
    _standing: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    _lengths: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    _decisions: list[tuple[Count, str, str]] = field(default_factory=list)

    def per_image(self, times: int) -> int:
        """Returns how often per image something happens that the example did so many times; a share is rounded up."""
        return times if self.shared else -(-times // self.batch)

    def fresh(self, count: int, producer: str = "") -> NDArray[np.int64]:
        """Returns `count` new positions, (count,); `producer` is the path of the module that computes them."""
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
        """Says that some positions, (n,), cannot be removed, and why; the first reason given is the one shown."""
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
        self._bind(size, positions)
        self._equations.append(
            (size, positions, f"{op.name}: a size there would not follow the channels")
        )

    def whole(self, size: Count, op: Op) -> None:
        """Says that a number in forward must stay whole, because forward rounds it; otherwise the channels stay."""
        self._equations.append(
            (size, None, f"{op.name}: rounding there would not follow the channels")
        )

    def attribute(self, path: str, name: str, value: int) -> NDArray[np.int64]:
        """Returns positions that stand for a number among a module's attributes which forward reads: "c", "sizes[0]".

        Where forward uses it as a number of channels (`follows`), it counts those, and slicing sets it; used in any
        other way it stays, and with it what it counts.
        """
        if (path, name) not in self._written:
            positions = self._written[path, name] = self.fresh(value)
            self._standing[id(positions)] = positions
            attribute, _, index = name.rstrip("]").partition("[")
            self.setting(path, attribute, positions, int(index) if index else None)
        return self._written[path, name]

    def counted(self, tensor: str, axis: int) -> NDArray[np.int64]:
        """Returns positions, (length,), that stand for the length of an axis of a tensor which forward reads."""
        positions = self.fresh(self.sizes[tensor][axis])
        if axis > 1:
            self._lengths[id(positions)] = positions
        known = self.axes.setdefault((tensor, axis), positions)
        if known is not positions:
            self.tie(known, positions)
        return positions

    def stands(self, count: Count | None) -> bool:
        """Returns whether a number is made of attributes of modules only."""
        return (
            count is not None
            and bool(count.terms)
            and all(id(count_of) in self._standing for _, count_of in count.terms)
        )

    def pins(self, count: Count | None) -> bool:
        """Returns whether a number is made of what hardly ever follows channels: attributes, and sizes of kernels."""
        fixed = self._standing.keys() | self._lengths.keys()
        return (
            count is not None
            and bool(count.terms)
            and all(id(positions) in fixed for _, positions in count.terms)
        )

    def _bind(self, size: Count, positions: NDArray[np.int64]) -> None:
        """Lets an attribute of a module count the channels that it is meant to be the number of."""
        if len(size.terms) > 1:
            self._bind_sum(size, positions)
        if len(size.terms) != 1 or size.constant or not self.stands(size):
            return
        factor, channels = size.terms[0]
        if factor * len(channels) != len(positions):
            return
        if factor.numerator == 1:  # one of equal runs
            for run in channels.reshape(factor.denominator, -1):
                self.tie(run, positions)
            return
        each = positions.reshape(len(channels), -1)
        if (each == each[:, :1]).all():  # flattened channels
            self.tie(channels, each[:, 0])
        else:  # equal runs of channels
            for run in positions.reshape(-1, len(channels)):
                self.tie(channels, run)

    def _bind_sum(self, size: Count, positions: NDArray[np.int64]) -> None:
        """Lets an attribute, from which forward takes other numbers of channels, count all of these together."""
        whole = [
            channels
            for factor, channels in size.terms
            if factor == 1 and id(channels) in self._standing
        ]
        taken = [channels for factor, channels in size.terms if factor == -1]
        every = np.concatenate([*taken, positions])
        if len(whole) == 1 and len(taken) == len(size.terms) - 1 and len(whole[0]) == len(every):
            self.tie(whole[0], every)

    def decides(self, difference: Count, how: str, text: str) -> None:
        """Says that forward went a way that depends on a number; what could make it go another way stays.

        Args:
            difference: the number.
            how: how it compared with 0 on the example: "eq", "ne", "lt", "le", "gt" or "ge".
            text: the reason for those channels that stay.
        """
        self._decisions.append((difference, how, text))

    def setting(
        self, path: str, attribute: str, positions: NDArray[np.int64], index: int | None = None
    ) -> None:
        """Says that a module's attribute is the number of channels among positions; slicing sets it.

        Args:
            path: of the module.
            attribute: a number, or a tuple of which `index` says which entry.
            positions: the channels that it counts.
            index: into the tuple.
        """
        self.settings.append(Setting(path, attribute, index, positions))

    def hold(self, op: Op, parameters: Iterable[str]) -> None:
        """Says that an operation needs what its rule did not register: other axes of its parameters, module attributes.

        Args:
            op: the operation, its rule has just run.
            parameters: canonical names of the parameters and buffers that it uses.
        """
        for name in parameters:
            for axis in range(len(self.sizes[name])):
                if (name, axis) not in self.claimed:
                    self._held.setdefault(
                        (name, axis), f"{op.name}: needs all of axis {axis} of {name}"
                    )
        if op.path and not any(
            setting.path == op.path for setting in self.settings[self._settings_before :]
        ):
            self._unset.setdefault(op.path, f"{op.name}: used with other channels as well")

    def begin(self, op: Op) -> None:
        """Says that the rule of another operation runs now."""
        self.claimed.clear()
        self.norms.begin(op)
        self._settings_before = len(self.settings)

    def problem(self, text: str, touched: Iterable[NDArray[np.int64]], *, parameters: bool) -> None:
        """Says that no rule covers an operation.

        Args:
            text: its name and the reason.
            touched: positions of the channels in its arguments.
            parameters: whether it uses parameters.
        """
        known = self.problems.get(text, np.zeros(0, np.int64))
        self.problems[text] = (
            None if parameters or known is None else np.concatenate([known, *touched])
        )

    def unsupported(self, classes: Classes) -> tuple[str, ...]:
        """Returns the problems that touch channels which a module computes, or parameters."""
        computed = np.zeros(classes.total, dtype=bool)
        for _, start, count in self.producers:
            computed[classes.label[start : start + count]] = True
        return tuple(
            text
            for text, touched in self.problems.items()
            if touched is None or computed[classes.label[touched]].any()
        )

    def parameter(
        self,
        tensor: Any,  # noqa: ANN401 - Tensor or name
        axis: int,
        positions: NDArray[np.int64],
        *,
        reads: bool = False,
    ) -> None:
        """Registers that an axis of a parameter or buffer runs over these positions; a second use ties both.

        Args:
            tensor: the tensor of the traced copy, its canonical name, or None (nothing happens: an absent bias).
            axis: the axis.
            positions: as many positions as the axis is long.
            reads: the operation reads these channels, and sums over them; otherwise it makes or scales them.

        Raises:
            NoRuleError: if the axis has another length, or the tensor is neither a parameter nor a buffer.
        """
        if tensor is None:
            return
        name = tensor if isinstance(tensor, str) else self.canonical.get(id(tensor))
        if name is None:
            msg = "it computes with a tensor that is neither a parameter nor a buffer"
            raise NoRuleError(msg)
        axis = self._axis(name, axis)
        if self.sizes[name][axis] != len(positions):
            msg = f"axis {axis} of {name} has {self.sizes[name][axis]} entries for {len(positions)} channels"
            raise NoRuleError(msg)
        self.claimed.add((name, axis))
        (self.sums if reads else self.makes).add((name, axis))
        known = self.axes.setdefault((name, axis), positions)
        if known is not positions:
            self.tie(known, positions)

    @staticmethod
    def _axis(name: str, axis: int) -> int:
        """Returns the axis of a parameter that an axis of a view of it is."""
        runs = name.axes[axis] if isinstance(name, View) else axis
        if runs is None:
            msg = f"{name} has no axis for the channels"
            raise NoRuleError(msg)
        return runs

    def classes(self) -> Classes:
        """Returns the positions that can only be removed together, and what is known of each class."""
        for (parameter, axis), positions in self.axes.items():
            if parameter in self._frozen:
                self.fix(positions, self._frozen[parameter])
                self.problem(self._frozen[parameter], [positions], parameters=False)
            if (parameter, axis) in self._held:
                self.fix(positions, self._held[parameter, axis])
        self._same_settings()
        pairs = [(a, b) for a, b, _ in self._ties] or [
            (np.zeros(0, np.int64), np.zeros(0, np.int64))
        ]
        rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
        links = coo_array(
            (np.ones(len(rows), np.int8), (rows, columns)), shape=(self.count, self.count)
        )
        total, label = connected_components(links, directed=False)
        label = label.astype(np.int64)
        residual = np.zeros(total, dtype=bool)
        for a, b, is_residual in self._ties:
            if is_residual:
                residual[label[a[a != b]]] = True
        return Classes(total=total, label=label, residual=residual, reasons=self._reasoned(label))

    def _same_settings(self) -> None:
        """Ties what an attribute of a shared module counts in each of its uses; fixes it where one use sets none."""
        first: dict[tuple[str, str, int | None], NDArray[np.int64]] = {}
        for setting in self.settings:
            known = first.setdefault(
                (setting.path, setting.attribute, setting.index), setting.positions
            )
            if setting.path in self._unset:
                self.fix(setting.positions, self._unset[setting.path])
            elif len(known) == len(setting.positions):
                self.tie(known, setting.positions)
            else:
                for positions in (known, setting.positions):
                    self.fix(positions, f"{setting.path}: used with different numbers of channels")

    def _reasoned(self, label: NDArray[np.int64]) -> dict[int, str]:
        """Returns why classes must stay: what the rules have said, and sizes in forward that would not follow."""
        reasons: dict[int, str] = {}
        for positions, reason in self._reasons:
            for index in np.unique(label[positions]).tolist():
                reasons.setdefault(index, reason)
        for size, positions, text in self._equations:
            wrong = self._unequal(size, positions, label) - reasons.keys()
            if wrong:
                reasons.update(dict.fromkeys(wrong, text))
                self.problem(
                    text, [np.flatnonzero(np.isin(label, sorted(wrong)))], parameters=False
                )
        for difference, how, text in self._decisions:
            free = self._unequal(difference, np.zeros(0, np.int64), label) - reasons.keys()
            if free and not self._settled(difference, how, label, reasons):
                reasons.update(dict.fromkeys(free, text))
                self.problem(text, [np.flatnonzero(np.isin(label, sorted(free)))], parameters=False)
        return reasons

    def _settled(
        self, difference: Count, how: str, label: NDArray[np.int64], reasons: dict[int, str]
    ) -> bool:
        """Returns whether a number compares with 0 in one way, whatever is removed."""
        low = high = difference.constant
        for factor, positions in difference.terms:
            # Of the channels of a tensor one stays at least, and all those that cannot be removed.
            stays = max(1, sum(index in reasons for index in label[positions].tolist()))
            ends = (factor * stays, factor * len(positions))
            low, high = low + min(ends), high + max(ends)
        return {
            "eq": low == high == 0,
            "ne": low > 0 or high < 0,
            "lt": high < 0,
            "le": high <= 0,
            "gt": low > 0,
            "ge": low >= 0,
        }[how]

    def _unequal(
        self, size: Count, positions: NDArray[np.int64] | None, label: NDArray[np.int64]
    ) -> set[int]:
        """Returns the classes that a number counts more or less often than they are among the positions.

        Without positions, those of which one channel does not count as a whole number.
        """
        weights: dict[int, Fraction] = {}
        other = [] if positions is None else [(Fraction(-1), positions)]
        for factor, channels in [*size.terms, *other]:
            for index, times in zip(*np.unique(label[channels], return_counts=True), strict=True):
                weights[int(index)] = weights.get(int(index), Fraction(0)) + factor * int(times)
        return {
            index
            for index, weight in weights.items()
            if (weight % 1 if positions is None else weight)
        }


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
