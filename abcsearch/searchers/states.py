"""What searchers need to save and check their states."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def checksum(value: Any, before: int = 0) -> int:  # noqa: ANN401 - part of a state
    """Returns a checksum of what comes before and a value: plain JSON values by their text, arrays by their bytes."""
    if isinstance(value, dict):
        for key, inner in sorted(cast("dict[str, Any]", value).items()):
            before = checksum(inner, zlib.crc32(key.encode(), before))
        return before
    if isinstance(value, np.ndarray):
        array = cast("NDArray[Any]", value)
        return zlib.crc32(
            array.tobytes(), zlib.crc32(f"{array.dtype.str} {array.shape}".encode(), before)
        )
    return zlib.crc32(json.dumps(value, sort_keys=True).encode(), before)


def plain_options(options: Any) -> dict[str, Any]:  # noqa: ANN401 - a dataclass
    """Returns options as plain JSON values."""
    return json.loads(json.dumps(asdict(options)))
