"""Arrays of numbers as JSON values, and back."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode_array(value: Any) -> Any:  # noqa: ANN401 - what json cannot write
    """Returns the JSON form of a numpy array or number.

    Raises:
        TypeError: if it is neither, or of objects.
    """
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return value.item()
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        msg = f"not a plain JSON value or an array of numbers: {value!r}"
        raise TypeError(msg)
    stored = _narrowest(value)
    form: dict[str, Any] = {"__array__": value.dtype.str, "shape": list(value.shape)}
    if stored.dtype != value.dtype:
        form["stored"] = stored.dtype.str
    return {**form, "data": base64.b64encode(np.ascontiguousarray(stored).tobytes()).decode()}


def _narrowest(value: NDArray[Any]) -> NDArray[Any]:
    """Returns whole numbers in the smallest type that holds them: structures are most of what a long run writes."""
    if value.dtype.kind != "i" or not value.size:
        return value
    # A signed type that holds it holds the largest as well
    lowest = min(int(value.min()), -1 - int(value.max()))
    narrow = np.min_scalar_type(lowest)
    return value.astype(narrow) if narrow.itemsize < value.dtype.itemsize else value


def decode_array(value: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Returns the numpy array of its JSON form, and anything else as it is.

    Raises:
        ValueError, TypeError, KeyError: if it is no whole form of an array of numbers.
    """
    if "__array__" not in value:
        return value
    kind = np.dtype(value["__array__"])
    if kind.hasobject:
        msg = f"an array of numbers was expected, found {value['__array__']!r}"
        raise ValueError(msg)
    stored = np.frombuffer(base64.b64decode(value["data"]), value.get("stored", kind))
    return stored.reshape(value["shape"]).astype(kind)
