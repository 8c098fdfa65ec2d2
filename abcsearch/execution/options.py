"""Where and in which order evaluations run: one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from abcsearch.errors import ConfigError, type_problems

SCHEDULES = ("rounds", "asynchronous")


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Where evaluations run, and when the searcher hears of them.

    Attributes:
        workers: processes of Ray that evaluate at the same time, each with the evaluator's threads; 0 is this process.
        ray_address: of a running Ray cluster, "host:port" or "auto"; without it Ray is started on this machine, for
            this run only.
        gpus: share of a GPU that each worker takes, e.g. 0.25 for four workers per GPU.
        timeout: seconds after which an evaluation counts as hanging: its worker is stopped, and it runs once more.
        schedule: "rounds": the searcher is told in the order of asking, so that nothing depends on which worker is
            faster; "asynchronous": it is told at once, and no worker ever waits, but the trials depend on timing.
        window: in rounds, how many structures are open at a time: one more is asked for as soon as the oldest has been
            told. 0 is the searcher's own rounds, with a wait at the end of each. At least twice the workers keeps them
            busy.

    Raises:
        ConfigError: if a value is out of range.
    """

    workers: int = 0
    ray_address: str | None = None
    gpus: float = 0.0
    timeout: float | None = None
    schedule: str = "rounds"
    window: int = 0

    # What decides the trials; everything else may change when a run is continued.
    FIXED: ClassVar[tuple[str, ...]] = ("schedule", "window")

    def __post_init__(self) -> None:
        """Checks the values."""
        problems = type_problems(self)
        if not problems:
            problems = [text for wrong, text in self._rules() if wrong]
        if problems:
            msg = f"execution: {'; '.join(problems)}"
            raise ConfigError(msg)

    def _rules(self) -> list[tuple[bool, str]]:
        """Returns what may be wrong, and its message."""
        timeout = math.inf if self.timeout is None else self.timeout
        address = self.ray_address or ""
        return [
            (self.workers < 0, f"workers is at least 0, found {self.workers}"),
            (not 0 <= self.gpus < math.inf, f"gpus is a share of a GPU per worker, at least 0, found {self.gpus}"),
            (self.gpus > 1 and self.gpus != int(self.gpus), f"gpus above 1 is a whole number, found {self.gpus}"),
            (not timeout > 0, f"timeout is a number of seconds above 0, found {self.timeout}"),
            (self.schedule not in SCHEDULES, f'schedule is "rounds" or "asynchronous", found {self.schedule!r}'),
            (self.window < 0, f"window is at least 0, found {self.window}"),
            (
                self.window > 0 and self.schedule == "asynchronous",
                f"window = {self.window} is for the schedule rounds; leave it out",
            ),
            (
                bool(address) and self.workers == 0,
                f"ray_address = {address!r} without workers: say how many, e.g. workers = 8",
            ),
            (
                self.timeout is not None and self.workers == 0,
                "timeout needs workers: an evaluation in this process cannot be stopped; set workers to at least 1",
            ),
            (
                address.startswith("ray://"),
                f"ray_address = {address!r} is of the Ray client; run on a node of the cluster, with host:port or auto",
            ),
        ]
