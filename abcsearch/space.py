"""The search space: which structures there are. Knows nothing of networks, costs or searchers.

A candidate is a tuple with one value per dimension. For a dimension of kind "width" the value is the number of kept
channels; for kind "block" it is 1 (keep) or 0 (drop the whole block); for kind "criterion" it is the number of the
criterion by which the channels of a width are chosen, and has no order; for kind "rank" it is the rank at which a
layer is a product of two, or all of it: then the layer stays whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Literal

import numpy as np

from abcsearch.errors import CandidateError, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

Candidate = tuple[int, ...]

KINDS = ("width", "block", "criterion", "rank")

# The columns of `SearchSpace.descriptors` as `ChannelGraph.space` gives them. Of a width: the unpruned layer that makes
# the channels (of several, the first): channels that it reads and makes, height and width of its input, stride and
# kernel size along the height; and the MACs of all layers that make them. Of a block: channels, height and width of its
# input, stride and kernel size of its first layer, and the MACs of all its layers. Of a criterion: those of its width. Of
# a rank: those of its layer.
LAYER_DESCRIPTORS = ("in_channels", "out_channels", "height", "width", "stride", "kernel", "macs")


@dataclass(frozen=True)
class Dimension:
    """One searchable number of a structure.

    Attributes:
        name: the name of the channel group or block; of a criterion, another one.
        kind: "width" (kept channels), "block" (1 keep, 0 drop), "criterion" (which criterion chooses the channels) or
            "rank" (of a layer that is a product of two; the full rank: it stays whole).
        choices: the allowed values, strictly ascending; widths and ranks are >= 1, criteria are 0, 1, 2 ...
        full: the value in the unpruned network; by default the largest choice. It may lie above every choice: with
            alpha = 0.9 a layer keeps at most 90 % of its channels. Of a criterion it is 0: all keep all channels.
        of: the name of the width that a criterion belongs to; "" of other kinds.
        labels: what the choices of a criterion are called, one each; () of other kinds.

    Raises:
        CandidateError: if there is no choice, if the choices are not ascending, if one is out of range, or if a
            criterion does not say what it is of and what its choices are called.
    """

    name: str
    kind: Literal["width", "block", "criterion", "rank"]
    choices: tuple[int, ...]
    full: int = 0
    of: str = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the choices and fills in `full`."""
        choices = tuple(int(choice) for choice in self.choices)
        if choices != tuple(self.choices):
            msg = f"choices of dimension {self.name!r} must be whole numbers, found {tuple(self.choices)}"
            raise CandidateError(msg)
        object.__setattr__(self, "choices", choices)
        if not choices:
            msg = f"dimension {self.name!r} has no choices; a dimension needs at least one"
            raise CandidateError(msg)
        if any(a >= b for a, b in itertools.pairwise(choices)):
            msg = f"choices of dimension {self.name!r} must be strictly ascending, found {choices}"
            raise CandidateError(msg)
        if self.kind not in KINDS:
            msg = f'dimension {self.name!r} has kind {self.kind!r}; choose "width", "block", "criterion" or "rank"'
            raise CandidateError(msg)
        rules = {
            "width": ("widths are at least 1", choices[0] >= 1),
            "block": ("block switches are 0 or 1", choices[0] >= 0 and choices[-1] <= 1),
            "criterion": ("criteria are numbered from 0", choices == tuple(range(len(choices)))),
            "rank": ("ranks are at least 1", choices[0] >= 1),
        }
        rule, holds = rules[self.kind]
        if not holds:
            msg = f"choices of dimension {self.name!r} are {choices}; {rule}"
            raise CandidateError(msg)
        labelled = len(choices) if self.kind == "criterion" else 0
        if (
            len(set(self.labels)) != len(self.labels)
            or len(self.labels) != labelled
            or bool(self.of) != bool(labelled)
        ):
            msg = f"dimension {self.name!r} is a {self.kind} of {self.of!r} with labels {self.labels}; a criterion "
            raise CandidateError(
                msg
                + "says which width it is of and has a label for each choice, others have neither"
            )
        object.__setattr__(self, "full", 0 if labelled else max(self.full, choices[-1]))


