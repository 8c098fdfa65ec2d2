"""Ask, evaluate, write down, tell: the loop that survives being killed anywhere."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from abcsearch.errors import RunError, SearcherError, plural
from abcsearch.evaluation.racing import BAR, outdated
from abcsearch.evaluation.staged import Staged
from abcsearch.execution.options import ExecutionOptions
from abcsearch.runs.blame import is_users, named
from abcsearch.runs.disk.journal import Journal
from abcsearch.runs.disk.lines import many_objects, run_id
from abcsearch.runs.disk.retrying import earlier
from abcsearch.runs.dispatch import Flights, slots
from abcsearch.runs.finals import Finals
from abcsearch.runs.incumbents import Incumbents
from abcsearch.runs.progress import Progress, silent
from abcsearch.runs.run_state import Standing
from abcsearch.runs.schedules import Asynchronous, Rounds, Window
from abcsearch.searchers.registry import nothing_left
from abcsearch.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from abcsearch.budget import Costs
    from abcsearch.evaluation.base import Evaluator
    from abcsearch.runs.disk.decision import Decision
    from abcsearch.runs.disk.folder import RunFolder
    from abcsearch.runs.schedules import Schedule
    from abcsearch.runs.stopwatch import Stopwatch
    from abcsearch.runs.watching import Watcher
    from abcsearch.searchers.base import Searcher
    from abcsearch.space import Candidate
    from abcsearch.trial import Evaluation

# Snapshots of the searcher take at most this share of the time, and come at most every so many seconds: what happened
# since the last one is told again from the journal, which takes a small part of the time that it took.
_SAVING, _LEAST = 0.02, 5.0


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
        execution: schedule and window.
        known: evaluations of other trials of the same run with the same evaluator, by structure.
        watchers: hear of every trial.
        progress: shown after every trial.
        stage: what progress calls it.
        competing: whether one of the trials is to win; else all are scored alike.
        watch: measures the best trials before one wins, where the budget bounds forward time.
        decision: by full scores, once it has run; None where there is none.
    """

    folder: RunFolder
    searcher: Searcher
    evaluator: Evaluator
    costs: Costs
    executor: Executor
    n_trials: int
    seed: int
    max_failures: int
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    known: Mapping[Candidate, Evaluation] = field(default_factory=dict["Candidate", "Evaluation"])
    watchers: Sequence[Watcher] = ()
    progress: Progress = silent
    stage: str = "search"
    competing: bool = True
    watch: Stopwatch | None = None
    decision: Decision | None = field(default=None, init=False)

    def run(self) -> list[Trial]:
        """Continues from what the folder holds until `n_trials` are done or nothing new is left; returns all trials.

        A finished trial is in the journal before the searcher is told. After a kill the searcher is restored (from
        its last state, or by replaying the journal), proposes the same structures again, and those that the journal
        has are not evaluated again.

        Raises:
            FailuresError: if too many evaluations fail in a row.
            ShortageError: if a machine runs short of memory or the like.
            FolderGoneError: if the folder was renamed or deleted.
            RunError: if the journal holds other structures than the searcher proposes.
        """
        self.folder.settle()
        with Journal(self.folder.journal) as journal:
            if journal.repaired:
                self.folder.log(f"journal: cut off a torn last line of {journal.repaired} bytes")
            standing = Standing(
                folder=self.folder,
                n_trials=self.n_trials,
                max_failures=self.max_failures,
                watchers=self.watchers,
                progress=self.progress,
                stage=self.stage,
            )
            with many_objects():
                standing.begin(self._mine(journal))
                session = _Search(self, journal, standing)
            try:
                session.run()
            finally:
                standing.end()
            self.folder.check()  # what was found last may not be in it
            self.decision = journal.contents.decisions.get(self.n_trials)
            return self._mine(journal)

    def _mine(self, journal: Journal) -> list[Trial]:
        """Returns the finished trials in order; an earlier call may have asked for more than `n_trials`."""
        return [
            journal.trials[number] for number in sorted(journal.trials) if number < self.n_trials
        ]


