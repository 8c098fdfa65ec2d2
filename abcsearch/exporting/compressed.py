"""Tensors in few bytes, bit for bit: those of few values as numbers of these values, all of it entropy-coded by LZMA.

It saves bytes of a file, not time: what is read is as dense as before. A file is eight bytes of magic, the length of
the header (uint64, little endian), the header, JSON packed by zlib, and one stream for each tensor. What is read is
data and never code: the coder's settings are fixed here, so that no file asks for memory, and nothing is unpacked
before what it says of sizes has been checked.
"""

from __future__ import annotations

import json
import lzma
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

MAGIC = b"abcsrch1"
_LENGTH = 8  # bytes that hold the length of the header
_LONGEST = 64 * 2**20  # bytes of a header, packed or not
_MOST = 10_000  # bytes that a byte of a file may become, beside 1 MiB: LZMA packs nothing but equal bytes so well
_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool)
_TYPES += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _TYPES}
_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_FEW = 2**16  # values of a tensor that are numbered; and at least so many entries for each of them:
_ENTRIES = 4
_BEYOND = 2**48  # no count is so high
_LONG = 255  # entries that one byte of a distance stands for, at most
# Settings for single bytes: what comes before tells little of what comes next, and its place nothing.
_FILTERS: list[dict[str, Any]] = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 6,
        "lc": 0,
        "lp": 0,
        "pb": 0,
        "dict_size": 2**22,
        "nice_len": 64,
    }
]


