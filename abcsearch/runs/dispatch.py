"""Evaluations under way: what an executor has been given, and what became of it."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING

from abcsearch.errors import (
    AbcSearchError,
    NodeLostError,
    RunError,
    ShortageError,
    WorkerLostError,
    WorkerStoppedError,
)
from abcsearch.evaluation.base import Evaluator, evaluate
from abcsearch.evaluation.racing import start_of, without_groups
from abcsearch.evaluation.staged import Staged, Verdict, cheap, trained
from abcsearch.rng import derived_seed
from abcsearch.runs.disk.retrying import ATTEMPTS
from abcsearch.runs.going_on import going_on
from abcsearch.trial import Evaluation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.disk.journal import Journal
    from abcsearch.space import Candidate


def slots(executor: Executor) -> int:
    """Returns how many evaluations an executor runs at a time."""
    return getattr(executor, "_max_workers", 1)  # the standard executors have no public name for it


class Flights:
    """Hands candidates to an executor, again after a lost worker, and collects what is found.

    A trial's seed comes from the run's seed and its number, so that it does not matter when it is evaluated, where,
    or how many times.
    """

    def __init__(
        self,
        executor: Executor,
        evaluator: Evaluator,
        seed: int,
        journal: Journal,
        folder: RunFolder,
        *,
        at_once: bool,
    ) -> None:
        """Starts with nothing under way.

        Args:
            executor: where evaluations run.
            evaluator: candidate and seed -> evaluation.
            seed: the run's seed.
            journal: takes first stages and lost workers; what it has already is not done again.
            folder: for its log and for messages.
            at_once: whether stages are decided for every trial as soon as its first one has finished, instead of in
                the groups in which they are added.
        """
        self._executor, self._evaluator = executor, evaluator
        self._slots = slots(executor)
        self._seed, self._journal, self._folder = seed, journal, folder
        self._stages = (
            _Stages(evaluator, journal, at_once=at_once) if isinstance(evaluator, Staged) else None
        )
        self._candidates: dict[int, Candidate] = {}
        self._bars: dict[int, float] = {}
        self._queue: deque[tuple[int, str | None]] = deque()
        self._pending: dict[Future[Evaluation], tuple[int, str | None]] = {}
        self._ready: list[tuple[int, Evaluation]] = []
        self._stopped: set[int] = set()  # in this session, for want of memory
        self._ending: ShortageError | None = None  # what the run ends with
        self._given = 0  # how many were under way when work was last handed out

    @property
    def workers(self) -> tuple[int, int] | None:
        """How many workers are busy and how many there are, or None where this process does the work."""
        there = getattr(self._executor, "alive", self._slots if self._slots > 1 else None)
        return None if there is None else (min(self._given, there), there)

    @property
    def under_way(self) -> int:
        """How many candidates are being evaluated, or wait for it or to be collected."""
        return len(self._candidates) + len(self._ready)

    def add(
        self,
        group: dict[int, Candidate],
        earlier: Iterable[int] = (),
        bars: Mapping[int, float] | None = None,
    ) -> None:
        """Takes candidates to evaluate, by trial number.

        Args:
            group: a staged evaluator decides about these together; those that the journal has are only counted there.
            earlier: numbers of all trials asked for before; needed with the first group only.
            bars: what they race against, by number.
        """
        self._bars.update(bars or {})
        for number, candidate in group.items():
            if number in self._journal.trials:
                continue
            self._candidates[number] = candidate
            if self._stages is None or number not in self._journal.contents.first:
                self._queue.append((number, None if self._stages is None else "first"))
        if self._stages is not None:
            self._stages.open(list(group), earlier)
            self._decide(self._stages)

    def add_finals(self, group: Mapping[int, Candidate]) -> None:
        """Takes candidates to be scored in full, by trial number."""
        self._candidates.update(group)
        self._queue.extend((number, "in_full") for number in group)

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Waits until something has finished; returns numbers and evaluations, [] if nothing is under way.

        Raises:
            RunError: if the executor cannot run evaluations at all.
            ShortageError: if a machine ran short of something, of which no candidate is to blame.
            SearcherError: if the evaluator returns something that is no evaluation.
        """
        while not self._ready and self._ending is None and (self._queue or self._pending):
            while self._queue and len(self._pending) < self._slots:
                self._submit(*self._queue.popleft())
            self._given = len(self._pending)
            done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda finished: self._pending[finished][0]):
                self._landed(*self._pending.pop(future), future)
        ready, self._ready = self._ready, []
        if self._ending is not None and not ready:
            raise self._ending
        return ready

    def close(self) -> None:
        """Drops what has not begun yet."""
        for future in self._pending:
            future.cancel()

    def _submit(self, number: int, stage: str | None) -> None:
        """Hands an evaluation to the executor; a candidate that has lost its worker often enough has failed."""
        reasons = self._journal.contents.lost.get(number, [])
        if len(reasons) >= ATTEMPTS:  # looked at here, since it may have been in an earlier session
            failure = (
                f"lost its worker {len(reasons)} times: {' and '.join(dict.fromkeys(reasons))}"
            )
            self._found(number, stage, Evaluation(fitness=None, failure=failure))
            return
        seed = derived_seed(self._seed, "evaluation", number)
        bar = start_of(self._evaluator, stage, self._bars.get(number, -math.inf))
        against = () if bar is None else (bar,)
        try:
            future = self._executor.submit(
                evaluate, self._evaluator, self._candidates[number], seed, stage, *against
            )
        except AbcSearchError:
            raise
        except Exception as error:
            raise self._broken(error) from error
        self._pending[future] = (number, stage)

    def _landed(self, number: int, stage: str | None, future: Future[Evaluation]) -> None:
        """Takes a finished future: passes its evaluation on, or evaluates once more where the worker was lost."""
        try:
            evaluation = future.result()
        except WorkerLostError as error:
            self._lost(number, stage, error)
            return
        except ShortageError as error:
            self._short(number, error)
            return
        except AbcSearchError:
            raise
        except Exception as error:
            raise self._broken(error) from error
        self._found(number, stage, evaluation)

    def _found(self, number: int, stage: str | None, evaluation: Evaluation) -> None:
        metrics, means = without_groups(evaluation)
        evaluation = replace(evaluation, metrics=metrics)
        if means and stage != "first":  # those of the first stage decide nothing
            self._journal.note("groups", number, means=means)
        if stage == "first" and self._stages is not None:
            self._journal.note("first", number, evaluation=cheap(evaluation).to_plain())
            self._stages.arrived(number)
            self._decide(self._stages)
        elif stage == "second":
            self._finish(number, trained(self._journal.contents.first[number], evaluation))
        else:
            self._finish(number, evaluation)

    def _finish(self, number: int, evaluation: Evaluation) -> None:
        del self._candidates[number]
        self._ready.append((number, evaluation))

    def _decide(self, stages: _Stages) -> None:
        """Sends those that are promoted to the second stage; the others have finished."""
        for number, promoted in stages.decided():
            if number not in self._candidates:
                continue  # the journal has it
            if promoted:
                self._queue.append((number, "second"))
            else:
                self._finish(number, self._journal.contents.first[number])

    def _lost(self, number: int, stage: str | None, error: WorkerLostError) -> None:
        """Has a candidate evaluated once more."""
        self._folder.log(f"trial {number}: {error}")
        if isinstance(error, WorkerStoppedError):
            if number in self._stopped:
                self._short(number, error, " for the second time")
                return
            self._stopped.add(number)
        elif not isinstance(error, NodeLostError):
            self._journal.note("lost", number, reason=str(error))
        self._queue.appendleft((number, stage))

    def _short(self, number: int, error: AbcSearchError, again: str = "") -> None:
        """Takes that a machine is short of something: the run ends once what else has finished is passed on."""
        msg = (
            f"trial {number} could not be evaluated: {error}{again}. Nothing was written down for it, finished trials "
            f"are kept; free what is short, or use fewer workers, and continue with: "
            f"{going_on(self._folder)}"
        )
        self._ending = self._ending or ShortageError(msg)

    def _broken(self, error: Exception) -> RunError:
        msg = (
            f"{type(self._executor).__name__} could not run an evaluation: {error!r}; "
            f"finished trials are kept in {self._folder.path}"
        )
        return RunError(msg)


