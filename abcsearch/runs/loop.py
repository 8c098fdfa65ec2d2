"""Ask, evaluate, write down, tell: the loop that survives being killed anywhere."""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from abcsearch.errors import AbcSearchError, FailuresError, RunError, SearcherError
from abcsearch.evaluation.base import Evaluator, evaluate
from abcsearch.evaluation.cascade import Cascade, cheap, trained
from abcsearch.rng import derived_seed
from abcsearch.runs.journal import Journal
from abcsearch.trial import Evaluation, Trial, best_trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from abcsearch.budget import Costs
    from abcsearch.runs.folder import RunFolder
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate


class Progress(Protocol):
    """The one interface for progress: a bar on a terminal, plain lines in a log."""

    def __call__(self, stage: str, done: int, total: int, note: str, /) -> None:
        """Takes that `done` of `total` steps of a stage are finished; `note` is a few words on how it stands."""
        ...


def milestone(done: int, total: int) -> bool:
    """Returns whether a step is worth a line in a log: the first, the last, and about every tenth part between."""
    return done in (1, total) or done % max(1, total // 10) == 0


def logged(folder: RunFolder, progress: Progress) -> Progress:
    """Returns a progress that also writes the milestones of every stage to the folder's log."""

    def both(stage: str, done: int, total: int, note: str) -> None:
        if milestone(done, total):
            folder.log(f"{stage}: {done}/{total}, {note}")
        progress(stage, done, total, note)

    return both


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""
    del stage, done, total, note


@dataclass(kw_only=True)
class Loop:
    """What the loop works with.

    Attributes:
        folder: where everything is written.
        searcher: proposes; new, as if nothing had been asked.
        evaluator: candidate and seed -> evaluation.
        costs: fill in the macs and params that the evaluator leaves at 0.
        executor: where evaluations run.
        n_trials: structures to evaluate in all.
        seed: the run's seed.
        max_failures: more failures than this in a row, counted from the start of this session, stop the run.
        known: evaluations of other trials of the same run with the same evaluator, by structure.
        progress: shown after every trial.
        stage: what progress calls it.
    """

    folder: RunFolder
    searcher: Searcher
    evaluator: Evaluator
    costs: Costs
    executor: Executor
    n_trials: int
    seed: int
    max_failures: int
    known: Mapping[Candidate, Evaluation] = field(default_factory=dict["Candidate", Evaluation])
    progress: Progress = silent
    stage: str = "search"
    _best: Trial | None = field(default=None, init=False)
    _done: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _in_a_row: list[str] = field(default_factory=list[str], init=False)
    _seen: dict[Candidate, Evaluation] = field(default_factory=dict["Candidate", Evaluation], init=False)

    def run(self) -> list[Trial]:
        """Continues from what the folder holds until `n_trials` are done or nothing new is left; returns all trials.

        A finished trial is in the journal before the searcher is told. After a kill the searcher is restored (from
        its last state, or by replaying the journal), proposes the same structures again, and those that the journal
        has are not evaluated again.

        Raises:
            FailuresError: if too many evaluations fail in a row.
            RunError: if the journal holds other structures than the searcher proposes.
        """
        with Journal(self.folder.journal) as journal:
            if journal.repaired:
                self.folder.log(f"journal: cut off a torn last line of {journal.repaired} bytes")
            self._seen.update(self.known)
            for trial in self._mine(journal):
                self._count(trial)
            told = self._restore(journal)
            while told < self.n_trials:
                asked = self.searcher.ask(self.n_trials - told)
                if not asked:
                    self.folder.log(f"all structures inside the budget are evaluated: {told}")
                    self._save(told, exhausted=True)
                    break
                batch = dict(enumerate(asked, start=told))
                self._evaluate(batch, journal)
                self.searcher.tell([journal.trials[number] for number in batch])
                told += len(batch)
                self._save(told)
            self._write_best()
            return self._mine(journal)

    def _mine(self, journal: Journal) -> list[Trial]:
        """Returns the finished trials in order; an earlier call may have asked for more than `n_trials`."""
        return [journal.trials[number] for number in sorted(journal.trials) if number < self.n_trials]

    def _save(self, told: int, *, exhausted: bool = False) -> None:
        """Writes the searcher's state after a whole batch."""
        state = {"told": told, "exhausted": exhausted, "state": self.searcher.state_dict()}
        self.folder.write_json("searcher.json", state)

    def _restore(self, journal: Journal) -> int:
        """Loads the searcher's state if the journal has all that it was told; returns how many trials that are.

        A state that is lost, damaged or ahead of the journal costs nothing but time: the searcher starts anew, and
        is told from the journal what it knew.
        """
        try:
            saved = self.folder.read_json("searcher.json")
            if saved is None or any(number not in journal.trials for number in range(saved["told"])):
                return 0
            self.searcher.load_state_dict(saved["state"])
        except (RunError, SearcherError, KeyError, TypeError) as error:
            self.folder.log(f"searcher.json cannot be used, told again from the journal: {error!r}")
            return 0
        return int(saved["told"])

    def _evaluate(self, batch: dict[int, Candidate], journal: Journal) -> None:
        """Evaluates what the journal does not have; what another trial of this run was, is not evaluated again."""
        for number, candidate in batch.items():
            known = journal.trials.get(number)
            if known is not None and known.candidate != candidate:
                msg = (
                    f"{self.folder.journal}: trial {number} is {known.candidate}, but the searcher now proposes "
                    f"{candidate}; was the run started with other versions?"
                )
                raise RunError(msg)
        missing = {number: candidate for number, candidate in batch.items() if number not in journal.trials}
        leaders = {candidate: number for number, candidate in reversed(batch.items())}  # the first of its kind
        fresh = {n: c for n, c in missing.items() if leaders[c] == n and c not in self._seen}
        if fresh and isinstance(self.evaluator, Cascade):
            known = {leaders[c]: self._seen[c] for c in leaders if c in self._seen}
            self._in_stages(self.evaluator, fresh, known, journal)
        else:
            for number, found in self._run(self.evaluator, fresh):
                self._finish(number, found, fresh[number], journal)
        for number in sorted(missing.keys() - fresh.keys()):
            self._finish(number, replace(self._seen[batch[number]], seconds=0.0), batch[number], journal)

    def _in_stages(
        self, cascade: Cascade, fresh: dict[int, Candidate], known: dict[int, Evaluation], journal: Journal
    ) -> None:
        """Evaluates what is new in a batch: all of it by the first stage, the best by the second one."""
        first = known | {number: cheap(found) for number, found in self._run(cascade.first, fresh)}
        earlier = [journal.trials[number] for number in sorted(journal.trials) if number < min(first)]
        best = cascade.promoted(earlier, first)
        for number in sorted(fresh.keys() - set(best)):
            self._finish(number, first[number], fresh[number], journal)
        chosen = {number: fresh[number] for number in best if number in fresh}
        for number, found in self._run(cascade.second, chosen):
            self._finish(number, trained(first[number], found), chosen[number], journal)

    def _finish(self, number: int, found: Evaluation, candidate: Candidate, journal: Journal) -> None:
        """Writes a finished trial down."""
        trial = Trial(number, candidate, self._costed(candidate, found))
        journal.append(trial)
        self._note(trial)

    def _run(self, evaluator: Evaluator, batch: dict[int, Candidate]) -> Iterator[tuple[int, Evaluation]]:
        """Yields number and evaluation as they finish; as many run at a time as the executor has workers."""
        queue = deque(batch)
        pending: dict[Future[Evaluation], int] = {}
        workers = getattr(self.executor, "_max_workers", 1)  # the standard executors have no public name for it
        try:
            while queue or pending:
                while queue and len(pending) < workers:
                    number = queue.popleft()
                    seed = derived_seed(self.seed, "evaluation", number)
                    pending[self.executor.submit(evaluate, evaluator, batch[number], seed)] = number
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda finished: pending[finished]):
                    yield pending.pop(future), self._result(future)
        finally:
            for future in pending:
                future.cancel()

    def _result(self, future: Future[Evaluation]) -> Evaluation:
        """Returns what an evaluation found; raises RunError if the executor could not run it at all."""
        try:
            return future.result()
        except AbcSearchError:
            raise
        except Exception as error:
            msg = (
                f"{type(self.executor).__name__} could not run an evaluation: {error!r}; "
                f"finished trials are kept in {self.folder.path}"
            )
            raise RunError(msg) from error

    def _costed(self, candidate: Candidate, evaluation: Evaluation) -> Evaluation:
        """Returns an evaluation with macs and params filled in where the evaluator left them at 0."""
        return replace(
            evaluation,
            macs=evaluation.macs or int(self.costs.macs([candidate])[0]),
            params=evaluation.params or int(self.costs.params([candidate])[0]),
        )

    def _count(self, trial: Trial) -> bool:
        """Takes a trial into the running numbers and the best; returns whether it is the new best."""
        self._seen[trial.candidate] = trial.evaluation
        self._done += 1
        self._failed += trial.evaluation.failure is not None
        better = best_trial([trial] if self._best is None else [self._best, trial]) is trial
        self._best = trial if better else self._best
        return better

    def _write_best(self) -> None:
        """Writes best.json."""
        if self._best is not None:
            self.folder.write_json("best.json", self._best.to_plain())

    def _note(self, trial: Trial) -> None:
        """Shows a finished trial, keeps best.json current, and stops the run after too many failures in a row."""
        if self._count(trial):
            self._write_best()
        note = f"best {self._best.fitness:.4f}" if self._best else "no success yet"
        self.progress(
            self.stage, self._done, self.n_trials, note + (f", {self._failed} failed" if self._failed else "")
        )
        if trial.evaluation.failure is None:
            self._in_a_row.clear()
            return
        self.folder.log(f"trial {trial.number} failed: {trial.evaluation.failure}")
        self._in_a_row.append(trial.evaluation.failure)
        if len(self._in_a_row) > self.max_failures:
            reasons = "; ".join(dict.fromkeys(self._in_a_row))
            msg = (
                f"{len(self._in_a_row)} evaluations failed in a row (max_failures = {self.max_failures}): {reasons}. "
                f"Finished trials are kept in {self.folder.path}"
            )
            raise FailuresError(msg)