@dataclass(frozen=True)
class SearchSpace:
    """All structures that the dimensions span.

    Attributes:
        dimensions: the dimensions, in network order.
        descriptors: optional fixed numbers per dimension for searchers that learn across layers; one tuple of equal
            length per dimension, in the order of `LAYER_DESCRIPTORS` where they describe layers. Without them
            `features` holds what the dimensions themselves tell.

    Raises:
        CandidateError: if there is no dimension, if two share a name, if a criterion is of no width or two are of the
            same one, or if the descriptors have the wrong shape.
    """

    dimensions: tuple[Dimension, ...]
    descriptors: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Checks names and descriptors."""
        object.__setattr__(self, "dimensions", tuple(self.dimensions))
        if not self.dimensions:
            msg = "a search space needs at least one dimension, found none"
            raise CandidateError(msg)
        names = [dimension.name for dimension in self.dimensions]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"dimension names must be unique, found twice: {', '.join(twice)}"
            raise CandidateError(msg)
        widths = [dimension.name for dimension in self.dimensions if dimension.kind == "width"]
        for dimension in self.dimensions:
            if dimension.of and dimension.of not in widths:
                msg = f"dimension {dimension.name!r} is a criterion of {dimension.of!r}, of which there is no other "
                raise CandidateError(
                    f"{msg}one, or no width of that name; a width has one criterion at most"
                )
            widths = [name for name in widths if name != dimension.of]
        lengths = {len(row) for row in self.descriptors}
        if self.descriptors and (len(self.descriptors) != len(names) or len(lengths) != 1):
            msg = f"descriptors need {len(names)} rows of one length, found {len(self.descriptors)} of {sorted(lengths)}"
            raise CandidateError(msg)

    def __len__(self) -> int:
        """Returns the number of dimensions."""
        return len(self.dimensions)

    @property
    def full(self) -> Candidate:
        """The unpruned network: every channel and every block kept (allowed even where alpha < 1 excludes it)."""
        return tuple(dimension.full for dimension in self.dimensions)

    def widths(self, candidate: Candidate) -> dict[str, tuple[int, int]]:
        """Returns kept and full channels, or ranks, by name; of a block, whether it is kept (1 or 0) and 1."""
        pairs = zip(self.dimensions, candidate, strict=True)
        return {d.name: (value, d.full) for d, value in pairs if d.kind != "criterion"}

    def criteria(self, candidate: Candidate) -> dict[str, str]:
        """Returns the label of the criterion that chooses channels, by name of width; {} where there is no choice."""
        pairs = zip(self.dimensions, candidate, strict=True)
        return {d.of: d.labels[value] for d, value in pairs if d.kind == "criterion"}

    @cached_property
    def ordered(self) -> NDArray[np.bool_]:
        """Which dimensions have an order, (n_dims,): widths, blocks and ranks, on which costs depend; not criteria."""
        return np.array([dimension.kind != "criterion" for dimension in self.dimensions])

    @cached_property
    def _criteria(self) -> tuple[tuple[int, int], ...]:
        """Where criteria are, each with the place of its width."""
        places = {dimension.name: index for index, dimension in enumerate(self.dimensions)}
        return tuple(
            (index, places[d.of])
            for index, d in enumerate(self.dimensions)
            if d.kind == "criterion"
        )

    def canonical(self, candidate: Candidate) -> Candidate:
        """Returns the one structure that stands for all that are the same network whatever a criterion is.

        That is so where a group keeps all its channels: there its criterion is the first.
        """
        idle = {
            index
            for index, width in self._criteria
            if candidate[width] == self.dimensions[width].full
        }
        if not any(candidate[index] for index in idle):
            return candidate
        return tuple(0 if index in idle else value for index, value in enumerate(candidate))

    @cached_property
    def size(self) -> int:
        """The exact number of structures, a Python int; those that `canonical` says are the same are all counted."""
        return math.prod(len(dimension.choices) for dimension in self.dimensions)

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """Layer descriptors, shape (n_dims, n_features), float64, unnormalised.

        The first columns are always: index, kind (0 width, 1 block, 2 criterion, 3 rank), full value, number of
        choices; the given descriptors follow.
        """
        rows = [
            (
                index,
                float(KINDS.index(d.kind)),
                d.full,
                len(d.choices),
                *(self.descriptors[index] if self.descriptors else ()),
            )
            for index, d in enumerate(self.dimensions)
        ]
        return np.array(rows, dtype=np.float64)

    def uniform(self, ratio: float) -> Candidate:
        """Returns the structure whose widths are the choices nearest to `ratio` * channels, all blocks kept.

        Criteria are the first ones; no layer is a product.

        Args:
            ratio: keep ratio in (0, 1]. Of two equally near choices the smaller is taken.

        Raises:
            CandidateError: if `ratio` is not in (0, 1].
        """
        if not isinstance(ratio, Real) or not 0 < ratio <= 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"a uniform keep ratio must be in (0, 1], found {ratio!r}"
            raise CandidateError(msg)
        return self.nearest(
            [d.full * ratio if d.kind == "width" else d.full for d in self.dimensions]
        )

    def nearest(self, values: Sequence[float]) -> Candidate:
        """Returns the structure whose values are the choices nearest to `values` (n_dims numbers, in value units)."""
        return tuple(
            min(d.choices, key=lambda choice: (abs(choice - value), choice))
            for d, value in zip(self.dimensions, values, strict=True)
        )

    def sample(self, rng: np.random.Generator) -> Candidate:
        """Returns a structure drawn uniformly: every choice of every dimension is equally likely."""
        return tuple(d.choices[int(rng.integers(len(d.choices)))] for d in self.dimensions)

    def check(self, candidate: Sequence[int]) -> None:
        """Raises unless the candidate is a structure of this space, or the unpruned network.

        Raises:
            CandidateError: naming the length or the dimension that is wrong, and the allowed values.
        """
        if not isinstance(candidate, Collection):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"a candidate is a tuple of {plural(len(self.dimensions), 'whole number')}, found {candidate!r}"
            raise CandidateError(msg)
        if len(candidate) != len(self.dimensions):
            expected, values = len(self.dimensions), tuple(candidate)
            msg = f"a candidate of this space has {plural(expected, 'value')}, found {len(values)}: {values}"
            raise CandidateError(msg)
        if tuple(candidate) == self.full:
            return
        for d, value in zip(self.dimensions, candidate, strict=True):
            if value not in d.choices:
                msg = f"dimension {d.name!r} is {value}; allowed are {d.choices}"
                raise CandidateError(msg)

    def indices(self, candidate: Sequence[int]) -> NDArray[np.int64]:
        """Returns the position of every value among its choices, shape (n_dims,), int64.

        A value above every choice (the unpruned network where alpha < 1) counts as the last choice.

        Raises:
            CandidateError: if the candidate is not in the space.
        """
        self.check(candidate)
        return np.array(
            [
                d.choices.index(min(v, d.choices[-1]))
                for d, v in zip(self.dimensions, candidate, strict=True)
            ],
            dtype=np.int64,
        )

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        """The choices of all dimensions, shape (n_dims, most choices), int64; short rows repeat their last choice."""
        most = max(len(d.choices) for d in self.dimensions)
        return np.array(
            [[*d.choices, *d.choices[-1:] * (most - len(d.choices))] for d in self.dimensions],
            np.int64,
        )

    def values(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Returns the values at choice positions: (..., n_dims) integers to (..., n_dims) int64."""
        return self._table[np.arange(len(self.dimensions)), np.asarray(indices)]

    def at(self, indices: ArrayLike) -> Candidate:
        """Returns the candidate at the given choice positions (n_dims integers); the inverse of `indices`."""
        return tuple(self.values(indices).tolist())

    @cached_property
    def last_indices(self) -> NDArray[np.int64]:
        """The highest choice position of every dimension, shape (n_dims,), int64."""
        return np.array([len(d.choices) - 1 for d in self.dimensions], dtype=np.int64)

    @cached_property
    def largest_indices(self) -> NDArray[np.int64]:
        """The choice positions of the largest structure, (n_dims,) int64, made of last widths and first criteria."""
        return np.where(self.ordered, self.last_indices, 0)

    def encode(self, candidate: Sequence[int]) -> NDArray[np.float64]:
        """Returns the candidate as a point, shape (n_dims,), float64 in [0, 1]: first choice 0, last choice 1.

        `decode(encode(c)) == c` for every structure of the space; a dimension with one choice is at 0. The unpruned
        network, where alpha < 1 leaves it outside the space, is encoded as the largest structure inside.

        Raises:
            CandidateError: if the candidate is not in the space.
        """
        return self.indices(candidate) / np.maximum(self.last_indices, 1)

    def decode(self, point: ArrayLike) -> Candidate:
        """Returns the structure nearest to a point, shape (n_dims,); numbers outside [0, 1] are clipped.

        Raises:
            CandidateError: if the point has the wrong shape or holds NaN.
        """
        values = np.asarray(point, dtype=np.float64)
        if values.shape != (len(self.dimensions),) or bool(np.isnan(values).any()):
            msg = f"a point of this space has shape ({len(self.dimensions)},) and no NaN, found {values}"
            raise CandidateError(msg)
        # +0.5 and floor rounds halves up, where np.rint would favour even positions.
        return self.at(
            np.floor(np.clip(values, 0.0, 1.0) * self.last_indices + 0.5).astype(np.int64)
        )