class _Search:
    """One session of a loop: the searcher, what it has been asked and told, and what is under way."""

    def __init__(self, loop: Loop, journal: Journal, standing: Standing) -> None:
        self._loop, self._journal, self._standing = loop, journal, standing
        self._searcher = loop.searcher
        self._flights = Flights(
            loop.executor,
            loop.evaluator,
            loop.seed,
            journal,
            loop.folder,
            at_once=loop.execution.schedule == "asynchronous",
        )
        self._incumbents = _new_incumbents(loop)
        self._schedule = self._new_schedule()
        self._finals = Finals(
            loop.evaluator,
            loop.n_trials,
            journal,
            self._flights,
            standing,
            competing=loop.competing,
            watch=loop.watch,
        )
        self._asked, self._told = 0, 0  # how many
        self._replayed = 0  # calls in the journal's order that the searcher has seen (asynchronous)
        self._open: dict[int, Candidate] = {}  # asked for, not yet told
        self._missing = 0  # how many of these have no result yet
        self._twins: dict[
            Candidate, list[int]
        ] = {}  # under way: further numbers of the same structure
        self._exhausted = False
        self._changed = False  # since the last snapshot
        self._settled = True  # the searcher is between two calls, and all that follows from the last one is done
        # When the last snapshot was made, and how long it took
        self._saved, self._saving = (time.monotonic(), 0.0)
        # A staged evaluator promotes trial by trial in comparison with others, which may be others now.
        self._earlier = {} if isinstance(loop.evaluator, Staged) else earlier(loop.folder)
        self._seen = {t.candidate: t.evaluation for t in journal.trials.values()}

    def _new_schedule(self) -> Schedule:
        """Returns when this search asks for more."""
        loop = self._loop
        # What needs no results may be asked at any time: only so much ahead that nobody waits.
        free = 0 if loop.searcher.needs_results else 4 * slots(loop.executor)
        window = loop.execution.window or free
        if loop.execution.schedule == "asynchronous":
            return Asynchronous(
                executor=loop.executor,
                under_way=lambda: self._flights.under_way,
                apart=window > 0,
            )
        if window:
            # Those of now, which may be replaced
            return Window(size=window, most=lambda: self._incumbents.most())  # noqa: PLW0108
        return Rounds(n_trials=loop.n_trials)

    def run(self) -> None:
        """Asks, evaluates and tells until all is done and decided; leaves a snapshot also where it is interrupted."""
        with many_objects():
            self._restore()
            if self._schedule.at_once:
                self._replay()
        self._send(self._open)
        if self._told < self._loop.n_trials and getattr(self._loop.executor, "alive", None) == 0:
            self._standing.announce(
                f"starting up to {plural(slots(self._loop.executor), 'worker')}"
            )
        try:
            while self._told < self._loop.n_trials:
                if not self._ask() and not self._open:
                    self._loop.folder.log(nothing_left(self._loop.searcher.name, self._told))
                    self._exhausted = self._changed = True
                    break
                if self._schedule.at_once or not self._tell_next():
                    self._collect()
                self._save_now_and_then()
            self._changed |= self._finals.run(self._save)
        finally:
            self._flights.close()
            if self._settled and self._changed and self._loop.folder.there:
                self._save()

    def _ask(self) -> bool:
        """Asks for as many structures as the schedule wants open; returns whether any came."""
        any_came = False
        while (wanted := self._wanted()) > 0:
            asked = self._proposed(wanted, ahead=self._schedule.ahead)
            self._send(asked)
            any_came = any_came or bool(asked)
            if not asked or not self._schedule.ahead:
                break
        return any_came

    def _wanted(self) -> int:
        """Returns how many more structures the schedule wants open now, and the search still has to ask for."""
        wanted = self._schedule.wanted(self._asked, len(self._open))
        return min(wanted, self._loop.n_trials - self._asked)

    def _proposed(self, n: int, *, ahead: bool) -> dict[int, Candidate]:
        """Returns up to n new structures by trial number."""
        self._settled = False
        overlapping = ahead and self._searcher.needs_results
        with named(self._searcher):
            proposals = self._searcher.ask(n, ahead=True) if overlapping else self._searcher.ask(n)
            for candidate in proposals if is_users(self._searcher) else ():
                self._searcher.space.check(candidate)
        asked = dict(enumerate(proposals, start=self._asked))
        if self._schedule.at_once:
            for number, candidate in asked.items():
                if self._replayed == len(self._journal.contents.order):
                    self._journal.note("asked", number, candidate=list(candidate))
                self._replayed += 1
        self._asked += len(asked)
        self._open.update(asked)
        self._incumbents.ask(asked)
        self._settled = self._changed = True
        return asked

    def _send(self, asked: Mapping[int, Candidate]) -> None:
        """Has structures evaluated, unless the journal, another trial or a journal before a retry has them."""
        for number, candidate in asked.items():
            trial = self._journal.trials.get(number)
            self._check(number, candidate, None if trial is None else trial.candidate)
        if not asked:
            return
        group = dict(asked)
        self._missing += sum(number not in self._journal.trials for number in group)
        for number, candidate in list(group.items()):
            if number in self._journal.trials:
                continue
            known = self._known(number, candidate)
            if known is not None:
                self._finish(number, known)
            elif candidate in self._twins:
                self._twins[candidate].append(number)
                del group[number]
            else:
                self._twins[candidate] = []
        groups = (
            [{number: candidate} for number, candidate in group.items()]
            if self._schedule.apart
            else [group]
        )
        for together in filter(None, groups):
            self._flights.add(
                together, range(min(together)), {n: self._incumbents.bar(n) for n in together}
            )

    def _known(self, number: int, candidate: Candidate) -> Evaluation | None:
        """Returns what another trial of the structure found, or this very one before the run was set back, or None."""
        bar, known = self._incumbents.bar(number), self._loop.known.get(candidate)
        if known is not None and outdated(self._loop.evaluator, known, bar):
            known = None
        if (same := self._seen.get(candidate, known)) is not None:
            return replace(same, seconds=0.0)
        before = self._earlier.get((number, candidate))
        return before if before is not None and before.metrics.get(BAR, -math.inf) == bar else None

    def _check(self, number: int, proposed: Candidate, known: Candidate | None) -> None:
        """Raises RunError if the journal holds another structure under a number."""
        if known is not None and known != proposed:
            msg = (
                f"{self._loop.folder.journal}: trial {number} is {known}, but the searcher now proposes {proposed}; "
                "was the run started with other versions?"
            )
            raise RunError(msg)

    def _collect(self) -> None:
        """Waits for evaluations and writes them down."""
        for number, evaluation in self._flights.wait():
            self._finish(number, evaluation)
        self._standing.show(self._flights.workers)

    def _finish(self, number: int, evaluation: Evaluation) -> None:
        """Writes a finished trial down; the searcher is told where the schedule has it hear at once."""
        candidate, costs = self._open[number], self._loop.costs
        macs, params = (
            known or int(count([candidate])[0])
            for known, count in ((evaluation.macs, costs.macs), (evaluation.params, costs.params))
        )
        trial = Trial(number, candidate, replace(evaluation, macs=macs, params=params))
        self._journal.append(trial)
        self._missing -= 1
        self._seen[candidate] = trial.evaluation
        if self._schedule.at_once:
            self._tell(trial)
        twins = self._twins.pop(candidate, [])
        self._standing.add(trial, self._flights.workers)
        for twin in twins:
            self._finish(twin, replace(evaluation, seconds=0.0))

    def _tell_next(self) -> bool:
        """Tells the searcher of the next trial in the order of asking; returns whether there is one to be told.

        With a window, the next structure is asked for after every single one, however many have finished, so that
        proposals do not depend on that. Without, a whole round must have finished: stages are decided for all.
        """
        if self._missing and not self._schedule.apart:
            return False
        trial = self._journal.trials.get(self._told)
        if trial is not None:
            self._tell(trial)
        return trial is not None

    def _tell(self, trial: Trial) -> None:
        """Tells the searcher of a trial."""
        self._settled = False
        with named(self._searcher):
            self._searcher.tell([trial])
        self._told += 1
        self._incumbents.tell(trial)
        self._replayed += self._schedule.at_once
        del self._open[trial.number]
        self._settled = self._changed = True

    def _save_now_and_then(self) -> None:
        """Saves after a round, unless the last time was a moment ago."""
        between = self._schedule.ahead or not self._open
        wait = max(_LEAST, self._saving / _SAVING)
        if between and self._changed and time.monotonic() - self._saved >= wait:
            self._save()

    def _save(self) -> None:
        """Writes the searcher's state, and its population for people and scripts."""
        start = time.monotonic()
        state = {
            "run": run_id(self._loop.folder.path),
            "journal": self._journal.mark(),
            "n_trials": self._loop.n_trials,
            "told": self._told,
            "asked": self._asked,
            "replayed": self._replayed,
            "exhausted": self._exhausted,
            "decided": self._finals.decided,  # and those before it can be read without the rest
            "open": [
                [n, list(candidate), *self._incumbents.entry(n)]
                for n, candidate in self._open.items()
            ],
            "state": self._searcher.state_dict(),
        }
        self._loop.folder.write_json("searcher.json", state)
        self._standing.write_population(self._searcher, self._told)
        self._changed = False
        self._saved = time.monotonic()
        self._saving = self._saved - start

    def _restore(self) -> None:
        """Loads the searcher's state if it is of this journal.

        A state that is lost, damaged, ahead of the journal or of another one costs nothing but time: the searcher
        starts anew, and is told from the journal what it knew.
        """
        folder = self._loop.folder
        try:
            saved = folder.read_json("searcher.json")
            if saved is None:
                return
            told, asked, replayed = int(saved["told"]), int(saved["asked"]), int(saved["replayed"])
            open_ = {int(number): tuple(candidate) for number, candidate, *_ in saved["open"]}
            usable = self._journal.passes(saved["journal"])
            if self._loop.execution.window and saved["n_trials"] <= asked < self._loop.n_trials:
                usable = (
                    False  # a run of more trials would have asked on before the last ones were told
                )
            if not usable:
                return
            incumbents = _new_incumbents(self._loop)
            incumbents.restore(self._journal.contents, told, replayed, saved["open"])
            self._searcher.load_state_dict(saved["state"])
        except (RunError, SearcherError, LookupError, TypeError, ValueError) as error:
            folder.log(f"searcher.json cannot be used, told again from the journal: {error!r}")
            return
        self._told, self._asked, self._replayed, self._open = told, asked, replayed, open_
        self._incumbents = incumbents

    def _replay(self) -> None:
        """Repeats the calls that the journal has, in its order (asynchronous)."""
        contents = self._journal.contents
        for number in contents.order[self._replayed :]:
            if number >= 0:
                proposed = self._proposed(1, ahead=True)
                self._check(number, proposed.get(number, ()), contents.asked[number])
            elif ~number in self._open:
                self._tell(contents.trials[~number])
            else:
                msg = f"{self._loop.folder.journal} is damaged: trial {~number} has finished, but was never asked for"
                raise RunError(msg)


def _new_incumbents(loop: Loop) -> Incumbents:
    """Returns the bars of a search that has not begun."""
    return Incumbents(loop.evaluator, loop.searcher, loop.execution, competing=loop.competing)