class _Stages:
    """Which trials see the second stage: decided group by group, in the order of asking or of arrival."""

    def __init__(self, staged: Staged, journal: Journal, *, at_once: bool) -> None:
        self._staged, self._journal, self._at_once = staged, journal, at_once
        self._groups: deque[list[int]] = deque()
        self._verdicts: list[Verdict] | None = None  # of all decided trials

    def open(self, group: list[int], earlier: Iterable[int]) -> None:
        """Takes a group in the order of asking; `earlier` are all trials before the first one."""
        journal = self._journal
        if not self._at_once:
            if self._verdicts is None:
                self._verdicts = [
                    Verdict.of(journal.trials[number].evaluation) for number in earlier
                ]
            self._groups.append(group)
        elif self._verdicts is None:
            self._verdicts = []
            self._groups.extend([number] for number in journal.contents.staged)

    def arrived(self, number: int) -> None:
        """Takes that a first stage has finished."""
        if self._at_once:
            self._groups.append([number])

    def decided(self) -> list[tuple[int, bool]]:
        """Returns numbers that are decided now, and whether they see the second stage."""
        decisions: list[tuple[int, bool]] = []
        while self._groups and self._verdicts is not None:
            first = {number: self._first(number) for number in self._groups[0]}
            known = {
                number: evaluation for number, evaluation in first.items() if evaluation is not None
            }
            if len(known) < len(first):
                break
            self._groups.popleft()
            finished = {n: self._journal.trials[n] for n in known if n in self._journal.trials}
            if len(finished) < len(known):
                promoted = self._staged.promoted(self._verdicts, known)
                decisions += [(number, number in promoted) for number in known]
            else:
                promoted = []
            self._verdicts += [
                Verdict.of(finished[n].evaluation)
                if n in finished
                else Verdict.of(e)._replace(promoted=n in promoted)
                for n, e in known.items()
            ]
        return decisions

    def _first(self, number: int) -> Evaluation | None:
        """Returns what the first stage found, or the whole trial found where the journal has only that."""
        trial = self._journal.trials.get(number)
        return self._journal.contents.first.get(number) or (
            None if trial is None else trial.evaluation
        )
