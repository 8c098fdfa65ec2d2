"""The ask/tell contract of all searchers, and what they share."""

from __future__ import annotations

import itertools
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex, cast, final

import numpy as np

from abcsearch.budget import Constraint
from abcsearch.errors import AbcSearchError, CandidateError, SearcherError
from abcsearch.rng import numpy_stream
from abcsearch.searchers.batches import Batches
from abcsearch.searchers.states import checksum, plain_options
from abcsearch.searchers.warm_starts import is_ratio, listed_starts, start_problems
from abcsearch.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from abcsearch.space import Candidate, SearchSpace

_TRIES = 50  # draws of a kind before a searcher gives up on finding a structure that it has not proposed yet
_STARTS = 100  # structures around which exchanges of steps are tried where nothing else is new
ENUMERABLE = 2**16  # spaces up to this size are soon searched exhaustively for what is left
# Structures that a batch may have: all are made before the first is evaluated, in seconds, or, where a model is asked
# for each of them (`MOST_MODELLED`), in a minute or two.
MOST, MOST_MODELLED = 10_000, 1_000


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a searcher that has none."""


def _whole(what: str, value: object, lowest: int) -> int:
    """Returns a whole number of any type as an int; raises SearcherError for anything else, or one below `lowest`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, SupportsIndex)
        or operator.index(value) < lowest
    ):
        msg = f"{what}, found {value!r}"
        raise SearcherError(msg)
    return operator.index(value)


def _listed_trials(trials: Any) -> list[Trial]:  # noqa: ANN401 - whatever it was called with
    """Returns trials as a list; raises SearcherError if they are something else."""
    listed = list(cast("Iterable[Any]", trials)) if isinstance(trials, Iterable) else [trials]
    if strange := [trial for trial in listed if not isinstance(trial, Trial)]:
        msg = f"tell takes a list of trials, found {strange[0]!r} in it"
        raise SearcherError(msg)
    return listed