def pack(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Returns tensors as the bytes of a file.

    A tensor that holds few values (of a codebook, or mostly 0) is written as these and a number for each entry; where
    one value makes more than half of it, as the entries of other values and how many of that one lie in front of each.
    Any other tensor is written as its bytes, the first ones of all entries first.

    Args:
        tensors: on the CPU, by name.
        metadata: texts to keep with them.

    Raises:
        ValueError: if a tensor has a type that the format does not know.

    Source: Han et al., Deep Compression (ICLR 2016), for numbered values and distances between entries; its Huffman
    codes are LZMA's adaptive ones here.
    """
    entries: dict[str, Any] = {}
    streams: list[bytes] = []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES or tensor.layout is not torch.strided:
            msg = f"{name} is of type {tensor.dtype}, which the format compressed does not hold"
            raise ValueError(msg)
        values, gaps, codes = _coded(tensor)
        stream = _packed(b"".join([values.tobytes(), gaps.tobytes(), _planes(codes)]))
        counts = {
            "values": len(values),
            "gaps": len(gaps),
            "codes": len(codes),
            "bytes": len(stream),
        }
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), **counts}
        streams.append(stream)
    header = zlib.compress(json.dumps({"metadata": dict(metadata), "tensors": entries}).encode(), 9)
    return b"".join([MAGIC, len(header).to_bytes(_LENGTH, "little"), header, *streams])


def unpack(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns the tensors and metadata of a file, bit for bit as they were packed.

    Raises:
        ValueError: if it is no such file, or damaged.
    """
    header, begin = _header(content)
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in header["tensors"].items():
        tensors[name] = _tensor(name, entry, content[begin : begin + entry["bytes"]])
        begin += entry["bytes"]
    return tensors, header["metadata"]


def _coded(tensor: torch.Tensor) -> tuple[NDArray[Any], Bytes, NDArray[Any]]:
    """Returns the values of a tensor, the distances between entries (see `_gaps`), and the number of each one's value.

    Without values, the last are the entries themselves. The most frequent value is the first one.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    kind = _WORDS[tensor.element_size()]  # by their bits: NaN and -0 as well
    words = flat.view(torch.uint8).numpy().view(kind) if len(flat) else np.empty(0, kind)
    none = words[:0].view(np.uint8)
    values, codes, counts = np.unique(words, return_inverse=True, return_counts=True)
    if not len(words) or len(values) > min(_FEW, len(words) // _ENTRIES):
        return words[:0], none, words
    order = np.argsort(-counts, kind="stable")
    codes = np.argsort(order)[codes].astype(np.uint8 if len(values) <= 2**8 else np.uint16)
    if 2 * counts.max() <= len(words):
        return values[order], none, codes
    there = np.flatnonzero(codes)
    return values[order], _gaps(np.diff(there, prepend=-1) - 1), codes[there]


def _gaps(distances: NDArray[np.int64]) -> Bytes:
    """Returns distances as bytes: 255 stands for 255 and whatever the next one says."""
    long, last = np.divmod(distances, _LONG)
    ends = np.cumsum(long + 1) - 1
    bytes_ = np.full(int(ends[-1]) + 1 if len(ends) else 0, _LONG, np.uint8)
    bytes_[ends] = last
    return bytes_


def _planes(words: NDArray[Any]) -> bytes:
    """Returns the first bytes of all words, then the second ones ...: bytes beside each other are then alike."""
    little = words.astype(words.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(-1, words.dtype.itemsize).T.tobytes()


def _packed(raw: bytes) -> bytes:
    """Returns bytes entropy-coded."""
    return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_FILTERS) if raw else b""


def _tensor(name: str, entry: Mapping[str, Any], stream: bytes) -> torch.Tensor:
    """Returns a tensor out of its stream.

    Raises:
        ValueError: if the stream holds something else than the entry says.
    """
    dtype, shape, count = _DTYPES[entry["dtype"]], entry["shape"], entry["values"]
    raw, size, entries = (
        _unpacked(name, stream, _raw_bytes(entry)),
        dtype.itemsize,
        math.prod(shape),
    )
    values = np.frombuffer(raw, _WORDS[size], count)
    gaps = np.frombuffer(raw, np.uint8, entry["gaps"], count * size)
    words = _woven(raw[count * size + len(gaps) :], _kind(entry))
    if count:
        codes = (
            _scattered(name, gaps, words, entries) if len(gaps) or len(words) != entries else words
        )
        if len(codes) and int(codes.max()) >= count:
            raise ValueError(f"{name} has entries of a value that it does not hold")
        words = values[codes]
    if not entries:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(words.view(np.uint8)).view(dtype).reshape(shape)


def _scattered(name: str, gaps: Bytes, codes: NDArray[Any], entries: int) -> NDArray[Any]:
    """Returns a number for each entry: 0 but for some, the distances between which are given.

    Raises:
        ValueError: if there are more or fewer distances than numbers, or they lead beyond the last entry.
    """
    ends = gaps < _LONG
    places = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(int(ends.sum()))
    if len(places) != len(codes) or (len(places) and int(places[-1]) >= entries):
        raise ValueError(f"{name} has entries that lie nowhere")
    every = np.zeros(entries, codes.dtype)
    every[places] = codes
    return every


def _woven(raw: bytes, kind: Any) -> NDArray[Any]:  # noqa: ANN401 - a type of numpy
    """Returns the words of which `_planes` returned the bytes."""
    planes = np.frombuffer(raw, np.uint8).reshape(np.dtype(kind).itemsize, -1)
    return (
        np.ascontiguousarray(planes.T)
        .view(np.dtype(kind).newbyteorder("<"))
        .reshape(-1)
        .astype(kind)
    )


def _unpacked(name: str, stream: bytes, size: int) -> bytes:
    """Returns the bytes of a stream, which are to be so many.

    Raises:
        ValueError: if they are not.
    """
    if not size and not stream:
        return b""
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        raw = decoder.decompress(stream, size + 1)
    except lzma.LZMAError as error:
        msg = f"{name} cannot be unpacked: {error}"
        raise ValueError(msg) from error
    if len(raw) != size:
        msg = f"{name} unpacks to {'more' if len(raw) > size else f'{len(raw):,}'} bytes, expected {size:,}"
        raise ValueError(msg)
    return raw


def _kind(entry: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a type of numpy
    """Returns the words that a stream ends with: numbers of values, or entries."""
    if not entry["values"]:
        return _WORDS[_DTYPES[entry["dtype"]].itemsize]
    return np.uint8 if entry["values"] <= 2**8 else np.uint16


def _raw_bytes(entry: Mapping[str, Any]) -> int:
    """Returns how many bytes a tensor's stream unpacks to, by its header."""
    size, kind = _DTYPES[entry["dtype"]].itemsize, np.dtype(_kind(entry))
    return entry["values"] * size + entry["gaps"] + entry["codes"] * kind.itemsize


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """Returns the header of a file, and where the first stream begins.

    Raises:
        ValueError: if it is none, or what it says of sizes is not so.
    """
    begin = len(MAGIC) + _LENGTH
    length = int.from_bytes(content[len(MAGIC) : begin], "little")
    if content[: len(MAGIC)] != MAGIC or not 0 < length <= min(_LONGEST, len(content) - begin):
        msg = "it is no file of the format compressed, or cut off"
        raise ValueError(msg)
    try:
        header: Any = json.loads(
            zlib.decompressobj().decompress(content[begin : begin + length], _LONGEST)
        )
    except zlib.error as error:
        raise ValueError(f"its header cannot be unpacked: {error}") from error
    problem = next(_problems(header, len(content) - begin - length), None)
    if problem is not None:
        raise ValueError(problem)
    return header, begin + length


def _problems(header: Any, rest: int) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Yields what is wrong in a header; the first one is enough.

    Args:
        header: as JSON.
        rest: bytes behind it.
    """
    tables: list[Any] = (
        [header.get(key) for key in ("metadata", "tensors")] if isinstance(header, dict) else [None]
    )
    if not all(isinstance(table, dict) for table in tables) or not all(
        isinstance(v, str) for v in tables[0].values()
    ):
        yield f"its header is {header!r:.80}"
        return
    for name, entry in tables[1].items():
        if not _is_entry(entry):
            yield f"{name} is {entry!r:.80}"
            return
    every = tables[1].values()
    if sum(entry["bytes"] for entry in every) != rest:
        yield "it is cut off, or longer than its header says"
    if sum(_size(entry) for entry in every) > _MOST * rest + 2**20:
        yield "its header says that it unpacks to more than such a file can hold"


def _size(entry: Mapping[str, Any]) -> int:
    """Returns the bytes that a tensor takes when it is read, by its header."""
    return _raw_bytes(entry) + math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize


def _is_entry(entry: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Returns whether a header's entry describes a tensor."""
    counts = ("values", "gaps", "codes", "bytes")
    if (
        not isinstance(entry, dict)
        or entry.keys() != {"dtype", "shape", *counts}
        or entry["dtype"] not in _DTYPES
    ):
        return False
    numbers = [
        *(entry[key] for key in counts),
        *(entry["shape"] if isinstance(entry["shape"], list) else [-1]),
    ]
    if not all(type(n) is int and 0 <= n < _BEYOND for n in numbers) or entry["values"] > _FEW:
        return False
    whole = entry["codes"] == math.prod(entry["shape"])
    return (
        whole and not entry["gaps"]
        if not entry["values"]
        else whole or entry["codes"] <= entry["gaps"]
    )
