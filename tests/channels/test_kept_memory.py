"""While forward time is measured, no pass pays for memory that another one gave back."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from abcsearch.channels.kept_memory import _glibc, kept_memory
from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.turns import forward_times, in_turns

resource = pytest.importorskip("resource", reason="counts pages as Unix does")
SIZE = 40 * 2**20  # bytes: more than glibc ever keeps by itself
FEW = 10  # of the 20 to 10,240 pages that a block of this size has

pytestmark = pytest.mark.skipif(
    _glibc() is None, reason="of glibc's allocator, where it is left to us"
)


class Hungry(nn.Module):
    """Fills a large block in every pass, and keeps how many pages that took."""

    def __init__(self):
        super().__init__()
        self.pages = []

    def forward(self, batch):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        torch.empty(SIZE // 4).fill_(1.0)
        self.pages.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
        return batch


def test_networks_in_turns_take_no_pages():
    full, network = Hungry(), Hungry()
    in_turns([network], full, torch.zeros(1, 3), LatencyOptions(repeats=20))
    assert np.median(full.pages) < FEW
    assert np.median(network.pages) < FEW


def test_networks_whose_times_are_told_take_no_pages():
    networks = [Hungry(), Hungry()]
    forward_times(networks, torch.zeros(1, 3), repeats=20)
    assert np.median([network.pages for network in networks]) < FEW


def kept_and_failed(before):
    """Leaves memory as an evaluation does whose network cannot run."""
    with kept_memory():
        for _ in range(3):
            torch.empty(SIZE // 4).fill_(1.0)
        assert memory() > before + SIZE // 2  # what was freed is still here
        raise ZeroDivisionError


def memory():
    """Returns the bytes of main memory that this process has."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def test_all_goes_back_even_after_an_error():
    with kept_memory():
        pass  # what other tests have left goes back
    before = memory()
    with pytest.raises(ZeroDivisionError):
        kept_and_failed(before)
    assert memory() < before + SIZE // 2


def test_what_users_have_set_stays():
    code = "from abcsearch.channels import kept_memory; print(kept_memory._glibc())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout == "None\n"