class Searcher(ABC):
    """Proposes structures in batches and learns from whole batches.

    `ask` hands out the current batch; when all of it has been told, `_learn` is called once with the trials in the
    order of asking, and the next `ask` starts a new batch. So the order in which trials are told, and how many are
    asked for at a time, never change what is proposed. Every proposal is inside the budget, and none is made twice:
    when nothing new is left, `ask` returns [] although nothing is open.

    So workers wait at the end of each batch. `ask(n, ahead=True)` spares them that where the class `overlaps`: it
    starts the next batch although earlier ones are open. Then what is proposed also depends on which batches were
    whole by then, so on the order of asking and telling; the same calls still give the same proposals.

    Subclasses are final. They write `_propose` and `_learn`, and `_state` and `_load_state` for what they remember;
    what they remember is set up in `_begin`. One that never takes its latest batch for the one that `_learn` is given
    may set `overlaps`: there `_propose` is called again before `_learn`, at first without anything learned, and batches
    are learned in the order in which they become whole. `population` shows what it works from, if it has such a thing.

    Attributes:
        space: the structures.
        constraint: the budget.
        options: the record of the searcher's own options, of class `Options`.
        seed: the run's seed.
        rng: the only source of randomness.
        knowledge: what it has been told by `know`, in order.
        name: of the searcher.
        Options: the class of its options.
        needs_results: whether it waits for results at all; without it `_learn` is never called.
        overlaps: whether it can propose a batch while earlier ones are open.
        seeks_front: whether it weighs fitness against a cost, so that no structure has lost for being less fit than the
            fittest.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    needs_results: ClassVar[bool] = True
    overlaps: ClassVar[bool] = False
    seeks_front: ClassVar[bool] = False

    def __init__(
        self,
        space: SearchSpace,
        constraint: Constraint | None = None,
        *,
        seed: int = 0,
        initial: Iterable[Sequence[int] | float] = (),
        options: Any = None,  # noqa: ANN401 - a record of class `Options`
    ) -> None:
        """Starts a new search.

        Args:
            space: the structures.
            constraint: the budget bound to the space; None allows everything.
            seed: the run's seed.
            initial: warm starts, proposed first: structures of the space, or keep ratios that stand for uniform
                widths; each is repaired into the budget if it is outside.
            options: the searcher's own options; None takes the defaults.

        Raises:
            CandidateError: if a warm start is not in the space, or a ratio not in (0, 1].
            SearcherError: if the constraint belongs to another space, or the options to another searcher, or if the
                seed is not a whole number from 0.
        """
        self.space = space
        self.constraint = Constraint(space) if constraint is None else constraint
        if not isinstance(self.constraint, Constraint) or self.constraint.space != space:  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = "the constraint is bound to another space; bind the budget to the space of the searcher"
            raise SearcherError(msg)
        self.options = self.Options() if options is None else options
        if not isinstance(self.options, self.Options):
            msg = f"options of {self.name} are {self.Options.__name__}, found {type(self.options).__name__}"
            raise SearcherError(msg)
        self.seed = _whole("a seed is a whole number, at least 0", seed, 0)
        self.rng = numpy_stream(self.seed, "searcher")
        starts = listed_starts(initial)
        if problems := start_problems(starts):
            raise CandidateError("; ".join(problems))
        self._warm = [self._start(index, start) for index, start in enumerate(starts)]
        self._batches = Batches()
        self._known: dict[Candidate, None] = {}  # everything ever proposed, in order
        self.knowledge: list[Trial] = []
        self._begin()

    def _begin(self) -> None:  # noqa: B027 - not all searchers remember something
        """Sets up what the subclass remembers; the last step of construction."""

    def _start(self, index: int, start: Any) -> Candidate:  # noqa: ANN401 - a structure or a keep ratio
        """Returns a warm start as a structure inside the budget."""
        try:
            structure = self.space.uniform(float(start)) if is_ratio(start) else start
            inside = self.space.at(self.space.indices(structure))
        except CandidateError as error:
            msg = f"searcher.initial[{index}]: {error}"
            raise CandidateError(msg) from error
        return self.constraint.repair(inside, self.rng)

    @final
    def ask(self, n: int, *, ahead: bool = False) -> list[Candidate]:
        """Returns 1 to n structures to evaluate, none proposed before.

        Returns [] if the searcher must be told something first or, when nothing is open, has nothing new to propose.

        Args:
            n: how many are wanted.
            ahead: whether the next batch may begin although earlier ones are open. A searcher that `overlaps` then
                always returns n structures, fewer only where nothing new is left; to others it makes no difference.

        Raises:
            SearcherError: if n is not a positive whole number.
            BudgetError: if no structure inside the budget can be found.
        """
        wanted = _whole("ask for at least one candidate (a whole number)", n, 1)
        waits = self.needs_results and not (ahead and self.overlaps)
        asked: list[Candidate] = []
        while len(asked) < wanted:
            if not self._batches.queue:
                if waits and self._batches:
                    break
                self._batches.begin(self._propose())
            if not self._batches.queue:
                break
            asked.append(self._batches.hand_out())
        return asked

    @final
    def tell(self, trials: Iterable[Trial]) -> None:
        """Takes finished trials, any number of those asked for, in any order. Failed ones count as worst.

        Raises:
            SearcherError: if a candidate was never asked for or has been told already; then nothing is taken.
        """
        trials = _listed_trials(trials)
        seen: set[Candidate] = set()
        for trial in trials:
            if trial.candidate not in self._batches.open or trial.candidate in seen:
                known = (
                    trial.candidate in self._known and trial.candidate not in self._batches.queue
                )
                what = "has been told already" if known else "was never asked for"
                msg = f"trial {trial.number} cannot be told: its candidate {trial.candidate} {what}"
                raise SearcherError(msg)
            seen.add(trial.candidate)
        for trial in trials:
            whole = self._batches.take(trial)
            if whole and self.needs_results:
                self._learn(whole)

    def probes(self) -> list[Candidate]:
        """Returns structures whose fitness it wants to know (`know`) before its first proposal; [] if it needs none.

        They may be outside the budget. The same for every budget, so that their results can be used again.
        """
        return []

    @final
    def know(self, trials: Iterable[Trial]) -> None:
        """Takes finished trials that it has not asked for: its probes, trials of a run with another budget.

        They may be outside the budget, and may still be proposed: only trials that were asked for can win.

        Raises:
            SearcherError: if something else than trials is given.
            CandidateError: if a structure is not in the space; then nothing is taken.
        """
        trials = _listed_trials(trials)
        for trial in trials:
            self.space.check(trial.candidate)
        self.knowledge.extend(trials)

    @final
    @property
    def waiting(self) -> int:
        """How many trials it has been told of without having learned from them: their batches are not whole."""
        return len(self._batches.told())

    def population(self) -> list[Candidate]:
        """Returns the structures that the search currently works from, best first; [] if it has none of its own."""
        return []

    @abstractmethod
    def _propose(self) -> list[Candidate]:
        """Returns the next batch, made of results of `_fresh`; [] if there is nothing new to propose."""

    @abstractmethod
    def _learn(self, batch: list[Trial]) -> None:
        """Takes a whole batch in the order of asking, whatever has been proposed since."""

    def _state(self) -> dict[str, Any]:
        """Returns what the subclass remembers, as plain JSON values and numpy arrays."""
        return {}

    def _load_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - most searchers remember something, not all
        """Restores what `_state` returned."""

    def _fresh(self, draw: Callable[[], Candidate]) -> Candidate | None:
        """Returns a structure inside the budget that has not been proposed yet, or None if there is none left.

        Args:
            draw: proposes a structure; called again while the result is known, then replaced by random draws.
        """
        while self._warm:
            if (candidate := self._remember(self._warm.pop(0))) is not None:
                return candidate
        tries = _TRIES if self.space.size > ENUMERABLE else _TRIES // 5
        for attempt in range(2 * tries):
            drawn = draw() if attempt < tries else self._random()
            candidate = self._remember(self.constraint.repair(drawn, self.rng))
            if candidate is not None:
                return candidate
        return self._any_left()

    def _random(self) -> Candidate:
        """Returns a random structure that spends most of the budget: drawn uniformly, repaired, grown."""
        return self._grown(self.space.sample(self.rng))

    def _grown(self, candidate: Candidate) -> Candidate:
        """Returns a structure repaired into the budget and grown to spend most of it."""
        return self.constraint.fill(self.constraint.repair(candidate, self.rng), self.rng)

    def _remember(self, candidate: Candidate) -> Candidate | None:
        """Notes a proposal; returns it in its canonical form, or None if it was known already."""
        candidate = self.space.canonical(candidate)
        if candidate in self._known:
            return None
        self._known[candidate] = None
        return candidate

    def _any_left(self) -> Candidate | None:
        """Returns a structure inside the budget that is new: any of a small space, in others one beside a known."""
        if self.space.size > ENUMERABLE:
            return self._beside()
        every = dict.fromkeys(
            map(
                self.space.canonical, itertools.product(*(d.choices for d in self.space.dimensions))
            )
        )
        every = [candidate for candidate in every if candidate not in self._known]
        allowed = (
            np.flatnonzero(self.constraint.violation(every) == 0)
            if every
            else np.zeros(0, dtype=np.int64)
        )
        return self._remember(every[int(self.rng.choice(allowed))]) if len(allowed) else None

    def _beside(self) -> Candidate | None:
        """Returns a structure inside that is new, a step, or one up and one down, away from one that is known."""
        unit = np.eye(len(self.space), dtype=np.int64)
        steps, exchanges = (
            np.concatenate([unit, -unit]),
            (unit[:, None] - unit).reshape(-1, len(unit)),
        )
        order = self.rng.permutation(self._rows(self._known))
        for moves, starts in ((steps, order), (exchanges, order[:_STARTS])):
            for start in starts.tolist():
                near = self.space.indices(start) + moves
                near = near[((near >= 0) & (near <= self.space.last_indices)).all(axis=1)]
                inside = near[self.constraint.violation(self.space.values(near)) == 0]
                for row in self.rng.permutation(inside):
                    if (candidate := self._remember(self.space.at(row))) is not None:
                        return candidate
        return None

    @final
    def state_dict(self) -> dict[str, Any]:
        """Returns all that later proposals depend on, as plain JSON values and numpy arrays."""
        state = {
            "searcher": self.name,
            "space": self._described(),
            "options": plain_options(self.options),
            "seed": self.seed,
            "rng": self.rng.bit_generator.state,
            "warm": self._rows(self._warm),
            "queue": self._rows(self._batches.queue),
            "open": self._rows(itertools.chain.from_iterable(self._batches.asked())),
            "batches": [len(asked) for asked in self._batches.asked()],
            "told": [trial.to_plain() for trial in self._batches.told()],
            "known": self._rows(self._known),
            "own": self._state(),
        }
        if self.knowledge:  # absent from states of versions that knew nothing
            state["knowledge"] = [trial.to_plain() for trial in self.knowledge]
        return {**state, "checksum": checksum(state)}

    @final
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state: afterwards this searcher cannot be told from the one that saved it.

        Args:
            state: what `state_dict` of a searcher of the same kind, space and options returned.

        Raises:
            SearcherError: if the state is of another searcher or space, or damaged; then nothing is changed.
        """
        if not isinstance(state, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"a state is what state_dict returns, found {type(state).__name__}"  # pyright: ignore[reportUnreachable]
            raise SearcherError(msg)
        if state.get("searcher") != self.name:
            msg = f"the state belongs to searcher {state.get('searcher')!r}, this one is {self.name!r}"
            raise SearcherError(msg)
        space = self._described()
        if state.get("space") != space:
            other = [
                entry[0]
                for entry, dimension in itertools.zip_longest(state.get("space") or [], space)
                if entry != dimension and entry
            ]
            where = ", ".join(other[:3]) or "the number of dimensions"
            msg = f"the state belongs to another space; it differs in {where}"
            raise SearcherError(msg)
        if state.get("options") != plain_options(self.options):
            msg = f"the state belongs to other options: {state.get('options')}, here {plain_options(self.options)}"
            raise SearcherError(msg)
        before = self.state_dict()
        try:
            if state["checksum"] != checksum(
                {key: value for key, value in state.items() if key != "checksum"}
            ):
                msg = "its checksum does not fit what is in it"
                raise ValueError(msg)
            self._restore(state)
        except (
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            AbcSearchError,
        ) as error:
            self._restore(before)
            msg = f"the state is damaged, or of another version: {error!r}"
            raise SearcherError(msg) from error

    def _restore(self, state: dict[str, Any]) -> None:
        """Sets everything that `state_dict` returns."""
        self.seed = int(state["seed"])
        self.rng.bit_generator.state = state["rng"]
        self._warm = self._candidates(state["warm"])
        asked, told = iter(self._candidates(state["open"])), map(Trial.from_plain, state["told"])
        sizes: list[int] = state["batches"]
        batches = [list(itertools.islice(asked, size)) for size in sizes]
        self._batches = Batches.of(self._candidates(state["queue"]), batches, list(told))
        self._known = dict.fromkeys(self._candidates(state["known"]))
        self.knowledge = [Trial.from_plain(trial) for trial in state.get("knowledge", [])]
        self._load_state(state["own"])

    def _described(self) -> list[list[Any]]:
        """Returns what the space is recognised by: names and choices, and what those of criteria are called."""
        return [[d.name, list(d.choices), *d.labels] for d in self.space.dimensions]

    def _rows(self, candidates: Iterable[Candidate]) -> NDArray[np.int64]:
        """Returns candidates as an (n, n_dims) int64 array."""
        return np.array(list(candidates), dtype=np.int64).reshape(-1, len(self.space))

    def _candidates(self, rows: NDArray[np.int64]) -> list[Candidate]:
        """Returns the candidates that `_rows` put into an array."""
        return [tuple(row) for row in rows.tolist()]
