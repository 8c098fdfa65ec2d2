"""Tabular: fitness looked up in a table of trained networks, such as NATS-Bench's."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from abcsearch.errors import CandidateError, DataError, plural, unknown_name
from abcsearch.space import Candidate, Dimension, SearchSpace
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from abcsearch.budget import Constraint, Costs

    Row = tuple[Candidate, float, int, int]  # widths, accuracy in per cent, macs, params

_WIDEST = 2**16  # widths above this are taken for a mistake
_ABSENT = -(2**40)  # place of a value that is not among the choices: no sum with it is a position


class TableCosts:
    """Costs looked up in a table: macs and params. There are no flops in it, so a budget that asks for them is refused.

    About 10 microseconds for one structure.
    """

    def __init__(
        self, space: SearchSpace, macs: NDArray[np.int64], params: NDArray[np.int64]
    ) -> None:
        """Takes the costs of all structures, each (space.size,), in the order of itertools.product of the choices."""
        self._space, self._macs, self._params = space, macs, params
        # Position of a structure = sum over its dimensions of places[dimension, value].
        widest = max(d.choices[-1] for d in space.dimensions)
        self._places = np.full((len(space), widest + 2), _ABSENT, dtype=np.int64)
        stride = space.size
        for row, d in zip(self._places, space.dimensions, strict=True):
            stride //= len(d.choices)
            row[list(d.choices)] = stride * np.arange(len(d.choices))
        self._rows = np.arange(len(space))

    def positions(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the positions of structures in the table: (n, n_dims) integers to (n,) int64.

        Raises:
            CandidateError: if one is not in the table.
        """
        values = np.asarray(candidates, dtype=np.int64)
        if values.ndim != 2 or values.shape[1] != len(self._rows):
            msg = (
                f"structures of this table have shape (n, {len(self._rows)}), found {values.shape}"
            )
            raise CandidateError(msg)
        inside = np.minimum(np.maximum(values, 0), self._places.shape[1] - 1)
        rows = self._places[self._rows, inside].sum(axis=1)
        if len(rows) and rows.min() < 0:
            self._space.check(values[int(rows.argmin())].tolist())
        return rows

    def macs(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns multiply-accumulates, batch 1: (n, n_dims) integers to (n,) int64."""
        return self._macs[self.positions(candidates)]

    def params(self, candidates: ArrayLike) -> NDArray[np.int64]:
        """Returns the number of parameters: (n, n_dims) integers to (n,) int64."""
        return self._params[self.positions(candidates)]


class Tabular:
    """Looks fitness and costs up in a table that holds every structure of a space: an evaluation costs microseconds.

    For comparing searchers, with many seeds, on accuracies of networks that were really trained. Deterministic: one
    accuracy per structure, whatever the seed.

    Source: Dong et al., NATS-Bench (TPAMI 2021), size search space.

    Differences from the paper:
        - The paper's searchers see accuracies after 12 epochs on a validation set; here they see what is reported in
          the end (in its table of 90 epochs: test accuracy), so that regret is exactly known.
        - What the table calls flops are multiply-accumulates, and are called macs here.

    Attributes:
        space: one width per layer, named layer0, layer1, ...; the choices are the widths in the table.
        costs: macs and params out of the table.
    """

    def __init__(
        self,
        space: SearchSpace,
        fitness: NDArray[np.float64],
        macs: NDArray[np.int64],
        params: NDArray[np.int64],
    ) -> None:
        """Takes what is known of every structure.

        Args:
            space: the structures.
            fitness: (space.size,) accuracies in [0, 1], in the order of itertools.product of the choices.
            macs: (space.size,) multiply-accumulates in the same order.
            params: (space.size,) numbers of parameters in the same order.

        Raises:
            DataError: if an array has another shape, if the unpruned network is not in the table, or if a cost falls
                where a width grows: budgets rely on both.
        """
        self.space = space
        if space.full != space.at(space.last_indices):
            msg = f"a table holds the unpruned network, found {_arch(space.full)} above the largest widths"
            raise DataError(msg)
        for name, column in (("fitness", fitness), ("macs", macs), ("params", params)):
            if column.shape != (space.size,):
                msg = f"a table of this space has {plural(space.size, 'structure')}, found {name} of shape {column.shape}"
                raise DataError(msg)
        for name, cost in (("macs", macs), ("params", params)):
            grid = cost.reshape([len(d.choices) for d in space.dimensions])
            for axis, d in enumerate(space.dimensions):
                falls = np.argwhere(np.diff(grid, axis=axis) < 0)
                if len(falls):
                    msg = (
                        f"costs must not fall where a width grows, found {name} falling along {d.name!r} from "
                        f"{_arch(space.at(falls[0]))}"
                    )
                    raise DataError(msg)
        self._fitness, self._macs, self._params = fitness, macs, params
        self._lookup = TableCosts(space, macs, params)

    @property
    def costs(self) -> Costs:
        """The table's costs, for `Budget.bind`."""
        # Without flops: Budget.bind refuses a budget that asks for them
        return cast("Costs", self._lookup)

    @classmethod
    def read(cls, path: str | os.PathLike[str], dataset: str = "cifar10") -> Tabular:
        """Reads one data set of a table of NATS-Bench's form.

        Args:
            path: a csv file, or csv.gz, with a header. Columns: arch, the widths as "8:16:64" with one per layer; and
                for every data set D: acc_D, accuracy in per cent; flops_D, multiply-accumulates; params_D. Other
                columns are left alone. Rows in any order, one for every combination of the widths that occur.
            dataset: the data set D.

        Raises:
            DataError: if the file cannot be read, columns are missing, the data set is unknown (with the nearest
                name), a row is malformed, or structures are missing or there twice.
        """
        path = Path(path)
        reader = csv.reader(io.StringIO(_text(path)), strict=True)
        try:
            columns = _columns(path, next(reader, []), dataset)
            rows = list(_rows(path, reader, columns))
        except csv.Error as error:
            msg = f"{path}, line {reader.line_num}: not a csv file: {error}"
            raise DataError(msg) from error
        if not rows:
            msg = f"{path}: a table needs at least one row below its header, found none"
            raise DataError(msg)
        widths = np.array([row[0] for row in rows], dtype=np.int64)
        space = SearchSpace(
            tuple(
                Dimension(f"layer{i}", "width", tuple(np.unique(w).tolist()))
                for i, w in enumerate(widths.T)
            )
        )
        order = _order(path, space, widths)
        accuracy = np.array([row[1] for row in rows], dtype=np.float64)[order]
        macs, params = np.array([row[2:] for row in rows], dtype=np.int64)[order].T
        try:
            return cls(space, accuracy / 100, macs, params)
        except DataError as error:
            msg = f"{path}: {error}"
            raise DataError(msg) from error

    def __call__(self, candidate: Candidate, seed: int) -> Evaluation:
        """Returns accuracy as fitness and as metric top1, both in [0, 1]; a failure if the table lacks the structure.

        Args:
            candidate: the structure.
            seed: not used.
        """
        del seed
        try:
            position = int(self._lookup.positions([candidate])[0])
        except (
            CandidateError,
            ValueError,
            TypeError,
            OverflowError,
        ) as error:  # also what is no structure at all
            return Evaluation(fitness=None, failure=f"not in the table: {error}")
        fitness = float(self._fitness[position])
        macs, params = int(self._macs[position]), int(self._params[position])
        return Evaluation(fitness=fitness, metrics={"top1": fitness}, macs=macs, params=params)

    def fitness(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Returns accuracies in [0, 1]: (n, n_dims) integers to (n,) float64.

        Raises:
            CandidateError: if a structure is not in the table.
        """
        return self._fitness[self._lookup.positions(candidates)]

    def optimum(self, constraint: Constraint | None = None) -> float:
        """Returns the best fitness inside a constraint, or of the whole table.

        Args:
            constraint: a budget bound to this space (`Budget.bind` makes sure that something is inside).
        """
        if constraint is None:
            return float(self._fitness.max())
        shape = [len(d.choices) for d in self.space.dimensions]
        every = self.space.values(np.indices(shape).reshape(len(shape), -1).T)
        return float(self._fitness[constraint.violation(every) == 0].max())


def _text(path: Path) -> str:
    """Returns the text of a file, unpacked where it is a gzip file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        msg = f"{path}: a table is a csv file, plain or as csv.gz; this one cannot be read: {error}"
        raise DataError(msg) from error


def _columns(path: Path, header: list[str], dataset: str) -> list[int]:
    """Returns where arch, accuracy, macs and params of a data set are.

    Raises:
        DataError: if the data set is unknown or a column is missing.
    """
    datasets = [name.removeprefix("acc_") for name in header if name.startswith("acc_")]
    if "arch" in header and datasets and dataset not in datasets:
        msg = f"{path}: {unknown_name('data set', dataset, datasets)}"
        raise DataError(msg)
    wanted = ["arch", f"acc_{dataset}", f"flops_{dataset}", f"params_{dataset}"]
    missing = [name for name in wanted if name not in header]
    if missing:
        msg = f"{path}, line 1: a table needs the columns {', '.join(wanted)}, missing: {', '.join(missing)}"
        raise DataError(msg)
    return [header.index(name) for name in wanted]


def _rows(path: Path, reader: Iterator[list[str]], columns: list[int]) -> Iterator[Row]:
    """Yields the rows of one data set.

    Raises:
        DataError: if one is malformed.
    """
    layers = 0
    for number, cells in enumerate(reader, start=2):
        if not cells:  # an empty line
            continue
        try:
            arch, accuracy, macs, params = (cells[column] for column in columns)
        except IndexError:
            msg = f"{path}, row {number}: a row needs at least {max(columns) + 1} cells, found {len(cells)}"
            raise DataError(msg) from None
        try:
            row = (tuple(map(int, arch.split(":"))), float(accuracy), int(macs), int(params))
        except ValueError as error:
            msg = f"{path}, row {number}: widths and costs are whole numbers, accuracy is a number: {error}"
            raise DataError(msg) from error
        layers = layers or len(row[0])
        problem = _problem(row, layers)
        if problem:
            msg = f"{path}, row {number}: {problem}"
            raise DataError(msg)
        yield row


def _problem(row: Row, layers: int) -> str | None:
    """Returns what is wrong with the numbers of a row, if anything is."""
    widths, accuracy, macs, params = row
    if len(widths) != layers:
        return f"arch has one width per layer, {layers} as in the first row, found {len(widths)}"
    if not all(1 <= width <= _WIDEST for width in widths):
        return f"widths are from 1 to {_WIDEST:,}, found {_arch(widths)}"
    if not (math.isfinite(accuracy) and 0 <= accuracy <= 100):
        return f"accuracy is in per cent, from 0 to 100, found {accuracy}"
    if not (0 <= macs < 2**62 and 0 <= params < 2**62):
        return f"macs and params are from 0 to 2**62, found {macs:,} and {params:,}"
    return None


def _order(path: Path, space: SearchSpace, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rows of the table in the order of itertools.product, (space.size,) int64.

    Raises:
        DataError: if a structure is missing or there twice.
    """
    unique, first, counts = np.unique(widths, axis=0, return_index=True, return_counts=True)
    if len(unique) < len(widths):
        twice = _arch(unique[int(counts.argmax())].tolist())
        msg = f"{path}: a table holds every structure once, found {twice} {counts.max()} times"
        raise DataError(msg)
    if len(unique) < space.size:
        msg = (
            f"{path}: a table holds every combination of its widths, {plural(space.size, 'structure')}, "
            f"found {len(unique):,}; the first one missing is {_first_missing(space, unique)}"
        )
        raise DataError(msg)
    return first


def _first_missing(space: SearchSpace, unique: NDArray[np.int64]) -> str:
    """Returns the first structure, in the order of itertools.product, that is not among sorted rows."""
    here = [0] * len(space)
    for row in unique.tolist():
        if tuple(row) != space.at(here):
            break
        for axis in reversed(range(len(here))):  # the next structure: count up, with carries
            here[axis] = (here[axis] + 1) % len(space.dimensions[axis].choices)
            if here[axis]:
                break
    return _arch(space.at(here))


def _arch(widths: Sequence[int]) -> str:
    """Returns widths as in the column arch."""
    return ":".join(map(str, widths))
