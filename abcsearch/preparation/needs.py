"""What a preparation needs of a machine, and whether the machine has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abcsearch.errors import PreparationError
from abcsearch.formats import size_text
from abcsearch.shortages import free_memory


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
