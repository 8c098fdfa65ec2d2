"""CIFAR's pickles, read without a line of code in them: texts, numbers, lists, dicts, and arrays of these bytes."""

from __future__ import annotations

import pickle
import pickletools
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KINDS = "biuf"  # of numbers: others would be taken for addresses
_NESTED = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_MOST = 1000  # of these; CIFAR's files have fewer than ten, and Python ends where a key is nested without an end


def plain_pickle(lines: IO[bytes]) -> Any:  # noqa: ANN401 - whatever the file holds
    """Returns what a pickle holds: plain values, in which arrays are numpy's if they are of a dict.

    Args:
        lines: the opened file.

    Raises:
        OSError: if it cannot be read.
        Exception: nearly any other one where it is damaged, or holds anything else.
    """
    if sum(code.name in _NESTED for code, *_ in pickletools.genops(lines)) > _MOST:
        msg = f"it holds more than {_MOST} tuples"
        raise pickle.UnpicklingError(msg)
    lines.seek(0)
    content = _Plain(lines, encoding="latin1").load()
    if not isinstance(content, dict):
        return content
    return {
        key: value.array if isinstance(value, _Array) else value for key, value in content.items()
    }


class _Kind:
    """What a pickle says of the type of an array; the rest of it could have numpy read any memory, and is not used."""

    def __init__(self, name: object = None, *_flags: object) -> None:
        """Takes a name as "u1"; the flags are of numpy 1, which warns of them."""
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in _KINDS:
            msg = f"it holds an array of {self.dtype}"
            raise pickle.UnpicklingError(msg)

    def __setstate__(self, state: object) -> None:
        """Passes over byte order, fields and flags: pixels are single bytes."""


class _Array:
    """What a pickle says of an array."""

    array: NDArray[Any] | None = None

    def __init__(self, *_kind: object) -> None:
        """Takes what numpy begins with, and passes over it."""

    def __setstate__(self, state: tuple[Any, Any, _Kind, Any, Any]) -> None:
        """Makes the array of (version, shape, type, Fortran's order or not, bytes)."""
        _, shape, kind, fortran, raw = state
        content = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        order = "F" if fortran else "C"
        self.array = np.frombuffer(content, kind.dtype).reshape(shape, order=order)


class _Plain(pickle.Unpickler):
    """Reads dicts, lists and arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - what pickle asks for
        """Returns what stands for one of the four things that arrays are made with."""
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Kind,
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),
        }
        made_with = known.get((module.replace("numpy._core", "numpy.core"), name))
        if made_with is None:
            msg = f"it holds a {module}.{name}"
            raise pickle.UnpicklingError(msg)
        return made_with
