"""What a preparation needs of a machine, and whether the machine has it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from abcsearch.errors import PreparationError
from abcsearch.formats import size_text

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a preparation needs, as far as it is known before it begins.

    Attributes:
        text: what it is for, in a line.
        memory: bytes of main memory, at most at a time.
        device: bytes of memory of the device that it trains on; 0 where that is the CPU, whose memory is the main one.
        where: the device.
        disk: bytes that the run keeps of it besides the network.
        less: what can be set so that it needs less.
    """

    text: str
    memory: int
    device: int = 0
    where: str = "cpu"
    disk: int = 0
    less: str = ""

    @property
    def line(self) -> str:
        """All of it in words."""
        device = f", {size_text(self.device)} on {self.where}" if self.device else ""
        return f"{self.text}; memory about {size_text(self.memory)}{device}, {size_text(self.disk)} of the run folder"


def check_needs(name: str, needs: Needs) -> None:
    """Raises PreparationError, with figures, if the machine has less memory than a preparation needs.

    Args:
        name: of the preparation.
        needs: what it needs.
    """
    free = {"of memory": (needs.memory, free_memory()), f"on {needs.where}": (needs.device, None)}
    if needs.device:
        free[f"on {needs.where}"] = (
            needs.device,
            torch.cuda.mem_get_info(torch.device(needs.where))[0],
        )
    for where, (wanted, there) in free.items():
        if there is not None and wanted > there:
            msg = f"{name}: {needs.text}; that takes {size_text(wanted)} {where}, and {size_text(there)} are free"
            raise PreparationError(
                f"{msg}; {needs.less}{needs.less and ', or '}take a machine with more"
            )


def free_memory() -> int | None:
    """Returns the bytes of main memory that a process can still have: of the machine, and of its container's limit.

    None where the system does not say.
    """
    free = _container()
    try:
        lines = dict(
            line.split(":", 1) for line in _MEMINFO.read_text(encoding="utf-8").splitlines()
        )
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, ValueError, KeyError, IndexError):
        free += _all_memory()
    return min(free, default=None)


def _container() -> list[int]:
    """Returns what is left of a container's limit, where there is one: what the system would give up is not used."""
    try:
        limit, used = (
            int((_CGROUP / f"memory.{name}").read_text(encoding="utf-8"))
            for name in ("max", "current")
        )
        entries = (_CGROUP / "memory.stat").read_text(encoding="utf-8").split()
        given_up = int(entries[entries.index("inactive_file") + 1])
    except (OSError, ValueError, IndexError):  # "max": no limit
        return []
    return [max(0, limit - used + given_up)]


def _all_memory() -> list[int]:
    """Returns how much memory the machine has, where only that is known."""
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return []
