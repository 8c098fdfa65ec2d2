"""Several budgets in one run, as they are asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from abcsearch.bounds import bounds_text
from abcsearch.budget import Budget
from abcsearch.errors import BudgetError, ConfigError, RunError
from abcsearch.runs.settings import RunConfig, SearchSettings, from_plain, to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_TWICE = 2  # times the evaluations of one budget, for all of them together


S = TypeVar("S", bound=SearchSettings)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A network of others, for the picture.

    Attributes:
        name: what it is called.
        macs: a share of the full network's, in (0, 1], or their number.
        accuracy: on the test split, in [0, 1].

    Raises:
        ConfigError: if a value is of another kind.
    """

    name: str
    macs: int | float
    accuracy: float

    def __post_init__(self) -> None:
        """Checks the values."""
        sound = isinstance(self.name, str) and all(
            type(value) in (int, float) for value in (self.macs, self.accuracy)
        )  # pyright: ignore[reportUnnecessaryIsInstance]
        if not (sound and self.name and self.macs > 0 and 0 <= self.accuracy <= 1):
            msg = f"a peer is a name, macs above 0 and an accuracy from 0 to 1, found {self!r:.120}"
            raise ConfigError(msg)

    def count(self, full: int) -> int:
        """Returns its multiply-accumulates where the full network has so many."""
        return (
            round(self.macs * full)
            if isinstance(self.macs, float) and self.macs <= 1
            else round(self.macs)
        )


@dataclass(frozen=True)
class Front(Generic[S]):
    """Several budgets, searched one after the other.

    Attributes:
        settings: of a run with the first budget alone; n_trials is what that would have.
        budgets: in the order in which they are searched.
        peers: what the report draws beside them; decides nothing.

    Raises:
        ConfigError: if there is no budget, two are equal, or n_trials leaves a budget without a trial.
    """

    settings: S
    budgets: tuple[Budget, ...]
    peers: tuple[Peer, ...] = ()

    def __post_init__(self) -> None:
        """Checks the budgets."""
        object.__setattr__(self, "budgets", as_budgets(self.budgets))
        for index, budget in enumerate(self.budgets):
            first = self.budgets.index(budget)
            if first != index:
                msg = f"budgets[{first}] and budgets[{index}] are equal ({bounds_text(budget.bounds)}): leave one out"
                raise ConfigError(msg)
        if not self.trials:
            least = -(-len(self.budgets) // _TWICE)
            msg = f"n_trials = {self.settings.n_trials} leaves none for each of {len(self.budgets)} budgets, which share "
            msg += f"{_TWICE} times as many; set n_trials to {least} at least"
            raise ConfigError(msg)

    @property
    def trials(self) -> int:
        """How many structures are evaluated for each budget: all together at most twice those of one alone."""
        n_trials = self.settings.n_trials
        return min(n_trials, _TWICE * n_trials // len(self.budgets))

    @property
    def names(self) -> tuple[str, ...]:
        """What folders and tables call the budgets."""
        return tuple(
            f"{index}-{bounds_text(budget.bounds, file=True)}"
            for index, budget in enumerate(self.budgets, start=1)
        )

    def run(self, index: int) -> S:
        """Returns the settings of the run of one budget, which knows the runs before it."""
        before = tuple(f"../{name}" for name in self.names[:index])
        known = (*self.settings.known, *before)
        return replace(self.settings, budget=self.budgets[index], n_trials=self.trials, known=known)

    def to_plain(self) -> dict[str, Any]:
        """Returns the front as plain JSON values."""
        budgets = json.loads(json.dumps([budget.bounds for budget in self.budgets]))
        plain = {"settings": to_plain(self.settings), "budgets": budgets, "names": list(self.names)}
        return {**plain, "peers": [asdict(peer) for peer in self.peers]}

    @classmethod
    def from_plain(cls, record: Mapping[str, Any], where: Path) -> Front[SearchSettings]:
        """Returns the front that `to_plain` described.

        Raises:
            RunError: if it is none of this version.
        """
        plain = record["settings"]
        settings = from_plain(RunConfig if "model" in plain else SearchSettings, plain, where)
        try:
            budgets = [
                {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
                for one in record["budgets"]
            ]
            peers = tuple(Peer(**one) for one in record.get("peers", ()))
            return Front(settings, tuple(Budget(**one) for one in budgets), peers)
        except (ConfigError, BudgetError, TypeError) as error:
            msg = f"{where} has budgets that this version does not know: {error}; restore it from a copy"
            raise RunError(msg) from error


def as_budgets(budgets: Any) -> tuple[Budget, ...]:  # noqa: ANN401 - whatever was given
    """Returns a list of budgets, one at least.

    Raises:
        ConfigError: if it is something else.
    """
    if (
        isinstance(budgets, list | tuple)
        and budgets
        and all(isinstance(budget, Budget) for budget in budgets)
    ):
        return tuple(budgets)
    what = (
        "an empty list"
        if isinstance(budgets, list | tuple) and not budgets
        else f"{budgets!r:.120}"
    )
    msg = f"budgets is a list of budgets, e.g. [Budget(macs=0.7), Budget(macs=0.5)], found {what}"
    raise ConfigError(msg)
