"""The only maker of random generators: one run seed, one independent stream per part and number.

A stream is named by the part that uses it ("searcher", "split", "finetune" ...) and, where a part needs several, by a
number (usually the trial's). Streams of different names are statistically independent, so adding a consumer never
shifts the numbers that another one draws.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


_GENERATORS = threading.RLock()  # whoever has torch's global generators


def derived_seed(seed: int, purpose: str, number: int = 0) -> int:
    """Returns a seed in [0, 2**63) for the stream `(seed, purpose, number)`."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number]).generate_state(
        2, np.uint32
    )
    return (int(words[0]) << 31) ^ int(words[1])


def numpy_stream(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    """Returns the numpy generator of the stream `(seed, purpose, number)`."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, purpose, number)))


def torch_stream(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """Returns the CPU torch generator of the stream `(seed, purpose, number)`."""
    import torch

    return torch.Generator().manual_seed(derived_seed(seed, purpose, number))


@contextlib.contextmanager
def torch_seeded(seed: int, purpose: str, number: int = 0) -> Iterator[None]:
    """Runs a block with torch's global generators seeded from a stream and puts their state back afterwards.

    For code that cannot be handed a generator: weight initialisation and dropout inside a module. The caller's global
    random state is the same after the block as before it, also when the block raises. Threads wait for each other: the
    generators are the process's.
    """
    import torch

    devices = range(torch.cuda.device_count())
    with _GENERATORS, torch.random.fork_rng(devices=devices):
        _seed(derived_seed(seed, purpose, number), cuda=bool(devices))
        yield


def _seed(seed: int, *, cuda: bool) -> None:
    """Seeds torch's global generators; `torch.manual_seed` also notes where it was called, for devices not there."""
    import torch

    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed_all(seed)
    elif torch.accelerator.is_available():  # of another kind
        torch.manual_seed(seed)


@contextlib.contextmanager
def torch_reseeded(seed: int) -> Iterator[None]:
    """Runs a block with torch's global CPU generator seeded, and puts its state back afterwards.

    For transforms of images, which draw from it, also in worker processes, where CUDA must not be touched.

    Args:
        seed: in [0, 2**63), drawn from a stream.
    """
    import torch

    generator = torch.default_generator
    before = generator.get_state()
    try:
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(before)
