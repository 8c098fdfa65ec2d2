"""Where and in which order evaluations run: one frozen record."""

from __future__ import annotations

from dataclasses import dataclass

from abcsearch.errors import ConfigError
from abcsearch.records import check, setting

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

    workers: int = setting(0, at_least=0, decides=False)
    ray_address: str | None = setting(None, decides=False)
    gpus: float = setting(0.0, at_least=0, meaning="a share of a GPU per worker", decides=False)
    timeout: float | None = setting(
        None, above=0, meaning="a number of seconds", unit="seconds", decides=False
    )
    schedule: str = setting("rounds", words=SCHEDULES)
    window: int = setting(0, at_least=0)

    def __post_init__(self) -> None:
        """Checks the values."""
        check(self, "execution")
        if wrong := [text for broken, text in self._rules() if broken]:
            msg = f"execution: {'; '.join(wrong)}"
            raise ConfigError(msg)

    def _rules(self) -> list[tuple[bool, str]]:
        """Returns what may be wrong, and its message."""
        address = self.ray_address or ""
        return [
            (
                self.gpus > 1 and self.gpus != int(self.gpus),
                f"gpus above 1 is a whole number, found {self.gpus}",
            ),
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
