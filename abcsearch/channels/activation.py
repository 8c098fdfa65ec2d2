"""Memory of activations: which results of operations are alive at the same time, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_ROWS = 1024  # candidates per block of work


@dataclass(frozen=True)
class Step:
    """One operation: what it reads and makes, as numbers of storages (views and in-place results share one).

    Attributes:
        scope: path of the module in whose forward it happens.
        reads: storages of its arguments.
        makes: storages of its results.
    """

    scope: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Activations:
    """All activations of one forward pass.

    Attributes:
        steps: in execution order; the last one reads the network's output.
        sizes: (n_storages, 1 + n_groups) float64, bytes per image of each storage: constant, and per kept channel.
        blocks: per residual block that can be dropped: its path, the storage that enters it, and the one that leaves.
    """

    steps: Sequence[Step] = field(repr=False)
    sizes: NDArray[np.float64] = field(repr=False)
    blocks: Sequence[tuple[str, int, int]] = ()

    def peak(
        self,
        widths: NDArray[np.int64],
        kept: NDArray[np.int64],
        between: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> NDArray[np.int64]:
        """Returns the most bytes that are alive at any operation.

        Args:
            widths: (n, n_groups) kept channels.
            kept: (n, n_blocks), 1 or 0 for every block.
            between: by the path of a layer that may be two, one after the other, the bytes of what the first makes,
                (n,); 0 where it is one.

        Returns:
            (n,) int64.
        """
        result = np.zeros(len(widths), dtype=np.int64)
        patterns, which = np.unique(kept, axis=0, return_inverse=True)
        for index, pattern in enumerate(patterns):
            rows = np.flatnonzero(which.reshape(-1) == index)
            lives = _alive(self, tuple(pattern.tolist()), tuple(between or ()))
            for chunk in np.array_split(rows, -(-len(rows) // _ROWS)):
                terms = np.concatenate([np.ones((len(chunk), 1)), widths[chunk]], axis=1)
                bytes_ = terms @ self.sizes[lives.storages].T
                total = bytes_ @ lives.alive.T
                for row, path in lives.layers:
                    total[:, row] += lives.more(row, bytes_, (between or {})[path][chunk])
                result[chunk] = np.rint(total.max(axis=1)).astype(np.int64)
        return result


@dataclass(frozen=True)
class _Lives:
    """Which storages are alive when.

    Attributes:
        alive: (steps, storages), 0 or 1.
        begins: (steps, storages), whether a storage is made there.
        ends: (steps, storages), whether it is read there for the last time.
        storages: their numbers.
        layers: steps that may be two, each with the path of the layer.
    """

    alive: NDArray[np.float64]
    begins: NDArray[np.float64]
    ends: NDArray[np.float64]
    storages: NDArray[np.int64]
    layers: tuple[tuple[int, str], ...]

    def more(
        self, row: int, sizes: NDArray[np.float64], between: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns how many bytes more are alive at a step if it is two, (n,).

        While the first computes, there is no output yet; while the second does, what only the first has read is gone.
        """
        less = np.minimum(sizes @ self.begins[row], sizes @ self.ends[row])
        return np.where(between > 0, between - less, 0.0)


@lru_cache(maxsize=256)
def _alive(activations: Activations, kept: tuple[int, ...], split: tuple[str, ...] = ()) -> _Lives:
    """Returns which storages are alive at which step; steps that cannot be the peak alone are left out.

    Args:
        activations: of the pass.
        kept: 1 or 0 for every block.
        split: paths of layers that may be two, whose steps all stay.
    """
    dropped = [block for block, keep in zip(activations.blocks, kept, strict=True) if not keep]
    # One may add in place
    same = {leaves: enters for _, enters, leaves in dropped if leaves != enters}
    gone = tuple(f"{path}." for path, _, _ in dropped)

    def resolved(storages: tuple[int, ...]) -> set[int]:
        roots: set[int] = set()
        for storage in storages:
            while storage in same:
                storage = same[storage]
            roots.add(storage)
        return roots

    steps = [
        step for step in activations.steps if not gone or not f"{step.scope}.".startswith(gone)
    ]
    reads, makes = [resolved(s.reads) for s in steps], [resolved(s.makes) for s in steps]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, (read, made) in enumerate(zip(reads, makes, strict=True)):
        for storage in read | made:
            first.setdefault(storage, index)
            last[storage] = index
    storages = sorted(first)
    alive, begins, ends = np.zeros((3, len(steps), len(storages)))
    for column, storage in enumerate(storages):
        alive[first[storage] : last[storage] + 1, column] = 1
        begins[first[storage], column] = ends[last[storage], column] = 1
    # A step at which nothing more is alive than at its neighbour cannot be the peak alone.
    less = [(alive[i] <= alive[i + 1]).all() for i in range(len(alive) - 1)]
    stays = [
        not lower or step.scope in split for lower, step in zip([*less, False], steps, strict=True)
    ]
    scopes = [step.scope for step, stay in zip(steps, stays, strict=True) if stay]
    return _Lives(
        alive=alive[stays],
        begins=begins[stays],
        ends=ends[stays],
        storages=np.array(storages, dtype=np.int64),
        layers=tuple((row, scope) for row, scope in enumerate(scopes) if scope in split),
    )
