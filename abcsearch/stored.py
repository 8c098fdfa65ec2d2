"""Files of tensors (safetensors) as bytes: what their header says, and the hash of their content, without torch."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Names of the format by torch's, and bytes of a number.
_TYPES = {
    "BOOL": ("torch.bool", 1),
    "U8": ("torch.uint8", 1),
    "I8": ("torch.int8", 1),
    "U16": ("torch.uint16", 2),
    "I16": ("torch.int16", 2),
    "U32": ("torch.uint32", 4),
    "I32": ("torch.int32", 4),
    "U64": ("torch.uint64", 8),
    "I64": ("torch.int64", 8),
    "F8_E4M3": ("torch.float8_e4m3fn", 1),
    "F8_E5M2": ("torch.float8_e5m2", 1),
    "F16": ("torch.float16", 2),
    "BF16": ("torch.bfloat16", 2),
    "F32": ("torch.float32", 4),
    "F64": ("torch.float64", 8),
    "C64": ("torch.complex64", 8),
}
_METADATA = "__metadata__"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        kind: its type, as torch names it.
        shape: its dimensions.
        begin: of its numbers, in bytes from the beginning of the file.
        end: behind them.
    """

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What the header of a file says.

    Attributes:
        metadata: texts by name.
        tensors: by name.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]


def read_header(path: Path) -> Stored:
    """Returns what the header of a file says, which is all that is read.

    Raises:
        ValueError: if it is none, or the file is longer or shorter than it says.
        OSError: if it cannot be read.
    """
    if path.exists() and not path.is_file():
        msg = "it is no regular file"
        raise ValueError(msg)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 8 + int.from_bytes(file.read(8), "little")
        if not 8 < start <= size:
            msg = "it is too short, or no file of tensors"
            raise ValueError(msg)
        try:
            header = json.loads(file.read(start - 8))
            metadata = header.pop(_METADATA, None) or {}
            tensors = {name: _stored(entry, start) for name, entry in header.items()}
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            msg = "its header cannot be read"
            raise ValueError(msg) from error
    if max((tensor.end for tensor in tensors.values()), default=start) != size:
        msg = "it is longer or shorter than its header says"
        raise ValueError(msg)
    return Stored(metadata=metadata, tensors=tensors)


def _stored(entry: Mapping[str, Any], start: int) -> StoredTensor:
    """Returns the entry of one tensor; raises ValueError (or KeyError, TypeError) if it is none."""
    kind, width = _TYPES[entry["dtype"]]
    shape, (begin, end) = tuple(int(length) for length in entry["shape"]), entry["data_offsets"]
    if not 0 <= begin <= end or end - begin != width * math.prod(shape):
        msg = f"offsets {begin} and {end} of {shape}"
        raise ValueError(msg)
    return StoredTensor(kind=kind, shape=shape, begin=start + begin, end=start + end)


def content_hash(path: Path) -> str:
    """Returns the hash of the tensors in a file, as `training.checkpoints.tensors_hash` has it of them in memory.

    A file that has not changed since it was hashed in this process is not read again.

    Raises:
        ValueError, OSError: see `read_header`.
    """
    status = path.stat()
    stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)
    return _hashed(path.absolute(), stamp)


@functools.lru_cache(maxsize=64)
def _hashed(path: Path, stamp: tuple[int, ...]) -> str:  # noqa: ARG001 - it tells one content from the next
    """Returns the hash of the tensors in a file."""
    tensors = read_header(path).tensors
    digest = hashlib.sha256()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name, tensor in sorted(tensors.items(), key=lambda pair: pair[0]):
            digest.update(f"{name}{tensor.shape}{tensor.kind}".encode())
            with memoryview(content) as view, view[tensor.begin : tensor.end] as numbers:
                digest.update(numbers)
    return digest.hexdigest()[:16]
